"""Counts through PipelineDP: exact before noise, noise as charged, every partition shown."""

import datetime as dt
import math

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from data import tables
from tests.transforms.example import contributions, items, run
from transforms.privacy import budget
from transforms.release import counts

START, END = dt.datetime(2025, 1, 1, tzinfo=dt.UTC), dt.datetime(2025, 2, 1, tzinfo=dt.UTC)
KEY = b"release"
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


def release(rows: list[pa.Table], released: list[pa.Table], given: counts.CountParams) -> tuple[pa.Table, str]:
    """Runs ReleaseCounts; returns its one table and its report."""
    reports = []

    def build(pipeline):
        known = pipeline | "Items" >> beam.Create(released)
        transform = counts.ReleaseCounts(given, known, KEY)
        table = pipeline | "Buckets" >> beam.Create(rows) | transform
        reports.append(transform.report.text())
        return table

    [table] = run(build)
    return table, reports[0]


def test_counts_are_exact_but_for_noise_and_every_partition_is_there():
    buckets = [
        contributions(("ann", "a", "view", 9), ("ann", "b", "view", 1), ("ann", "hidden")),
        contributions(("bob", "a", "view", 2)),
    ]
    table, _ = release(buckets, [items("a", "b", kept=False)], params())
    assert table.schema == tables.ITEM_COUNTS
    found = [(row["item_id"], row["event_type"], row["users"], row["events"]) for row in table.to_pylist()]
    assert found == [("a", "buy", 0, 0), ("a", "view", 2, LINF + 2), ("b", "buy", 0, 0), ("b", "view", 1, 1)]
    assert set(table["window_start"].to_pylist()) == {START}
    assert set(table["window_end"].to_pylist()) == {END}


@pytest.mark.parametrize("rows", [[], [contributions(("ann", "a"))]], ids=["nobody", "one user"])
def test_the_same_partitions_are_released_whoever_is_there(rows):
    table, _ = release(rows, [items("a", "b")], params())
    partitions = list(zip(table["item_id"].to_pylist(), table["event_type"].to_pylist(), strict=True))
    assert partitions == [("a", "buy"), ("a", "view"), ("b", "buy"), ("b", "view")]


def test_nothing_is_counted_without_released_items():
    table, _ = release([contributions(("ann", "a"))], [], params())
    assert table.num_rows == 0


def test_bounds_bind_before_pipelinedp_sees_the_rows():
    given = contributions(*[("ann", item, "view", 7) for item in "abcdef"], ("bob", "a", "view", 1))
    rows = counts.bounded_rows(given, params(), items(*"abcdef"), KEY)
    exploded = list(counts.explode(rows))
    assert len(exploded) == L0 * LINF + 1
    assert len({partition for user, partition in exploded if user == rows["privacy_id"][0].as_py()}) == L0


@pytest.mark.parametrize(("scale", "accepted"), [(1.0, True), (0.7, False), (1.3, False)])
@pytest.mark.parametrize("metric", ["users", "events"])
def test_noise_has_the_charged_scale(metric, scale, accepted):
    given = params(sigma=20.0)
    table, _ = release([contributions()], [items(*map(str, range(2000)))], given)
    claimed = getattr(given, metric).noise_sd
    # 4,000 cells, scaled instead of the noise; Kolmogorov-Smirnov at a flake probability of 1e-6. Rounding to integers is
    # a thirtieth of the standard deviation or less.
    sample = table[metric].to_numpy() * scale / claimed
    assert (stats.kstest(sample, "norm").pvalue > 1e-6) == accepted


def test_intervals_cover_the_bounded_count_in_95_percent():
    given = params(sigma=20.0)
    table, _ = release([contributions()], [items(*map(str, range(2000)))], given)
    for metric in ("users", "events"):
        low, high = (table[f"{metric}_{end}"].to_numpy() for end in ("low", "high"))
        covered = int(np.sum((low <= 0) & (high >= 0)))
        # Binomial(4000, 0.95), flake probability 1e-7 each.
        assert stats.binom.ppf(5e-8, 4000, 0.95) <= covered <= stats.binom.isf(5e-8, 4000, 0.95)


def test_the_report_names_the_bounds_and_the_noise_that_is_charged():
    given = params(sigma=5.0)
    _, report = release([contributions()], [items("a")], given)
    assert "max_partitions_contributed=2" in report
    assert "max_contributions_per_partition=3" in report
    for mechanism in (given.users, given.events):
        assert f"parameter={mechanism.noise_sd}" in report
