"""Counts, by columns and through PipelineDP: exact before noise, noise as charged, every partition shown."""

import datetime as dt
import math

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from data import tables
from runners import direct
from tests.transforms.example import contributions, items, run
from transforms.privacy import budget
from transforms.release import counts, reference

START, END = dt.datetime(2025, 1, 1, tzinfo=dt.UTC), dt.datetime(2025, 2, 1, tzinfo=dt.UTC)
KEY = bytes(32)
both_engines = pytest.mark.parametrize("engine", [counts.ReleaseCounts, reference.ReleaseReferenceCounts])
L0, LINF = 2, 3


def params(sigma: float = 0.01) -> counts.CountParams:
    return counts.CountParams(
        total=budget.Budget(1.0, 1e-6),
        users=budget.Mechanism(budget.COUNTS_USERS, sigma, math.sqrt(L0)),
        events=budget.Mechanism(budget.COUNTS_EVENTS, 2 * sigma, math.sqrt(L0) * LINF),
        max_partitions_contributed=L0,
        max_contributions_per_partition=LINF,
        event_types=["buy", "view"],
        window_start=START,
        window_end=END,
    )


def release(engine, rows: list[pa.Table], released: list[pa.Table], given: counts.CountParams) -> list[pa.Table]:
    """Runs one of the two engines; returns its tables."""

    def build(pipeline):
        known = pipeline | "Items" >> beam.Create(released)
        return pipeline | "Buckets" >> beam.Create(rows) | engine(given, known, KEY)

    return run(build)


@both_engines
def test_counts_are_exact_but_for_noise_and_every_partition_is_there(engine):
    buckets = [
        contributions(("ann", "a", "view", 9), ("ann", "b", "view", 1), ("ann", "hidden")),
        contributions(("bob", "a", "view", 2)),
    ]
    [table] = release(engine, buckets, [items("a", "b", kept=False)], params())
    assert table.schema == tables.ITEM_COUNTS
    found = [(row["item_id"], row["event_type"], row["users"], row["events"]) for row in table.to_pylist()]
    assert found == [("a", "buy", 0, 0), ("a", "view", 2, LINF + 2), ("b", "buy", 0, 0), ("b", "view", 1, 1)]
    assert set(table["window_start"].to_pylist()) == {START}
    assert set(table["window_end"].to_pylist()) == {END}


@both_engines
@pytest.mark.parametrize("rows", [[], [contributions(("ann", "a"))]], ids=["nobody", "one user"])
def test_the_same_partitions_are_released_whoever_is_there(engine, rows):
    [table] = release(engine, rows, [items("a", "b")], params())
    partitions = list(zip(table["item_id"].to_pylist(), table["event_type"].to_pylist(), strict=True))
    assert partitions == [("a", "buy"), ("a", "view"), ("b", "buy"), ("b", "view")]


@both_engines
def test_nothing_is_counted_without_released_items(engine):
    assert release(engine, [contributions(("ann", "a"))], [], params()) == []


def test_both_engines_count_the_same_integers_when_bounds_bind():
    rng = np.random.default_rng(3)
    picks = {(f"u{u}", f"i{i}", ("view", "buy")[t]) for u, i, t in rng.integers(0, [60, 8, 2], (400, 3))}
    rows = contributions(*[(*pick, int(rng.integers(1, 9))) for pick in sorted(picks)])
    first_bytes = [privacy_id[0] for privacy_id in rows["privacy_id"].to_pylist()]
    buckets = [rows.filter(pa.array([byte % 4 == bucket for byte in first_bytes])) for bucket in range(4)]
    released = [items(*(f"i{i}" for i in range(6)))]
    [ours] = release(counts.ReleaseCounts, buckets, released, params())
    [theirs] = release(reference.ReleaseReferenceCounts, buckets, released, params())
    figures = ["item_id", "event_type", "users", "events"]
    assert ours.select(figures).equals(theirs.select(figures))
    assert counts.bounded_rows(rows, params(), released[0], KEY).num_rows < rows.num_rows


def test_bounds_bind_before_pipelinedp_sees_the_rows():
    given = contributions(*[("ann", item, "view", 7) for item in "abcdef"], ("bob", "a", "view", 1))
    rows = counts.bounded_rows(given, params(), items(*"abcdef"), KEY)
    exploded = list(reference.explode(rows))
    assert len(exploded) == L0 * LINF + 1
    assert len({partition for user, partition in exploded if user == rows["privacy_id"][0].as_py()}) == L0


@both_engines
@pytest.mark.parametrize(("scale", "accepted"), [(1.0, True), (0.7, False), (1.3, False)])
def test_noise_has_the_charged_scale(engine, scale, accepted):
    given = params(sigma=20.0)
    [table] = release(engine, [contributions()], [items(*map(str, range(2000)))], given)
    for metric, mechanism in (("users", given.users), ("events", given.events)):
        # 4,000 cells, scaled instead of the noise; Kolmogorov-Smirnov at a flake probability of 1e-6. Rounding to integers
        # is a thirtieth of the standard deviation or less.
        sample = table[metric].to_numpy() * scale / mechanism.noise_sd
        assert (stats.kstest(sample, "norm").pvalue > 1e-6) == accepted


@both_engines
def test_intervals_cover_the_bounded_count_in_95_percent(engine):
    [table] = release(engine, [contributions()], [items(*map(str, range(2000)))], params(sigma=20.0))
    for metric in ("users", "events"):
        low, high = (table[f"{metric}_{end}"].to_numpy() for end in ("low", "high"))
        covered = int(np.sum((low <= 0) & (high >= 0)))
        # Binomial(4000, 0.95), flake probability 1e-7 each.
        assert stats.binom.ppf(5e-8, 4000, 0.95) <= covered <= stats.binom.isf(5e-8, 4000, 0.95)


def test_the_reports_name_the_bounds_and_the_noise_that_is_charged():
    given = params(sigma=5.0)
    ours = counts.ReleaseCounts(given, None, KEY).report()
    with beam.Pipeline(options=direct.options([])) as pipeline:
        theirs = reference.ReleaseReferenceCounts(given, pipeline | "Items" >> beam.Create([items("a")]), KEY)
        _ = pipeline | "Buckets" >> beam.Create([contributions()]) | theirs
    assert "2 partitions" in ours
    assert "max_partitions_contributed=2" in theirs.report()
    assert "max_contributions_per_partition=3" in theirs.report()
    for mechanism in (given.users, given.events):
        assert f"parameter={mechanism.noise_sd}" in ours
        assert f"parameter={mechanism.noise_sd}" in theirs.report()
