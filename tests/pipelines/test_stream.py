"""Streams on a real Flink from a real broker: the same figures as scheduled runs, each window once."""

import contextlib
import dataclasses
import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to

from data import vault
from pipelines import cli, config, release, source, status, stream
from runners import background, direct
from tests.pipelines import topics
from tests.pipelines.example import charges, load, published, view, write_job
from tests.pipelines.test_topics import DAYS, OPT_OUT, figures, lines, outcomes, short_figures, until, without_noise
from tests.runners.processes import connections, flink_processes, is_java, is_worker, wait_for
from transforms import bounding
from transforms.ingest import pseudonym
from transforms.ingest import stream as ingest

__all__ = ["without_noise"]

LATER = view("u0", "a", "", "2025-01-20T12:00", "2025-01-20T12:00")
"""By its arrival every window of `lines` has closed."""


SHORT = ["--trending.size=22h", "--trending.every=18h", "--trending.budget_share=0.01"]


@pytest.mark.long
def test_a_stream_has_the_figures_of_scheduled_runs(broker, flink_jars, tmp_path):
    """Repeats, disorder, late and malformed messages, an opt-out, a budget for three windows of four; bounds bind. Short
    windows that slide go on where those of a day are refused.
    """
    jobs = {}
    for name in ("scheduled", "streamed"):
        (tmp_path / name).mkdir()
        if name == "streamed":
            shutil.copy(tmp_path / "scheduled" / "pseudonym.key", tmp_path / name)
        path, topic = topics.write_job(tmp_path / name, broker)
        jobs[name] = topics.load(path, *DAYS, *SHORT, "--window.budget_share=0.3")
        bad = [{"value": b"{", "timestamp_ms": topics.milliseconds(f"2025-01-0{day}T12:00")} for day in (1, 3)]
        # As a broker would have them: by arrival.
        sent = sorted([*map(topics.message, lines()), *bad], key=lambda message: message["timestamp_ms"])
        topics.send(broker, topic, sent)
        topics.send(broker, topic, [{**topics.message(LATER), "partition": partition} for partition in range(3)])
        topics.send(broker, f"{topic}.consent", [{"key": b"u3", "value": OPT_OUT}])
    with pytest.raises(release.ledger.BudgetRefusedError):
        list(release.run_until(jobs["scheduled"], until(5, 1)))
    stream.run(jobs["streamed"], until=until(5, 1))
    scheduled, streamed = (figures(job) for job in jobs.values())
    assert len(streamed) == 3
    assert streamed == scheduled
    short = [short_figures(job) for job in jobs.values()]
    assert short[1] == short[0]
    assert len([window for window, counted in short[0].items() if counted]) == 5
    letters = [sorted(letter.value for letter in topics.read(broker, f"{job.source.topic}.dead")) for job in jobs.values()]
    assert letters[0] == letters[1]
    assert letters[1].count(b"{") == 2
    late_messages = [sorted(late.value for late in topics.read(broker, f"{job.source.topic}.late")) for job in jobs.values()]
    assert late_messages[0] == late_messages[1]
    assert len(late_messages[1]) > 100
    late = {name: [found.get("late", 0) for found in outcomes(job)] for name, job in jobs.items()}
    assert late["streamed"] == late["scheduled"]
    assert len(late["streamed"]) == 3 + len(short[0])
    totals = [status.read(job).totals for job in jobs.values()]
    assert dataclasses.replace(totals[1], ok=0) == dataclasses.replace(totals[0], ok=0)
    assert totals[1].repeated > 100


def send_day(broker, topic: str, day: int) -> None:
    """A day's events, and one of the next day's end, by which it has closed."""
    time_, close = f"2025-01-0{day}T12:00", f"2025-01-0{day + 1}T01:30"
    topics.send(broker, topic, (topics.message(view(f"u{i}", "a", "", time_, time_)) for i in range(10 * day)))
    end = topics.message(view("late", "b", "", f"2025-01-0{day}T13:00", close))
    topics.send(broker, topic, ({**end, "partition": partition} for partition in range(3)))


@pytest.mark.long
def test_a_stream_that_is_told_to_stop_ends_in_order_and_the_next_goes_on(broker, flink_jars, tmp_path):
    """Killed once, told to stop once: each window is released once, in order, with all of its events."""
    path, topic = topics.write_job(tmp_path, broker)
    job = topics.load(path, *DAYS)
    [port] = background.choose_ports("127.0.0.1", None)
    command = [sys.executable, "-m", "pipelines.cli", "stream", str(path), *DAYS, "--metrics", str(port)]

    for day, number in ((1, signal.SIGKILL), (2, signal.SIGTERM), (3, signal.SIGINT)):
        send_day(broker, topic, day)
        with subprocess.Popen(command) as process:
            end = time.monotonic() + 120
            while len(published(job)) < day and process.poll() is None and time.monotonic() < end:
                time.sleep(0.2)
            told = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
            assert f'sottovoce_windows{{state="released"}} {day}.0' in told
            os.kill(process.pid, number)
            expected = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 0, signal.SIGINT: cli.INTERRUPTED}[number]
            assert process.wait(60) == expected
    assert [charge["window_start"][8:10] for charge in charges(job)] == ["01", "02", "03"]
    # Bounded users, each with one event.
    assert [found[("a", "view")] for found in figures(job)] == [(10, 10), (20, 20), (30, 30)]


@pytest.mark.long
def test_a_stream_on_a_cluster_outlives_a_task_manager(broker, cluster, tmp_path):
    path, topic = topics.write_job(tmp_path, broker)
    job = topics.load(path, *DAYS, "--job.name=outliving", f"--runner.master={cluster.master}")
    send_day(broker, topic, 1)

    def kill() -> None:
        wait_for(lambda: len(published(job)) == 1, 120)
        cluster.task_managers[0].kill()
        cluster.start()
        send_day(broker, topic, 2)

    killing = threading.Thread(target=kill)
    killing.start()
    stream.run(job, until=until(3, 2))
    killing.join()
    assert [charge["window_start"][8:10] for charge in charges(job)] == ["01", "02"]
    assert [found[("a", "view")] for found in figures(job)] == [(10, 10), (20, 20)]
    lines = list(status.as_text(status.read(job)))
    assert f"Flink at {cluster.master}: 1 TaskManager(s), 4 of 4 slots free; logs: {cluster.directory}/*.log" in lines
    # The one that was told to end; another failed with its TaskManager.
    assert [line.split(" on ")[0] for line in lines if " on Flink since " in line] == ["outliving CANCELED"]
    ours = sorted(each.state for each in cluster.rest.jobs() if each.name == job.job.name)
    assert ours == ["CANCELED", "FAILED"]


@pytest.mark.long
def test_a_stream_that_has_to_begin_again_says_so_and_leaves_nothing_behind(broker, flink_jars, tmp_path):
    workers = 2
    path, topic = topics.write_job(tmp_path, broker)
    job = topics.load(path, *DAYS, f"--runner.workers={workers}")
    topics.send(broker, topic, [{**topics.message(LATER), "partition": partition} for partition in range(3)])
    for dies in ("nothing", "a worker", "Java"):
        with contextlib.closing(stream._closed(job, (0, 0), tmp_path, [], [])) as flow:
            next(flow)
            reading = {pid: connections(pid, broker.port) for pid in flink_processes(os.getpid()) if is_worker(pid)}
            assert len(reading) == workers
            assert all(reading.values())
            if dies != "nothing":
                [pid, *_] = reading if dies == "a worker" else filter(is_java, flink_processes(os.getpid()))
                os.kill(pid, signal.SIGKILL)
                # It would go on for ever.
                list(flow)
        assert flink_processes(os.getpid()) == set()
        assert connections(os.getpid(), broker.port) == 0


def test_a_window_gets_what_is_its_own_though_later_ones_were_released_before(tmp_path, monkeypatch):
    """As after a refusal: a stream begins at the first window that is missing and comes past others."""
    job = load(write_job(tmp_path, []), "--window.size=1d")
    job = job.model_copy(update={"source": job.source.model_copy(update={"topic": "events"})})
    windows = list(map(job.window.bounds, range(job.window.closed_count(until(6)))))
    given = []

    def closed(*_):
        yield from ((0, number, ingest.Closed([], {"events/0": number}, {}, [])) for number in range(1, 5))

    monkeypatch.setattr(stream, "_closed", closed)
    monkeypatch.setattr(stream, "_released", lambda _, place, number, closed, told: given.append((number, closed.read)) or True)
    monkeypatch.setattr(release, "settle", lambda _: [{windows[0], windows[2]}])
    monkeypatch.setattr(source, "topic_partitions", lambda _: [0])
    stream.run(job, until=until(6))
    assert given == [(number, {"events/0": number}) for number in (1, 3, 4)]


def test_a_window_has_the_items_and_the_users_that_there_are_when_it_closes(broker, flink_jars, tmp_path, monkeypatch):
    """An item comes, one goes, and a user opts in again, while the stream runs; it begins the window anew, once."""
    start = dt.datetime.now(dt.UTC).replace(microsecond=0)
    path, topic = topics.write_job(tmp_path, broker, create_time=False)
    items = topics.move_items(path, topic)
    flags = [f"--window.start={start.isoformat()}", "--window.end=2100-01-01", "--window.size=15s", "--window.budget_share=0.1"]
    job = topics.load(path, *flags)
    topics.send(broker, items, map(topics.item, "ab"))
    topics.send(broker, f"{topic}.consent", [{"key": b"u0", "value": OPT_OUT}])
    begin, begun = source.stream_reader, []

    def reader(*given):
        made = begin(*given)
        if not begun:
            now = dt.datetime.now(dt.UTC).isoformat()[:-6]
            topics.send(broker, items, [topics.item("d"), topics.item("b", None)])
            topics.send(broker, f"{topic}.consent", [{"key": b"u0", "value": None}])
            topics.send(broker, topic, (topics.message(view(f"u{i}", item, "", now)) for i in range(3) for item in "abd"))
        begun.append(dt.datetime.now(dt.UTC))
        return made

    monkeypatch.setattr(source, "stream_reader", reader)
    stream.run(job, until=start + dt.timedelta(seconds=15))
    assert {key: found for key, found in figures(job)[0].items() if "view" in key} == {
        ("a", "view"): (3, 3),
        ("d", "view"): (3, 3),
    }
    assert outcomes(job)[0]["ok"] == 6
    assert len(topics.read(broker, f"{topic}.dead")) == 3
    assert [at >= start + dt.timedelta(seconds=15) for at in begun] == [False, True]


def test_letters_of_those_who_have_opted_out_since_go_no_further(tmp_path):
    key = bytes(32)
    ann, bob = (each.as_py().hex() for each in pseudonym.pseudonymise(pa.array(["ann", "bob"]), key))
    keys = vault.Vault((key,))
    waiting = [f'{ann} {{"reason": "late"}}', f'{bob} {{"reason": "bob"}}', ' {"reason": "nobody"}']
    (tmp_path / "a").write_text("".join(f"{keys.seal_line(letter)}\n" for letter in waiting))
    closed = ingest.Closed([], {}, {"ok": 1}, [str(tmp_path / "a")])
    with beam.Pipeline(options=direct.options([])) as root:
        found = source.ClosedWindow(closed, key, pa.array(["ann"]), keys).read(
            root, bounding.GroupByUser(1, {"view": 1.0}, str(tmp_path))
        )
        assert_that(found.dead_letters, equal_to(['{"reason": "bob"}', '{"reason": "nobody"}']))


def test_a_job_without_a_topic_or_windows_is_no_stream(tmp_path):
    with pytest.raises(config.JobFileError, match="a stream needs"):
        stream.run(load(write_job(tmp_path, []), "--window.size=1d"))
