"""The operator's counts of a release: in its run record before anything is published, and in no other place."""

import json

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from data import ledger, store
from runners import direct
from tests.transforms.example import encoded, pseudonym
from transforms import bounding
from transforms.release import tally

GRANT = ledger.Grant("r", 1, ledger.RESERVED)
ROWS = [(1, "ann", "a"), (1, "ann", "a"), (1, "ann", "b"), (1, "bob", "a"), (None, "bob", "a"), (None, "bob", "a")]


def run(tmp_path, directory, rows, grants):
    """Counts rows that are (event_id, user, item), two dead letters and a late one; expects the grants again."""
    batches = [encoded([(i, pseudonym(user), item, "view", None)], bounding.BUCKET_EVENTS) for i, user, item in rows]
    kept = store.Store(tmp_path)
    kept.write_run_record("one", {"outcomes": {"ok": len(rows), "late": 7}})
    with beam.Pipeline(options=direct.options([])) as root:
        buckets = root | beam.Create(batches) | bounding.GroupByUser(4, {"view": 1.0}, directory)
        letters = root | "Letters" >> beam.Create([json.dumps({"reason": reason}) for reason in ("not UTF-8", "?", "late")])
        granted = root | "Grants" >> beam.Create(grants)
        assert_that(buckets | tally.NoteCounts(letters, granted, str(tmp_path), "one"), equal_to(grants))
    return kept.run_record("one")


@pytest.mark.parametrize("has_files", [False, True], ids=["in memory", "in files"])
def test_repeats_are_what_counts_less_what_is_left(tmp_path, has_files):
    (tmp_path / "spill").mkdir()
    record = run(tmp_path, str(tmp_path / "spill") if has_files else None, ROWS, [GRANT])
    assert record == {"outcomes": {"ok": 6, "late": 7}, "repeated": 2, "dead_letters": 2}


def test_without_events_there_are_no_repeats(tmp_path):
    assert run(tmp_path, None, [], [GRANT])["repeated"] == 0


def test_what_is_refused_has_no_counts(tmp_path):
    assert run(tmp_path, None, ROWS, []) == {"outcomes": {"ok": 6, "late": 7}}


def test_repeats_are_counted_of_a_bucket_as_it_was_grouped():
    batch = encoded([(i, pseudonym(user), item, "view", None) for i, user, item in ROWS], bounding.BUCKET_EVENTS)
    assert bounding.repeated(bounding.contributions([batch], {"view": 1.0})) == 2
    assert bounding.repeated(bounding.contributions([], {"view": 1.0})) == 0
