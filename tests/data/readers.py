"""Processes that ask the published database all the while, and keep count of the answers.

After opening a database a query reads three tables at once: its answer must be one version's, whole.
"""

import collections
import multiprocessing
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import duckdb

from data import database

WHOLE = "SELECT version, (SELECT sum(score) FROM popular), (SELECT sum(score) FROM recommendations) FROM model_versions"
QUICK = "SELECT version FROM model_versions"


def _keeping(store: pathlib.Path) -> Callable[[], Any]:
    """Asks by a connection that it keeps as long as the database stays the same."""
    link, path, connection = str(store / database.CURRENT), "", duckdb.connect()

    def ask() -> Any:
        nonlocal path, connection
        now = os.readlink(link)  # noqa: PTH115  as quick as can be
        if now == path:
            return connection.execute(QUICK).fetchall()
        connection.close()
        connection, path = database.connect(store), now
        return connection.execute(WHOLE).fetchall()

    return ask


def _opening(store: pathlib.Path) -> Callable[[], Any]:
    """Asks by a new connection each time."""

    def ask() -> Any:
        with database.connect(store) as connection:
            return connection.execute(WHOLE).fetchall()

    return ask


def _ask_on(make: Callable[[pathlib.Path], Callable[[], Any]], store: pathlib.Path, ready: Any, stop: Any, told: Any) -> None:
    """Asks until it is told to stop; hands back how often each answer came, and each failure."""
    ask, found = make(store), collections.Counter[str]()
    ask()
    ready.release()
    while not stop.is_set():
        try:
            found[repr(ask())] += 1
        except Exception as error:
            found[f"failed: {type(error).__name__}"] += 1
            ask = make(store)
    told.put((make.__name__.strip("_"), found))


def asked_while(
    store: pathlib.Path, work: Callable[[], None], keeping: int = 1
) -> tuple[dict[str, collections.Counter[str]], float]:
    """How often each answer came, by how it was asked for, while the work was done, and the seconds that it took."""
    context = multiprocessing.get_context("spawn")
    ready, stop, told = context.Semaphore(0), context.Event(), context.Queue()
    asking = [
        context.Process(target=_ask_on, args=(make, store, ready, stop, told)) for make in [_keeping] * keeping + [_opening]
    ]
    for process in asking:
        process.start()
    assert all(ready.acquire(timeout=180) for _ in asking)
    start = time.perf_counter()
    try:
        work()
    finally:
        seconds = time.perf_counter() - start
        stop.set()
        found: dict[str, collections.Counter[str]] = {}
        for _ in asking:
            name, counts = told.get(timeout=60)
            found.setdefault(name, collections.Counter()).update(counts)
        for process in asking:
            process.join()
    return found, seconds


def answers(store: pathlib.Path) -> set[str]:
    """What may be answered while this version is current."""
    with database.connect(store) as connection:
        return {repr(connection.execute(query).fetchall()) for query in (QUICK, WHOLE)}
