"""A job's exact figures as Prometheus metrics, on this machine's loopback alone (docs/operations.md)."""

import contextlib
import datetime as dt
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping

import prometheus_client
from prometheus_client import core, registry

from data import errors
from pipelines import config, flink, status
from transforms.ingest import decode

HOST = "127.0.0.1"
KEEP_SECONDS = 5.0
"""How long figures are given again before they are read anew."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def serving(job: config.Job, port: int) -> Iterator[int]:
    """Answers http://127.0.0.1:PORT/metrics from threads of its own; yields the port, any free one for 0.

    Raises:
        errors.BadInputError: the port can't be had.
    """
    registered = prometheus_client.CollectorRegistry()
    registered.register(Figures(job))
    try:
        server, thread = prometheus_client.start_http_server(port, HOST, registered)
    except OSError as error:
        raise errors.BadInputError(f"metrics: {HOST}:{port} can't be had ({error.strerror}).") from error
    log.info("metrics (the operator's, exact): http://%s:%d/metrics", HOST, server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Figures(registry.Collector):
    """The job's figures, read when they are asked for. What goes wrong then is told by `sottovoce_up` and the log."""

    def __init__(self, job: config.Job):
        self._job = job
        self._lock = threading.Lock()
        self._found: status.Status | None = None
        self._read_at = -KEEP_SECONDS

    def collect(self) -> Iterable[core.Metric]:
        with self._lock:
            if time.monotonic() - self._read_at >= KEEP_SECONDS:
                try:
                    self._found = status.read(self._job)
                except errors.UserError as error:
                    self._found = None
                    log.warning("metrics: %s", error)
                except Exception:
                    # A scrape must not end in a blank page, whatever is wrong with the store or the ledger.
                    self._found = None
                    log.exception("metrics: the figures can't be read")
                self._read_at = time.monotonic()
            found = self._found
        yield from _gauge("up", "1: the figures could be read; 0: they couldn't, and there are no others.", found is not None)
        if found is not None:
            yield from metrics(found)


def metrics(found: status.Status) -> Iterator[core.Metric]:
    """Yields a job's figures; those that aren't known are left out."""
    yield from _of_windows(found, "")
    if found.trending is not None:
        yield from _of_windows(found.trending, "trending_")
    yield from _of_topic(found)
    if found.cluster is not None:
        yield from _of_flink(found.cluster)
    if found.last_run is not None:
        yield from _of_run(found.last_run)
    yield from _of_totals(found.totals)
    for name, text in (
        ("total_epsilon", "Epsilon of the contract, for each user and period."),
        ("left_epsilon", "Epsilon of the contract less what is spent in the period."),
    ):
        yield from _labelled(f"budget_{name}", text, "period", {each.period: getattr(each, name) for each in found.budget})
    alerts = {each.name: each.is_firing for each in found.alerts}
    yield from _labelled("alert", "1: a figure is beyond its limit in [alerts] of the job file.", "alert", alerts)


def _of_windows(found: status.Status, prefix: str) -> Iterator[core.Metric]:
    """Of the job's own windows, or of its short ones."""
    windows = found.windows
    states = {"released": windows.released, "waiting": windows.waiting, "refused": windows.refused}
    yield from _labelled(f"{prefix}windows", "Windows that are over, by what became of them.", "state", states)
    for name, text, value in (
        ("released_until_timestamp_seconds", "End of the last released window.", windows.released_until.timestamp()),
        ("next_window_closes_timestamp_seconds", "When the next window may be read.", _timestamp(windows.next_closes)),
        ("delay_seconds", "Time since the end of the last released window; none once all are.", found.delay_seconds),
    ):
        yield from _gauge(f"{prefix}{name}", text, value)
    for name, latency in (("published", found.published), ("visible", found.visible)):
        text = f"From a window's end and slack until it is {name}, of the last {status.LAST} released ones."
        values = {} if latency is None else {"median": latency.median, "max": latency.largest}
        yield from _labelled(f"{prefix}{name}_latency_seconds", text, "statistic", values)
    for name, text in (
        ("windows_left", "Windows that the period's budget has room for."),
        ("windows_to_come", "Windows of the job in the period that are not released yet."),
    ):
        left = {each.period: getattr(each, name) for each in found.budget}
        yield from _labelled(f"{prefix}budget_{name}", text, "period", left)


def _of_topic(found: status.Status) -> Iterator[core.Metric]:
    if not found.partitions and found.broker_problem is None:
        return
    text = "1: the broker tells the ends of the topic's partitions; 0: it doesn't, and there is no lag."
    yield from _gauge("broker_up", text, found.broker_problem is None)
    for name, text, field in (
        ("read_offset", "Offset after the last message that was read for the last released window.", "read"),
        ("end_offset", "Offset that the partition's next message gets.", "end"),
        ("lag_messages", "Messages of the partition that no released window has read.", "lag"),
    ):
        metric = core.GaugeMetricFamily(f"sottovoce_{name}", text, labels=["topic", "partition"])
        for part in found.partitions:
            if (value := getattr(part, field)) is not None:
                metric.add_metric([part.topic, str(part.partition)], value)
        yield metric


def _of_flink(there: flink.Cluster) -> Iterator[core.Metric]:
    is_up = there.problem is None
    yield from _gauge("flink_up", "1: the job's Flink cluster answers; 0: it doesn't.", is_up)
    if is_up:
        yield from _gauge("flink_task_managers", "TaskManagers of the cluster.", there.task_managers)
        yield from _gauge("flink_free_slots", "Slots of the cluster that no job has.", there.free_slots)
        running = sum(job.state == "RUNNING" for job in there.jobs)
        yield from _gauge("flink_jobs", "Flink's jobs of the job that run.", running)


def _of_run(run: status.Run) -> Iterator[core.Metric]:
    rows = {outcome: run.outcomes.get(outcome, 0) for outcome in (decode.OK, *decode.DROPPED)}
    # Not each reason of dead letters: there is no bound on how many those are.
    rows[status.DEAD] = sum(run.outcomes.values()) - sum(rows.values())
    yield from _labelled("last_run_rows", "Rows that the last run read, by what became of them.", "outcome", rows)
    for name, text, value in (
        ("last_run_rows_per_second", "Rows that the last run read and counted in a second.", run.rows_per_second),
        ("last_run_started_timestamp_seconds", "When the last run started.", run.started.timestamp()),
        ("last_run_seconds", "How long the last run took, without training.", run.seconds),
        ("last_run_repeated_events", "Events of the last run that are repeats.", run.repeated),
    ):
        yield from _gauge(name, text, value)


def _of_totals(totals: status.Totals) -> Iterator[core.Metric]:
    text = "Events of all released windows: ok (that count, repeats among them), late, dead."
    metric = core.CounterMetricFamily("sottovoce_events", text, labels=["outcome"])
    for outcome, count in ((decode.OK, totals.ok), (decode.LATE, totals.late), (status.DEAD, totals.dead)):
        if count is not None:
            metric.add_metric([outcome], count)
    yield metric
    yield core.CounterMetricFamily("sottovoce_repeated_events", "Repeats, of all released windows.", value=totals.repeated)


def _gauge(name: str, text: str, value: float | None) -> Iterator[core.Metric]:
    if value is not None:
        yield core.GaugeMetricFamily(f"sottovoce_{name}", text, value=value)


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Iterator[core.Metric]:
    if values:
        metric = core.GaugeMetricFamily(f"sottovoce_{name}", text, labels=[label])
        for key, value in values.items():
            metric.add_metric([key], value)
        yield metric


def _timestamp(time: dt.datetime | None) -> float | None:
    return None if time is None else time.timestamp()
