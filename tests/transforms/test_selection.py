"""Selection: exact scores, who may appear, and noise of the claimed size."""

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from pipeline_dp import partition_selection
from scipy import stats

from data import tables
from tests.transforms.example import contributions, ids, run
from transforms.privacy import budget, noise
from transforms.release import selection

ONE = 2**selection.GRID_BITS
KEY = bytes(32)


def params(**changes) -> selection.SelectionParams:
    """Almost no noise, three public items, all kept."""
    given = {
        "mechanism": budget.Mechanism(budget.SELECTION, 1e-6),
        "max_partitions_contributed": 10,
        "public_items": ids("a", "b", "c"),
        "max_items": 3,
        "cooccurrence_sd": 1.0,
        "expected_users": 100,
    }
    return selection.SelectionParams(**{**given, **changes})


def scores(**values: float) -> pa.Table:
    return pa.table([list(values), [int(value * ONE) for value in values.values()]], schema=selection.SCORES)


def test_each_user_adds_one_over_root_t_rounded_down():
    rows = sp.csr_matrix(np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]))
    third = int(ONE / np.sqrt(3))
    half = int(ONE / np.sqrt(2))
    assert selection.exact_scores(rows).tolist() == [half + ONE + third, half + third, third, 0]


@pytest.mark.parametrize("t", [1, 2, 3, 7, 1000])
def test_one_users_scores_have_norm_one_at_most(t):
    exact = selection.exact_scores(sp.csr_matrix(np.ones((1, t))))
    assert sum(int(score) ** 2 for score in exact) <= ONE**2


def test_a_bucket_is_scored_with_each_user_bounded():
    table = selection.score_table(contributions(("ann", "a"), ("ann", "a", "buy"), ("bob", "a"), ("bob", "b")), 10, KEY)
    half = int(ONE / np.sqrt(2))
    assert sorted(table.to_pylist(), key=str) == [{"item_id": "a", "score": ONE + half}, {"item_id": "b", "score": half}]
    bounded = selection.score_table(contributions(*[("ann", item) for item in "abcdef"]), 1, KEY)
    assert bounded["score"].to_pylist() == [ONE]


def test_scores_of_buckets_add_up():
    added = selection.add_scores([scores(a=1.0, b=2.0), scores(), scores(a=0.5)])
    assert sorted(added.to_pylist(), key=str) == [{"item_id": "a", "score": ONE * 3 // 2}, {"item_id": "b", "score": 2 * ONE}]


@pytest.mark.parametrize("exact", [scores(), scores(b=3.0)], ids=["nobody", "one item"])
def test_every_public_item_is_released_whoever_is_there(exact):
    released = selection.release_scores(exact, params())
    assert released.schema == tables.ITEMS
    assert sorted(released["item_id"].to_pylist()) == ["a", "b", "c"]
    assert sorted(released["position"].to_pylist()) == [0, 1, 2]


def test_items_are_ranked_and_the_best_kept():
    released = selection.release_scores(scores(a=1.0, b=3.0, c=2.0), params(max_items=2))
    assert released["item_id"].to_pylist() == ["b", "c", "a"]
    assert released["position"].to_pylist() == [0, 1, None]
    assert released["score"].to_pylist() == pytest.approx([3.0, 2.0, 1.0], abs=1e-4)


def test_without_public_items_only_those_above_the_threshold_appear():
    mechanism = budget.Mechanism(budget.SELECTION, 0.1, delta=1e-6)
    limit = selection.threshold(0.1, 1e-6, 10)
    exact = scores(common=limit + 1.0, rare=limit - 1.0)
    released = selection.release_scores(exact, params(public_items=None, mechanism=mechanism))
    assert released["item_id"].to_pylist() == ["common"]


@pytest.mark.parametrize("t", [1, 2, 5, 10])
def test_the_threshold_hides_a_users_own_items_with_probability_one_minus_delta(t):
    sigma, delta = 2.0, 1e-3
    shown_alone = stats.norm.sf((selection.threshold(sigma, delta, 10) - 1 / np.sqrt(t)) / sigma)
    assert 1 - (1 - shown_alone) ** t <= delta * (1 + 1e-9)
    # The control: the threshold for a single item is too low for several.
    single = 1 + sigma * stats.norm.isf(delta)
    if t == 10:
        assert 1 - stats.norm.cdf((single - 1 / np.sqrt(t)) / sigma) ** t > delta


@pytest.mark.parametrize(("drawn", "accepted"), [(3.0, True), (0.7 * 3.0, False), (1.3 * 3.0, False)])
def test_noise_has_the_charged_scale(drawn, accepted):
    public = ids(*map(str, range(20_000)))
    mechanism = budget.Mechanism(budget.SELECTION, drawn)
    released = selection.release_scores(scores(), params(public_items=public, mechanism=mechanism))
    sample = released["score"].to_numpy() / 3.0
    # Fresh keys: Kolmogorov-Smirnov at a flake probability of 1e-6.
    assert (stats.kstest(sample, "norm").pvalue > 1e-6) == accepted


@pytest.mark.parametrize(("scale", "accepted"), [(1.0, True), (0.7, False)])
def test_an_item_is_shown_as_often_as_by_pipelinedp(monkeypatch, scale, accepted):
    """Where each user has one item both mechanisms are the same: 20,000 items of n users, for some n about the threshold."""
    sigma, delta, n_items = 3.0, 1e-4, 20_000
    draw = noise.draw
    monkeypatch.setattr(noise, "draw", lambda source, size, noise_sd, bits: draw(source, size, scale * noise_sd, bits))
    theirs = partition_selection.create_gaussian_thresholding(sigma, delta, 1)
    ours = params(
        mechanism=budget.Mechanism(budget.SELECTION, sigma, delta=delta),
        max_partitions_contributed=1,
        public_items=None,
        max_items=n_items,
    )
    names = [str(number) for number in range(n_items)]
    agree = []
    for users in (6, 9, 12, 15, 18):
        exact = pa.table([names, [users * ONE] * n_items], schema=selection.SCORES)
        shown = [selection.release_scores(exact, ours).num_rows, sum(theirs.should_keep(users) for _ in range(n_items))]
        pvalue = stats.fisher_exact([shown, [n_items - count for count in shown]]).pvalue
        # Flake probability 1e-6 for the five together.
        agree.append(pvalue > 2e-7)
    assert all(agree) == accepted


@pytest.mark.parametrize(("grants", "tables_released"), [([], 0), (["release"], 1)], ids=["refused", "granted"])
def test_no_score_is_drawn_without_a_grant(grants, tables_released):
    def build(pipeline):
        granted = pipeline | "Grants" >> beam.Create(grants, reshuffle=False)
        buckets = pipeline | "Buckets" >> beam.Create([contributions(("ann", "a"))])
        return buckets | selection.ReleaseSelection(params(), granted, KEY)

    assert len(run(build)) == tables_released


def test_how_many_items_to_keep_follows_from_signal_and_noise():
    falling = 1e4 / np.arange(1, 2001)
    norm = np.linalg.norm(falling)
    # 1e4 / m * norm / users >= 0.02 * sd * m
    expected = [int(np.sqrt(1e4 * norm / 10_000 / (0.02 * sd))) for sd in (1.0, 5.0, 50.0)]
    assert [selection.items_to_keep(falling, sd, 10_000, 2000) for sd in (1.0, 5.0, 50.0)] == expected
    assert len(set(expected)) == 3


@pytest.mark.parametrize(
    ("scores", "most", "kept"),
    [(-np.ones(100), 100, 50), (-np.ones(3), 100, 3), (1e9 * np.ones(100), 70, 70)],
    ids=["noise alone", "few items", "a full matrix"],
)
def test_how_many_items_to_keep_has_bounds(scores, most, kept):
    assert selection.items_to_keep(scores, 5.0, 100, most) == kept
