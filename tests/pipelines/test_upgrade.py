"""Streams that make checkpoints: the next one goes on from where the last one ended, or begins anew, with the same figures."""

import logging
import os
import pathlib
import shutil
import subprocess
import sys
import time

import apache_beam as beam
import kafka
import pyarrow as pa
import pytest

from data import store
from pipelines import config, release, source, stream, upgrade
from runners import flink
from tests.pipelines import topics
from tests.pipelines.example import charges, load, published, view, write_job
from tests.pipelines.test_topics import DAYS, figures, lines, until, without_noise
from tests.runners.processes import flink_processes
from transforms.ingest import events, pseudonym
from transforms.ingest import stream as ingest

__all__ = ["without_noise"]

FLAGS = [*DAYS, "--runner.checkpoint_seconds=1", "--model.retrain=52w"]
NOON = topics.milliseconds("2025-01-02T12:00")


def last_checkpoint(job: config.Job) -> pathlib.Path | None:
    """Of the stream that the next one would go on from."""
    found = upgrade.find(job.job.store / "operator" / "stream")
    return None if found is None else flink.last_checkpoint(upgrade.checkpoints(found[0]))


def forget(broker, job: config.Job) -> None:
    """Deletes what the job has read of its topic: a stream that begins anew can't find it any more."""
    read = store.Store(job.job.store).run_record(charges(job)[-1]["attempt"])["source"]
    with topics.admin(broker) as client:
        client.delete_records(
            {kafka.TopicPartition(job.source.topic, int(path[-1])): int(span.removeprefix("-")) for path, span in read.items()}
        )


def send_day(broker, topic: str, day: int) -> None:
    """A day's events of 10 users, 20 more that happen on the next day and arrive before this one closes, and its close."""
    for n_users, start in ((10, f"2025-01-0{day}T12:00"), (20, f"2025-01-0{day + 1}T00:30")):
        topics.send(broker, topic, (topics.message(view(f"{start}-{i}", "a", "", start, start)) for i in range(n_users)))
    closing = topics.message(view("late", "b", "", f"2025-01-0{day}T13:00", f"2025-01-0{day + 1}T01:30"))
    topics.send(broker, topic, ({**closing, "partition": partition} for partition in range(3)))


def counted(job: config.Job) -> list[tuple[int, int]]:
    return [found[("a", "view")] for found in figures(job)]


def told(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == stream.__name__]


@pytest.mark.long
def test_a_stream_that_was_stopped_goes_on_in_the_middle_of_a_window(broker, cluster, tmp_path, caplog):
    """On another Flink, and reads no message again: they are gone. Bounds bind, messages are late or repeated."""
    caplog.set_level(logging.INFO, stream.__name__)
    jobs = {}
    for name in ("scheduled", "streamed"):
        (tmp_path / name).mkdir()
        if name == "streamed":
            shutil.copy(tmp_path / "scheduled" / "pseudonym.key", tmp_path / name)
        jobs[name] = topics.load(topics.write_job(tmp_path / name, broker)[0], *FLAGS)
    later = [topics.message(view("u0", "a", "", "2025-01-20", "2025-01-20")) | {"partition": i} for i in range(3)]
    messages = [*sorted(map(topics.message, lines()), key=lambda message: message["timestamp_ms"]), *later]
    topics.send(broker, jobs["scheduled"].source.topic, messages)
    list(release.run_until(jobs["scheduled"], until(3, 1)))
    streamed = jobs["streamed"]
    topics.send(broker, streamed.source.topic, [each for each in messages if each["timestamp_ms"] <= NOON])
    stream.run(streamed, until=until(2, 1))
    assert last_checkpoint(streamed).parent.name == "savepoints"
    forget(broker, streamed)
    topics.send(broker, streamed.source.topic, [each for each in messages if each["timestamp_ms"] > NOON])
    on_cluster = streamed.model_copy(update={"runner": streamed.runner.model_copy(update={"master": cluster.master})})
    stream.run(on_cluster, until=until(3, 1))
    assert last_checkpoint(streamed).parent.name == "savepoints"
    assert flink_processes(os.getpid()) == set()
    assert figures(streamed) == figures(jobs["scheduled"])
    assert len(figures(streamed)) == 2
    assert f"streaming {streamed.source.topic} from the last checkpoint on" in told(caplog)


@pytest.mark.long
def test_a_stream_that_was_killed_goes_on_from_its_last_checkpoint(broker, flink_jars, tmp_path):
    path, topic = topics.write_job(tmp_path, broker)
    job = topics.load(path, *FLAGS)
    send_day(broker, topic, 1)
    with subprocess.Popen([sys.executable, "-m", "pipelines.cli", "stream", str(path), *FLAGS]) as process:
        end, after = time.monotonic() + 120, time.time()
        while not (published(job) and (made := last_checkpoint(job)) and made.stat().st_mtime > after):
            assert process.poll() is None
            assert time.monotonic() < end
            after = after if published(job) else time.time()
            time.sleep(0.2)
        process.kill()
    forget(broker, job)
    send_day(broker, topic, 2)
    stream.run(job, until=until(3, 1))
    assert counted(job) == [(10, 10), (30, 30)]


@pytest.mark.long
def test_a_stream_that_may_not_or_can_not_go_on_says_so_and_begins_anew(broker, flink_jars, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, stream.__name__)
    path, topic = topics.write_job(tmp_path, broker)
    kept = topics.load(path, *FLAGS).job.store / "operator" / "stream"
    reasons = []
    for day in (1, 2, 3):
        send_day(broker, topic, day)
        # Then the steps have other names.
        flags = [] if day == 1 else ["--source.max_skew_seconds=301"]
        if day == 3:
            monkeypatch.setattr(ingest.StreamWindows, "expand", Renamed(ingest.StreamWindows.expand))
        stream.run(topics.load(path, *FLAGS, *flags), until=until(day + 1, 1))
        reasons += [line for line in told(caplog) if "beginning anew" in line]
        caplog.clear()
        assert len(list(kept.glob("*/"))) == 1
    assert counted(topics.load(path)) == [(10, 10), (30, 30), (30, 30)]
    assert [line.partition(": ")[0] for line in reasons] == [
        "can't go on from the last checkpoint ([source]",
        "no window has closed since the checkpoint that it went on from",
    ]


class Renamed:
    """The same steps under other names."""

    def __init__(self, expand):
        self._expand = expand

    def __get__(self, steps, _):
        class Other(beam.PTransform):
            def expand(_, root):  # noqa: N805
                return self._expand(steps, root)

        return lambda root: root | "Other" >> Other()


BEGAN = upgrade.Began(until(1), until(1), {"[source]": "a", "[kafka]": "b"}, ["01", "02"])


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        pytest.param({}, None, id="nothing"),
        pytest.param({"left_out": ["00", "01", "02"]}, None, id="an opt-out"),
        pytest.param({"left_out": ["02", "03"]}, "opted in", id="an opt-in"),
        pytest.param({"rules": {"[source]": "a", "[kafka]": "c"}}, "[kafka]", id="a rule"),
        pytest.param({"rules": {**BEGAN.rules, "new": "c"}}, "new", id="a rule that is new"),
    ],
)
def test_a_stream_goes_on_only_where_no_event_is_missing_that_counts_now(now, reason):
    found = upgrade.changed(BEGAN, BEGAN._replace(**now))
    assert (reason in found) if reason else found is None


def test_what_is_written_down_has_pseudonyms_alone(tmp_path):
    job = load(write_job(tmp_path, []))
    key, ids = pseudonym.read_key(job.privacy.key_file), pa.array(["ann", "bob"])
    decoding = events.Decoding(source.event_rules(job, until(1)), key, ids, pa.array(["a"]))
    began = upgrade.began(job, until(1), until(2), decoding, [1])
    (tmp_path / "flink" / "savepoints" / "1").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "flink").rename(tmp_path / "run" / "flink")
    upgrade.write(tmp_path / "run", began)
    assert upgrade.find(tmp_path) is None
    (tmp_path / "run" / "flink" / "savepoints" / "1" / "_metadata").touch()
    assert upgrade.find(tmp_path) == (tmp_path / "run", began)
    assert began.left_out == sorted(each.hex() for each in pseudonym.pseudonymise(ids, key).to_pylist())
    assert "ann" not in (tmp_path / "run" / "began.json").read_text()
