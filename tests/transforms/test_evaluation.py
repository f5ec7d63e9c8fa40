"""Evaluation of models on held-out users: what one user can change, the noise that is charged, and intervals that hold."""

import datetime as dt

import apache_beam as beam
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from data import ledger, tables
from tests.transforms.example import contributions, encoded, pseudonym, run
from transforms import bounding
from transforms.privacy import budget
from transforms.release import evaluation, holding_out

START, END = dt.datetime(2025, 1, 1, tzinfo=dt.UTC), dt.datetime(2025, 2, 1, tzinfo=dt.UTC)
POPULARITY, MODEL = ("popularity", None), ("hybrid", 3)
METRICS = ["recall", "ndcg"]
N_VALUES = 4


def params(sigma: float, models=(POPULARITY, MODEL), metrics=METRICS) -> evaluation.EvaluationParams:
    sensitivity = evaluation.sensitivity(len(models) * len(metrics))
    mechanism = budget.Mechanism(budget.EVALUATION, sigma, sensitivity)
    return evaluation.EvaluationParams(mechanism, models, metrics, 20, START, END)


users = st.sampled_from(["ann", "bob", "cat"])
anything = st.floats(allow_nan=True, allow_infinity=True)
answers = st.one_of(st.none(), st.lists(anything, min_size=N_VALUES, max_size=N_VALUES).map(np.array))
rows = st.lists(st.tuples(users, st.sampled_from("abcdef")), unique=True, max_size=18)


def hash_of(user: str) -> int:
    return int.from_bytes(pseudonym(user)[:8], "little")


@hypothesis.given(rows, st.fixed_dictionaries(dict.fromkeys(["ann", "bob", "cat"], answers)), users)
def test_neighbours_are_within_the_claimed_sensitivity_whatever_is_measured(given, of, user):
    said = {hash_of(name): values for name, values in of.items()}
    one, other = contributions(*given), contributions(*[row for row in given if row[0] != user])
    exact = [evaluation.exact_sums(table, lambda name, _: said[name], N_VALUES) for table in (one, other)]
    # In integers: doubles have the last bit of such sums.
    squares = sum(int(step) ** 2 for step in exact[0] - exact[1])
    assert squares <= (1 + N_VALUES / 4) * 4**evaluation.GRID_BITS


@pytest.mark.parametrize("values", [[0.0] * N_VALUES, [1.0] * N_VALUES, [0.0, 1.0, 1.0, 0.0]])
def test_the_worst_user_is_exactly_as_far_as_claimed(values):
    norm = np.linalg.norm(np.ldexp(evaluation.quantised(np.array(values)).astype(float), -evaluation.GRID_BITS))
    assert norm == pytest.approx(evaluation.sensitivity(N_VALUES), abs=1e-12)


def test_without_clipping_a_user_would_be_farther_away(monkeypatch):
    """The control."""
    values = np.array([0.0, 1.0, 1.5, 0.0])
    norm = np.linalg.norm(evaluation.quantised(values).astype(float)) / 2**evaluation.GRID_BITS
    assert norm <= evaluation.sensitivity(N_VALUES) * (1 + 1e-12)
    monkeypatch.setattr(np, "clip", lambda given, *_: given)
    unclipped = np.linalg.norm(evaluation.quantised(values).astype(float)) / 2**evaluation.GRID_BITS
    assert unclipped > evaluation.sensitivity(N_VALUES) * 1.1


def test_a_mechanism_for_fewer_values_is_refused():
    mechanism = budget.Mechanism(budget.EVALUATION, 1.0, evaluation.sensitivity(2))
    with pytest.raises(ValueError, match=r"4 values have L2 sensitivity 1\.41.*, not 1\.22"):
        evaluation.EvaluationParams(mechanism, [POPULARITY, MODEL], METRICS, 20, START, END)


def test_a_measure_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"4 values are measured of each user, not \(3,\)"):
        evaluation.exact_sums(contributions(("ann", "a")), lambda *_: np.zeros(3), N_VALUES)


def half_of_ann() -> evaluation.Measure:
    """Ann's values are 1/2 and her number of items; nobody else is asked."""
    asked = {hash_of("ann"): lambda items: np.array([0.5, len(items), 0.25, 0.0])}
    return lambda user, items: asked[user](items) if user in asked else None


@pytest.mark.parametrize("n_grants", [0, 1])
def test_means_are_exact_but_for_noise_and_only_granted_ones_are_drawn(n_grants):
    # Ann's many: each bucket has her once, so that there are users enough for intervals.
    buckets = [contributions(("ann", "a"), ("ann", "a", "buy"), ("bob", "b")) for _ in range(200)]

    def build(pipeline):
        grants = pipeline | "Grants" >> beam.Create([ledger.Grant("r1", 1, "reserved")] * n_grants)
        release = evaluation.ReleaseEvaluation(params(1e-6), grants, half_of_ann)
        return pipeline | "Buckets" >> beam.Create(buckets) | release

    found = run(build)
    assert len(found) == n_grants
    for table in found:
        assert table.schema == tables.EVALUATIONS
        told = [(row["model"], row["version"], row["metric"], round(row["value"], 6)) for row in table.to_pylist()]
        assert told == [(*model, metric, value) for (model, metric), value in zip(
            [(model, metric) for model in (POPULARITY, MODEL) for metric in METRICS], [0.5, 1.0, 0.25, 0.0], strict=True
        )]  # fmt: skip
        assert {(row["release_id"], row["k"], row["users"]) for row in table.to_pylist()} == {("r1", 20, 200)}


def test_nobody_to_ask_is_released_with_noise_alone():
    def build(pipeline):
        grants = pipeline | "Grants" >> beam.Create([ledger.Grant("r1", 1, "reserved")])
        release = evaluation.ReleaseEvaluation(params(3.0), grants, half_of_ann)
        return pipeline | "Buckets" >> beam.Create([contributions(("bob", "b"))]) | release

    [table] = run(build)
    # sd 4.2: 6 standard deviations.
    assert all(abs(users) < 26 for users in table["users"].to_pylist())
    assert set(zip(table["low"].to_pylist(), table["high"].to_pylist(), strict=True)) == {(0.0, 1.0)}


MANY = 1_000_000


@pytest.mark.parametrize(("scale", "accepted"), [(1.0, True), (0.7, False), (1.3, False)])
def test_noise_has_the_charged_scale(scale, accepted):
    """On the sums, all of one release, and on the number of users, of as many releases."""
    wide = params(20.0, [("hybrid", number) for number in range(2000)], ["recall"])
    exact = np.r_[MANY << evaluation.GRID_BITS, np.zeros(2000, np.int64)]
    table = evaluation.release_means(exact, wide, "r1")
    of_sums = (table["value"].to_numpy() - 0.5) * table["users"].to_numpy() / wide.mechanism.noise_sd
    narrow = params(200.0, [POPULARITY], ["recall"])
    drawn = [evaluation.release_means(exact[:2], narrow, "r1")["users"][0].as_py() for _ in range(2000)]
    of_users = (np.array(drawn) - MANY) / narrow.mechanism.noise_sd
    for sample in (of_sums * scale, of_users * scale):
        # The sum of squares is chi-squared: flake probability 1e-6 at the charged scale; the other two are 15 standard
        # deviations off and more.
        squares = float(np.sum(sample**2))
        assert (stats.chi2.ppf(5e-7, 2000) < squares < stats.chi2.isf(5e-7, 2000)) == accepted


def missed(values: np.ndarray, truth: float, noise_sd: float, claimed_sd: float, rounds: int) -> int:
    """How often the interval, of users who are drawn anew each time, doesn't hold the truth."""
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(rounds):
        drawn = rng.choice(values, len(values))
        noise = noise_sd * rng.standard_normal(2)
        shown = evaluation.estimate(np.sum(drawn - 0.5) + noise[0], len(values) + noise[1], claimed_sd)
        found += not shown.low <= truth <= shown.high
    return found


@pytest.mark.parametrize(
    ("values", "noise_sd"),
    [
        (np.full(10_000, 0.9), 500.0),
        (np.repeat([0.0, 1.0], [210, 90]), 10.0),
        (np.repeat([0.0, 1.0], [30, 30]), 20.0),
        (np.repeat([0.0, 1.0], 200), 1e-3),
    ],
    ids=["noise alone", "both", "few users", "range alone"],
)
def test_intervals_cover_the_mean_in_95_percent(values, noise_sd):
    truth = float(values.mean())
    # Binomial(1000, 0.05) at most, flake probability 1e-6.
    most = stats.binom.isf(1e-6, 1000, 0.05)
    assert missed(values, truth, noise_sd, noise_sd, 1000) <= most


@pytest.mark.parametrize(("values", "noise_sd"), [(np.full(10_000, 0.9), 500.0)])
def test_intervals_that_knew_a_tenth_of_the_noise_would_not(values, noise_sd):
    """The control."""
    assert missed(values, 0.9, noise_sd, noise_sd / 10, 1000) > stats.binom.isf(1e-6, 1000, 0.05)


@pytest.mark.parametrize("users", [-50.0, 0.0, 5.0, 25.7])
def test_too_few_users_for_the_noise_have_no_mean(users):
    assert evaluation.estimate(3.0, users, 10.0) == evaluation.Estimate(None, 0.0, 1.0)


def test_an_estimate_stays_in_0_to_1():
    assert evaluation.estimate(600.0, 1000.0, 10.0)[::2] == (1.0, 1.0)
    assert evaluation.estimate(-600.0, 1000.0, 10.0)[:2] == (0.0, 0.0)


def test_holding_out_splits_users_and_nothing_else():
    bucket = contributions(*[(f"u{user}", item, "view", 2, 0.5) for user in range(20) for item in "ab"])

    def chosen(pseudonyms: pa.Array) -> np.ndarray:
        return bounding.user_hash(pseudonyms) % 4 == 0

    held, others = (pa.concat_tables(holding_out.keep(bucket, chosen, which, None)) for which in (True, False))
    assert 0 < held.num_rows < bucket.num_rows
    assert sorted(map(str, [*held.to_pylist(), *others.to_pylist()])) == sorted(map(str, bucket.to_pylist()))
    for table, is_held_out in ((held, True), (others, False)):
        assert set(chosen(pa.array(table["privacy_id"].to_pylist(), pa.binary(16)))) == {is_held_out}
    assert list(holding_out.keep(bucket, lambda ids: np.ones(len(ids), bool), False, None)) == []


def test_items_of_users_are_in_order_whoever_else_is_there():
    """Not in that of a bucket's own dictionary, in which others' items stand too."""
    rows = [("ann", "c", "view"), ("ann", "a", "buy"), ("ann", "a", "view"), ("bob", "z", "view"), ("bob", "b", "view")]
    bucket = encoded([(pseudonym(user), item, kind, 1, 1.0) for user, item, kind in rows], bounding.CONTRIBUTIONS)
    found = {user: items.to_pylist() for user, items in bounding.items_of_users(bucket)}
    assert found == {hash_of("ann"): ["a", "c"], hash_of("bob"): ["b", "z"]}
    assert list(bounding.items_of_users(contributions())) == []
