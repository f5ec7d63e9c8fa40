"""Tables come back from the shuffle as they went in."""

import apache_beam as beam
import pyarrow as pa
import pytest

from tests.transforms.example import contributions, encoded
from transforms import bounding, coders, codes

ROWS = contributions(("ann", "a"), ("bob", "b", "buy", 3, 2.0), ("cat", "a"))


@pytest.mark.parametrize(
    "table",
    [
        ROWS,
        ROWS.slice(1, 1),
        ROWS.slice(0, 0),
        pa.concat_tables([ROWS, ROWS]),
        ROWS.set_column(1, "item_id", ROWS["item_id"].cast("string")).slice(1),
    ],
    ids=["whole", "slice", "empty", "two chunks", "slice of text"],
)
def test_a_table_comes_back_as_it_was(table):
    coder = coders.TableCoder()
    assert coder.decode(coder.encode(table)).equals(table)


def test_beam_uses_it_for_tables():
    assert isinstance(beam.coders.registry.get_coder(pa.Table), coders.TableCoder)


def test_a_part_takes_only_its_own_rows_and_values_along():
    users = [bytes([i]) * 16 for i in range(100)]
    batch = encoded([(i, user, f"item {i}", "view", None) for i, user in enumerate(users)], bounding.BUCKET_EVENTS)
    for _, part in bounding.split_by_bucket(batch, 16):
        back = coders.TableCoder().decode(coders.TableCoder().encode(part))
        assert sorted(codes.values(back, "item_id").to_pylist()) == sorted(back["item_id"].to_pylist())


def test_events_take_few_bytes_through_the_shuffle():
    """A 64-bit hash of the event id, 16 bytes for the user, and codes for item and type."""
    n = 100_000
    users = [i.to_bytes(8) * 2 for i in range(n)]
    batch = encoded([(i, user, f"item-{i % 500}", "view", None) for i, user in enumerate(users)], bounding.BUCKET_EVENTS)
    parts = [coders.TableCoder().encode(part) for _, part in bounding.split_by_bucket(batch, 16)]
    assert sum(map(len, parts)) / n < 32
