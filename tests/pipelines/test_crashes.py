"""A killed release is finished by the same job: once visible, once paid. `make drill` has the long one."""

import pytest

from data import book, errors
from tests.pipelines import crashes
from tests.pipelines.example import view, write_job

DAYS = {"ann": "123", "bob": "13", "cat": "23"}
EVENTS = [view(user, user[0], f"{user}{day}", f"2025-01-0{day}") for user, days in DAYS.items() for day in days]


@pytest.fixture(scope="module")
def drill(tmp_path_factory):
    """A job file, and what the jobs of both kinds tell when nobody disturbs them."""
    directory = tmp_path_factory.mktemp("undisturbed")
    path = write_job(directory, EVENTS)
    return path, {kind: crashes.undisturbed(path, kind, directory / kind) for kind in ("file", "windows")}


@pytest.mark.parametrize(
    ("kind", "step", "when"),
    [
        *(("file", step, when) for step in crashes.STEPS for when in ("before", "after")),
        *(("windows", step, "after") for step in crashes.BOOK_STEPS),
    ],
)
def test_a_kill_at_any_step_neither_loses_nor_repeats_a_release(tmp_path, drill, kind, step, when):
    path, expected = drill
    job = crashes.fresh(path, kind, tmp_path)
    assert crashes.killed_at(job, step, when)
    assert crashes.violations(job, expected[kind], is_over=False) == []
    crashes.run(job)
    assert crashes.violations(job, expected[kind], is_over=True) == []


def test_a_release_that_is_shown_before_the_ledger_names_it_is_caught(tmp_path, drill):
    """The control."""
    path, expected = drill
    job = crashes.fresh(path, "file", tmp_path)
    assert crashes.killed_at(job, "show", "after", publishes_blindly=True)
    with pytest.raises(errors.BadInputError, match="are not in the ledger"):
        crashes.violations(job, expected["file"], is_over=False)


def test_a_book_that_admits_anew_on_retry_is_caught(tmp_path, drill, monkeypatch):
    """The control of what is told: in the last window, ann is let in although she was in two before."""
    path, expected = drill
    job = crashes.fresh(path, "windows", tmp_path)
    assert crashes.killed_at(job, "book", "after", windows=2)
    monkeypatch.setattr(book.Book, "admitted", lambda self, page, shard, privacy_ids: privacy_ids)
    crashes.run(job)
    assert crashes.violations(job, expected["windows"], is_over=True) == ["not what an undisturbed run says"]
