"""Bounding: exact rows, and no user's rows hang on another's."""

import apache_beam as beam
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that

from runners import direct
from tests.transforms.example import contributions, encoded, ids, pseudonym
from transforms import bounding

KEY = bytes(range(32))
WEIGHTS = {"view": 1.0, "buy": 2.0}


def events(*rows: tuple) -> pa.Table:
    """BUCKET_EVENTS from (event_id, user, item, value)."""
    full = [(event_id, pseudonym(user), item, "view", value) for event_id, user, item, value in rows]
    return encoded(full, bounding.BUCKET_EVENTS)


def joined(*rows: tuple) -> pa.Table:
    """The same as one bucket has them."""
    return bounding.join([events(*rows)])


def as_set(table: pa.Table) -> set[tuple]:
    return {tuple(row.values()) for row in table.to_pylist()}


def test_repeats_are_dropped_per_user():
    given = joined((1, "ann", "b", 1.0), (1, "ann", "a", 1.0), (1, "bob", "a", 1.0), (2, "ann", "b", 1.0))
    expected = joined((1, "ann", "a", 1.0), (1, "bob", "a", 1.0), (2, "ann", "b", 1.0))
    assert as_set(bounding.drop_repeats(given)) == as_set(expected)


def test_events_without_an_id_are_all_kept():
    given = joined((None, "ann", "a", 1.0), (1, "ann", "a", 1.0), (None, "ann", "a", 1.0), (1, "ann", "a", 1.0))
    assert bounding.drop_repeats(given).num_rows == 3
    assert bounding.drop_repeats(given.slice(0, 0)) == given.slice(0, 0)


def test_which_copy_stays_does_not_hang_on_the_order_of_arrival():
    copies = [(1, "ann", "b", 2.0), (1, "ann", "b", 1.0), (1, "ann", "a", 9.0)]
    kept = [as_set(bounding.drop_repeats(joined(*order))) for order in (copies, copies[::-1])]
    assert kept[0] == kept[1] == as_set(joined((1, "ann", "a", 9.0)))


def test_a_users_events_on_an_item_become_one_row():
    ann = [(None, "ann", "a", 1.0), (None, "ann", "a", 3.0), (None, "ann", "b", 2.0)]
    given = joined(*ann, (None, "bob", "a", 1.0))
    expected = contributions(("ann", "a", "view", 2, 3.0), ("ann", "b", "view", 1, 2.0), ("bob", "a", "view", 1, 1.0))
    assert as_set(bounding.merge(given, WEIGHTS)) == as_set(expected)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_at_most_so_many_partitions_of_each_user_are_kept(limit):
    given = contributions(*[(user, item) for user in ("ann", "bob") for item in "abc"])
    bounded = bounding.bound_partitions(given, ["item_id", "event_type"], limit, KEY)
    kept = bounded["privacy_id"].to_pylist()
    assert {user: kept.count(pseudonym(user)) for user in ("ann", "bob")} == dict.fromkeys(("ann", "bob"), min(limit, 3))
    assert as_set(bounded) <= as_set(given)


def test_what_is_kept_is_fixed_across_versions():
    """Golden rows: a change here means that a retry after an upgrade would count other rows."""
    given = contributions(*[("ann", item) for item in "abcdefgh"])
    bounded = bounding.bound_partitions(given, ["item_id", "event_type"], 3, KEY)
    assert bounded["item_id"].to_pylist() == ["b", "d", "f"]


def test_the_choice_is_even_over_items():
    given = contributions(*[(f"u{user}", item) for user in range(3000) for item in "abcde"])
    bounded = bounding.bound_partitions(given, ["item_id"], 2, KEY)
    counts = np.array([bounded["item_id"].to_pylist().count(item) for item in "abcde"])
    # Each is kept with probability 2/5; five binomials, false alarm rate below 1e-6 (5.3 standard deviations).
    assert np.all(np.abs(counts - 1200) < 5.3 * np.sqrt(3000 * 0.4 * 0.6))


rows_of_users = st.lists(
    st.tuples(st.sampled_from(["ann", "bob", "cat"]), st.sampled_from("abcdef"), st.sampled_from(["view", "buy"])),
    unique=True,
    max_size=30,
)


@hypothesis.given(rows_of_users, st.integers(1, 4), st.randoms(use_true_random=False))
def test_a_user_is_bounded_the_same_whoever_else_is_there_and_in_whatever_order(rows, limit, random):
    together = contributions(*random.sample(rows, len(rows)))
    bounded = as_set(bounding.bound_partitions(together, ["item_id", "event_type"], limit, KEY))
    for user in ("ann", "bob", "cat"):
        alone = contributions(*[row for row in rows if row[0] == user])
        expected = as_set(bounding.bound_partitions(alone, ["item_id", "event_type"], limit, KEY))
        assert {row for row in bounded if row[0] == pseudonym(user)} == expected


def test_events_in_a_partition_are_capped():
    given = contributions(("ann", "a", "view", 9), ("bob", "a", "view", 2))
    assert bounding.cap_events(given, 3)["events"].to_pylist() == [3, 2]


def test_user_rows_hold_each_users_largest_weight_by_item():
    given = contributions(("ann", "a", "view", 1, 1.0), ("ann", "a", "buy", 1, 2.0), ("ann", "z"), ("bob", "b", "view", 1, 0.5))
    users = bounding.user_rows(given, ids("a", "b"))
    rows = dict(zip(users.privacy_ids.to_pylist(), users.weights.toarray().tolist(), strict=True))
    assert rows == {pseudonym("ann"): [2.0, 0.0], pseudonym("bob"): [0.0, 0.5]}


@pytest.mark.parametrize("buckets", [1, 7])
def test_all_rows_of_a_user_meet_in_one_bucket(buckets):
    batches = [events((1, "ann", "a", 1.0), (1, "bob", "b", 1.0)), events((1, "ann", "a", 1.0))]

    def check(tables):
        seen = [row for table in tables for row in as_set(table)]
        assert sorted(seen) == sorted(as_set(contributions(("ann", "a"), ("bob", "b"))))
        users = [set(table["privacy_id"].to_pylist()) for table in tables]
        assert sum(map(len, users)) == len(set().union(*users))

    with beam.Pipeline(options=direct.options([])) as pipeline:
        assert_that(pipeline | beam.Create(batches) | bounding.GroupByUser(buckets, WEIGHTS), check)


def test_buckets_split_a_sliced_batch_by_its_own_rows():
    given = events((1, "ann", "a", 1.0), (2, "bob", "b", 1.0), (3, "cat", "c", 1.0))
    parts = dict(bounding.split_by_bucket(given.slice(1), 1))
    assert as_set(parts[0]) == as_set(given.slice(1))


@pytest.mark.parametrize("buckets", [0, 65_537])
def test_no_bucket_and_too_many_are_refused(buckets):
    with pytest.raises(ValueError, match=r"buckets must be in 1\.\.65536, not"):
        bounding.GroupByUser(buckets, WEIGHTS)


@pytest.mark.parametrize(("rows", "buckets"), [(0, 16), (5_000_000, 16), (50_000_000, 96), (10**12, 65_536)])
def test_there_are_buckets_enough_for_the_events(rows, buckets):
    assert bounding.buckets_for(rows) == buckets


@pytest.mark.parametrize("size", [3, 40])
def test_ties_of_hashes_are_broken_by_their_low_bits(size):
    """Equal in the 40 bits that are sorted first: the others decide."""
    hashed = np.arange(size, dtype=np.uint64)[::-1].copy()
    kept = bounding._smallest(hashed, np.array([size]), 2)
    assert np.flatnonzero(kept).tolist() == [size - 2, size - 1]
