"""What the ledger is asked and what it answers."""

import dataclasses
import datetime as dt
import math
from typing import Any, Literal, NamedTuple

from data import errors, periods


@dataclasses.dataclass(frozen=True)
class Contract:
    """What may be published of a data set, per privacy id and budget period.

    Attributes:
        capacity: what the filter lets through, in its currency (transforms.privacy.filter).
        source, key_fingerprint: what the name stands for: hex digests of where events come from and of the pseudonym key.
    """

    data_set: str
    unit: str
    period: periods.Period
    composition: Literal["gaussian", "zcdp"]
    total_epsilon: float
    total_delta: float
    selection_delta: float
    capacity: float
    source: str
    key_fingerprint: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.capacity) and self.capacity > 0 and 0 <= self.selection_delta < self.total_delta < 1):
            raise ValueError(
                f"Contract: capacity must be above 0 and 0 <= selection_delta < total_delta < 1, not {self.capacity}, "
                f"{self.selection_delta} and {self.total_delta}."
            )

    @property
    def noise_delta(self) -> float:
        """The part of total_delta that noise has: what is not set aside for selection."""
        return self.total_delta - self.selection_delta


@dataclasses.dataclass(frozen=True)
class Series:
    """Windows that are planned together and charged once, as the contribution book lets each privacy id into only a few.

    Attributes:
        start, size, windows: window k of them, from 0, is [start + k step, start + k step + size).
        max_windows_contributed: how many units a privacy id may spend in the series.
        min_separation: a privacy id is in at most one of so many consecutive windows.
        unit_cost, unit_delta: what a privacy id pays with a unit.
        every: the step, if windows slide; None: they follow one another.
    """

    start: dt.datetime
    size: dt.timedelta
    windows: int
    max_windows_contributed: int
    min_separation: int
    unit_cost: float
    unit_delta: float
    every: dt.timedelta | None = None

    def __post_init__(self) -> None:
        numbers = (self.windows, self.max_windows_contributed, self.min_separation)
        if min(numbers) < 1 or min(self.size, self.step) <= dt.timedelta(0):
            raise ValueError(f"Series: sizes and numbers must be above 0, not {self}.")

    @property
    def step(self) -> dt.timedelta:
        """From the start of a window to that of the next."""
        return self.size if self.every is None else self.every

    @property
    def cost(self) -> float:
        """What the whole series is charged."""
        return self.max_windows_contributed * self.unit_cost

    @property
    def delta(self) -> float:
        """What the whole series sets aside."""
        return self.max_windows_contributed * self.unit_delta


@dataclasses.dataclass(frozen=True)
class Request:
    """A release that a job asks for.

    Attributes:
        unit, period, composition: as the job has them; they must be the contract's.
        content: what makes it this release and no other: query, window, digests of a whole-file source. Never stored.
        window_start, window_end: it reads events in [start, end).
        cost, delta: charged in each period that the window touches.
        charge: its public figures.
        attempt: of this run, random: asking again in the same run gives the same grant.
        series: that the window is one of; then the series is charged in place of the release.
        units: what each privacy id spends that is let into the window.
        lease: name and fence of the lease under which the job runs.
    """

    data_set: str
    source: str
    key_fingerprint: str
    unit: str
    period: periods.Period
    composition: str
    content: dict[str, Any]
    window_start: dt.datetime
    window_end: dt.datetime
    cost: float
    delta: float
    charge: dict[str, Any]
    attempt: str
    job: str
    code_version: str
    series: Series | None = None
    units: int = 1
    lease: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        for name in ("cost", "delta"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"Request: {name} must be finite and at least 0, not {getattr(self, name)}.")
        if self.series is None:
            return
        number, rest = divmod(self.window_start - self.series.start, self.series.step)
        is_planned = not rest and 0 <= number < self.series.windows and self.window_end - self.window_start == self.series.size
        if not is_planned or len(self.touched) != 1:
            raise ValueError(
                f"Request: {self.window_start} to {self.window_end} is not a window of {self.series} in one period."
            )
        if self.units < 1 or not (
            self.cost <= self.units * self.series.unit_cost and self.delta <= self.units * self.series.unit_delta
        ):
            raise ValueError(f"Request: {self.units} unit(s) don't pay for cost {self.cost} and delta {self.delta}.")

    @property
    def touched(self) -> list[str]:
        """The names of the periods that the window touches."""
        return periods.names(self.period, self.window_start, self.window_end)

    @property
    def charged(self) -> tuple[float, float]:
        """The cost and the delta that the budget must have room for."""
        return (self.cost, self.delta) if self.series is None else (self.series.cost, self.series.delta)

    @property
    def number(self) -> int:
        """The window's place in its series."""
        return 0 if self.series is None else (self.window_start - self.series.start) // self.series.step


@dataclasses.dataclass(frozen=True)
class Page:
    """A release's page of the contribution book.

    Attributes:
        number: of the window in its series.
        units: that each privacy id spends.
        before: number and digest of the page that it follows, None for the first.
        digest: of the page itself, None until it is in the book.
    """

    series_id: str
    number: int
    units: int
    max_windows_contributed: int
    min_separation: int
    before: tuple[int, str] | None
    digest: str | None


@dataclasses.dataclass(frozen=True)
class Grant:
    """Leave to draw noise for a release (`status` reserved), or the news that it was done before (published).

    Attributes:
        page: of the contribution book, for a release of a series: no noise before it is there.
    """

    release_id: str
    fence: int
    status: str
    page: Page | None = None


@dataclasses.dataclass(frozen=True)
class Spent:
    """What is spent in a period, and by how many releases; a series is charged whole, with the first of its releases."""

    period: str
    cost: float
    delta: float
    releases: int
    is_closed: bool


class Version(NamedTuple):
    """A version of a database in an object store.

    Attributes:
        number: from 1.
        file: its name there.
        digest: SHA-256 of what is in it, hex digits.
    """

    number: int
    file: str
    digest: str


class Promotion(NamedTuple):
    """What was decided on a model.

    Attributes:
        number: of the decision among its job's, from 1.
        model: the model's.
        outcome: active: it is the active one from then on; refused: the one that was active stays.
        why: who or what decided it.
        figures: what was compared, if anything: of released and published things alone.
        at: when, in UTC.
    """

    number: int
    model: int
    outcome: str
    why: str
    figures: dict[str, Any]
    at: str


class BudgetRefusedError(errors.UserError):
    """The ledger doesn't let a release through: budget, contract, or a closed period. Nothing was spent."""

    exit_code = 7


class LedgerError(errors.BadInputError):
    """The ledger can't be opened, or was tampered with."""
