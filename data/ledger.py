"""The privacy ledger: what each data set may spend, what was ever reserved, and what came to be published.

It lies outside every store, in SQLite or PostgreSQL, and outlives them. All that is in it is the operator's: a release's
content address is an HMAC under the ledger's own secret, its public id is random. Every change appends a row to a hash-chained
history, from which all else can be told again: `verify` does.

Migrations are Alembic's, in data/migrations; opening a ledger brings it up to date.
"""

import contextlib
import dataclasses
import datetime as dt
import hashlib
import hmac
import json
import math
import secrets
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import alembic.command
import alembic.config
import alembic.util
import sqlalchemy as sa

from data import errors, periods, store

RESERVED, PUBLISHED, REFUSED = store.RESERVED, store.PUBLISHED, "refused"
GENESIS = "0" * 64

_MIGRATIONS = Path(__file__).parent / "migrations"
_HEAD = "0005"
_LOCK = 0x50770F0CE
"""Of PostgreSQL's advisory locks, the one that every writer takes."""

metadata = sa.MetaData()

SECRET = sa.Table("secret", metadata, sa.Column("value", sa.String(64), primary_key=True))
"""One row: the key of content addresses, 64 hex digits."""

CONTRACTS = sa.Table(
    "contracts",
    metadata,
    sa.Column("data_set", sa.String(200), primary_key=True),
    sa.Column("unit", sa.String(20), nullable=False),
    sa.Column("period", sa.String(20), nullable=False),
    sa.Column("composition", sa.String(20), nullable=False),
    sa.Column("total_epsilon", sa.Double, nullable=False),
    sa.Column("total_delta", sa.Double, nullable=False),
    # the part of total_delta for partitions that only one user has
    sa.Column("selection_delta", sa.Double, nullable=False),
    # what the filter lets through in each period: mu^2, or rho
    sa.Column("capacity", sa.Double, nullable=False),
    sa.Column("source", sa.String(64), nullable=False, unique=True),
    sa.Column("key_fingerprint", sa.String(64), nullable=False),
)

CLOSED = sa.Table(
    "closed_periods",
    metadata,
    sa.Column("data_set", sa.ForeignKey("contracts.data_set"), primary_key=True),
    sa.Column("period", sa.String(20), primary_key=True),
)

RELEASES = sa.Table(
    "releases",
    metadata,
    sa.Column("release_id", sa.String(32), primary_key=True),
    sa.Column("sequence", sa.Integer, nullable=False, unique=True),
    sa.Column("data_set", sa.ForeignKey("contracts.data_set"), nullable=False),
    sa.Column("address", sa.String(64), nullable=False, unique=True),
    sa.Column("window_start", sa.String(40), nullable=False),
    sa.Column("window_end", sa.String(40), nullable=False),
    sa.Column("status", sa.String(20), nullable=False),
    sa.Column("fence", sa.Integer, nullable=False),
    sa.Column("attempt", sa.String(32), nullable=False),
    # JSON: the release's public figures
    sa.Column("charge", sa.Text, nullable=False),
    sa.Column("reserved_at", sa.String(40), nullable=False),
    sa.Column("job", sa.String(200), nullable=False),
    sa.Column("code_version", sa.String(40), nullable=False),
)

CHARGES = sa.Table(
    "charges",
    metadata,
    sa.Column("release_id", sa.ForeignKey("releases.release_id"), primary_key=True),
    sa.Column("data_set", sa.String(200), nullable=False),
    sa.Column("period", sa.String(20), primary_key=True),
    sa.Column("cost", sa.Double, nullable=False),
    sa.Column("delta", sa.Double, nullable=False),
    sa.Index("charges_by_period", "data_set", "period"),
)

SERIES = sa.Table(
    "series",
    metadata,
    sa.Column("series_id", sa.String(32), primary_key=True),
    sa.Column("data_set", sa.ForeignKey("contracts.data_set"), nullable=False),
    sa.Column("period", sa.String(20), nullable=False),
    sa.Column("address", sa.String(64), nullable=False, unique=True),
    sa.Column("start", sa.String(40), nullable=False),
    sa.Column("window_seconds", sa.Double, nullable=False),
    sa.Column("windows", sa.Integer, nullable=False),
    sa.Column("max_windows_contributed", sa.Integer, nullable=False),
    sa.Column("min_separation", sa.Integer, nullable=False),
    # of all its windows together: what a user pays who is in as many as may be
    sa.Column("cost", sa.Double, nullable=False),
    sa.Column("delta", sa.Double, nullable=False),
    sa.Column("planned_at", sa.String(40), nullable=False),
    sa.Column("job", sa.String(200), nullable=False),
    # of sliding windows; none: as long as a window
    sa.Column("step_seconds", sa.Double),
    sa.Index("series_by_period", "data_set", "period"),
)

PAGES = sa.Table(
    "pages",
    metadata,
    sa.Column("release_id", sa.ForeignKey("releases.release_id"), primary_key=True),
    sa.Column("series_id", sa.ForeignKey("series.series_id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("units", sa.Integer, nullable=False),
    # none until the contribution book has it
    sa.Column("digest", sa.String(64)),
    sa.UniqueConstraint("series_id", "number"),
)
"""The contribution book's pages: one for each release of a series, numbered as its windows are."""

LEASES = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String(401), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("fence", sa.Integer, nullable=False),
    # seconds since the epoch
    sa.Column("expires", sa.Double, nullable=False),
)
"""Which run has a job in hand. Not of the history: a lease spends nothing."""

VERSIONS = sa.Table(
    "versions",
    metadata,
    sa.Column("name", sa.String(401), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("file", sa.String(100), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
)
"""Which version of a job's database in an object store people query. Not of the history either."""

PROMOTIONS = sa.Table(
    "promotions",
    metadata,
    sa.Column("name", sa.String(401), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("model", sa.Integer, nullable=False),
    # active or refused
    sa.Column("outcome", sa.String(20), nullable=False),
    sa.Column("why", sa.String(20), nullable=False),
    # JSON: what was compared
    sa.Column("figures", sa.Text, nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
)
"""What was decided on a job's models, one row after the other and none ever changed. Not of the history either."""

HISTORY = sa.Table(
    "history",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("data_set", sa.String(200), nullable=False),
    # JSON
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
)


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


class Ledger:
    """A ledger in a database. Every method that changes it is one atomic transaction, and serialised with all others.

    Args:
        url: of SQLAlchemy, `sqlite:///PATH` or `postgresql+psycopg://...`.
    """

    def __init__(self, url: str):
        self._shown = _shown(url)
        with self._named_errors(sa.exc.SQLAlchemyError, alembic.util.CommandError, OSError, ImportError, ValueError):
            self._engine = _engine(url)
            self._migrate()

    # Contract

    def init(self, contract: Contract) -> None:
        """Writes down a data set's contract.

        Raises:
            BudgetRefusedError: there is one, or another data set has the same source.
        """
        with self._writing() as connection:
            if self._contract(connection, contract.data_set):
                raise BudgetRefusedError(
                    f"{contract.data_set!r} has a contract already; `sottovoce budget show` shows it, and `grant` raises it."
                )
            other = connection.scalar(sa.select(CONTRACTS.c.data_set).where(CONTRACTS.c.source == contract.source))
            if other:
                raise BudgetRefusedError(
                    f"{contract.data_set!r}: its source belongs to {other!r} already. A second name for the same events would "
                    f"be a second budget for the same users: set job.data_set = {other!r}."
                )
            row = dataclasses.asdict(contract)
            connection.execute(CONTRACTS.insert().values(row))
            self._append(connection, "init", contract.data_set, row)

    def contract(self, data_set: str) -> Contract | None:
        """Returns a data set's contract as it is now."""
        with self._reading() as connection:
            return self._contract(connection, data_set)

    def grant(
        self,
        data_set: str,
        total_epsilon: float,
        total_delta: float,
        capacity: float,
        why: str,
        selection_delta: float | None = None,
    ) -> None:
        """Raises a contract's totals, for every period that is not closed; `selection_delta` None: as it is.

        Raises:
            BudgetRefusedError: there is no contract, or the new totals aren't higher.
        """
        with self._writing() as connection:
            old = self._known(connection, data_set)
            aside = old.selection_delta if selection_delta is None else selection_delta
            is_more = capacity > old.capacity or (capacity == old.capacity and aside > old.selection_delta)
            is_no_less = total_epsilon >= old.total_epsilon and total_delta >= old.total_delta and aside >= old.selection_delta
            if not (is_more and is_no_less):
                raise BudgetRefusedError(
                    f"{data_set!r} has epsilon {old.total_epsilon}, delta {old.total_delta}: a grant must raise them, "
                    f"not to epsilon {total_epsilon}, delta {total_delta}."
                )
            raised = {
                "total_epsilon": total_epsilon,
                "total_delta": total_delta,
                "selection_delta": aside,
                "capacity": capacity,
            }
            connection.execute(CONTRACTS.update().where(CONTRACTS.c.data_set == data_set).values(raised))
            self._append(connection, "grant", data_set, {**raised, "why": why})

    def close(self, data_set: str, period: str) -> None:
        """Closes a period: nothing of it is released any more. Closing it again changes nothing."""
        with self._writing() as connection:
            self._known(connection, data_set)
            if period not in self._closed(connection, data_set):
                connection.execute(CLOSED.insert().values(data_set=data_set, period=period))
                self._append(connection, "close", data_set, {"period": period})

    def spent(self, data_set: str) -> list[Spent]:
        """Returns what is spent in each period that has a charge or is closed, by name."""
        with self._reading() as connection:
            closed = self._closed(connection, data_set)
            found: dict[str, tuple[float, float, int]] = {}
            for table in (CHARGES, SERIES):
                rows = connection.execute(
                    sa.select(table.c.period, sa.func.sum(table.c.cost), sa.func.sum(table.c.delta), sa.func.count())
                    .where(table.c.data_set == data_set)
                    .group_by(table.c.period)
                )
                for period, cost, delta, n in rows:
                    before = found.get(period, (0.0, 0.0, 0))
                    found[period] = (before[0] + cost, before[1] + delta, before[2] + (n if table is CHARGES else 0))
            pages = connection.execute(
                sa.select(SERIES.c.period, sa.func.count())
                .join_from(PAGES, SERIES)
                .where(SERIES.c.data_set == data_set)
                .group_by(SERIES.c.period)
            )
            for period, n in pages:
                found[period] = (*found[period][:2], found[period][2] + n)
        return [Spent(name, *found.get(name, (0.0, 0.0, 0)), name in closed) for name in sorted(found.keys() | closed)]

    # Releases

    def reserve(self, request: Request) -> Grant:
        """Checks a release against the contract and spends it, in one transaction, before any noise is drawn.

        A release that was reserved before and never published is granted anew at no cost, with a higher fence: the run that
        had the lower one can't publish any more. One that was published is only named.

        Raises:
            BudgetRefusedError: no contract, not its source or key, a closed period, or too little left. Kept in the history.
            errors.AlreadyReleasedError: another run has taken the job's lease.
        """
        with self._writing() as connection:
            if request.lease is not None and self._lease(connection, request.lease[0])[1] != request.lease[1]:
                raise errors.AlreadyReleasedError("another run has taken this job over; nothing was spent here.")
            known, refusal = self._decide(connection, request)
            if refusal is None:
                if known is not None and known.status == PUBLISHED:
                    return Grant(known.release_id, known.fence, PUBLISHED)
                return self._grant(connection, request, known)
        raise BudgetRefusedError(refusal)

    def lease(self, name: str, owner: str, seconds: float) -> int:
        """Takes a lease for so many seconds; returns its fence, higher than any before.

        Args:
            owner: who may take it again before it expires: it knows that its earlier run is over.

        Raises:
            errors.AlreadyReleasedError: another owner has it.
        """
        with self._writing() as connection:
            (before, fence, expires), now = self._lease(connection, name), self._time(connection)
            if before != owner and expires > now:
                raise errors.AlreadyReleasedError(
                    f"{name}: another machine or store has this job in hand, for {expires - now:.0f} s from now at least."
                )
            row = {"name": name, "owner": owner, "fence": fence + 1, "expires": now + seconds}
            there = connection.execute(LEASES.update().where(LEASES.c.name == name).values(row))
            if not there.rowcount:
                connection.execute(LEASES.insert().values(row))
        return fence + 1

    def renew(self, name: str, fence: int, seconds: float) -> bool:
        """Holds a lease for so many seconds from now, 0 to give it back; says whether it was still held."""
        with self._writing() as connection:
            held = (LEASES.c.name == name) & (LEASES.c.fence == fence)
            expires = self._time(connection) + seconds
            return connection.execute(LEASES.update().where(held).values(expires=expires)).rowcount == 1

    def active(self, name: str) -> Version | None:
        """Returns the version that is active of a job's database, by the job's name; None: none is."""
        with self._reading() as connection:
            row = connection.execute(sa.select(VERSIONS).where(VERSIONS.c.name == name)).one_or_none()
        return None if row is None else Version(row.number, row.file, row.digest)

    def activate(self, name: str, version: Version) -> bool:
        """Makes a version active in place of the one before it, if that still is: compare and set; says whether it was."""
        with self._writing() as connection:
            row = {"name": name, **version._asdict(), "at": _now()}
            if version.number == 1:
                there = connection.scalar(sa.select(VERSIONS.c.number).where(VERSIONS.c.name == name))
                if there is None:
                    connection.execute(VERSIONS.insert().values(row))
                return there is None
            before = (VERSIONS.c.name == name) & (VERSIONS.c.number == version.number - 1)
            return connection.execute(VERSIONS.update().where(before).values(row)).rowcount == 1

    def promotions(self, name: str) -> list[Promotion]:
        """Returns what was decided on the models of a job, by its name, oldest first."""
        query = sa.select(PROMOTIONS).where(PROMOTIONS.c.name == name).order_by(PROMOTIONS.c.number)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return [Promotion(row.number, row.model, row.outcome, row.why, json.loads(row.figures), row.at) for row in rows]

    def promote(self, name: str, number: int, model: int, outcome: str, why: str, figures: dict[str, Any]) -> bool:
        """Writes a decision down, if `number` is still the next one: compare and set; says whether it was."""
        with self._writing() as connection:
            last = connection.scalar(sa.select(sa.func.max(PROMOTIONS.c.number)).where(PROMOTIONS.c.name == name)) or 0
            if number != last + 1:
                return False
            row = {"name": name, "number": number, "model": model, "outcome": outcome, "why": why, "at": _now()}
            connection.execute(PROMOTIONS.insert().values(figures=json.dumps(figures, sort_keys=True), **row))
        return True

    def book(self, release_id: str, fence: int, digest: str) -> bool:
        """Writes down that the release's page is in the contribution book, if nobody has since been granted the release.

        Raises:
            LedgerError: another page was written down for it.
        """
        with self._writing() as connection:
            if connection.scalar(sa.select(RELEASES.c.release_id).where(_held(release_id, fence))) is None:
                return False
            there = PAGES.c.release_id == release_id
            changed = connection.execute(PAGES.update().where(there & PAGES.c.digest.is_(None)).values(digest=digest))
            if changed.rowcount == 1:
                data_set = connection.scalar(sa.select(RELEASES.c.data_set).where(RELEASES.c.release_id == release_id))
                self._append(connection, "booked", str(data_set), {"release_id": release_id, "digest": digest})
            booked = connection.scalar(sa.select(PAGES.c.digest).where(there))
            if booked not in (None, digest):
                raise LedgerError(f"release {release_id}: its page of the contribution book was another one before.")
            return booked == digest

    def publish(self, release_id: str, fence: int, attempt: str) -> bool:
        """Names the attempt whose tables are the release, if nobody has since been granted it: compare and set.

        Raises:
            LedgerError: the release's page of the contribution book was never written down.
        """
        with self._writing() as connection:
            if connection.scalar(sa.select(PAGES.c.digest.is_(None)).where(PAGES.c.release_id == release_id)):
                raise LedgerError(f"release {release_id}: nothing is published before the contribution book has its users.")
            publishing = RELEASES.update().where(_held(release_id, fence)).values(status=PUBLISHED, attempt=attempt)
            changed = connection.execute(publishing)
            if changed.rowcount == 1:
                data_set = connection.scalar(sa.select(RELEASES.c.data_set).where(RELEASES.c.release_id == release_id))
                self._append(
                    connection, PUBLISHED, str(data_set), {"release_id": release_id, "fence": fence, "attempt": attempt}
                )
                return True
            winner = connection.execute(sa.select(RELEASES).where(RELEASES.c.release_id == release_id)).one_or_none()
            return winner is not None and winner.status == PUBLISHED and winner.attempt == attempt

    def check(self, request: Request) -> None:
        """Refuses what `reserve` would refuse now, and grants nothing: so that no event is read in vain.

        Raises:
            BudgetRefusedError: as `reserve`.
        """
        with self._writing() as connection:
            _, refusal = self._decide(connection, request)
        if refusal is not None:
            raise BudgetRefusedError(refusal)

    def find(self, request: Request) -> Grant | None:
        """Returns the release that has the request's content, if it was ever reserved; changes nothing."""
        with self._reading() as connection:
            known = self._release(connection, request)
        return None if known is None or known.status == REFUSED else Grant(known.release_id, known.fence, known.status)

    def releases(self, data_set: str | None = None, with_refused: bool = False) -> list[dict[str, Any]]:
        """Returns what was reserved for a data set, or for all, in that order, published or not; `charge` is decoded.

        Args:
            with_refused: what was asked for and never granted as well.
        """
        query = sa.select(RELEASES).order_by(RELEASES.c.sequence)
        if not with_refused:
            query = query.where(RELEASES.c.status != REFUSED)
        if data_set is not None:
            query = query.where(RELEASES.c.data_set == data_set)
        with self._reading() as connection:
            return [{**row, "charge": json.loads(row["charge"])} for row in connection.execute(query).mappings()]

    def charges(self, data_set: str) -> dict[str, list[tuple[float, float]]]:
        """Returns what each release was charged, (cost, delta) for each of its periods."""
        found: dict[str, list[tuple[float, float]]] = {}
        with self._reading() as connection:
            for row in connection.execute(sa.select(CHARGES).where(CHARGES.c.data_set == data_set)):
                found.setdefault(row.release_id, []).append((row.cost, row.delta))
        return found

    def series(self, data_set: str) -> list[dict[str, Any]]:
        """Returns the series of a data set in the order of their periods, each with its `pages`, in order, and `is_closed`."""
        with self._reading() as connection:
            query = sa.select(SERIES).where(SERIES.c.data_set == data_set).order_by(SERIES.c.period, SERIES.c.planned_at)
            found = [dict(row) for row in connection.execute(query).mappings()]
            closed = self._closed(connection, data_set)
            for each in found:
                each["is_closed"] = each["period"] in closed
                pages = (
                    sa.select(PAGES.c.number, PAGES.c.units, PAGES.c.digest, PAGES.c.release_id, RELEASES.c.status)
                    .join_from(PAGES, RELEASES)
                    .where(PAGES.c.series_id == each["series_id"])
                    .order_by(PAGES.c.number)
                )
                each["pages"] = [dict(row) for row in connection.execute(pages).mappings()]
        return found

    # History

    def history(self, data_set: str | None = None, kind: str | None = None) -> list[dict[str, Any]]:
        """Returns the history's rows, oldest first, of one data set or of all, of one kind or of all; `body` is decoded."""
        with self._reading() as connection:
            query = sa.select(HISTORY).order_by(HISTORY.c.number)
            if data_set is not None:
                query = query.where(HISTORY.c.data_set == data_set)
            if kind is not None:
                query = query.where(HISTORY.c.kind == kind)
            return [{**row, "body": json.loads(row["body"])} for row in connection.execute(query).mappings()]

    def verify(self, head: str | None = None) -> str:
        """Checks the chain, and that the tables say what the history says; returns the newest hash.

        Args:
            head: a hash that was noted elsewhere before: it must be in the chain. Without one, a cut tail can't be seen.

        Raises:
            LedgerError: what doesn't agree.
        """
        with self._reading() as connection:
            rows = connection.execute(sa.select(HISTORY).order_by(HISTORY.c.number)).all()
            previous = GENESIS
            for number, row in enumerate(rows, 1):
                if row.number != number or row.hash != _hash(previous, number, row.at, row.kind, row.data_set, row.body):
                    raise LedgerError(f"the ledger's history is broken at row {number}: it was changed or cut.")
                previous = row.hash
            if head is not None and head != GENESIS and head not in {row.hash for row in rows}:
                raise LedgerError(f"{head} is not in the ledger's history: its tail was cut, or this is another ledger.")
            secret = connection.scalar(sa.select(SECRET.c.value)) or ""
            if not rows or json.loads(rows[0].body) != {"secret": _digest(secret)}:
                raise LedgerError("the ledger's secret is not the one that its history began with.")
            told = _tell(rows)
            for name, table in _TOLD.items():
                there = {
                    tuple(row._mapping[column.name] for column in table.columns) for row in connection.execute(sa.select(table))
                }
                if there != told[name]:
                    wrong = len(there ^ told[name])
                    raise LedgerError(f"the ledger's table of {name} doesn't agree with its history: {wrong} row(s) differ.")
        return previous

    # Inside

    def _decide(self, connection: sa.Connection, request: Request) -> tuple[Any, str | None]:
        """The release that has the request's content, if any, and why the request is refused, which is written down."""
        known = self._release(connection, request)
        if known is not None and known.status == PUBLISHED:
            return known, None
        refusal = self._refusal(connection, request, is_paid=known is not None and known.status == RESERVED)
        if refusal is not None:
            body: dict[str, Any] = {"charge": request.charge, "why": refusal}
            if known is None and self._contract(connection, request.data_set):
                body["release"] = self._row(connection, request, REFUSED)
                connection.execute(RELEASES.insert().values(body["release"]))
            self._append(connection, REFUSED, request.data_set, body)
        return known, refusal

    def _refusal(self, connection: sa.Connection, request: Request, is_paid: bool) -> str | None:
        contract = self._contract(connection, request.data_set)
        if contract is None:
            return (
                f"{request.data_set!r} has no contract in the ledger: `sottovoce budget init JOB.toml` makes one. It is for "
                "whoever answers for the users' privacy."
            )
        if request.source != contract.source:
            return (
                f"{request.data_set!r} stands for another source in the ledger. A new source is a new data set: give it "
                "another job.data_set and a contract of its own."
            )
        if request.key_fingerprint != contract.key_fingerprint:
            return (
                f"{request.data_set!r} was begun with another pseudonym key: under a new one every user would be a new one "
                "with a new budget. Use the old key until the period ends."
            )
        terms = ("unit", "period", "composition")
        if differ := [name for name in terms if getattr(request, name) != getattr(contract, name)]:
            said = ", ".join(f"privacy.{name} = {getattr(request, name)!r}, not {getattr(contract, name)!r}" for name in differ)
            return f"{request.data_set!r} has another contract in the ledger: {said}."
        if closed := sorted(self._closed(connection, request.data_set) & set(request.touched)):
            return f"{request.data_set!r}: {', '.join(closed)} is closed; nothing of it is released any more."
        if is_paid:
            return None
        if series := self._series(connection, request):
            return self._out_of_turn(connection, series, request)
        asked, aside = request.charged
        for period in request.touched:
            cost, delta = self._sums(connection, request.data_set, period)
            if not (cost + asked <= contract.capacity and delta + aside <= contract.selection_delta):
                left = max(0.0, 1 - cost / contract.capacity)
                return (
                    f"{request.data_set!r}: the budget of period {period} (epsilon {contract.total_epsilon}, delta "
                    f"{contract.total_delta}) has {left:.1%} left, and this "
                    + ("release" if request.series is None else f"series of {request.series.windows} windows")
                    + f" asks for {asked / contract.capacity:.1%} of it"
                    + (f" and delta {aside:g} of {contract.selection_delta - delta:g}" if aside else "")
                    + ". Lower privacy.total_epsilon, wait for the next period, or have it raised: `sottovoce budget grant`."
                )
        return None

    @staticmethod
    def _lease(connection: sa.Connection, name: str) -> tuple[str, int, float]:
        """Owner, fence and end of a lease."""
        row = connection.execute(sa.select(LEASES).where(LEASES.c.name == name)).one_or_none()
        return ("", 0, 0.0) if row is None else (row.owner, row.fence, row.expires)

    @staticmethod
    def _time(connection: sa.Connection) -> float:
        """Seconds since the epoch, by the one clock that all who share the ledger have."""
        if connection.dialect.name == "postgresql":
            return float(connection.scalar(sa.text("select extract(epoch from clock_timestamp())")) or 0)
        return time.time()

    @staticmethod
    def _sums(connection: sa.Connection, data_set: str, period: str) -> tuple[float, float]:
        """Cost and delta of all that was ever reserved in a period."""
        sums = [
            connection.execute(
                sa.select(
                    sa.func.coalesce(sa.func.sum(table.c.cost), 0.0), sa.func.coalesce(sa.func.sum(table.c.delta), 0.0)
                ).where((table.c.data_set == data_set) & (table.c.period == period))
            ).one()
            for table in (CHARGES, SERIES)
        ]
        return sums[0][0] + sums[1][0], sums[0][1] + sums[1][1]

    @staticmethod
    def _out_of_turn(connection: sa.Connection, series: Any, request: Request) -> str | None:
        """Why the book can't take the window now: its pages follow one another."""
        last = _last_page(connection, PAGES.c.series_id == series.series_id)
        if last is None or (last.digest is not None and last.number < request.number):
            return None
        window = request.series.start + last.number * request.series.step if request.series else None
        return (
            f"{request.data_set!r}: in the series of {request.job!r} the window that starts {window} was begun"
            + (" and not ended" if last.digest is None else "")
            + ", and windows come one after the other. Finish it first, with the settings it was begun with."
        )

    def _series(self, connection: sa.Connection, request: Request) -> Any:
        if request.series is None:
            return None
        held = SERIES.c.address == self._series_address(connection, request, request.series)
        return connection.execute(sa.select(SERIES).where(held)).one_or_none()

    def _series_address(self, connection: sa.Connection, request: Request, series: Series) -> str:
        # Whatever the job asks in its windows, their users are counted in one book.
        planned = dataclasses.asdict(series) | {
            # Not to the last bit, which another version of a library may give otherwise.
            name: f"{getattr(series, name):.9g}"
            for name in ("unit_cost", "unit_delta")
        }
        content = {name: str(value) for name, value in planned.items() if value is not None}
        return self._keyed(connection, ["series", request.data_set, request.job, request.touched, content])

    def _page(self, connection: sa.Connection, release_id: str) -> Page | None:
        """The page as it stands now."""
        query = (
            sa.select(PAGES, SERIES.c.max_windows_contributed, SERIES.c.min_separation)
            .join_from(PAGES, SERIES)
            .where(PAGES.c.release_id == release_id)
        )
        row = connection.execute(query).one_or_none()
        if row is None:
            return None
        last = _last_page(connection, (PAGES.c.series_id == row.series_id) & (PAGES.c.number < row.number))
        before = None if last is None else (last.number, last.digest)
        limits = (row.max_windows_contributed, row.min_separation)
        return Page(row.series_id, row.number, row.units, *limits, before, row.digest)

    def _plan(self, connection: sa.Connection, request: Request, planned: Series, release_id: str) -> dict[str, Any]:
        """Writes the release's page down, and its series with the first; returns the page's row."""
        series = self._series(connection, request)
        series_id = uuid.uuid4().hex if series is None else series.series_id
        if series is None:
            row = {
                "series_id": series_id,
                "data_set": request.data_set,
                "period": request.touched[0],
                "address": self._series_address(connection, request, planned),
                "start": planned.start.isoformat(),
                "window_seconds": planned.size.total_seconds(),
                "windows": planned.windows,
                "max_windows_contributed": planned.max_windows_contributed,
                "min_separation": planned.min_separation,
                "cost": planned.cost,
                "delta": planned.delta,
                "planned_at": _now(),
                "job": request.job,
                **({} if planned.every is None else {"step_seconds": planned.every.total_seconds()}),
            }
            connection.execute(SERIES.insert().values(row))
            self._append(connection, "planned", request.data_set, row)
        page = {
            "release_id": release_id,
            "series_id": series_id,
            "number": request.number,
            "units": request.units,
            "digest": None,
        }
        connection.execute(PAGES.insert().values(page))
        return page

    def _grant(self, connection: sa.Connection, request: Request, known: Any) -> Grant:
        if known is not None and known.status == RESERVED:
            fence = known.fence if known.attempt == request.attempt else known.fence + 1
            held = RELEASES.c.release_id == known.release_id
            connection.execute(RELEASES.update().where(held).values(fence=fence, attempt=request.attempt))
            if fence != known.fence:
                body = {"release_id": known.release_id, "fence": fence, "attempt": request.attempt}
                self._append(connection, "retry", request.data_set, body)
            return Grant(known.release_id, fence, RESERVED, self._page(connection, known.release_id))
        if known is not None:  # refused before
            connection.execute(RELEASES.delete().where(RELEASES.c.release_id == known.release_id))
        row = self._row(connection, request, RESERVED)
        charges = [
            {
                "release_id": row["release_id"],
                "data_set": request.data_set,
                "period": period,
                "cost": request.cost,
                "delta": request.delta,
            }
            for period in request.touched
            if request.series is None
        ]
        connection.execute(RELEASES.insert().values(row))
        body = {"release": row, "charges": charges}
        if request.series is None:
            connection.execute(CHARGES.insert(), charges)
        else:
            body["page"] = self._plan(connection, request, request.series, str(row["release_id"]))
        self._append(connection, RESERVED, request.data_set, body)
        return Grant(str(row["release_id"]), 1, RESERVED, self._page(connection, str(row["release_id"])))

    def _row(self, connection: sa.Connection, request: Request, status: str) -> dict[str, Any]:
        """A new row of releases."""
        return {
            "release_id": uuid.uuid4().hex,
            "sequence": 1 + (connection.scalar(sa.select(sa.func.max(RELEASES.c.sequence))) or 0),
            "data_set": request.data_set,
            "address": self._address(connection, request),
            "window_start": request.window_start.isoformat(),
            "window_end": request.window_end.isoformat(),
            "status": status,
            "fence": 0 if status == REFUSED else 1,
            "attempt": request.attempt,
            "charge": json.dumps(request.charge, sort_keys=True),
            "reserved_at": _now(),
            "job": request.job,
            "code_version": request.code_version,
        }

    def _append(self, connection: sa.Connection, kind: str, data_set: str, body: dict[str, Any]) -> None:
        last = connection.execute(sa.select(HISTORY).order_by(HISTORY.c.number.desc()).limit(1)).one_or_none()
        number, previous = (last.number + 1, last.hash) if last is not None else (1, GENESIS)
        at, text = _now(), json.dumps(body, sort_keys=True)
        hashed = _hash(previous, number, at, kind, data_set, text)
        connection.execute(HISTORY.insert().values(number=number, at=at, kind=kind, data_set=data_set, body=text, hash=hashed))

    def _address(self, connection: sa.Connection, request: Request) -> str:
        # The cost too: a release that would be drawn with other noise is another one.
        content: list[Any] = [request.data_set, request.content, request.cost, request.delta, request.touched]
        if request.series is not None:
            # Its users are those that the series' book lets in: the same query without it, or in another, is another release.
            content.append(self._series_address(connection, request, request.series))
        return self._keyed(connection, content)

    @staticmethod
    def _keyed(connection: sa.Connection, content: list[Any]) -> str:
        """The content's HMAC under the ledger's secret, as hex digits."""
        secret = bytes.fromhex(connection.scalar(sa.select(SECRET.c.value)) or "")
        if not secret:
            raise LedgerError("the ledger has lost its secret: what was published can't be told from what is new.")
        return hmac.digest(secret, json.dumps(content, sort_keys=True).encode(), hashlib.sha256).hex()

    def _release(self, connection: sa.Connection, request: Request) -> Any:
        held = RELEASES.c.address == self._address(connection, request)
        return connection.execute(sa.select(RELEASES).where(held)).one_or_none()

    def _contract(self, connection: sa.Connection, data_set: str) -> Contract | None:
        row = connection.execute(sa.select(CONTRACTS).where(CONTRACTS.c.data_set == data_set)).mappings().one_or_none()
        return None if row is None else Contract(**row)

    def known(self, data_set: str) -> Contract:
        """As `contract`, where there must be one.

        Raises:
            BudgetRefusedError: there is none.
        """
        with self._reading() as connection:
            return self._known(connection, data_set)

    def _known(self, connection: sa.Connection, data_set: str) -> Contract:
        contract = self._contract(connection, data_set)
        if contract is None:
            raise BudgetRefusedError(f"{data_set!r} has no contract in the ledger: `sottovoce budget init JOB.toml` makes one.")
        return contract

    def _closed(self, connection: sa.Connection, data_set: str) -> set[str]:
        return set(connection.scalars(sa.select(CLOSED.c.period).where(CLOSED.c.data_set == data_set)))

    @contextlib.contextmanager
    def _named_errors(self, *kinds: type[Exception]) -> Iterator[None]:
        """Without the driver's text: it may show a password, or what is in the ledger."""
        try:
            yield
        except LedgerError:
            raise
        except kinds as error:
            raise LedgerError(
                f"privacy.ledger = {self._shown}: can't be opened or used ({type(error).__name__}). Is the server there, is "
                "the file a ledger, may you write to it? PostgreSQL needs `pip install sottovoce[postgresql]`."
            ) from None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._named_errors(sa.exc.SQLAlchemyError), self._engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction that no other writer is in: what it reads stays true until it commits."""
        with self._named_errors(sa.exc.SQLAlchemyError), self._engine.connect() as connection:
            if connection.dialect.name == "sqlite":
                connection.info["is_writing"] = True
            else:
                # Each statement sees what was committed before it: all that came before the lock.
                connection = connection.execution_options(isolation_level="READ COMMITTED")
            with connection.begin():
                if connection.dialect.name == "postgresql":
                    # Held to the end of the transaction. Without it, two could add to one sum.
                    connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": _LOCK})
                    connection.execute(sa.text("set local synchronous_commit = on"))
                yield connection

    def _migrate(self) -> None:
        with self._reading() as connection:
            if _version(connection) == _HEAD:
                return
        with self._writing() as connection:
            version = _version(connection)
            if version != _HEAD:
                config = alembic.config.Config()
                config.set_main_option("script_location", str(_MIGRATIONS))
                config.attributes["connection"] = connection
                alembic.command.upgrade(config, "head")
            if version is None:
                secret = secrets.token_hex(32)
                connection.execute(SECRET.insert().values(value=secret))
                self._append(connection, "begin", "", {"secret": _digest(secret)})


_TOLD = {
    "contracts": CONTRACTS,
    "releases": RELEASES,
    "charges": CHARGES,
    "closed": CLOSED,
    "series": SERIES,
    "pages": PAGES,
}
"""What the history tells again, by the name that an error gives it."""


def _held(release_id: str, fence: int) -> sa.ColumnElement[bool]:
    """The release, if it is reserved and nobody was granted it since."""
    return (RELEASES.c.release_id == release_id) & (RELEASES.c.status == RESERVED) & (RELEASES.c.fence == fence)


def _last_page(connection: sa.Connection, of_these: sa.ColumnElement[bool]) -> Any:
    return connection.execute(sa.select(PAGES).where(of_these).order_by(PAGES.c.number.desc()).limit(1)).one_or_none()


def _tell(rows: Sequence[Any]) -> dict[str, set[tuple[Any, ...]]]:
    """What the tables must hold by the history."""
    contracts: dict[str, dict[str, Any]] = {}
    releases: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    charges: list[dict[str, Any]] = []
    closed: list[dict[str, Any]] = []
    series: list[dict[str, Any]] = []
    pages: dict[str, dict[str, Any]] = {}
    for row in rows:
        body = json.loads(row.body)
        if "release" in body:
            # Refused and reserved later: one row.
            releases.pop(refused.get(body["release"]["address"], ""), None)
            releases[body["release"]["release_id"]] = body["release"]
            if row.kind == REFUSED:
                refused[body["release"]["address"]] = body["release"]["release_id"]
        if row.kind == "init":
            contracts[row.data_set] = body
        elif row.kind == "grant":
            contracts[row.data_set] = {**contracts[row.data_set], **{key: value for key, value in body.items() if key != "why"}}
        elif row.kind == "close":
            closed.append({"data_set": row.data_set, **body})
        elif row.kind == RESERVED:
            charges.extend(body["charges"])
            if "page" in body:
                pages[body["page"]["release_id"]] = body["page"]
        elif row.kind == "planned":
            series.append({"step_seconds": None, **body})
        elif row.kind == "booked":
            pages[body["release_id"]] = {**pages[body["release_id"]], **body}
        elif row.kind == "retry":
            releases[body["release_id"]] = {**releases[body["release_id"]], **body}
        elif row.kind == PUBLISHED:
            releases[body["release_id"]] = {**releases[body["release_id"]], **body, "status": PUBLISHED}
    told: dict[str, list[dict[str, Any]]] = {
        "contracts": list(contracts.values()),
        "releases": list(releases.values()),
        "charges": charges,
        "closed": closed,
        "series": series,
        "pages": list(pages.values()),
    }
    return {name: {tuple(row[column.name] for column in _TOLD[name].columns) for row in rows} for name, rows in told.items()}


def _hash(previous: str, *parts: Any) -> str:
    return hashlib.sha256(json.dumps([previous, *parts]).encode()).hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")


def _version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(sa.text("select version_num from alembic_version"))


def _shown(url: str) -> str:
    """The URL without what may be a secret, wherever it stands in it."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        return "(not a URL of SQLAlchemy's, such as sqlite:///PATH)"
    host = (parsed.host or "").rpartition("@")[2]
    return f"{parsed.drivername}://{host}/{parsed.database or ''}"


def _engine(url: str) -> sa.Engine:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed, poolclass=sa.NullPool, connect_args={"connect_timeout": 10})
    if not parsed.database or ":memory:" in parsed.database:
        raise ValueError("a ledger in memory would forget.")
    path = Path(parsed.database)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    path.chmod(0o600)
    engine = sa.create_engine(parsed, poolclass=sa.NullPool, connect_args={"timeout": 60})

    @sa.event.listens_for(engine, "connect")
    def _no_begin_of_its_own(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        connection.execute("pragma synchronous = extra")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("begin immediate" if connection.info.pop("is_writing", False) else "begin")

    return engine
