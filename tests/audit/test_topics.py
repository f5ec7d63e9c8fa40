"""Jobs over large topics against a query over the file, undisturbed and with everything that can die killed. `make audit`."""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator

import pytest

from data import errors
from pipelines import config, release, stream
from runners import kafka
from tests.audit import trial
from tests.pipelines import example, topics
from tests.pipelines.test_topics import figures, outcomes, until, without_noise

__all__ = ["without_noise"]

DAYS = 4
N_EVENTS = int(os.environ.get("DRILL_EVENTS", 1_000_000))
KILLS, AWAY_SECONDS, BETWEEN_SECONDS = 3, float(os.environ.get("DRILL_AWAY", 60)), 10


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
def dying(broker: kafka.Broker) -> Iterator[list[str]]:
    """Kills the broker again and again while the body runs, and starts it after a while; yields what was done, by the time."""
    is_over, done = threading.Event(), list[str]()
    begun = time.monotonic()

    def kill() -> None:
        for _ in range(KILLS):
            if is_over.wait(BETWEEN_SECONDS):
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
