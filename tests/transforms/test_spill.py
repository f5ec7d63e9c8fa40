"""Rows that wait on disk come back as they were, and nobody else may read them."""

import pathlib
import stat

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that

from data import files
from runners import direct
from tests.transforms.example import contributions, encoded, pseudonym
from transforms import bounding, spill

ROWS = contributions(("ann", "a"), ("bob", "b", "buy", 3, 2.0), ("cat", "a"))
WEIGHTS = {"view": 1.0}


@pytest.fixture(params=["path", "object store"])
def place(request, tmp_path) -> str:
    """Where rows can wait."""
    return str(tmp_path) if request.param == "path" else request.getfixturevalue("bucket")


def test_tables_come_back_as_they_were(place):
    parts = [ROWS.slice(0, 1), ROWS.slice(1)]
    assert [spill.read(part) for part in spill.write(place, parts)] == parts


def test_large_tables_come_back(place):
    numbers = pa.table({"n": range(300_000)}).combine_chunks()
    assert [spill.read(part) for part in spill.write(place, [numbers, numbers])] == [numbers] * 2


def test_a_table_that_can_not_be_made_leaves_nothing_in_an_object_store(bucket):
    with pytest.raises(pa.ArrowInvalid):
        spill.write(bucket, [ROWS, pa.table({"other": [1]})])
    assert files.names(bucket) == []


def test_a_table_that_never_left_memory_is_given_back():
    assert spill.read(ROWS) is ROWS


def test_only_the_owner_may_read(tmp_path):
    [part] = spill.write(str(tmp_path), [ROWS])
    assert stat.S_IMODE(pathlib.Path(part.path).stat().st_mode) == 0o600


def test_nothing_makes_no_file(tmp_path):
    assert spill.write(str(tmp_path), []) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("buckets", [1, 7])
def test_buckets_are_the_same_on_disk_and_in_memory(tmp_path, buckets):
    """What is counted doesn't hang on where rows waited."""
    rows = [(i, pseudonym(f"u{i % 5}"), f"i{i % 3}", "view", None) for i in range(40)]
    batches = [encoded(rows[start::3], bounding.BUCKET_EVENTS) for start in range(3)]

    def as_rows(tables):
        return sorted(tuple(row.values()) for table in tables for row in spill.read(table).to_pylist())

    expected = as_rows([bounding.contributions(batches, WEIGHTS)])

    def check(tables):
        assert as_rows(tables) == expected

    for directory in (None, str(tmp_path)):
        with beam.Pipeline(options=direct.options([])) as pipeline:
            given = pipeline | beam.Create(batches, reshuffle=False)
            assert_that(given | bounding.GroupByUser(buckets, WEIGHTS, directory), check)
    assert any(tmp_path.iterdir())
