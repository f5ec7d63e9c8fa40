"""`sottovoce status`: exact figures, alerts, and metrics that nobody reaches from elsewhere."""

import contextlib
import datetime as dt
import json
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
import prometheus_client.parser
import pyarrow.parquet as pq
import pytest

from data import errors, ledger
from pipelines import cli, config, metrics, release, status
from tests.pipelines import example, topics
from tests.pipelines.example import view
from tests.runners.processes import children, wait_for
from transforms.privacy import noise

DAYS = ["--window.size=1d", "--window.budget_share=0.05", "--window.slack_seconds=3600"]
ANN = view("ann", "a", "1", "2025-01-01T12:00", "2025-01-01T12:00")
BOB = view("bob", "b", "2", "2025-01-02T12:00", "2025-01-02T12:00")
LATE = view("bob", "b", "3", "2025-01-01T13:00", "2025-01-02T02:00")
DEAD = view("", "a", "4", "2025-01-01T12:00", "2025-01-01T12:00")


def at(day: int, hour: int = 0) -> dt.datetime:
    return dt.datetime(2025, 1, day, hour, tzinfo=dt.UTC)


@pytest.fixture(scope="module", autouse=True)
def without_noise():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "draw", lambda source, size, noise_sd, grid_bits: np.zeros(size, np.int64))
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> pathlib.Path:
    """The job file of a job over files, two windows of it released; one event each is late, dead and repeated."""
    path = example.write_job(tmp_path_factory.mktemp("files"), [ANN, ANN, BOB, LATE, DEAD])
    list(release.run_until(example.load(path, *DAYS), at(3, 1)))
    return path


@pytest.fixture(scope="module")
def topic(broker, tmp_path_factory) -> pathlib.Path:
    """The same over a topic, to which one more message came since."""
    path, name = topics.write_job(tmp_path_factory.mktemp("topic"), broker)
    job = topics.load(path, *DAYS)
    topics.send(broker, name, map(topics.message, [ANN, ANN, BOB, LATE, DEAD]))
    list(release.run_until(job, at(3, 1)))
    topics.send(broker, name, [topics.message(view("cat", "c", "5", "2025-01-04", "2025-01-04"))])
    return path


def read(path: pathlib.Path, *flags: str, now: dt.datetime | None = None) -> status.Status:
    return status.read(config.load(path, [*DAYS, *flags])[0], now or at(5, 12))


def firing(found: status.Status) -> list[str]:
    return [alert.name for alert in found.alerts if alert.is_firing]


def test_windows_are_counted_by_what_became_of_them(files):
    found = read(files)
    assert found.windows == status.Windows(2, 2, 0, None, released_until=at(3), next_closes=at(6, 1))
    assert found.delay_seconds == 2.5 * 86400
    assert read(files, now=at(3, 1)).windows.waiting == 0


def test_events_are_counted_by_what_became_of_them(files):
    found = read(files)
    assert found.totals == status.Totals(2, ok=3, late=1, repeated=1, dead=None)
    assert found.last_run.outcomes == {"ok": 1, "outside the window": 3, "privacy_id is missing": 1}
    assert (found.last_run.window_start, found.last_run.repeated, found.last_run.dead_share) == (at(2), 0, 0.2)
    assert 0 < found.last_run.read_seconds < found.last_run.seconds
    assert found.last_run.rows_per_second == pytest.approx(5 / found.last_run.read_seconds)
    assert (found.partitions, found.broker_problem) == ([], None)


def test_a_window_of_a_topic_has_its_own_late_and_dead_messages(topic):
    found = read(topic)
    assert found.totals == status.Totals(2, ok=3, late=1, repeated=1, dead=1)
    assert found.last_run.late_share == 0.5
    [partition_with_lag] = [part for part in found.partitions if part.lag]
    assert partition_with_lag.end - partition_with_lag.read == partition_with_lag.lag == 1
    assert sum(part.read for part in found.partitions) == 5
    assert found.broker_problem is None


def test_a_topic_that_was_never_read_lags_from_its_first_message(broker, tmp_path):
    path, name = topics.write_job(tmp_path, broker)
    topics.load(path, *DAYS)
    topics.send(broker, name, map(topics.message, [ANN, BOB]))
    found = read(path)
    assert sum(part.lag for part in found.partitions) == 2
    assert {part.read for part in found.partitions} == {None}
    assert (found.last_run, found.published, found.totals.windows) == (None, None, 0)
    assert found.windows.released_until == at(1)


def test_without_a_broker_there_are_figures_without_lag_within_ten_seconds(topic):
    start = time.monotonic()
    found = read(topic, "--kafka.bootstrap=127.0.0.1:1", "--alerts.max_lag=1000")
    assert time.monotonic() - start < 10
    assert "no broker answers" in found.broker_problem
    assert {(part.end, part.lag) for part in found.partitions} == {(None, None)}
    assert sum(part.read for part in found.partitions) == 5
    assert found.totals.ok == 3
    assert firing(found) == ["max_lag"]
    names = {(sample.name, sample.value) for metric in metrics.metrics(found) for sample in metric.samples}
    assert ("sottovoce_broker_up", 0) in names
    assert not [name for name, _ in names if "lag" in name]


@pytest.mark.parametrize(
    ("flag", "fires"),
    [
        ("max_lag=0", True),
        ("max_lag=1", False),
        ("max_delay_seconds=215999", True),
        ("max_delay_seconds=216000", False),
        ("max_dead_share=0.19", True),
        ("max_dead_share=0.2", False),
        ("max_late_share=0.49", True),
        ("max_late_share=0.5", False),
        ("min_windows_left=19", True),
        ("min_windows_left=18", False),
    ],
)
def test_an_alert_fires_beyond_its_limit(topic, flag, fires):
    assert firing(read(topic, f"--alerts.{flag}")) == ([flag.partition("=")[0]] if fires else [])


def test_without_limits_nothing_fires(topic):
    assert read(topic).alerts == []


def test_latency_runs_from_a_windows_end_and_slack(files):
    """What was released long after the fact was late by that much, and none of it was published as a database."""
    found = read(files)
    now = dt.datetime.now(dt.UTC)
    assert found.published.windows == 2
    assert 0 < (now - at(2, 1)).total_seconds() - found.published.largest < 600
    assert found.published.largest - found.published.median == pytest.approx(43200, abs=300)
    assert found.visible is None


def test_what_is_published_is_visible_from_then_on(tmp_path):
    path = example.write_job(tmp_path, [view(f"u{i}", item) for i in range(30) for item in "abc"])
    example.load(path)
    assert cli.main(["run", str(path)]) == 0
    found = status.read(config.load(path)[0])
    assert 0 < found.visible.largest - found.published.largest < 600
    assert (found.delay_seconds, found.windows.waiting, found.windows.next_closes) == (None, 0, None)
    assert cli.main(["publish", str(path)]) == 0
    assert status.read(config.load(path)[0]).visible == found.visible


def test_what_the_ledger_refuses_is_told(tmp_path):
    path = example.write_job(tmp_path, [ANN, BOB])
    job = example.load(path, "--window.size=1d", "--window.budget_share=0.6")
    with pytest.raises(ledger.BudgetRefusedError):
        list(release.run_until(job, at(4)))
    found = status.read(job, at(4))
    assert (found.windows.released, found.windows.waiting, found.windows.refused) == (1, 1, 1)
    assert "40.0% left" in found.windows.why
    assert [each.windows_left for each in found.budget] == [0]


def test_what_is_refused_for_its_rows_is_told_until_it_is_released(tmp_path):
    path = example.write_job(tmp_path, [ANN, DEAD])
    job = example.load(path, *DAYS)
    with pytest.raises(errors.RefusedError):
        list(release.run_until(example.load(path, *DAYS, "--source.max_malformed_share=0"), at(2, 1)))
    found = status.read(job, at(3, 1))
    assert (found.windows.released, found.windows.waiting, found.windows.refused) == (0, 1, 1)
    assert found.windows.why.startswith("50.00% of the rows are malformed")
    assert (found.last_run.refused, found.last_run.repeated) == (found.windows.why, None)
    list(release.run_until(job, at(2, 1)))
    found = status.read(job, at(3, 1))
    assert (found.windows.released, found.windows.waiting, found.windows.refused) == (1, 1, 0)


@pytest.mark.parametrize(
    ("flags", "left", "to_come"),
    [
        (["--window.budget_share=0.2"], [4], [30]),
        (["--window.budget_share=0.2", "--privacy.period=week"], [4], [4]),
        (["--window.budget_share=0.2", "--privacy.period=day"], [5], [1]),
        (["--window.max_windows_contributed=3", "--privacy.period=week"], [4], [4]),
        (["--window.every=12h", "--window.budget_share=0.2", "--privacy.period=day"], [4, 5], [1, 3]),
    ],
    ids=["lifetime", "week", "day", "book", "sliding"],
)
def test_budget_is_told_of_the_periods_of_the_next_window(tmp_path, flags, left, to_come):
    """The first of January 2025 is a Wednesday."""
    job = example.load(example.write_job(tmp_path, [ANN]), "--window.size=1d", *flags)
    list(release.run_until(job, at(2)))
    found = status.read(job, at(2))
    assert [each.windows_left for each in found.budget] == left
    assert [each.windows_to_come for each in found.budget] == to_come


def test_a_period_that_ends_soon_needs_no_more_windows_than_it_has(tmp_path):
    flags = ["--window.size=1d", "--window.budget_share=0.2", "--privacy.period=week", "--alerts.min_windows_left=10"]
    job = example.load(example.write_job(tmp_path, [ANN]), *flags)
    list(release.run_until(job, at(2)))
    assert firing(status.read(job, at(2))) == []


def test_without_a_contract_there_is_no_status(tmp_path):
    job = config.load(example.write_job(tmp_path, []), DAYS)[0]
    with pytest.raises(ledger.BudgetRefusedError, match="has no contract"):
        status.read(job)


def test_json_is_the_same_each_time_and_has_all_figures(files):
    text = status.as_json(read(files, "--alerts.max_late_share=0.5"))
    assert text == status.as_json(read(files, "--alerts.max_late_share=0.5"))
    found = json.loads(text)
    assert list(found) == [
        "job",
        "data_set",
        "at",
        "windows",
        "delay_seconds",
        "partitions",
        "broker_problem",
        "last_run",
        "totals",
        "published",
        "visible",
        "budget",
        "alerts",
        "cluster",
        "trending",
    ]
    assert found["at"] == "2025-01-05T12:00:00+00:00"
    assert found["totals"] == {"windows": 2, "ok": 3, "late": 1, "repeated": 1, "dead": None}
    assert found["alerts"] == [{"name": "max_late_share", "limit": 0.5, "value": 0.0, "is_firing": False}]


def test_without_its_flink_a_job_has_its_other_figures_within_ten_seconds(files):
    start = time.monotonic()
    found = read(files, "--runner.master=127.0.0.1:1")
    assert time.monotonic() - start < 10
    assert found.totals.ok == 3
    [line] = [line for line in status.as_text(found) if line.startswith("no Flink: ")]
    assert "127.0.0.1:1" in line
    samples = [(sample.name, sample.value) for metric in metrics.metrics(found) for sample in metric.samples]
    assert [each for each in samples if each[0].startswith("sottovoce_flink")] == [("sottovoce_flink_up", 0)]


def test_the_command_prints_lines_and_exits_with_8_where_an_alert_fires(topic, capsys):
    assert cli.main(["status", str(topic), *DAYS, "--alerts.max_late_share=1"]) == 0
    printed = capsys.readouterr().out
    assert ": 1 behind" in printed
    assert "2 released window(s): ok 3 (repeated 1), late 1, dead 1" in printed
    assert "fine: max_late_share" in printed
    assert cli.main(["status", str(topic), *DAYS, "--alerts.max_lag=0", "--format", "json"]) == 8
    printed = capsys.readouterr()
    assert json.loads(printed.out)["alerts"][0]["is_firing"]
    assert "sottovoce: test: max_lag = 0, but it is 1." in printed.err


def test_exact_figures_stay_on_the_operators_side(files):
    [*manifests] = (files.parent / "store" / "releases").glob("*/manifest.json")
    assert len(manifests) == 2
    assert not [word for path in manifests for word in ("repeated", "outcomes", "read_seconds") if word in path.read_text()]
    [*tables] = (files.parent / "store" / "attempts").glob("*/*/*.parquet")
    assert len(tables) >= 6
    assert not [path for path in tables if b"repeated" in (pq.read_schema(path).metadata or {})]


def scrape(port: int, host: str = "127.0.0.1") -> dict[tuple, float]:
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    families = list(prometheus_client.parser.text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


@contextlib.contextmanager
def running(*words: str) -> Iterator[int]:
    """A command that serves metrics at the port that is yielded, until SIGTERM."""
    command = [sys.executable, "-m", "pipelines.cli", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        line = next(line for line in process.stderr if "http://" in line)
        yield int(line.rpartition(":")[2].removesuffix("/metrics\n"))
        # One that is interrupted as it imports says so in a traceback.
        wait_for(lambda: not children(process.pid))
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in said) == (0, False), said


def test_metrics_are_scraped_on_this_machine_alone(topic):
    job = config.load(topic, [*DAYS, "--alerts.max_lag=0", "--alerts.max_dead_share=0.2"])[0]
    with metrics.serving(job, 0) as port:
        found = scrape(port)
        for host in {"127.0.0.2", socket.gethostbyname(socket.gethostname())} - {"127.0.0.1"}:
            with pytest.raises(urllib.error.URLError, match="refused"):
                scrape(port, host)
    assert found["sottovoce_up",] == found["sottovoce_broker_up",] == 1
    assert found["sottovoce_windows", "released"] == 2
    assert sum(value for key, value in found.items() if key[0] == "sottovoce_lag_messages") == 1
    assert [found["sottovoce_events_total", outcome] for outcome in ("ok", "late", "dead")] == [3, 1, 1]
    assert found["sottovoce_repeated_events_total",] == 1
    assert found["sottovoce_alert", "max_lag"] == 1
    assert found["sottovoce_alert", "max_dead_share"] == 0
    assert found["sottovoce_budget_windows_left", "lifetime"] == 18
    assert found["sottovoce_last_run_rows", "late"] == 1
    assert all(key[0].startswith("sottovoce_") for key in found)


def test_the_command_serves_metrics_until_it_is_told_to_end(files):
    with running("status", str(files), *DAYS, "--serve", "0") as port:
        assert scrape(port)["sottovoce_windows", "released"] == 2


def test_a_schedule_serves_metrics_beside_its_runs(files):
    # All of its windows are released: the runs find nothing to do.
    flags = [*DAYS, "--window.end=2025-01-03"]
    with running("schedule", str(files), *flags, "--foreground", "--metrics", "0") as port:
        found = scrape(port)
    assert found["sottovoce_windows", "waiting"] == 0
    assert ("sottovoce_delay_seconds",) not in found


def test_figures_that_can_not_be_read_are_no_broken_scrape(tmp_path, caplog):
    job = config.load(example.write_job(tmp_path, []), DAYS)[0]
    with metrics.serving(job, 0) as port:
        assert scrape(port) == {("sottovoce_up",): 0}
    assert "has no contract in the ledger" in caplog.text


def test_figures_are_read_once_in_some_seconds(files, monkeypatch):
    asked = []
    monkeypatch.setattr(status, "read", lambda job: asked.append(job) or read(files))
    with metrics.serving(config.load(files, DAYS)[0], 0) as port:
        assert scrape(port) == scrape(port)
    assert len(asked) == 1


def test_reasons_of_dead_letters_are_no_labels(files):
    """Whoever sends events could make as many as they like."""
    labels = {value for each in metrics.metrics(read(files)) for sample in each.samples for value in sample.labels.values()}
    assert "dead" in labels
    assert "privacy_id is missing" not in labels


def test_a_port_that_is_taken_exits_with_3(files, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["status", str(files), *DAYS, "--serve", str(port)]) == 3
    assert f"sottovoce: metrics: 127.0.0.1:{port} can't be had (Address already in use)." in capsys.readouterr().err


def test_metrics_without_foreground_exit_with_2(files, capsys):
    assert cli.main(["schedule", str(files), *DAYS, "--metrics", "9109"]) == 2
    assert "--metrics: needs --foreground" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--serve", "65536"], "65536 is not a port"),
        (["--serve", "x"], "x is not a port: 1 to 65535, or 0 for any that is free"),
        (["--serve", "0", "--format", "json"], "not allowed with argument"),
        (["--format", "xml"], "invalid choice: 'xml'"),
    ],
)
def test_wrong_flags_exit_with_2(files, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["status", str(files), *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
