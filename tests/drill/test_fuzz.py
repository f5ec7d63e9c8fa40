"""A million messages of strangers in each format: none brings the process down, each is a row or has a reason."""

import time

import pytest

from tests.transforms import messages

MESSAGES = 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(messages.ENCODE))
def test_a_million_messages_of_strangers_are_rows_or_have_a_problem(tmp_path, kind):
    start = time.perf_counter()
    found = messages.fuzz(messages.make_format(kind, tmp_path), messages.ENCODE[kind], MESSAGES, seed=5)
    outcomes = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(found.outcomes.items(), key=lambda each: -each[1]))
    print(f"{kind}: {found.rows:,} in {time.perf_counter() - start:.0f} s, {found.problems:,} not decoded. {outcomes}")
    assert found.rows == MESSAGES
