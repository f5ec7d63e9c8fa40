"""Windows of a stream: which events are in which, and when they close, by a bounded read's own rules."""

import datetime as dt

import apache_beam as beam
import hypothesis
import hypothesis.strategies as st
import pyarrow as pa
import pytest
from apache_beam.utils import timestamp

from data import events
from transforms.ingest import stream

START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)


def windows(size: int = 10, step: int = 10, slack: int = 3) -> stream.Windows:
    return stream.Windows(START, size * SECOND, step * SECOND, slack * SECOND, dt.timedelta(0))


def at(seconds: float) -> dt.datetime:
    return START + seconds * SECOND


def table(rows: list[tuple[float, float]]) -> pa.Table:
    """Events by their times and arrivals, in seconds from the start; `value` is their place."""
    times = [pa.array([at(row[i]) for row in rows], events.TIMESTAMP) for i in (0, 1)]
    return pa.table({"value": list(range(len(rows))), "event_time": times[0], "arrival_time": times[1]})


SECONDS = st.integers(-400, 400).map(lambda tenths: tenths / 10)


@hypothesis.settings(deadline=None)
@hypothesis.given(
    st.lists(st.tuples(SECONDS, SECONDS), max_size=20),
    st.sampled_from([(10, 10), (10, 5), (10, 3), (1, 1)]),
    st.integers(0, 5),
    st.integers(0, 4),
)
def test_an_event_is_in_each_open_window_that_it_fits_and_came_in_time_for(rows, size_and_step, slack, first_open):
    given = windows(*size_and_step, slack)
    size, step = size_and_step
    expected: dict[int, list[int]] = {}
    for place, (happened, arrived) in enumerate(rows):
        for number in range(first_open, 60):
            end = number * step + size
            if end - size <= happened < end and arrived <= end + slack:
                expected.setdefault(number, []).append(place)
    found, late = stream.split(table(rows), given, first_open)
    assert {number: sorted(part["value"].to_pylist()) for number, part in found.items()} == expected
    assert late == len(rows) - len({place for places in expected.values() for place in places})


@pytest.mark.parametrize("given", [windows(), windows(10, 3), windows(60, 1)], ids=["fixed", "sliding", "dense"])
def test_each_window_has_one_of_its_own_in_beam(given):
    into = given.into().windowing.windowfn
    for number in range(50):
        last = given.end_of(number) - timestamp.Duration(micros=1000)
        [assigned] = into.assign(beam.transforms.window.WindowFn.AssignContext(last))
        assert given.ending(assigned.end) == number


def test_a_window_closes_when_its_slack_is_over():
    assert [windows(10, 5, 3).close(number) for number in (0, 1, 7)] == [at(13), at(18), at(48)]


@pytest.mark.parametrize(
    ("number", "arrival", "expected"),
    [(0, 13, 0), (0, 13.001, 1), (0, 18, 1), (0, 18.001, 2), (0, 100, 18), (3, 5, 3), (3, 28, 3), (3, 28.5, 4)],
)
def test_what_comes_after_a_close_opens_the_next_window(number, arrival, expected):
    """Windows of 10 s, one every 5 s, slack 3 s: number k closes at 13 + 5 k."""
    assert windows(10, 5, 3).open_at(number, at(arrival)) == expected


def test_a_window_is_written_down_once(tmp_path):
    close = stream.CloseWindow(str(tmp_path))
    reports = [stream.Report("t/0", 5, {"ok": 3}, None), stream.Report("t/0", 9, {"ok": 1, "late": 1}, "letters")]
    assert stream.find_closed(tmp_path, 7) is None
    assert list(close.process((7, [*reports, stream.spill.Part("file", 1)]))) == [7]
    list(close.process((7, [])))
    assert stream.find_closed(tmp_path, 7) == stream.Closed(
        [stream.spill.Part("file", 1)], {"t/0": 9}, {"ok": 4, "late": 1}, ["letters"]
    )
