"""Tables come back from the shuffle as they went in."""

import apache_beam as beam
import pyarrow as pa
import pytest

from tests.transforms.example import contributions
from transforms import bounding, coders

ROWS = contributions(("ann", "a"), ("bob", "b", "buy", 3, 2.0), ("cat", "a"))


@pytest.mark.parametrize(
    "table",
    [
        ROWS,
        ROWS.slice(1, 1),
        ROWS.slice(0, 0),
        pa.concat_tables([ROWS, ROWS]),
        ROWS.set_column(1, "item_id", ROWS["item_id"].dictionary_encode()).slice(1),
    ],
    ids=["whole", "slice", "empty", "two chunks", "slice of a dictionary"],
)
def test_a_table_comes_back_as_it_was(table):
    coder = coders.TableCoder()
    assert coder.decode(coder.encode(table)).equals(table)


def test_beam_uses_it_for_tables():
    assert isinstance(beam.coders.registry.get_coder(pa.Table), coders.TableCoder)


def test_a_slice_takes_only_its_own_rows_along():
    long = pa.concat_tables([ROWS] * 1000).combine_chunks()
    assert len(coders.TableCoder().encode(long.slice(5, 10))) < len(coders.TableCoder().encode(long)) / 50


def test_events_take_few_bytes_through_the_shuffle():
    """The ids of user and event, an index for item and type, the weight: below 48 bytes with a 7-digit event id."""
    n = 100_000
    users = [bytes([i % 251, i % 241]) * 8 for i in range(n)]
    batch = pa.table(
        [[f"{i:07d}" for i in range(n)], users, [f"item-{i % 500}" for i in range(n)], ["view"] * n, [1.0] * n],
        schema=bounding.BUCKET_EVENTS,
    )
    encoded = [coders.TableCoder().encode(part) for _, part in bounding.split_by_bucket(batch, 16)]
    assert sum(map(len, encoded)) / n < 48
