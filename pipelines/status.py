"""How a job with windows is doing, for its operator: `sottovoce status JOB.toml`.

All of it is exact, much of it computed from events: none of it may be published (docs/operations.md).
"""

import dataclasses
import datetime as dt
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data import errors, ledger, periods, store
from pipelines import config, contract, flink, plan, sections
from transforms.ingest import decode, kafka_client
from transforms.privacy import filter as privacy_filter

LAST = 20
"""How many windows, the last released ones, latencies are of."""

DEAD = "dead"
REPEATED = "repeated"


class AlertError(errors.UserError):
    """A figure is beyond its limit in [alerts]."""

    exit_code = 8


@dataclasses.dataclass(frozen=True)
class Windows:
    """The job's windows, by what became of them.

    Attributes:
        waiting: over (slack and settling included), and neither released nor refused.
        refused: over, refused and not released since.
        why: the first of these was refused.
        released_until: end of the last released window; before the first, the job's start.
        next_closes: None: all are over.
    """

    released: int
    waiting: int
    refused: int
    why: str | None
    released_until: dt.datetime
    next_closes: dt.datetime | None


@dataclasses.dataclass(frozen=True)
class Partition:
    """How far a partition was read for the last released window.

    Attributes:
        read: the offset after the last message that was read; None: none was.
        end: the offset that the next message gets; None: the broker can't be asked.
        lag: messages from one to the other.
    """

    topic: str
    partition: int
    read: int | None
    end: int | None
    lag: int | None


@dataclasses.dataclass(frozen=True)
class Run:
    """The run that last came to count what it had read.

    Attributes:
        seconds: all of it, without training; None: it didn't end by itself.
        read_seconds: until all was read and counted; None: a stream read it before.
        outcomes: rows by what became of them.
        late_share: of the events that are late or count.
        repeated: events of the window that are repeats; None: unknown, as the release was refused.
        refused: why.
    """

    window_start: dt.datetime
    window_end: dt.datetime
    started: dt.datetime
    seconds: float | None
    read_seconds: float | None
    rows_per_second: float | None
    outcomes: dict[str, int]
    dead_share: float
    late_share: float
    repeated: int | None
    refused: str | None


@dataclasses.dataclass(frozen=True)
class Totals:
    """Events of all released windows whose figures the store has (`windows`).

    Attributes:
        ok: that count, repeats among them; of a stream, those that it has read until the last window closed.
        dead: None for files that are read again for each window.
    """

    windows: int
    ok: int
    late: int
    repeated: int
    dead: int | None


@dataclasses.dataclass(frozen=True)
class Latency:
    """Seconds from a window's end and slack until something, of some windows."""

    windows: int
    median: float
    largest: float


@dataclasses.dataclass(frozen=True)
class Budget:
    """What is left in a period that the next window touches.

    Attributes:
        windows_left: that there is room for.
        windows_to_come: of the job, not released yet.
    """

    period: str
    is_closed: bool
    total_epsilon: float
    left_epsilon: float
    windows_left: int
    windows_to_come: int


@dataclasses.dataclass(frozen=True)
class Alert:
    """A limit of [alerts], and the figure that must keep it; value None: not known."""

    name: str
    limit: float
    value: float | None
    is_firing: bool


@dataclasses.dataclass(frozen=True)
class Status:
    """A job's exact figures.

    Attributes:
        delay_seconds: since `windows.released_until`; None: every window of the job is released.
        partitions: of the job's topic; none for files.
        broker_problem: why there is no lag; None: there is, or the job reads files.
        published, visible: until the ledger named the release, and until it was in the database that people query.
        alerts: those of `trending` among them.
        cluster: Flink's, that the job runs on; None: it has none.
        trending: the figures of the job's short windows, without what is told of the whole job; None: it has none.
    """

    job: str
    data_set: str
    at: dt.datetime
    windows: Windows
    delay_seconds: float | None
    partitions: list[Partition]
    broker_problem: str | None
    last_run: Run | None
    totals: Totals
    published: Latency | None
    visible: Latency | None
    budget: list[Budget]
    alerts: list[Alert]
    cluster: flink.Cluster | None = None
    trending: "Status | None" = None


def read(job: config.Job, now: dt.datetime | None = None) -> Status:
    """Reads the figures of a job as they are at a time, or now. Changes nothing.

    Raises:
        ledger.BudgetRefusedError: there is no contract yet.
        ledger.LedgerError: the ledger can't be opened.
    """
    now = now or dt.datetime.now(dt.UTC)
    account, kept = contract.open_ledger(job), store.Store(job.job.store)
    asked, records = account.releases(job.job.data_set, with_refused=True), kept.run_records()
    whole, *short = (_of_part(part, now, account, asked, records) for part in job.parts)
    whole = dataclasses.replace(whole, cluster=flink.of_job(job))
    if not short:
        return whole
    alerts = [dataclasses.replace(alert, name=f"trending.{alert.name}") for alert in short[0].alerts]
    return dataclasses.replace(whole, alerts=[*whole.alerts, *alerts], trending=short[0])


def _of_part(
    job: config.Job,
    now: dt.datetime,
    account: ledger.Ledger,
    asked: Sequence[Mapping[str, Any]],
    records: Mapping[str, Mapping[str, Any]],
) -> Status:
    """The figures of a part of a job: of its windows, and of their releases and runs."""
    known = account.known(job.job.data_set)
    asked = [each for each in asked if each["job"] == job.job.name]
    # An evaluation's runs are of the same windows. Earlier versions, which had none, don't say whose a record is.
    records = {
        attempt: record
        for attempt, record in records.items()
        if record.get("job", job.job.name) == job.job.name and _number_of(job, record) is not None
    }
    # Of a window that was released twice, the last one.
    released = {
        number: each for each in asked if each["status"] == ledger.PUBLISHED and (number := _number_of(job, each)) is not None
    }
    windows = _windows(job, now, released, _refused(job, account, asked, records))
    is_done = len(released) == job.window.count(job.window.end)
    delay = None if is_done else (now - windows.released_until).total_seconds()
    last_record = max(records.values(), key=lambda record: record["started"], default=None)
    last_run = None if last_record is None else _run(last_record)
    ended = [(released[number], records.get(released[number]["attempt"], {})) for number in sorted(released)]
    # Short windows read what the job's own read.
    partitions, problem = ([], None) if job.is_trending else _partitions(job, ended[-1][1].get("source", {}) if ended else {})
    published, visible = _latencies(job, account, ended[-LAST:])
    budget = list(_budget(job, account, known, released))
    return Status(
        job=job.job.name,
        data_set=job.job.data_set,
        at=now,
        windows=windows,
        delay_seconds=delay,
        partitions=partitions,
        broker_problem=problem,
        last_run=last_run,
        totals=_totals(job, [record for _, record in ended if REPEATED in record]),
        published=published,
        visible=visible,
        budget=budget,
        alerts=list(_alerts(job.alerts, partitions, delay, last_run, budget)),
    )


def _number_of(job: config.Job, of: Mapping[str, Any]) -> int | None:
    """The place among the job's windows of that which a release or a run is of; None: it is of none of them."""
    start, end = of.get("window_start", ""), of.get("window_end", "")
    if not start:
        return None
    number = (dt.datetime.fromisoformat(start) - job.window.start) // job.window.step
    is_ours = 0 <= number < job.window.count(job.window.end)
    return number if is_ours and tuple(time.isoformat() for time in job.window.bounds(number)) == (start, end) else None


def _windows(job: config.Job, now: dt.datetime, released: Mapping[int, Any], refused: Mapping[int, str]) -> Windows:
    closed = job.window.closed_count(now - job.settling)
    out = sorted(number for number in refused.keys() - released.keys() if number < closed)
    return Windows(
        released=len(released),
        waiting=closed - sum(number < closed for number in released) - len(out),
        refused=len(out),
        why=refused[out[0]] if out else None,
        released_until=job.window.bounds(max(released))[1] if released else job.window.start,
        next_closes=None
        if closed == job.window.count(job.window.end)
        else job.window.bounds(closed)[1] + job.window.slack + job.settling,
    )


def _refused(
    job: config.Job, account: ledger.Ledger, asked: Sequence[Mapping[str, Any]], records: Mapping[str, Mapping[str, Any]]
) -> dict[int, str]:
    """Why windows were refused: for their rows, or by the ledger; also those that were released later."""
    found = {}
    for record in sorted(records.values(), key=lambda record: record["started"]):
        if record["refused"]:
            found[_number_of(job, record)] = record["refused"]
    refused = [each for each in asked if each["status"] == ledger.REFUSED]
    said = account.history(job.job.data_set, ledger.REFUSED) if refused else []
    why = {(row["body"]["charge"]["window_start"], row["body"]["charge"]["window_end"]): row["body"]["why"] for row in said}
    for each in refused:
        found[_number_of(job, each)] = why[each["window_start"], each["window_end"]]
    return {number: reason for number, reason in found.items() if number is not None}


def _partitions(job: config.Job, source: Mapping[str, str]) -> tuple[list[Partition], str | None]:
    """The partitions of the job's topic, and why their ends aren't known."""
    if job.kafka is None or job.source.topic is None:
        return [], None
    topic, problem = job.source.topic, None
    ends: dict[int, tuple[int, int]] = {}
    try:
        ends = kafka_client.topic_offsets(job.kafka.connection, topic)
    except kafka_client.KafkaError as error:
        problem = str(error)
    read = {int(path.rpartition("/")[2]): int(offsets.rpartition("-")[2]) for path, offsets in source.items()}
    partitions = []
    for number in sorted(read.keys() | ends.keys()):
        first, end = ends.get(number, (None, None))
        since = read.get(number, first)
        lag = None if end is None or since is None else max(0, end - since)
        partitions.append(Partition(topic, number, read.get(number), end, lag))
    return partitions, problem


def _run(record: Mapping[str, Any]) -> Run:
    started, outcomes = dt.datetime.fromisoformat(record["started"]), record["outcomes"]
    ended = dt.datetime.fromisoformat(record["finished"]) if "finished" in record else None
    late, ok = outcomes.get(decode.LATE, 0), outcomes.get(decode.OK, 0)
    return Run(
        window_start=dt.datetime.fromisoformat(record["window_start"]),
        window_end=dt.datetime.fromisoformat(record["window_end"]),
        started=started,
        seconds=None if ended is None else (ended - started).total_seconds(),
        read_seconds=record["read_seconds"],
        rows_per_second=sum(outcomes.values()) / max(record["read_seconds"], 1e-3) if record["read_seconds"] else None,
        outcomes=dict(sorted(outcomes.items())),
        dead_share=record["malformed_share"],
        late_share=late / (late + ok) if late else 0.0,
        repeated=record.get(REPEATED),
        refused=record["refused"],
    )


def _totals(job: config.Job, records: Sequence[Mapping[str, Any]]) -> Totals:
    # A topic's letters are each one window's alone; files are read whole for each window.
    is_once = job.kafka is not None or job.window.size == "all"
    return Totals(
        windows=len(records),
        ok=sum(record["outcomes"].get(decode.OK, 0) for record in records),
        late=sum(record["outcomes"].get(decode.LATE, 0) for record in records),
        repeated=sum(record[REPEATED] for record in records),
        dead=sum(record["dead_letters"] for record in records) if is_once else None,
    )


def _latencies(
    job: config.Job, account: ledger.Ledger, ended: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> tuple[Latency | None, Latency | None]:
    """Until windows were published, and visible: of releases with their records."""
    published = {row["body"]["release_id"]: row["at"] for row in account.history(job.job.data_set, ledger.PUBLISHED)}
    until_published, until_visible = [], []
    for each, record in ended:
        closed = dt.datetime.fromisoformat(each["window_end"]) + job.window.slack
        until_published.append((dt.datetime.fromisoformat(published[each["release_id"]]) - closed).total_seconds())
        if "visible" in record:
            until_visible.append((dt.datetime.fromisoformat(record["visible"]) - closed).total_seconds())
    return _latency(until_published), _latency(until_visible)


def _latency(seconds: Sequence[float]) -> Latency | None:
    return Latency(len(seconds), statistics.median(seconds), max(seconds)) if seconds else None


def _budget(job: config.Job, account: ledger.Ledger, known: ledger.Contract, released: Mapping[int, Any]) -> Iterator[Budget]:
    """What is left in each period that the next window touches, or else the last one."""
    windows = job.window.count(job.window.end)
    # A stream goes on behind a window that was refused.
    start, end = job.window.bounds(min(max(released, default=-1) + 1, windows - 1))
    one = job.model_copy(update={"window": job.window.model_copy(update={"start": start, "end": end})})
    # What a window costs doesn't hang on key, catalogue or data.
    request = plan.plan(one, None, plan.span_of(job, start)).request(b"", {}, 0)
    spent = {each.period: each for each in account.spent(job.job.data_set)}
    for period in request.touched:
        there = spent.get(period, ledger.Spent(period, 0.0, 0.0, 0, is_closed=False))
        room = contract.room(known, there, *request.charged)
        if request.series is not None:
            room = _series_room(job, account, request, request.series, room)
        used = privacy_filter.spent_epsilon(known.composition, there.cost, known.noise_delta)
        first, last = _numbers(job, start)
        yield Budget(
            period=period,
            is_closed=there.is_closed,
            total_epsilon=known.total_epsilon,
            left_epsilon=max(0.0, known.total_epsilon - used),
            windows_left=0 if there.is_closed else room,
            windows_to_come=last - first - sum(first <= each < last for each in released),
        )
        if found := periods.bounds(job.privacy.period, start):
            # The next period that the window touches.
            start = found[1]


def _series_room(job: config.Job, account: ledger.Ledger, request: ledger.Request, asked: ledger.Series, room: int) -> int:
    """How many windows of the request's series are still to be had: its first one pays for all."""
    limits = (asked.windows, asked.max_windows_contributed, asked.min_separation)
    terms = (job.job.name, request.touched[0], asked.start.isoformat(), asked.size.total_seconds(), *limits)
    for series in account.series(job.job.data_set):
        names = ("job", "period", "start", "window_seconds", "windows", "max_windows_contributed", "min_separation")
        is_this = tuple(series[name] for name in names) == terms
        if is_this and math.isclose(series["cost"], asked.cost, rel_tol=1e-6):
            return asked.windows - 1 - max((page["number"] for page in series["pages"]), default=-1)
    return asked.windows if room else 0


def _numbers(job: config.Job, time: dt.datetime) -> tuple[int, int]:
    """The first window that touches the period that a time is in, and the first after it that doesn't."""
    window, found = job.window, periods.bounds(job.privacy.period, time)
    windows = window.count(window.end)
    if found is None:
        return 0, windows
    return window.count(found[0]), min(windows, -((window.start - found[1]) // window.step))


def _alerts(
    limits: sections.AlertsSection,
    partitions: Sequence[Partition],
    delay: float | None,
    last_run: Run | None,
    budget: Sequence[Budget],
) -> Iterator[Alert]:
    """Those that the job file asks for."""
    if limits.max_lag is not None:
        lags = [partition.lag for partition in partitions if partition.lag is not None]
        lag = sum(lags) if lags and len(lags) == len(partitions) else None
        # Nobody sees a lag that can't be asked for.
        yield Alert("max_lag", limits.max_lag, lag, lag is None or lag > limits.max_lag)
    for name, limit, value in (
        ("max_delay_seconds", limits.max_delay_seconds, delay),
        ("max_dead_share", limits.max_dead_share, None if last_run is None else last_run.dead_share),
        ("max_late_share", limits.max_late_share, None if last_run is None else last_run.late_share),
    ):
        if limit is not None:
            yield Alert(name, limit, value, value is not None and value > limit)
    if limits.min_windows_left is not None:
        least = limits.min_windows_left
        is_firing = any(each.windows_left < min(least, each.windows_to_come) for each in budget)
        yield Alert("min_windows_left", least, min(each.windows_left for each in budget), is_firing)


def check(found: Status) -> None:
    """Says which alerts fire.

    Raises:
        AlertError: at least one.
    """
    if firing := [_told(alert) for alert in found.alerts if alert.is_firing]:
        raise AlertError(f"{found.job}: {'; '.join(firing)}.")


def _told(alert: Alert) -> str:
    value = "not known" if alert.value is None else f"{alert.value:.6g}"
    return f"{alert.name} = {alert.limit:g}, but it is {value}"


def as_json(found: Status) -> str:
    """The figures as a JSON object, times in ISO 8601."""
    return json.dumps(dataclasses.asdict(found), indent=2, default=dt.datetime.isoformat)


def as_text(found: Status) -> Iterator[str]:
    """Yields the figures as lines for people."""
    yield f"{found.job} at {_time(found.at)}: exact figures, not to be published"
    yield from _windows_as_text(found)
    for part in found.partitions:
        yield (
            f"{part.topic}/{part.partition}: "
            + ("nothing read yet" if part.read is None else f"read up to offset {part.read}")
            + ("" if part.end is None else f", ends at {part.end}: {part.lag} behind")
        )
    if found.broker_problem:
        yield f"no lag: {found.broker_problem}"
    if found.cluster:
        yield from _cluster_as_text(found.cluster)
    yield from _run_as_text(found)
    if found.trending:
        yield from (f"trending: {line}" for line in [*_windows_as_text(found.trending), *_run_as_text(found.trending)])
    for alert in found.alerts:
        yield f"{'ALERT' if alert.is_firing else 'fine'}: {_told(alert) if alert.is_firing else alert.name}"


def _windows_as_text(found: Status) -> Iterator[str]:
    windows = found.windows
    delay = "all of them" if found.delay_seconds is None else f"{found.delay_seconds:.0f} s ago"
    yield (
        f"windows: {windows.released} released, {windows.waiting} waiting, {windows.refused} refused; released until "
        f"{_time(windows.released_until)}, {delay}"
        + (f"; the next closes at {_time(windows.next_closes)}" if windows.next_closes else "")
    )
    if windows.why:
        yield f"refused: {windows.why}"


def _cluster_as_text(there: flink.Cluster) -> Iterator[str]:
    if there.problem:
        yield f"no Flink: {there.problem}"
        return
    yield (
        f"Flink at {there.master}: {there.task_managers} TaskManager(s), {there.free_slots} of {there.slots} slots free"
        + (f"; logs: {there.logs}/*.log" if there.logs else "")
    )
    yield from (f"{job.name} {job.state} on Flink since {_time(job.started)}: {job.job_id}" for job in there.jobs)


def _run_as_text(found: Status) -> Iterator[str]:
    run, totals = found.last_run, found.totals
    if run:
        counts = {**run.outcomes, **({} if run.repeated is None else {REPEATED: run.repeated})}
        yield (
            f"last run: {_time(run.window_start)} to {_time(run.window_end)}, started {_time(run.started)}, "
            + ("unfinished" if run.seconds is None else f"{run.seconds:.1f} s")
            + (": " if run.rows_per_second is None else f", {run.rows_per_second:.0f} rows a second: ")
            + (", ".join(f"{outcome} {count}" for outcome, count in counts.items()) or "no rows")
        )
    yield (
        f"{totals.windows} released window(s): ok {totals.ok} (repeated {totals.repeated}), late {totals.late}"
        + ("" if totals.dead is None else f", dead {totals.dead}")
    )
    for name, latency in (("published", found.published), ("visible", found.visible)):
        if latency:
            yield (
                f"{name} {latency.median:.1f} s after the end and slack of a window (median of {latency.windows}; at most "
                f"{latency.largest:.1f} s)"
            )
    for budget in found.budget:
        yield (
            f"budget of {budget.period}: epsilon {budget.left_epsilon:.4g} of {budget.total_epsilon:g} left; "
            + ("closed" if budget.is_closed else f"room for {budget.windows_left} more window(s)")
            + f", {budget.windows_to_come} to come"
        )


def _time(time: dt.datetime) -> str:
    return time.isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC")
