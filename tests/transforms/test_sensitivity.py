"""The claim behind every sigma: with or without one user, whoever else is there, the exact sums are that close."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa

from tests.transforms.example import contributions, encoded, ids, items, pseudonym
from transforms import bounding
from transforms.release import cooccurrence, counts, selection

KEY = bytes(32)
ITEMS = "abcdef"
L0, LINF = 2, 3
users = st.sampled_from(["ann", "bob", "cat"])
rows = st.lists(
    st.tuples(users, st.sampled_from(ITEMS), st.sampled_from(["view", "buy"]), st.integers(1, 9), st.floats(1e-3, 1e3)),
    unique_by=lambda row: row[:3],
    max_size=25,
)


def bounded(table: pa.Table) -> pa.Table:
    return bounding.cap_events(bounding.bound_partitions(table, ["item_id", "event_type"], L0, KEY), LINF)


def counted(table: pa.Table, metric: str) -> np.ndarray:
    exact = counts.exact_counts(table).to_pylist()
    found = {(row["item_id"], row["event_type"]): row[metric] for row in exact}
    return np.array([found.get((item, kind), 0) for item in ITEMS for kind in ("view", "buy")], float)


def scored(table: pa.Table) -> np.ndarray:
    found = {row["item_id"]: row["score"] for row in selection.score_table(table, L0, KEY).to_pylist()}
    return np.array([found.get(item, 0) for item in ITEMS]) / 2.0**selection.GRID_BITS


def paired(table: pa.Table) -> np.ndarray:
    """(diagonal, sqrt(2) * upper triangle), whose norm is the matrix's."""
    [(_, sums)] = cooccurrence.partial_sums(table, items(*ITEMS))
    upper = np.triu_indices(len(ITEMS), 1)
    return np.r_[np.diag(sums), math.sqrt(2) * sums[upper]] / 2.0**cooccurrence.GRID_BITS


VECTORS = [
    (lambda table: counted(bounded(table), "users"), math.sqrt(L0)),
    (lambda table: counted(bounded(table), "events"), math.sqrt(L0) * LINF),
    (scored, 1.0),
    (paired, 1.0),
]


@hypothesis.given(rows, users)
def test_neighbours_are_within_the_claimed_sensitivity(given, user):
    one, other = contributions(*given), contributions(*[row for row in given if row[0] != user])
    for vector, sensitivity in VECTORS:
        assert np.linalg.norm(vector(one) - vector(other)) <= sensitivity * (1 + 1e-12)


def test_without_bounds_they_would_not_be():
    """The control: one user on everything, neither bounded nor scaled."""
    greedy = contributions(*[("ann", item, kind, 9) for item in ITEMS for kind in ("view", "buy")])
    assert np.linalg.norm(counted(greedy, "users")) > math.sqrt(L0)
    assert np.linalg.norm(counted(greedy, "events")) > math.sqrt(L0) * LINF
    weights = bounding.user_rows(greedy, ids(*ITEMS)).weights
    assert np.linalg.norm((weights.T @ weights).toarray()) > 1


@hypothesis.given(st.lists(st.tuples(st.integers(0, 4), users, st.sampled_from(ITEMS)), max_size=20), users, st.integers(1, 5))
def test_from_events_on_a_user_counts_the_same_whoever_else_is_there(given, user, batches):
    """Repeats, splits and merges too: others' events, ids like one's own, and how rows are batched move nothing."""

    def contributed(events: list[tuple]) -> set[tuple]:
        full = [(event_id, pseudonym(name), item, "view", None) for event_id, name, item in events]
        parts = [full[start::batches] for start in range(batches)]
        tables = [encoded(part, bounding.BUCKET_EVENTS) for part in parts]
        split = [part for table in tables for _, part in bounding.split_by_bucket(table, 1)]
        merged = bounding.contributions(split, {"view": 1.0}).to_pylist()
        return {tuple(row.values()) for row in merged if row["privacy_id"] == pseudonym(user)}

    assert contributed(given) == contributed([row for row in given if row[1] == user])


def test_one_user_with_everything_and_one_item_of_all_users():
    """Skew: a bucket whose events are one user's, and a partition that everybody is in."""
    n = 200_000
    one = pa.table(
        {
            "event_id": np.arange(n, dtype=np.uint64) // 2,
            "privacy_id": pa.array([bytes(16)] * n, pa.binary(16)),
            "item_id": pa.array([f"i{i}" for i in range(1000)]).dictionary_encode().take(pa.array(np.arange(n) // 2 % 1000)),
            "event_type": pa.array(["view"]).dictionary_encode().take(pa.array(np.zeros(n, np.int32))),
        }
    )
    merged = bounding.contributions([one], {"view": 1.0})
    assert merged["events"].to_pylist() == [n // 2000] * 1000
    assert bounded(merged)["events"].to_pylist() == [LINF] * L0
    everybody = [i.to_bytes(16) for i in range(50_000)]
    crowd = encoded([(None, user, "a", "view", None) for user in everybody], bounding.BUCKET_EVENTS)
    parts: dict[int, list[pa.Table]] = {}
    for bucket, part in bounding.split_by_bucket(crowd, 16):
        parts.setdefault(bucket, []).append(part)
    tables = [counts.exact_counts(bounded(bounding.contributions(part, {"view": 1.0}))) for part in parts.values()]
    assert counts.add_counts(tables)["users"].to_pylist() == [50_000]
