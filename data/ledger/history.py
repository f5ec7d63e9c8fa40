"""The hash-chained history. Every change of the ledger appends a row to it, from which all else can be told again."""

import datetime as dt
import hashlib
import json
import secrets
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from data.ledger.records import LedgerError
from data.ledger.schema import (
    CHARGES,
    CLOSED,
    CONTRACTS,
    HISTORY,
    PAGES,
    PUBLISHED,
    REFUSED,
    RELEASES,
    RESERVED,
    SECRET,
    SERIES,
)

GENESIS = "0" * 64
"""What the first row follows."""

_TOLD = {
    "contracts": CONTRACTS,
    "releases": RELEASES,
    "charges": CHARGES,
    "closed": CLOSED,
    "series": SERIES,
    "pages": PAGES,
}
"""What the history tells again, by the name that an error gives it."""


def begin(connection: sa.Connection) -> None:
    """Makes a new ledger's secret, and the first row."""
    secret = secrets.token_hex(32)
    connection.execute(SECRET.insert().values(value=secret))
    append(connection, "begin", "", {"secret": _digest(secret)})


def append(connection: sa.Connection, kind: str, data_set: str, body: dict[str, Any]) -> None:
    """Appends a row, in the transaction of the change that it tells of."""
    last = connection.execute(sa.select(HISTORY).order_by(HISTORY.c.number.desc()).limit(1)).one_or_none()
    number, previous = (last.number + 1, last.hash) if last is not None else (1, GENESIS)
    at, text = now(), json.dumps(body, sort_keys=True)
    row = {"number": number, "at": at, "kind": kind, "data_set": data_set, "body": text}
    connection.execute(HISTORY.insert().values(hash=link(previous, *row.values()), **row))


def verify(connection: sa.Connection, head: str | None) -> str:
    """Checks the chain, and that the tables say what the history says; returns the newest hash.

    Args:
        head: a hash that must be in the chain, if any.

    Raises:
        LedgerError: what doesn't agree.
    """
    rows = connection.execute(sa.select(HISTORY).order_by(HISTORY.c.number)).all()
    previous = GENESIS
    for number, row in enumerate(rows, 1):
        if row.number != number or row.hash != link(previous, number, row.at, row.kind, row.data_set, row.body):
            raise LedgerError(f"the ledger's history is broken at row {number}: it was changed or cut.")
        previous = row.hash
    if head is not None and head != GENESIS and head not in {row.hash for row in rows}:
        raise LedgerError(f"{head} is not in the ledger's history: its tail was cut, or this is another ledger.")
    secret = connection.scalar(sa.select(SECRET.c.value)) or ""
    if not rows or json.loads(rows[0].body) != {"secret": _digest(secret)}:
        raise LedgerError("the ledger's secret is not the one that its history began with.")
    told = _tell(rows)
    for name, table in _TOLD.items():
        there = {tuple(row._mapping[column.name] for column in table.columns) for row in connection.execute(sa.select(table))}
        if there != told[name]:
            wrong = len(there ^ told[name])
            raise LedgerError(f"the ledger's table of {name} doesn't agree with its history: {wrong} row(s) differ.")
    return previous


def link(previous: str, *parts: Any) -> str:
    """Returns a row's hash: of the hash before it and its own columns, in the table's order."""
    return hashlib.sha256(json.dumps([previous, *parts]).encode()).hexdigest()


def now() -> str:
    """Returns the time in UTC, to the microsecond."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")


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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
