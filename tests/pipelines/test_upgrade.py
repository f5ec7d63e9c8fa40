"""Streams that make checkpoints: the next one goes on from where the last one ended, or begins anew, with the same figures."""

import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
import time

import apache_beam as beam
import kafka
import pytest

from data import store
from pipelines import config, release, stream, upgrade
from runners import flink
from tests.pipelines import topics
from tests.pipelines.example import charges, published, view
from tests.pipelines.test_topics import DAYS, figures, lines, until, without_noise
from tests.runners.processes import flink_processes
from transforms.ingest import stream as ingest

__all__ = ["without_noise"]

FLAGS = [*DAYS, "--runner.checkpoint_seconds=1"]


def forget(broker, job: config.Job) -> None:
    """Deletes what the job has read of its topic: a stream that begins anew can't find it any more."""
    read = store.Store(job.job.store).run_record(charges(job)[-1]["attempt"])["source"]
    offsets = {
        kafka.TopicPartition(job.source.topic, int(path.rpartition("/")[2])): int(span[1:]) for path, span in read.items()
    }
    assert sum(offsets.values()) > 0
    with topics.admin(broker) as client:
        client.delete_records(offsets)


def send_day(broker, topic: str, day: int, users: int) -> None:
    """A day's events, which arrive in order; as many of the next day's that arrive before this one has closed; and its close."""
    for start, end in ((f"2025-01-0{day}T12:00", None), (f"2025-01-0{day + 1}T00:30", f"2025-01-0{day + 1}T01:30")):
        topics.send(broker, topic, (topics.message(view(f"{start}-{i}", "a", "", start, start)) for i in range(users)))
        if end is not None:
            closing = topics.message(view("late", "b", "", f"2025-01-0{day}T13:00", end))
            topics.send(broker, topic, ({**closing, "partition": partition} for partition in range(3)))


def counted(job: config.Job) -> list[tuple[int, int]]:
    return [found[("a", "view")] for found in figures(job)]


def test_a_stream_that_was_stopped_goes_on_in_the_middle_of_a_window(broker, flink_jars, tmp_path, caplog):
    """It reads no message again: they are gone. Bounds bind, messages are late or repeated."""
    jobs = {}
    for name in ("scheduled", "streamed"):
        (tmp_path / name).mkdir()
        if name == "streamed":
            shutil.copy(tmp_path / "scheduled" / "pseudonym.key", tmp_path / name)
        jobs[name] = topics.load(topics.write_job(tmp_path / name, broker)[0], *FLAGS)
    messages = sorted(map(topics.message, lines()), key=lambda message: message["timestamp_ms"])
    messages += [
        {**topics.message(view("u0", "a", "", "2025-01-20", "2025-01-20")), "partition": partition} for partition in range(3)
    ]
    topics.send(broker, jobs["scheduled"].source.topic, messages)
    list(release.run_until(jobs["scheduled"], until(5, 1)))
    noon = topics.milliseconds("2025-01-02T12:00")
    for is_later in (False, True):
        topics.send(broker, jobs["streamed"].source.topic, [m for m in messages if (m["timestamp_ms"] > noon) is is_later])
        stream.run(jobs["streamed"], until=until(5 if is_later else 2, 1))
        assert flink_processes(os.getpid()) == set()
        if not is_later:
            forget(broker, jobs["streamed"])
    assert figures(jobs["streamed"]) == figures(jobs["scheduled"])
    assert len(figures(jobs["streamed"])) == 4
    assert [record.message for record in caplog.records if "beginning" in record.message] == []
