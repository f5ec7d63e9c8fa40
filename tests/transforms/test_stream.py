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


def windows(size: int = 10, step: int = 10, start: int = 0) -> stream.Windows:
    return stream.Windows(at(start), size * SECOND, step * SECOND)


def clock(*given: stream.Windows) -> stream.Clock:
    return stream.Clock(given, 3 * SECOND, dt.timedelta(0))


def at(seconds: float) -> dt.datetime:
    return START + seconds * SECOND


def table(rows: list[tuple[float, float]]) -> pa.Table:
    """Events by their times and arrivals, in seconds from the start; `value` is their place."""
    times = [pa.array([at(row[i]) for row in rows], events.TIMESTAMP) for i in (0, 1)]
    return pa.table({"value": list(range(len(rows))), "event_time": times[0], "arrival_time": times[1]})


SECONDS = st.integers(-400, 400).map(lambda tenths: tenths / 10)


@hypothesis.given(
    st.lists(st.tuples(SECONDS, SECONDS), max_size=20),
    st.sampled_from([(10, 10), (10, 5), (10, 3), (1, 1)]),
    st.integers(0, 5),
    st.integers(0, 4),
)
def test_an_event_is_in_each_open_window_that_it_fits_and_came_in_time_for(rows, size_and_step, slack, first_open):
    size, step = size_and_step
    expected: dict[int, list[int]] = {}
    for place, (happened, arrived) in enumerate(rows):
        for number in range(first_open, 60):
            end = number * step + size
            if end - size <= happened < end and arrived <= end + slack:
                expected.setdefault(number, []).append(place)
    found, late = stream.split(table(rows), windows(*size_and_step), slack * SECOND, first_open)
    assert {number: sorted(part["value"].to_pylist()) for number, part in found.items()} == expected
    # What happened before the first window is none of theirs.
    in_any = {place for places in expected.values() for place in places}
    assert late.tolist() == [happened >= 0 and place not in in_any for place, (happened, _) in enumerate(rows)]


@pytest.mark.parametrize("given", [windows(), windows(10, 3), windows(60, 1)], ids=["fixed", "sliding", "dense"])
def test_each_window_has_one_of_its_own_in_beam(given):
    into = given.into().windowing.windowfn
    for number in range(50):
        end = timestamp.Timestamp.from_utc_datetime(given.end(number))
        [assigned] = into.assign(beam.transforms.window.WindowFn.AssignContext(end - timestamp.Duration(micros=1000)))
        assert given.ending(assigned.end) == number


MIXED = clock(windows(10, 5), windows(4, 4, start=2))
"""Windows that end at 10, 15, 20, ... and at 6, 10, 14, ...; slack 3 s."""


@pytest.mark.parametrize(("ended", "expected"), [(0, 9), (5.9, 9), (6, 13), (10, 17), (14, 18), (15, 21)])
def test_the_next_window_to_close_is_of_any_length(ended, expected):
    assert MIXED.next_close(at(ended)) == at(expected)


@pytest.mark.parametrize(
    ("arrival", "expected"), [(-5, None), (9, None), (9.001, 6), (13, 6), (13.001, 10), (18, 14), (18.001, 15), (100, 95)]
)
def test_what_arrives_after_a_windows_slack_closes_it_and_those_before(arrival, expected):
    assert MIXED.ended(at(arrival)) == (None if expected is None else at(expected))


def test_a_window_is_written_down_once(tmp_path):
    close = stream.CloseWindow(str(tmp_path), 1)
    reports = [stream.Report("t/0", 5, {"ok": 3}, None), stream.Report("t/0", 9, {"ok": 1, "late": 1}, "letters")]
    assert stream.find_closed(tmp_path, 1, 7) is None
    assert list(close.process((7, [*reports, stream.spill.Part("file", 1)]))) == [7]
    list(close.process((7, [])))
    assert stream.find_closed(tmp_path, 1, 7) == stream.Closed(
        [stream.spill.Part("file", 1)], {"t/0": 9}, {"ok": 4, "late": 1}, ["letters"]
    )
    assert stream.find_closed(tmp_path, 0, 7) is None
