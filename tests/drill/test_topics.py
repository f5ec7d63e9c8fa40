"""Jobs over large topics against a query over the file, undisturbed and with everything that can die killed. `make drill`."""

import contextlib
import datetime as dt
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator

import pytest

from data import errors
from pipelines import config, release, stream
from runners import kafka
from tests.drill import filling, trial
from tests.pipelines import example, topics
from tests.pipelines.example import view
from tests.pipelines.test_topics import figures, outcomes, until, without_noise
from transforms.ingest import kafka_client

__all__ = ["without_noise"]

DAYS = 4
N_EVENTS = int(os.environ.get("DRILL_EVENTS", 1_000_000))
KILLS, AWAY_SECONDS = int(os.environ.get("DRILL_KILLS", 3)), float(os.environ.get("DRILL_AWAY", 60))
BETWEEN_SECONDS = float(os.environ.get("DRILL_BETWEEN", 10))
BACKLOG = int(os.environ.get("DRILL_BACKLOG", 10_000_000))
PARTITIONS = 3
DAILY = ["--window.size=1d", "--window.end=2025-01-05", "--window.budget_share=0.2", "--model.retrain=1d"]


@pytest.mark.slow
def test_a_million_events_are_counted_as_a_query_counts_them(broker, tmp_path):
    path, topic = topics.write_job(tmp_path, broker, epsilon=trial.EXACT)
    events = trial.write_events(tmp_path, N_EVENTS, DAYS)
    job = topics.load(path, *trial.flags(DAYS), *trial.UNBOUNDED)
    sent = trial.send(broker, topic, events)
    list(release.run_until(job, until(DAYS + 1, 1)))
    expected = trial.counted(events)
    assert trial.released(job) == expected
    letters = trial.letters(broker, topic)
    assert letters == trial.malformed(broker, topic)
    print(f"{dict(sent)}: {len(expected)} counts and {len(letters)} dead letters; {outcomes(job)}")


@pytest.mark.slow
def test_a_file_a_topic_and_a_stream_give_the_same_integers(broker, flink_jars, tmp_path):
    """Bounds bind: everything that the releases say before noise, table by table."""
    told = {}
    events = tmp_path / "file" / "events.csv"
    for name in ("file", "scheduled", "streamed"):
        directory = tmp_path / name
        directory.mkdir()
        if name == "file":
            path = example.write_job(directory, [])
            trial.write_events(directory, N_EVENTS // 4, DAYS)
            job = example.load(path, *trial.flags(DAYS))
        else:
            path, topic = topics.write_job(directory, broker)
            for part in ("pseudonym.key", "items.csv"):
                shutil.copy(tmp_path / "file" / part, directory)
            job = topics.load(path, *trial.flags(DAYS))
            trial.send(broker, topic, events)
            trial.end(broker, topic)
        if name == "streamed":
            stream.run(job, until=until(DAYS + 1, 1))
        else:
            list(release.run_until(job, until(DAYS + 1, 1)))
        told[name] = figures(job)
    assert told["scheduled"] == told["file"]
    assert told["streamed"] == told["file"]
    assert len(told["file"]) == DAYS
    print(f"{N_EVENTS // 4} events: {[len(window) for window in told['file']]} figures above zero in each window")


@contextlib.contextmanager
def dying(broker: kafka.Broker, first: float = BETWEEN_SECONDS) -> Iterator[list[str]]:
    """Kills the broker again and again while the body runs, and starts it after a while; yields what was done, by the time."""
    is_over, done = threading.Event(), list[str]()
    begun = time.monotonic()

    def kill() -> None:
        for number in range(KILLS):
            if is_over.wait(BETWEEN_SECONDS if number else first):
                return
            broker.kill()
            done.append(f"killed at {time.monotonic() - begun:.0f} s")
            time.sleep(AWAY_SECONDS)
            broker.start()
            done.append(f"up at {time.monotonic() - begun:.0f} s")

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        yield done
    finally:
        is_over.set()
        killing.join()


def scheduled(job: config.Job) -> int:
    """Runs the job until it gets through; returns how often it failed, as a timer would run it."""
    failures = 0
    while True:
        try:
            list(release.run_until(job, until(DAYS + 1, 1)))
        except errors.UserError as error:
            failures += 1
            print(f"a run failed: {error}")
            time.sleep(1)
        else:
            return failures


def streamed(job: config.Job) -> int:
    """Streams the job until it has got through."""
    stream.run(job, until=until(DAYS + 1, 1))
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("run", [scheduled, streamed])
def test_a_broker_that_dies_three_times_loses_no_event(kafka_jars, flink_jars, tmp_path, run):
    with kafka.Broker(tmp_path / "kafka") as broker:
        path, topic = topics.write_job(tmp_path, broker, epsilon=trial.EXACT)
        events = trial.write_events(tmp_path, N_EVENTS, DAYS)
        job = topics.load(path, *trial.flags(DAYS), *trial.UNBOUNDED)
        sent = trial.send(broker, topic, events)
        trial.end(broker, topic)
        start = time.monotonic()
        with dying(broker) as done:
            failures = run(job)
            done.append(f"through at {time.monotonic() - start:.0f} s")
        print(f"{sent.total()} messages, {run.__name__}: {', '.join(done)}; {failures} runs failed")
        assert trial.released(job) == trial.counted(events)
        assert trial.letters(broker, topic) == trial.malformed(broker, topic)
        assert sum("killed" in each for each in done) == KILLS


@pytest.mark.slow
def test_a_live_stream_outlives_its_broker(kafka_jars, flink_jars, tmp_path):
    """Times are the broker's: what came in time by them counts, and what came late, since the broker was away, doesn't."""
    size, slack, n_windows = 10, 2, int(KILLS * (AWAY_SECONDS + BETWEEN_SECONDS) / 10) + 4
    start = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=30)
    end = start + n_windows * dt.timedelta(seconds=size)
    with kafka.Broker(tmp_path / "kafka") as broker:
        path, topic = topics.write_job(tmp_path, broker, create_time=False)
        job = topics.load(
            path,
            f"--window.size={size}s",
            f"--window.slack_seconds={slack}",
            f"--window.start={start.isoformat()}",
            f"--window.end={end.isoformat()}",
            f"--window.budget_share={0.9 / n_windows}",
            "--kafka.settle_seconds=5",
            "--model.retrain=1d",
        )
        is_over = threading.Event()

        def produce() -> None:
            settings = {"delivery_timeout_ms": 600_000, "linger_ms": 5}
            with kafka_client.producer(topics.connection(broker), **settings) as producer:
                numbers = itertools.count()
                while not is_over.wait(0.05):
                    now = dt.datetime.now(dt.UTC).isoformat()[:-6]
                    for number in itertools.islice(numbers, 10):
                        producer.send(topic, **topics.message(view(f"u{number}", "abcd"[number % 4], f"e{number}", now)))

        producing = threading.Thread(target=produce)
        producing.start()
        with dying(broker, first=30 + size) as done:
            stream.run(job, until=end + job.window.slack + job.settling)
        is_over.set()
        producing.join()
        expected, late = Counter[tuple[int, str, str]](), 0
        for record in topics.read(broker, topic):
            event = json.loads(record.value)
            happened = topics.milliseconds(event["event_time"]) - 1000 * int(start.timestamp())
            window = happened // (1000 * size)
            if not 0 <= window < n_windows:
                continue
            close = start + (window + 1) * dt.timedelta(seconds=size) + job.window.slack
            if record.timestamp <= 1000 * close.timestamp():
                begins = int(start.timestamp()) + window * size
                expected[1_000_000 * begins, event["item_id"], "view"] += 1
            else:
                late += 1
        print(f"{expected.total()} events in time, {late} late, {n_windows} windows: {', '.join(done)}")
        assert trial.released(job) == {key: (events, events) for key, events in expected.items()}
        assert sum("killed" in each for each in done) == KILLS


@pytest.mark.slow
@pytest.mark.parametrize(("command", "flags"), [("release", []), ("stream", ["--until", "2025-01-06", *DAILY])])
def test_a_backlog_is_read_in_bounded_memory(kafka_jars, flink_jars, tmp_path, command, flags):
    """Ten times as many messages take no more than half as much memory again, Flink and all processes included."""
    peaks = {}
    for n in (BACKLOG // 10, BACKLOG):
        directory = tmp_path / str(n)
        with kafka.Broker(directory / "kafka") as broker:
            path, topic = topics.write_job(directory, broker)
            job = topics.load(path, *flags[2:])
            filling.fill_all(topics.connection(broker), topic, PARTITIONS, n // PARTITIONS)
            trial.end(broker, topic, PARTITIONS)
            words = [sys.executable, "-m", f"pipelines.{command}", str(path), *flags]
            peak, begun = 0, time.monotonic()
            with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
                while process.poll() is None:
                    peak = max(peak, trial.memory(process.pid))
                    time.sleep(0.5)
            seconds = time.monotonic() - begun
            assert process.returncode == 0
            assert sum(found.get("ok", 0) for found in outcomes(job)) == n // PARTITIONS * PARTITIONS
            peaks[n] = peak
            print(f"{command}: {n} messages in {seconds:.0f} s, {peak / 1e9:.2f} GB at the peak")
    assert peaks[BACKLOG] <= 1.5 * peaks[BACKLOG // 10]


def test_a_batch_that_is_made_at_once_is_read_as_any_other(broker):
    topic, n = f"filled-{uuid.uuid4().hex}", filling.BATCH + 7
    connection = topics.connection(broker)
    kafka_client.create_topic(connection, topic, 2)
    filling.fill(connection, topic, 1, n, milliseconds=filling.DAY, users=1000, is_heavy=True)
    records = topics.read(broker, topic)
    assert [record.offset for record in records] == list(range(n))
    for i in (0, 1, filling.BATCH - 1, n - 1):
        at = filling.FIRST + filling.DAY * i // n
        event = json.loads(records[i].value)
        user = filling.HEAVY if i % 2 == 0 else (7919 * i + 1) % 1000
        assert (records[i].timestamp, records[i].key) == (at, None)
        assert topics.milliseconds(event.pop("event_time")) == at
        assert event == {
            "event_id": f"001-{i:09}",
            "privacy_id": f"u{user:07}",
            "item_id": "abcd"[i % 4],
            "event_type": "view",
        }
