"""Jobs over large topics against a query over the file, undisturbed and with everything that can die killed. `make audit`."""

import os
import shutil

import pytest

from pipelines import release, stream
from tests.audit import trial
from tests.pipelines import example, topics
from tests.pipelines.test_topics import figures, outcomes, until, without_noise

__all__ = ["without_noise"]

DAYS = 4
N_EVENTS = int(os.environ.get("DRILL_EVENTS", 1_000_000))


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
