"""Streams on a real Flink from a real broker: the same figures as scheduled runs, each window once."""

import shutil

import pytest

from pipelines import release, stream
from tests.pipelines import topics
from tests.pipelines.example import view
from tests.pipelines.test_topics import DAYS, OPT_OUT, figures, lines, outcomes, until, without_noise

__all__ = ["without_noise"]

LATER = view("u0", "a", "", "2025-01-20T12:00", "2025-01-20T12:00")
"""By its arrival every window of `lines` has closed."""


def test_a_stream_has_the_figures_of_scheduled_runs(broker, flink_jars, tmp_path):
    """Repeats, disorder, late and malformed messages, an opt-out, a budget for three windows of four; bounds bind."""
    jobs = {}
    for name in ("scheduled", "streamed"):
        (tmp_path / name).mkdir()
        if name == "streamed":
            shutil.copy(tmp_path / "scheduled" / "pseudonym.key", tmp_path / name)
        path, topic = topics.write_job(tmp_path / name, broker)
        jobs[name] = topics.load(path, *DAYS, "--window.budget_share=0.33")
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
    letters = [sorted(letter.value for letter in topics.read(broker, f"{job.source.topic}.dead")) for job in jobs.values()]
    assert letters[0] == letters[1]
    assert letters[1].count(b"{") == 2
    late = {name: [found.get("late", 0) for found in outcomes(job)] for name, job in jobs.items()}
    assert late["streamed"] == late["scheduled"]
