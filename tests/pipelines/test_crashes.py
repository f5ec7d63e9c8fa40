"""A killed release is finished by the same job: once visible, once paid. `make audit` has the long drill."""

import pytest

from data import errors
from pipelines import release
from tests.pipelines import crashes
from tests.pipelines.example import load, view, write_job


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", crashes.STEPS)
def test_a_kill_at_any_step_neither_loses_nor_repeats_a_release(tmp_path, step, when):
    path = write_job(tmp_path, [view("ann", "a", "1"), view("bob", "b", "2")], epsilon=1.0)
    load(path)
    assert crashes.killed_at(path, step, when)
    assert crashes.violations(path, is_over=False) == []
    release.run(load(path))
    assert crashes.violations(path, is_over=True) == []


def test_a_release_that_is_shown_before_the_ledger_names_it_is_caught(tmp_path):
    """The control."""
    path = write_job(tmp_path, [view("ann", "a", "1")], epsilon=1.0)
    load(path)
    assert crashes.killed_at(path, "show", "after", publishes_blindly=True)
    with pytest.raises(errors.BadInputError, match="are not in the ledger"):
        crashes.violations(path, is_over=False)
