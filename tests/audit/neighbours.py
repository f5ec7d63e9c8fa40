"""Two data sets that differ by one user, and what the shipped functions make of them before noise.

The job is of two windows, each of which may spend half of the contract. A case says what one user, eve, sends beside others
that are the same in both data sets.
"""

import dataclasses
import datetime as dt
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from pipelines import config, contract, plan, source
from transforms import bounding
from transforms.ingest import pseudonym
from transforms.privacy import budget
from transforms.privacy import filter as privacy_filter
from transforms.release import cooccurrence, counts, selection

ITEMS = "abc"
LINF = 2
EPSILON, DELTA = 8.0, 1e-6
"""Of the contract of both windows."""
MECHANISMS = (budget.SELECTION, budget.COUNTS_USERS, budget.COUNTS_EVENTS, budget.COOCCURRENCE)

_JOB = """
[job]
name = "audit"
data_set = "audit"
store = "{directory}/store"
[source]
kind = "csv"
paths = ["{directory}/events.csv"]
columns = {{ event_id = "event_id", value = "value", arrival_time = "arrival_time" }}
event_types = {{ view = 1.0 }}
weigh_by_value = true
{catalogue}
[privacy]
total_epsilon = 8.0
total_delta = 1e-6
expected_users = 1000
allow_large_delta = true
key_file = "{directory}/pseudonym.key"
opt_out = "{directory}/opt_out.txt"
ledger = "sqlite:///{directory}/ledger.sqlite"
[window]
start = 2025-01-01
end = 2025-01-15
size = "1w"
budget_share = 0.5
slack_seconds = 3600
[selection]
budget_share = 0.25
max_partitions_contributed = 10
[counts]
budget_share = 0.5
max_partitions_contributed = 2
max_contributions_per_partition = 2
[cooccurrence]
budget_share = 0.25
max_items = 10
"""
_CATALOGUE = '[catalogue]\npath = "{directory}/items.csv"'
WHOLE = ["--window.size=all", "--window.budget_share=1", "--privacy.total_epsilon=4", "--privacy.total_delta=0.05"]
"""Flags of a job of one window, at a contract where hockey-stick divergence has power."""
LARGE_NOISE = ["--selection.budget_share=0.2", "--counts.budget_share=0.4", "--cooccurrence.budget_share=0.4"]
"""Flags with which the threshold for many items is well above that for one."""
HELD_OUT = ["--evaluation.budget_share=0.25", "--counts.budget_share=0.25"]
"""Flags of a job whose models are evaluated on held-out users."""

_HEADER = "event_id,privacy_id,item_id,value,event_time,arrival_time"
_WEEKS = ("2025-01-03T12:00", "2025-01-10T12:00")


def event(user: str, item: str, event_id: str = "", time: str = _WEEKS[0], arrival: str = "", value: float = 1.0) -> str:
    """One event as a CSV line; it arrives when it happens, if nothing else is said."""
    return f"{event_id},{user},{item},{value!r},{time},{arrival or time}"


class Case(NamedTuple):
    """What eve does beside others.

    Attributes:
        does: her events.
        beside: everybody else's.
        windows: how many she counts in: what is charged for her.
        opted_out: she has.
    """

    does: Sequence[str]
    beside: Sequence[str]
    windows: int = 2
    opted_out: bool = False


def _often(times: Sequence[str] = _WEEKS, ids: str = "", items: str = ITEMS, **more) -> list[str]:
    """Eve on more items than count, with more events on each than count, at each of some times."""
    return [
        event("eve", item, f"{ids}{at}{item}{again}", at, **more) for at in times for item in items for again in range(5 * LINF)
    ]


CROWD = [event(f"user{number}", "ab"[number % 2], f"id{number}", _WEEKS[number // 20]) for number in range(40)]
FIRST_WEEK = [line for line in CROWD if _WEEKS[0] in line]

CASES = {
    "most partitions and events": Case(_often(), CROWD),
    "the same without anybody else": Case(_often(), []),
    "repeats: each event five times": Case(_often() * 5, CROWD),
    "one event id on all, five times": Case([event("eve", item, "id", at) for at in _WEEKS for item in ITEMS] * 5, CROWD),
    "others' event ids": Case(
        [event("eve", "abc"[number % 3], f"id{number}", _WEEKS[number // 20]) for number in range(40)], CROWD
    ),
    "replayed just before the window closes": Case(
        [*_often(), *_often(_WEEKS[:1], arrival="2025-01-08T01:00"), *_often(_WEEKS[1:], arrival="2025-01-15T01:00")], CROWD
    ),
    "straddles windows": Case(
        _often(("2025-01-01T00:00", "2025-01-07T23:59:59.999999", "2025-01-08T00:00", "2025-01-14T23:59:59.999999")), CROWD
    ),
    "weights of 1e9 beside 1e-9": Case(
        [
            event("eve", item, f"{at}{item}{n}", at, value=value)
            for at in _WEEKS
            for n in (0, 1)
            for item, value in zip(ITEMS, (1e9, 1e-9, 1.0), strict=True)
        ],
        CROWD,
    ),
    "alone on an item": Case(_often(items="c"), CROWD),
    "alone in a window": Case(_often(_WEEKS[1:]), FIRST_WEEK, windows=1),
    "late": Case([*_often(arrival="2025-01-15T01:00:01")], CROWD, windows=0),
    "far future and far past": Case(_often(("2999-01-01T00:00", "1970-01-01T00:00")), CROWD, windows=0),
    "malformed": Case(
        [event("eve", "d", "1"), event("eve", "a", "2", "soon"), event("eve", "a", "3", value=1e10), '"'], CROWD, windows=0
    ),
    "opted out": Case(_often(), CROWD, windows=0, opted_out=True),
}
EXTREME = "most partitions and events"


def write(directory: pathlib.Path, flags: Sequence[str] = (), catalogue: bool = True) -> config.Job:
    """Writes the audited job, and makes its budget the contract."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "items.csv").write_text("item_id,title\n" + "".join(f"{item},{item}\n" for item in ITEMS))
    (directory / "opt_out.txt").write_text("")
    (directory / "events.csv").write_text(_HEADER + "\n")
    pseudonym.write_key(directory / "pseudonym.key")
    section = _CATALOGUE.format(directory=directory) if catalogue else ""
    (directory / "job.toml").write_text(_JOB.format(directory=directory, catalogue=section))
    job, _ = config.load(directory / "job.toml", flags)
    contract.init(job)
    return job


def plans(job: config.Job) -> list[plan.Plan]:
    """What each window's release does and costs, as `pipelines.release` plans it."""
    public = source.public_items(job)
    if job.window.size == "all":
        return [plan.plan(job, public)]
    found = []
    for number in range(job.window.closed_count(job.window.end + job.window.slack)):
        start, end = job.window.bounds(number)
        one = job.model_copy(update={"window": job.window.model_copy(update={"start": start, "end": end})})
        found.append(plan.plan(one, public))
    return found


def put(job: config.Job, lines: Sequence[str], opted_out: bool = False) -> None:
    """Makes these the job's events."""
    directory = pathlib.Path(job.source.paths[0]).parent
    (directory / "events.csv").write_text("\n".join([_HEADER, *lines]) + "\n")
    (directory / "opt_out.txt").write_text("eve\n" if opted_out else "")


@dataclasses.dataclass(frozen=True)
class Exact:
    """What one window's release has before noise, by item in order of its name: int64.

    Attributes:
        items: their names.
        scores: (n_items,), on selection's grid.
        users, events: (n_items,).
        pairs: the upper triangle of (n_items, n_items), on the co-occurrence's grid.
    """

    items: tuple[str, ...]
    scores: np.ndarray
    users: np.ndarray
    events: np.ndarray
    pairs: np.ndarray

    def in_units(self) -> dict[str, np.ndarray]:
        """By mechanism, what is released."""
        upper = np.triu_indices(len(self.items))
        return {
            budget.SELECTION: self.scores * 2.0**-selection.GRID_BITS,
            budget.COUNTS_USERS: self.users.astype(float),
            budget.COUNTS_EVENTS: self.events.astype(float),
            budget.COOCCURRENCE: self.pairs[upper] * 2.0**-cooccurrence.GRID_BITS,
        }


def contributions(planned: plan.Plan) -> pa.Table:
    """The events of a window, decoded, grouped and merged: CONTRIBUTIONS of one bucket."""
    found = source.find(planned.job, dt.datetime(2025, 2, 1, tzinfo=dt.UTC), planned.items)
    found.reader.setup()
    read = [decoded.events for part in found.parts for _, decoded in found.reader.read(part)]
    split = [part for table in read if table.num_rows for _, part in bounding.split_by_bucket(table, 1)]
    return bounding.contributions(split, planned.job.source.event_types)


def exact(planned: plan.Plan) -> Exact:
    """The events of a window through the shipped functions, up to the noise."""
    rows = contributions(planned)
    key, chosen, counted = planned.bounding_key, plan.selection_params(planned), plan.count_params(planned)
    scores = selection.add_scores([selection.score_table(rows, chosen.max_partitions_contributed, key)])
    # Without a catalogue: the items that somebody has.
    names = sorted(scores["item_id"].to_pylist()) if planned.items is None else planned.items.to_pylist()
    items = pa.table({"item_id": pa.array(names, pa.string()), "position": pa.array(range(len(names)), pa.int32())})
    bounded = counts.bounded_rows(rows, counted, items, key)
    counts_ = counts.add_counts([counts.exact_counts(bounded), counts.empty_counts(items, counted.event_types)])
    pairs = np.zeros((len(names), len(names)), np.int64)
    with pytest.MonkeyPatch.context() as small:
        # So that even these few items are several blocks.
        small.setattr(cooccurrence, "BLOCK_ROWS", 2)
        for (first, last, _), part in cooccurrence.partial_sums(rows, items):
            pairs[first:last, first:] += part
    by_item = {row["item_id"]: row["score"] for row in scores.to_pylist()}
    figures = {row["item_id"]: (row["users"], row["events"]) for row in counts_.to_pylist()}
    users, events = np.array([figures[name] for name in names], np.int64).reshape(-1, 2).T
    return Exact(tuple(names), np.array([by_item.get(name, 0) for name in names], np.int64), users, events, pairs)


class Pair(NamedTuple):
    """Two neighbours, window by window: without the user, and with it."""

    without: list[Exact]
    joined: list[Exact]


def neighbours(job: config.Job, planned: Sequence[plan.Plan], case: Case) -> Pair:
    """Both data sets of a case up to the noise."""
    found = []
    for lines in (case.beside, [*case.does, *case.beside]):
        put(job, lines, case.opted_out)
        found.append([exact(each) for each in planned])
    return Pair(*found)


def noise_of(planned: plan.Plan, name: str, n_items: int) -> np.ndarray:
    """The standard deviation that each of a mechanism's figures is charged for."""
    sd = planned.mechanisms[name].noise_sd
    if name != budget.COOCCURRENCE:
        return np.full(n_items, sd)
    row, col = np.triu_indices(n_items)
    return np.where(row == col, sd, sd / np.sqrt(2))


def direction(planned: Sequence[plan.Plan], pair: Pair) -> list[dict[str, np.ndarray]]:
    """By window and mechanism, what a user changes, over the noise's variance: the projection that tells the two apart best."""
    found = []
    for each, without, joined in zip(planned, *pair, strict=True):
        before, after = without.in_units(), joined.in_units()
        sds = {name: noise_of(each, name, len(joined.items)) for name in after}
        found.append({name: (after[name] - before[name]) / sds[name] ** 2 for name in after})
    return found


def shown(planned: Sequence[plan.Plan], pair: Pair, names: Sequence[str] = MECHANISMS) -> float:
    """The mu of what a user changes, of some mechanisms or all: the distance of the two exact vectors over the noise."""
    squares = 0.0
    for each, of_window in zip(planned, direction(planned, pair), strict=True):
        for name in names:
            sd = noise_of(each, name, len(pair.joined[0].items))
            squares += float(np.sum((of_window[name] * sd) ** 2))
    return squares**0.5


def charged(planned: Sequence[plan.Plan], windows: int, names: Sequence[str] = MECHANISMS) -> float:
    """The mu that a user is charged in so many windows."""
    [each, *_] = planned
    return (windows * privacy_filter.total_cost("gaussian", (each.mechanisms[name].noise_multiplier for name in names))) ** 0.5
