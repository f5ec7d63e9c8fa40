"""What is decided on a request, inside one transaction: whether there is room for it, and what leave it is given."""

import dataclasses
import hashlib
import hmac
import json
import uuid
from typing import Any

import sqlalchemy as sa

from data.ledger import history
from data.ledger.records import BudgetRefusedError, Contract, Grant, LedgerError, Page, Request, Series
from data.ledger.schema import CHARGES, CLOSED, CONTRACTS, PAGES, PUBLISHED, REFUSED, RELEASES, RESERVED, SECRET, SERIES


def decide(connection: sa.Connection, request: Request) -> tuple[Any, str | None]:
    """The release that has the request's content, if any, and why the request is refused, which is written down."""
    known = find(connection, request)
    if known is not None and known.status == PUBLISHED:
        return known, None
    refusal = _refusal(connection, request, is_paid=known is not None and known.status == RESERVED)
    if refusal is not None:
        body: dict[str, Any] = {"charge": request.charge, "why": refusal}
        if known is None and contract_of(connection, request.data_set):
            body["release"] = _row(connection, request, REFUSED)
            connection.execute(RELEASES.insert().values(body["release"]))
        history.append(connection, REFUSED, request.data_set, body)
    return known, refusal


def _refusal(connection: sa.Connection, request: Request, is_paid: bool) -> str | None:
    contract = contract_of(connection, request.data_set)
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
    if closed := sorted(closed_periods(connection, request.data_set) & set(request.touched)):
        return f"{request.data_set!r}: {', '.join(closed)} is closed; nothing of it is released any more."
    if is_paid:
        return None
    if series := _series(connection, request):
        return _out_of_turn(connection, series, request)
    asked, aside = request.charged
    for period in request.touched:
        cost, delta = _sums(connection, request.data_set, period)
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


def grant(connection: sa.Connection, request: Request, known: Any) -> Grant:
    """Reserves what was not refused; `known`: the release that has the request's content, not published, or None."""
    if known is not None and known.status == RESERVED:
        fence = known.fence if known.attempt == request.attempt else known.fence + 1
        held = RELEASES.c.release_id == known.release_id
        connection.execute(RELEASES.update().where(held).values(fence=fence, attempt=request.attempt))
        if fence != known.fence:
            body = {"release_id": known.release_id, "fence": fence, "attempt": request.attempt}
            history.append(connection, "retry", request.data_set, body)
        return Grant(known.release_id, fence, RESERVED, _page(connection, known.release_id))
    if known is not None:  # refused before
        connection.execute(RELEASES.delete().where(RELEASES.c.release_id == known.release_id))
    row = _row(connection, request, RESERVED)
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
        body["page"] = _plan(connection, request, request.series, str(row["release_id"]))
    history.append(connection, RESERVED, request.data_set, body)
    return Grant(str(row["release_id"]), 1, RESERVED, _page(connection, str(row["release_id"])))


def _row(connection: sa.Connection, request: Request, status: str) -> dict[str, Any]:
    """A new row of releases."""
    return {
        "release_id": uuid.uuid4().hex,
        "sequence": 1 + (connection.scalar(sa.select(sa.func.max(RELEASES.c.sequence))) or 0),
        "data_set": request.data_set,
        "address": _address(connection, request),
        "window_start": request.window_start.isoformat(),
        "window_end": request.window_end.isoformat(),
        "status": status,
        "fence": 0 if status == REFUSED else 1,
        "attempt": request.attempt,
        "charge": json.dumps(request.charge, sort_keys=True),
        "reserved_at": history.now(),
        "job": request.job,
        "code_version": request.code_version,
    }


def _plan(connection: sa.Connection, request: Request, planned: Series, release_id: str) -> dict[str, Any]:
    """Writes the release's page down, and its series with the first; returns the page's row."""
    series = _series(connection, request)
    series_id = uuid.uuid4().hex if series is None else series.series_id
    if series is None:
        row = {
            "series_id": series_id,
            "data_set": request.data_set,
            "period": request.touched[0],
            "address": _series_address(connection, request, planned),
            "start": planned.start.isoformat(),
            "window_seconds": planned.size.total_seconds(),
            "windows": planned.windows,
            "max_windows_contributed": planned.max_windows_contributed,
            "min_separation": planned.min_separation,
            "cost": planned.cost,
            "delta": planned.delta,
            "planned_at": history.now(),
            "job": request.job,
            **({} if planned.every is None else {"step_seconds": planned.every.total_seconds()}),
        }
        connection.execute(SERIES.insert().values(row))
        history.append(connection, "planned", request.data_set, row)
    page = {
        "release_id": release_id,
        "series_id": series_id,
        "number": request.number,
        "units": request.units,
        "digest": None,
    }
    connection.execute(PAGES.insert().values(page))
    return page


def _page(connection: sa.Connection, release_id: str) -> Page | None:
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


def find(connection: sa.Connection, request: Request) -> Any:
    """Returns the row of the release that has the request's content, or None."""
    held = RELEASES.c.address == _address(connection, request)
    return connection.execute(sa.select(RELEASES).where(held)).one_or_none()


def _series(connection: sa.Connection, request: Request) -> Any:
    if request.series is None:
        return None
    held = SERIES.c.address == _series_address(connection, request, request.series)
    return connection.execute(sa.select(SERIES).where(held)).one_or_none()


def _address(connection: sa.Connection, request: Request) -> str:
    # The cost too: a release that would be drawn with other noise is another one.
    content: list[Any] = [request.data_set, request.content, request.cost, request.delta, request.touched]
    if request.series is not None:
        # Its users are those that the series' book lets in: the same query without it, or in another, is another release.
        content.append(_series_address(connection, request, request.series))
    return _keyed(connection, content)


def _series_address(connection: sa.Connection, request: Request, series: Series) -> str:
    # Whatever the job asks in its windows, their users are counted in one book.
    planned = dataclasses.asdict(series) | {
        # Not to the last bit, which another version of a library may give otherwise.
        name: f"{getattr(series, name):.9g}"
        for name in ("unit_cost", "unit_delta")
    }
    content = {name: str(value) for name, value in planned.items() if value is not None}
    return _keyed(connection, ["series", request.data_set, request.job, request.touched, content])


def _keyed(connection: sa.Connection, content: list[Any]) -> str:
    """The content's HMAC under the ledger's secret, as hex digits."""
    secret = bytes.fromhex(connection.scalar(sa.select(SECRET.c.value)) or "")
    if not secret:
        raise LedgerError("the ledger has lost its secret: what was published can't be told from what is new.")
    return hmac.digest(secret, json.dumps(content, sort_keys=True).encode(), hashlib.sha256).hex()


def contract_of(connection: sa.Connection, data_set: str) -> Contract | None:
    """Returns the contract as it is now."""
    row = connection.execute(sa.select(CONTRACTS).where(CONTRACTS.c.data_set == data_set)).mappings().one_or_none()
    return None if row is None else Contract(**row)


def known_contract_of(connection: sa.Connection, data_set: str) -> Contract:
    """As `contract_of`; raises BudgetRefusedError where there is none."""
    contract = contract_of(connection, data_set)
    if contract is None:
        raise BudgetRefusedError(f"{data_set!r} has no contract in the ledger: `sottovoce budget init JOB.toml` makes one.")
    return contract


def closed_periods(connection: sa.Connection, data_set: str) -> set[str]:
    """Returns the periods of which nothing is released any more."""
    return set(connection.scalars(sa.select(CLOSED.c.period).where(CLOSED.c.data_set == data_set)))


def _last_page(connection: sa.Connection, of_these: sa.ColumnElement[bool]) -> Any:
    return connection.execute(sa.select(PAGES).where(of_these).order_by(PAGES.c.number.desc()).limit(1)).one_or_none()
