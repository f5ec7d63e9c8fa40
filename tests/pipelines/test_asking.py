"""Held-out users: chosen by their own names alone, and asked one by one."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from models import evaluation as metrics
from models import ranking, splits
from pipelines import asking
from tests.transforms.example import contributions
from transforms import bounding
from transforms.privacy import keyed_hash
from transforms.release import evaluation

ITEMS = [f"i{number:02}" for number in range(40)]
RNG = np.random.default_rng(3)
PEOPLE = [
    (f"user{user}", f"i{item:02}")
    for user in range(60)
    for item in sorted(RNG.choice(50, int(RNG.integers(1, 20)), replace=False))
]
"""Ten of the items are in no model."""


@pytest.fixture(scope="module")
def measure() -> asking.Measure:
    columns = np.arange(len(ITEMS))
    item, history = RNG.standard_normal((2, len(ITEMS), 16)).astype(np.float32)
    scores = [ranking.same_for_all(RNG.random(len(ITEMS)), columns), ranking.fold_in(item, history, 0.0, columns)]
    return asking.Measure({name: number for number, name in enumerate(ITEMS)}, scores, 5, seed=1)


def test_an_answer_hangs_on_nobody_else_to_the_last_bit(measure):
    """Whoever is in the bucket, and in whatever order its items come: sums of one user at a time are those of all."""
    n_values = len(asking.METRICS) * 2
    orders = [PEOPLE, PEOPLE[::-1], [PEOPLE[place] for place in RNG.permutation(len(PEOPLE))]]
    together = [evaluation.exact_sums(contributions(*order), measure, n_values) for order in orders]
    alone = [
        evaluation.exact_sums(contributions(*[row for row in PEOPLE if row[0] == user]), measure, n_values)
        for user in dict.fromkeys(user for user, _ in PEOPLE)
    ]
    for found in together:
        assert found.tolist() == np.sum(alone, axis=0).tolist()
    assert together[0][0] > 20 << evaluation.GRID_BITS


def test_items_by_their_places_in_a_bucket_would_hang_on_others(measure, monkeypatch):
    """The control: a hash of the place among all that the bucket has."""
    everything = sorted({item for _, item in PEOPLE})

    def sums(rows: list, place: dict) -> np.ndarray:
        def by_place(items: pa.Array, _: bytes) -> np.ndarray:
            return np.array([[place[item], 0] for item in items.to_pylist()], np.uint64)

        monkeypatch.setattr(keyed_hash, "keyed_hash", by_place)
        return evaluation.exact_sums(contributions(*rows), measure, len(asking.METRICS) * 2)

    of_one, of_other = ({item: number for number, item in enumerate(order)} for order in (everything, everything[::-1]))
    assert sums(PEOPLE, of_one).tolist() != sums(PEOPLE, of_other).tolist()


def test_answers_are_the_metrics_of_the_ranked_lists(measure):
    """By the same functions over all users at once, as the exact evaluation has them."""
    rows = [(user, item) for user, item in PEOPLE if item in ITEMS]
    users = dict(bounding.items_of_users(contributions(*rows)))
    met = [
        (user, name, measure.place[item])
        for user, items in users.items()
        for item, name in zip(items.to_pylist(), keyed_hash.keyed_hash(items, bytes(32))[:, 0].astype(np.int64), strict=True)
    ]
    user, name, place = (
        np.array(column, kind) for column, kind in zip(zip(*met, strict=True), ("u8", "i8", "i8"), strict=True)
    )
    by_name = splits.by_users(splits.Interactions(user, name, place), 1 - 1e-12, measure.seed)
    interactions = splits.Interactions(user, place, place)
    asked = np.unique(user[by_name.hidden])
    history, hidden = (splits.matrix(interactions, rows, asked, len(ITEMS)) for rows in (by_name.history, by_name.hidden))
    lists = [ranking.rank(score, history, measure.k) for score in measure.scores]
    expected = np.stack(
        [of(shown, hidden) for shown in lists for of in (metrics.recall_at_k, metrics.ndcg_at_k, metrics.mrr)], axis=1
    )
    found = [measure(int(each), users[int(each)]) for each in asked]
    np.testing.assert_allclose(np.array(found), expected, atol=1e-12)
    assert [measure(each, items) is None for each, items in users.items()] == [len(items) < 5 for items in users.values()]


def test_hidden_items_that_no_model_knows_are_misses(measure):
    found = measure(7, pa.array([f"new{number}" for number in range(10)]))
    assert found.tolist() == [0.0] * 6
    nothing = dataclasses.replace(measure, place={}, scores=[ranking.fold_in(*[np.zeros((0, 1))] * 2, 0.0, np.zeros(0, int))])
    assert nothing(7, pa.array(ITEMS)).tolist() == [0.0] * 3


def test_who_is_held_out_has_nothing_to_do_with_buckets_and_bounds():
    """Chi-squared and binomial at a flake probability of 1e-6 each."""
    pseudonyms = pa.array([RNG.bytes(16) for _ in range(20_000)], pa.binary(16))
    is_held_out = asking._is_held_out(pseudonyms, 0.2, 0)
    n = int(is_held_out.sum())
    assert stats.binom.ppf(5e-7, 20_000, 0.2) <= n <= stats.binom.isf(5e-7, 20_000, 0.2)
    bucket = bounding.user_hash(pseudonyms) % 16
    table = np.array([[np.sum((bucket == each) & (is_held_out == held)) for each in range(16)] for held in (True, False)])
    assert stats.chi2_contingency(table).pvalue > 1e-6
    rows = pa.table(
        {
            "privacy_id": pseudonyms.dictionary_encode().take(pa.array(np.repeat(np.arange(20_000), 2))),
            "item_id": pa.array(["a", "b"] * 20_000).dictionary_encode(),
        }
    )
    kept = bounding.bound_partitions(rows, ["item_id"], 1, bytes(32))
    has_a = np.array(kept["item_id"].to_pylist()) == "a"
    table = np.array([[np.sum((has_a == which) & (is_held_out == held)) for which in (True, False)] for held in (True, False)])
    assert stats.chi2_contingency(table).pvalue > 1e-6
    other = asking._is_held_out(pseudonyms, 0.2, 1)
    assert stats.binom.ppf(5e-7, n, 0.2) <= np.sum(is_held_out & other) <= stats.binom.isf(5e-7, n, 0.2)
