"""The crash drill of docs/budget.md: SIGKILL at 50 moments of a job's run time, and five times at each named step.

A stream, which takes long to start, dies at ten moments.
"""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from tests.drill import trial
from tests.pipelines import crashes, topics
from tests.pipelines.example import view, write_job

MOMENTS, STREAM_MOMENTS = 50, int(os.environ.get("DRILL_STREAM_MOMENTS", 10))
KILLS = int(os.environ.get("DRILL_KILLS", 5))
"""At each step, before it and after it."""
DAYS = {"a": "123", "b": "13", "c": "23", "d": "123"}
"""By item, when its users are there: the windows' counts say who was let in."""


def events(users: int, each: int) -> list[str]:
    """Every user has one item, and so many events on its days in turn."""
    item = ["abcd"[user % 4] for user in range(users)]
    days = [[DAYS[item[user]][i % len(DAYS[item[user]])] for i in range(each)] for user in range(users)]
    return [
        view(f"u{user}", item[user], f"{user}-{i}", f"2025-01-0{days[user][i]}") for i in range(each) for user in range(users)
    ]


@pytest.fixture
def write(request, tmp_path):
    """Writes a job of a kind over events: a function of both. Every tenth message of a topic is followed by a malformed one."""

    def of(kind: str, lines: list[str]) -> pathlib.Path:
        if kind != "topic":
            return write_job(tmp_path, lines)
        broker = request.getfixturevalue("broker")
        path, topic = topics.write_job(tmp_path, broker)
        topics.load(path)
        messages = []
        for i, line in enumerate(lines):
            message = topics.message(line)
            message["timestamp_ms"] = topics.milliseconds(line.split(",")[5])
            messages += [message, {**message, "value": b"{"}][: 1 + (i % 10 == 0)]
        topics.send(broker, topic, sorted(messages, key=lambda message: message["timestamp_ms"]))

        trial.end(broker, topic)
        return path

    return of


def run_again(job, expected) -> list[str]:
    """What was violated by a kill, and by the run after it."""
    found = crashes.violations(job, expected, is_over=False)
    crashes.run(job)
    return [*found, *crashes.violations(job, expected, is_over=True)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", crashes.KINDS)
def test_kills_at_any_moment_violate_nothing(tmp_path, write, kind):
    path = write(kind, events(500, 40))
    expected = crashes.undisturbed(path, kind, tmp_path / "undisturbed")
    assert list(expected["letters"].values()) == [1] * (2000 if kind == "topic" else 0)
    for name in ("first", "timed"):  # the first one imports
        job, start = crashes.fresh(path, kind, tmp_path / name), time.perf_counter()
        assert not crashes.killed_after(job, 600)
        taken = time.perf_counter() - start
    found, killed = [], 0
    for i in range(MOMENTS):
        job = crashes.fresh(path, kind, tmp_path / str(i))
        killed += crashes.killed_after(job, taken * (i + 0.5) / MOMENTS)
        found += run_again(job, expected)
    print(f"{kind}: {MOMENTS} moments over {taken:.1f} s, {killed} while it ran: {len(found)} violations")
    assert found == []
    assert killed >= MOMENTS / 2


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "step"), [(kind, step) for kind, (_, steps) in crashes.KINDS.items() for step in steps])
def test_kills_before_and_after_each_step_violate_nothing(tmp_path, write, kind, step):
    path = write(kind, events(30, 3))
    expected = crashes.undisturbed(path, kind, tmp_path / "undisturbed")
    found, killed = [], 0
    for when in ("before", "after"):
        for i in range(KILLS):
            job = crashes.fresh(path, kind, tmp_path / f"{when}-{i}")
            killed += crashes.killed_at(job, step, when, windows=0 if kind == "file" else i % 3)
            found += run_again(job, expected)
    print(f"{kind}: {killed} kills at {step!r}: {len(found)} violations")
    assert found == []
    assert killed == 2 * KILLS


def streamed(path: pathlib.Path, flags: list[str], seconds: float | None = None) -> bool:
    """Streams the job in a process that is killed after so many seconds; says whether it was still running."""
    command = [sys.executable, "-m", "pipelines.stream", str(path), "--until", "2025-01-05", *flags]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    return False


@pytest.mark.slow
def test_a_stream_that_is_killed_at_any_moment_violates_nothing(flink_jars, tmp_path, write):
    path = write("topic", events(500, 40))
    expected = crashes.undisturbed(path, "topic", tmp_path / "undisturbed")
    found, killed = [], 0
    for i in range(-1, STREAM_MOMENTS):
        directory = tmp_path / str(i)
        flags = crashes.flags("topic", directory)
        job = crashes.fresh(path, "topic", directory, flags)
        if i == -1:
            start = time.perf_counter()
            assert not streamed(path, flags)
            taken = time.perf_counter() - start
        else:
            killed += streamed(path, flags, taken * (i + 0.5) / STREAM_MOMENTS)
            found += crashes.violations(job, expected, is_over=False)
            assert not streamed(path, flags)
        found += crashes.violations(job, expected, is_over=True)
    print(f"stream: {STREAM_MOMENTS} moments over {taken:.1f} s, {killed} while it ran: {len(found)} violations")
    assert found == []
    assert killed >= STREAM_MOMENTS / 2
