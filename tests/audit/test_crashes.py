"""The crash drill of docs/budget.md: SIGKILL at 50 moments of a release's run time, and five times at each named step."""

import time

import pytest

from pipelines import release
from tests.pipelines import crashes
from tests.pipelines.example import load, view, write_job

MOMENTS = 50
EVENTS = [view(f"u{i % 500}", "abcd"[i % 4], str(i)) for i in range(20_000)]


def drilled(path, kill) -> list[str]:
    """One kill, and the run after it: what was violated."""
    load(path)
    kill(path)
    found = crashes.violations(path, is_over=False)
    release.run(load(path))
    return [*found, *crashes.violations(path, is_over=True)]


@pytest.mark.slow
def test_kills_at_any_moment_violate_nothing(tmp_path):
    path = write_job(tmp_path / "first", EVENTS, epsilon=1.0)
    load(path)
    assert not crashes.killed_after(path, 600)  # the first one imports
    path = write_job(tmp_path / "timed", EVENTS, epsilon=1.0)
    load(path)
    start = time.perf_counter()
    assert not crashes.killed_after(path, 600)
    taken = time.perf_counter() - start
    found, killed = [], 0
    for i in range(MOMENTS):
        path = write_job(tmp_path / str(i), EVENTS, epsilon=1.0)

        def kill(path, seconds=taken * (i + 0.5) / MOMENTS):
            nonlocal killed
            killed += crashes.killed_after(path, seconds)

        found += drilled(path, kill)
    print(f"{MOMENTS} moments over {taken:.1f} s, {killed} while it ran: {len(found)} violations")
    assert found == []
    assert killed >= MOMENTS / 2


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", crashes.STEPS)
def test_five_kills_at_each_step_violate_nothing(tmp_path, step, when):
    found = []
    for i in range(5):
        path = write_job(tmp_path / str(i), EVENTS[:100], epsilon=1.0)
        found += drilled(path, lambda path: crashes.killed_at(path, step, when))
    assert found == []
