"""The privacy ledger's operations, each one transaction."""

import dataclasses
import json
from typing import Any

import sqlalchemy as sa

from data import errors
from data.ledger import decisions, history, transactions
from data.ledger.records import BudgetRefusedError, Contract, Grant, LedgerError, Promotion, Request, Spent, Version
from data.ledger.schema import (
    CHARGES,
    CLOSED,
    CONTRACTS,
    HISTORY,
    LEASES,
    PAGES,
    PROMOTIONS,
    PUBLISHED,
    REFUSED,
    RELEASES,
    RESERVED,
    SERIES,
    VERSIONS,
)


class Ledger:
    """A ledger in a database. Every method that changes it is one atomic transaction, and serialised with all others.

    Args:
        url: of SQLAlchemy, `sqlite:///PATH` or `postgresql+psycopg://...`.
    """

    def __init__(self, url: str):
        self._database = transactions.Transactions(url)

    # Contract

    def init(self, contract: Contract) -> None:
        """Writes down a data set's contract.

        Raises:
            BudgetRefusedError: there is one, or another data set has the same source.
        """
        with self._database.writing() as connection:
            if decisions.contract_of(connection, contract.data_set):
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
            history.append(connection, "init", contract.data_set, row)

    def contract(self, data_set: str) -> Contract | None:
        """Returns a data set's contract as it is now."""
        with self._database.reading() as connection:
            return decisions.contract_of(connection, data_set)

    def known(self, data_set: str) -> Contract:
        """As `contract`, where there must be one.

        Raises:
            BudgetRefusedError: there is none.
        """
        with self._database.reading() as connection:
            return decisions.known_contract_of(connection, data_set)

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
        with self._database.writing() as connection:
            old = decisions.known_contract_of(connection, data_set)
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
            history.append(connection, "grant", data_set, {**raised, "why": why})

    def close(self, data_set: str, period: str) -> None:
        """Closes a period: nothing of it is released any more. Closing it again changes nothing."""
        with self._database.writing() as connection:
            decisions.known_contract_of(connection, data_set)
            if period not in decisions.closed_periods(connection, data_set):
                connection.execute(CLOSED.insert().values(data_set=data_set, period=period))
                history.append(connection, "close", data_set, {"period": period})

    def spent(self, data_set: str) -> list[Spent]:
        """Returns what is spent in each period that has a charge or is closed, by name."""
        with self._database.reading() as connection:
            closed = decisions.closed_periods(connection, data_set)
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
        with self._database.writing() as connection:
            if request.lease is not None and _lease(connection, request.lease[0])[1] != request.lease[1]:
                raise errors.AlreadyReleasedError("another run has taken this job over; nothing was spent here.")
            known, refusal = decisions.decide(connection, request)
            if refusal is None:
                if known is not None and known.status == PUBLISHED:
                    return Grant(known.release_id, known.fence, PUBLISHED)
                return decisions.grant(connection, request, known)
        raise BudgetRefusedError(refusal)

    def book(self, release_id: str, fence: int, digest: str) -> bool:
        """Writes down that the release's page is in the contribution book, if nobody has since been granted the release.

        Raises:
            LedgerError: another page was written down for it.
        """
        with self._database.writing() as connection:
            if connection.scalar(sa.select(RELEASES.c.release_id).where(_held(release_id, fence))) is None:
                return False
            there = PAGES.c.release_id == release_id
            changed = connection.execute(PAGES.update().where(there & PAGES.c.digest.is_(None)).values(digest=digest))
            if changed.rowcount == 1:
                data_set = connection.scalar(sa.select(RELEASES.c.data_set).where(RELEASES.c.release_id == release_id))
                history.append(connection, "booked", str(data_set), {"release_id": release_id, "digest": digest})
            booked = connection.scalar(sa.select(PAGES.c.digest).where(there))
            if booked not in (None, digest):
                raise LedgerError(f"release {release_id}: its page of the contribution book was another one before.")
            return booked == digest

    def publish(self, release_id: str, fence: int, attempt: str) -> bool:
        """Names the attempt whose tables are the release, if nobody has since been granted it: compare and set.

        Raises:
            LedgerError: the release's page of the contribution book was never written down.
        """
        with self._database.writing() as connection:
            if connection.scalar(sa.select(PAGES.c.digest.is_(None)).where(PAGES.c.release_id == release_id)):
                raise LedgerError(f"release {release_id}: nothing is published before the contribution book has its users.")
            publishing = RELEASES.update().where(_held(release_id, fence)).values(status=PUBLISHED, attempt=attempt)
            changed = connection.execute(publishing)
            if changed.rowcount == 1:
                data_set = connection.scalar(sa.select(RELEASES.c.data_set).where(RELEASES.c.release_id == release_id))
                history.append(
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
        with self._database.writing() as connection:
            _, refusal = decisions.decide(connection, request)
        if refusal is not None:
            raise BudgetRefusedError(refusal)

    def find(self, request: Request) -> Grant | None:
        """Returns the release that has the request's content, if it was ever reserved; changes nothing."""
        with self._database.reading() as connection:
            known = decisions.find(connection, request)
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
        with self._database.reading() as connection:
            return [{**row, "charge": json.loads(row["charge"])} for row in connection.execute(query).mappings()]

    def charges(self, data_set: str) -> dict[str, list[tuple[float, float]]]:
        """Returns what each release was charged, (cost, delta) for each of its periods."""
        found: dict[str, list[tuple[float, float]]] = {}
        with self._database.reading() as connection:
            for row in connection.execute(sa.select(CHARGES).where(CHARGES.c.data_set == data_set)):
                found.setdefault(row.release_id, []).append((row.cost, row.delta))
        return found

    def series(self, data_set: str) -> list[dict[str, Any]]:
        """Returns the series of a data set in the order of their periods, each with its `pages`, in order, and `is_closed`."""
        with self._database.reading() as connection:
            query = sa.select(SERIES).where(SERIES.c.data_set == data_set).order_by(SERIES.c.period, SERIES.c.planned_at)
            found = [dict(row) for row in connection.execute(query).mappings()]
            closed = decisions.closed_periods(connection, data_set)
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

    # Leases, versions and promotions: of jobs, by their names

    def lease(self, name: str, owner: str, seconds: float) -> int:
        """Takes a lease for so many seconds; returns its fence, higher than any before.

        Args:
            owner: who may take it again before it expires: it knows that its earlier run is over.

        Raises:
            errors.AlreadyReleasedError: another owner has it.
        """
        with self._database.writing() as connection:
            (before, fence, expires), now = _lease(connection, name), transactions.clock(connection)
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
        with self._database.writing() as connection:
            held = (LEASES.c.name == name) & (LEASES.c.fence == fence)
            expires = transactions.clock(connection) + seconds
            return connection.execute(LEASES.update().where(held).values(expires=expires)).rowcount == 1

    def active(self, name: str) -> Version | None:
        """Returns the version that is active of a job's database, by the job's name; None: none is."""
        with self._database.reading() as connection:
            row = connection.execute(sa.select(VERSIONS).where(VERSIONS.c.name == name)).one_or_none()
        return None if row is None else Version(row.number, row.file, row.digest)

    def activate(self, name: str, version: Version) -> bool:
        """Makes a version active in place of the one before it, if that still is: compare and set; says whether it was."""
        with self._database.writing() as connection:
            row = {"name": name, **version._asdict(), "at": history.now()}
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
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return [Promotion(row.number, row.model, row.outcome, row.why, json.loads(row.figures), row.at) for row in rows]

    def promote(self, name: str, number: int, model: int, outcome: str, why: str, figures: dict[str, Any]) -> bool:
        """Writes a decision down, if `number` is still the next one: compare and set; says whether it was."""
        with self._database.writing() as connection:
            last = connection.scalar(sa.select(sa.func.max(PROMOTIONS.c.number)).where(PROMOTIONS.c.name == name)) or 0
            if number != last + 1:
                return False
            row = {"name": name, "number": number, "model": model, "outcome": outcome, "why": why, "at": history.now()}
            connection.execute(PROMOTIONS.insert().values(figures=json.dumps(figures, sort_keys=True), **row))
        return True

    # History

    def history(self, data_set: str | None = None, kind: str | None = None) -> list[dict[str, Any]]:
        """Returns the history's rows, oldest first, of one data set or of all, of one kind or of all; `body` is decoded."""
        with self._database.reading() as connection:
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
        with self._database.reading() as connection:
            return history.verify(connection, head)


def _lease(connection: sa.Connection, name: str) -> tuple[str, int, float]:
    """Owner, fence and end of a lease."""
    row = connection.execute(sa.select(LEASES).where(LEASES.c.name == name)).one_or_none()
    return ("", 0, 0.0) if row is None else (row.owner, row.fence, row.expires)


def _held(release_id: str, fence: int) -> sa.ColumnElement[bool]:
    """The release, if it is reserved and nobody was granted it since."""
    return (RELEASES.c.release_id == release_id) & (RELEASES.c.status == RESERVED) & (RELEASES.c.fence == fence)
