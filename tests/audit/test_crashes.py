"""The crash drill of docs/budget.md: SIGKILL at 50 moments of a job's run time, and five times at each named step."""

import time

import pytest

from tests.pipelines import crashes
from tests.pipelines.example import view, write_job

MOMENTS = 50
DAYS = {"a": "123", "b": "13", "c": "23", "d": "123"}
"""By item, when its users are there: the windows' counts say who was let in."""


def events(users: int, each: int) -> list[str]:
    """Every user has one item, and so many events on its days in turn."""
    item = ["abcd"[user % 4] for user in range(users)]
    days = [[DAYS[item[user]][i % len(DAYS[item[user]])] for i in range(each)] for user in range(users)]
    return [
        view(f"u{user}", item[user], f"{user}-{i}", f"2025-01-0{days[user][i]}") for i in range(each) for user in range(users)
    ]


def run_again(job, expected) -> list[str]:
    """What was violated by a kill, and by the run after it."""
    found = crashes.violations(job, expected, is_over=False)
    crashes.run(job)
    return [*found, *crashes.violations(job, expected, is_over=True)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", crashes.KINDS)
def test_kills_at_any_moment_violate_nothing(tmp_path, kind):
    path = write_job(tmp_path, events(500, 40))
    expected = crashes.undisturbed(path, kind, tmp_path / "undisturbed")
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
def test_five_kills_before_and_after_each_step_violate_nothing(tmp_path, kind, step):
    path = write_job(tmp_path, events(30, 3))
    expected = crashes.undisturbed(path, kind, tmp_path / "undisturbed")
    found, killed = [], 0
    for when in ("before", "after"):
        for i in range(5):
            job = crashes.fresh(path, kind, tmp_path / f"{when}-{i}")
            killed += crashes.killed_at(job, step, when, windows=i % 3 if kind == "windows" else 0)
            found += run_again(job, expected)
    print(f"{kind}: {killed} kills at {step!r}: {len(found)} violations")
    assert found == []
    assert killed == 10
