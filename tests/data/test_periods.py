"""Budget periods: which of them a window touches."""

import datetime as dt
import zoneinfo

import hypothesis
import hypothesis.strategies as st
import pytest

from data import periods

UTC = dt.UTC
AUCKLAND, NEW_YORK = zoneinfo.ZoneInfo("Pacific/Auckland"), zoneinfo.ZoneInfo("America/New_York")


def at(text: str, zone: dt.tzinfo = UTC) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=zone)


@pytest.mark.parametrize(
    ("period", "start", "end", "name"),
    [
        ("month", "2025-01-01", "2025-02-01", "2025-01"),
        ("month", "2024-02-01", "2024-03-01", "2024-02"),
        ("month", "2025-12-01", "2026-01-01", "2025-12"),
        ("week", "2025-01-13", "2025-01-20", "2025-W03"),
        ("day", "2025-01-15", "2025-01-16", "2025-01-15"),
        ("lifetime", "2020-01-01", "2030-01-01", "lifetime"),
    ],
)
def test_a_window_of_exactly_one_period_touches_that_one(period, start, end, name):
    assert periods.names(period, at(start), at(end)) == [name]


@pytest.mark.parametrize(
    ("period", "start", "end", "names"),
    [
        ("month", "2025-01-20", "2025-02-10", ["2025-01", "2025-02"]),
        ("month", "2025-12-31", "2026-01-02", ["2025-12", "2026-01"]),
        ("week", "2025-01-19", "2025-01-21", ["2025-W03", "2025-W04"]),
        ("day", "2025-02-28T18:00", "2025-03-01T06:00", ["2025-02-28", "2025-03-01"]),
        ("lifetime", "2025-12-31", "2026-01-02", ["lifetime"]),
    ],
)
def test_a_window_across_a_boundary_touches_both_sides(period, start, end, names):
    assert periods.names(period, at(start), at(end)) == names


@pytest.mark.parametrize(
    ("start", "end", "names"),
    [
        ("2024-12-30", "2024-12-31", ["2025-W01"]),
        ("2021-01-01", "2021-01-04", ["2020-W53"]),
        ("2021-01-03", "2021-01-05", ["2020-W53", "2021-W01"]),
        ("2024-12-29", "2025-01-01", ["2024-W52", "2025-W01"]),
    ],
)
def test_weeks_at_the_turn_of_the_year_are_named_by_iso_8601(start, end, names):
    assert periods.names("week", at(start), at(end)) == names


@pytest.mark.parametrize("period", ["month", "week", "day"])
def test_the_end_of_a_window_is_not_in_it(period):
    boundary, moment = at("2025-09-01"), dt.timedelta(microseconds=1)
    before = periods.names(period, boundary - moment, boundary)
    assert periods.names(period, boundary - moment, boundary + moment) == before + periods.names(
        period, boundary, boundary + moment
    )


def test_a_month_can_lie_between_two_others_and_is_touched_too():
    assert periods.names("month", at("2025-01-31"), at("2025-03-02")) == ["2025-01", "2025-02", "2025-03"]


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("month", "2025-01-01", "2025-02-01T00:00:01"),
        ("week", "2025-01-13", "2025-01-20T00:00:01"),
        ("day", "2025-01-15", "2025-01-16T00:00:01"),
        ("day", "2025-01-01", "2026-01-01"),
    ],
)
def test_a_window_longer_than_a_period_is_refused(period, start, end):
    with pytest.raises(ValueError, match=rf"is longer than a period \({period}\)"):
        periods.names(period, at(start), at(end))


@pytest.mark.parametrize("period", ["lifetime", "month", "week", "day"])
@pytest.mark.parametrize("end", ["2025-01-15", "2025-01-14"])
def test_an_empty_window_is_refused(period, end):
    with pytest.raises(ValueError, match="must start before it ends"):
        periods.names(period, at("2025-01-15"), at(end))


@pytest.mark.parametrize(
    ("start", "end", "names"),
    [
        (at("2025-01-15", AUCKLAND), at("2025-01-16", AUCKLAND), ["2025-01-14", "2025-01-15"]),
        (at("2025-01-31T20:00", NEW_YORK), at("2025-01-31T21:00", NEW_YORK), ["2025-02-01"]),
        (at("2025-01-15T13:00", AUCKLAND), at("2025-01-15T19:00", NEW_YORK), ["2025-01-15"]),
    ],
    ids=["Auckland", "New York", "both"],
)
def test_periods_are_those_of_utc_whatever_the_windows_time_zone(start, end, names):
    assert periods.names("day", start, end) == names


@pytest.mark.parametrize(
    ("period", "name", "is_one"),
    [
        ("lifetime", "lifetime", True),
        ("lifetime", "lifetme", False),
        ("month", "2025-01", True),
        ("month", "2025-13", False),
        ("month", "2025-1", False),
        ("week", "2025-W01", True),
        ("week", "2025-W54", False),
        ("day", "2025-02-28", True),
        ("day", "2025-02-30", False),
        ("day", "lifetime", False),
    ],
)
def test_names_of_periods_are_told_from_other_texts(period, name, is_one):
    assert periods.is_name(period, name) == is_one


@pytest.mark.parametrize(
    ("period", "start", "hours", "expected"),
    [
        ("month", "2025-01-01T00:00", 1, True),
        ("month", "2025-01-03T07:00", 24, False),
        ("month", "2025-01-03T00:00", 24, True),
        ("month", "2025-01-01T00:00", 7, False),
        ("month", "2025-01-01T00:00", 48, False),
        ("week", "2025-01-06T00:00", 168, True),
        ("week", "2025-01-07T00:00", 168, False),
        ("week", "2025-01-07T03:00", 3, True),
        ("day", "2025-01-07T00:30", 1, False),
        ("lifetime", "2025-01-07T00:30", 1000, True),
    ],
)
def test_windows_divide_a_period_or_not(period, start, hours, expected):
    begin = dt.datetime.fromisoformat(start).replace(tzinfo=dt.UTC)
    assert periods.divides(period, begin, dt.timedelta(hours=hours)) == expected
    size = dt.timedelta(hours=hours)
    windows = [(begin + k * size, begin + (k + 1) * size) for k in range(200)]
    assert expected == all(len(periods.names(period, *window)) == 1 for window in windows)


@pytest.mark.parametrize(
    ("period", "first", "last"),
    [("month", "2025-02-01", "2025-03-01"), ("week", "2025-02-24", "2025-03-03"), ("day", "2025-02-28", "2025-03-01")],
)
def test_a_time_lies_between_the_bounds_of_its_period(period, first, last):
    time = dt.datetime(2025, 2, 28, 23, 59, tzinfo=dt.UTC)
    bounds = tuple(dt.datetime.fromisoformat(day).replace(tzinfo=dt.UTC) for day in (first, last))
    assert periods.bounds(period, time) == bounds
    assert periods.bounds("lifetime", time) is None


@pytest.mark.parametrize(
    ("period", "time", "first", "last"),
    [
        ("month", at("2025-12-31T23:59"), "2025-12-01", "2026-01-01"),
        ("month", at("2026-01-01"), "2026-01-01", "2026-02-01"),
        ("month", at("2025-01-31T20:00", NEW_YORK), "2025-02-01", "2025-03-01"),
        ("week", at("2025-01-01"), "2024-12-30", "2025-01-06"),
        ("week", at("2025-01-06"), "2025-01-06", "2025-01-13"),
        ("day", at("2025-01-15", AUCKLAND), "2025-01-14", "2025-01-15"),
    ],
    ids=["year's end", "first moment", "month in New York", "week across years", "Monday", "day in Auckland"],
)
def test_a_period_begins_with_its_first_moment_in_utc(period, time, first, last):
    assert periods.bounds(period, time) == (at(first), at(last))


def test_a_time_without_a_zone_is_in_no_period():
    with pytest.raises(ValueError, match="needs a time zone"):
        periods.bounds("month", dt.datetime(2025, 1, 1))


@hypothesis.given(
    st.sampled_from(["month", "week", "day"]),
    st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2100, 1, 1), timezones=st.just(UTC)),
)
def test_bounds_are_those_of_the_period_that_the_time_is_charged_in(period, time):
    start, end = periods.bounds(period, time)
    moment = dt.timedelta(microseconds=1)
    assert start <= time < end
    assert periods.names(period, start, end) == periods.names(period, time, time + moment)
    assert len(periods.names(period, start - moment, start + moment)) == 2


@hypothesis.given(st.sampled_from(["week", "day"]), st.integers(1, 200), st.integers(-20_000, 20_000))
def test_windows_divide_a_period_when_each_of_them_lies_in_one(period, size, first):
    """Sizes and starts are whole hours: what the first 200 windows do is what all do."""
    start, size = at("2024-01-01") + first * dt.timedelta(hours=1), dt.timedelta(hours=size)
    bounds = [periods.bounds(period, start + k * size) for k in range(200)]
    assert periods.divides(period, start, size) == all(start + (k + 1) * size <= end for k, (_, end) in enumerate(bounds))


@hypothesis.given(st.sampled_from([1, 5, 45, 60, 90, 480, 720, 1440]), st.integers(-200, 0))
def test_windows_that_divide_days_divide_months(minutes, first):
    size = dt.timedelta(minutes=minutes)
    start = at("2024-03-01") + first * size
    assert periods.divides("month", start, size)
    assert not periods.divides("month", start + dt.timedelta(seconds=30), size)
    windows = [(start + k * size, start + (k + 1) * size) for k in range(250)]
    assert all(len(periods.names("month", *window)) == 1 for window in windows)
