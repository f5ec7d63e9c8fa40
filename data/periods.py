"""Budget periods: the calendar spans, in UTC, over which a user's losses add up."""

import datetime as dt
from typing import Literal

Period = Literal["lifetime", "month", "week", "day"]

LIFETIME = "lifetime"

SHORTEST: dict[Period, dt.timedelta] = {
    "lifetime": dt.timedelta.max,
    "month": dt.timedelta(days=28),
    "week": dt.timedelta(days=7),
    "day": dt.timedelta(days=1),
}
"""How long a window may be to fit wherever it lies."""

_COMMON: dict[Period, dt.timedelta] = {**SHORTEST, "month": dt.timedelta(days=1)}
"""What the boundaries of all periods are whole numbers of, from a Monday on."""

_MONDAY = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


def names(period: Period, start: dt.datetime, end: dt.datetime) -> list[str]:
    """Names the periods that the window [start, end) touches, in order: a release of it is charged in each.

    Names are `lifetime`, `2025-01` (month), `2025-W03` (week, ISO 8601) and `2025-01-15` (day).

    Raises:
        ValueError: the window is empty, without a time zone, or longer than a period.
    """
    if start.tzinfo is None or end.tzinfo is None:
        raise ValueError("the window's start and end need a time zone.")
    # Of two times in one zone Python would compare the clocks on the wall.
    start, end = start.astimezone(dt.UTC), end.astimezone(dt.UTC)
    if start >= end:
        raise ValueError(f"the window must start before it ends, not {start} to {end}.")
    if period == "lifetime":
        return [LIFETIME]
    first = _begin(period, start.date())
    found = [first]
    while _time(following := _next(period, found[-1])) < end:
        found.append(following)
    longest = max(_time(_next(period, day)) - _time(day) for day in found)
    if end - start > longest:
        raise ValueError(
            f"the window {start.isoformat()} to {end.isoformat()} is longer than a period ({period}): nobody's loss in it "
            "would be bounded by one budget. Take a shorter window or a longer period."
        )
    return [_name(period, day) for day in found]


def bounds(period: Period, time: dt.datetime) -> tuple[dt.datetime, dt.datetime] | None:
    """Returns start and end of the period that a time is in; None for a lifetime, which has neither.

    Raises:
        ValueError: the time has no time zone.
    """
    if time.tzinfo is None:
        raise ValueError("the time needs a time zone.")
    if period == "lifetime":
        return None
    first = _begin(period, time.astimezone(dt.UTC).date())
    return _time(first), _time(_next(period, first))


def is_name(period: Period, name: str) -> bool:
    """Says whether a text is the name of such a period."""
    if period == "lifetime":
        return name == LIFETIME
    form = {"month": "%Y-%m-%d", "week": "%G-W%V-%u", "day": "%Y-%m-%d"}[period]
    try:
        day = dt.datetime.strptime(name + {"month": "-01", "week": "-1", "day": ""}[period], form).date()
    except ValueError:
        return False
    return _name(period, day) == name


def divides(period: Period, start: dt.datetime, size: dt.timedelta) -> bool:
    """Says whether each of the windows that follow one another from `start` on lies in one period."""
    return period == "lifetime" or not (_COMMON[period] % size or (start - _MONDAY) % size)


def _begin(period: Period, day: dt.date) -> dt.date:
    if period == "month":
        return day.replace(day=1)
    return day - dt.timedelta(days=day.weekday()) if period == "week" else day


def _next(period: Period, day: dt.date) -> dt.date:
    return _begin(period, day + dt.timedelta(days={"month": 31, "week": 7, "day": 1}[period]))


def _time(day: dt.date) -> dt.datetime:
    return dt.datetime.combine(day, dt.time(), dt.UTC)


def _name(period: Period, day: dt.date) -> str:
    return day.strftime({"month": "%Y-%m", "week": "%G-W%V", "day": "%Y-%m-%d"}[period])
