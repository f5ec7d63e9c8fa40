"""Release jobs that are killed (SIGKILL) in the middle, and what must hold afterwards."""

import contextlib
import itertools
import multiprocessing
import multiprocessing.process
import os
import pathlib
import signal
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

from data import book, ledger, store, tables
from pipelines import config, contract, release
from tests.pipelines import topics
from tests.pipelines.example import charges, load, published
from transforms.ingest import dead_letters
from transforms.ingest import topics as kafka_topics
from transforms.release import commit, cooccurrence

STEPS: dict[str, tuple[Any, str]] = {
    "reserve": (ledger.Ledger, "reserve"),
    "noise": (cooccurrence, "release_block"),
    "write": (commit, "write_part"),
    "finish": (store.Store, "finish"),
    "publish": (ledger.Ledger, "publish"),
    "show": (store.Store, "show"),
}
"""By name, the functions that a release goes through from its charge to its visibility."""

BOOK_STEPS: dict[str, tuple[Any, str]] = {
    "admit": (book.Book, "admit"),
    "finish page": (book.Book, "finish"),
    "book": (ledger.Ledger, "book"),
    "keep": (book.Book, "admitted"),
}
"""Those that a window with a contribution book goes through besides."""

BOOK = ["--window.size=1d", "--window.end=2025-01-04", "--window.max_windows_contributed=2", "--privacy.period=month"]
"""Flags that make the job three windows with a contribution book."""

TOPIC_STEPS: dict[str, tuple[Any, str]] = {"deliver": (dead_letters, "send")}
"""That which a job over a topic goes through besides."""

KINDS: dict[str, tuple[list[str], dict[str, tuple[Any, str]]]] = {
    "file": ([], STEPS),
    "windows": (BOOK, STEPS | BOOK_STEPS),
    "topic": (BOOK, STEPS | BOOK_STEPS | TOPIC_STEPS),
}
"""Jobs that are drilled: their flags, and their steps."""


# Forked from a process that has imported everything and run nothing: one that has run a pipeline has threads, and no safe fork.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.pipelines.crashes"])


def flags(kind: str, directory: pathlib.Path) -> list[str]:
    """Of a job of a kind: with a store, a ledger and a book of its own; over a topic, also dead letters and a group."""
    found = [*KINDS[kind][0], f"--job.store={directory / 'store'}", f"--privacy.ledger=sqlite:///{directory / 'ledger.sqlite'}"]
    if kind == "topic":
        name = uuid.uuid4().hex
        found += [f"--kafka.group={name}", f"--kafka.dead_letters={name}.dead", f"--kafka.late={name}.late"]
    return found


def fresh(path: pathlib.Path, kind: str, directory: pathlib.Path, given: Sequence[str] = ()) -> config.Job:
    """The job of a kind, with these flags or new ones: all have the same events and pseudonym key."""
    job = (topics.load if kind == "topic" else load)(path, *(given or flags(kind, directory)))
    return config.Job.model_construct(**dict(job))  # what `load` gives can't be pickled


def undisturbed(path: pathlib.Path, kind: str, directory: pathlib.Path) -> dict[str | int, Any]:
    """What is `told` when nobody disturbs the job."""
    job = fresh(path, kind, directory)
    run(job)
    expected = {**told(job), "letters": letters(job)}
    assert violations(job, expected, is_over=True) == []
    return expected


def run(job: config.Job, windows: int | None = None) -> None:
    """Runs the job to its end, or until it has released so many more windows."""
    is_one = job.window.size == "all"
    releases = map(release.run, [job]) if is_one else release.run_until(job, job.window.end)
    list(itertools.islice(releases, windows))


def killed_at(job: config.Job, step: str, when: str, windows: int = 0, publishes_blindly: bool = False) -> bool:
    """Runs the job in a process that dies on entering the step (`when` before) or on leaving it (after).

    `windows`: so many are released before. `publishes_blindly`: it doesn't ask the ledger which attempt may be shown.
    """
    return _was_killed(_PROCESSES.Process(target=_die_at, args=(job, step, when, windows, publishes_blindly)))


def killed_after(job: config.Job, seconds: float) -> bool:
    """Runs the job in a process that is killed after so many seconds; says whether it was still running."""
    return _was_killed(_PROCESSES.Process(target=_release, args=(job,)), seconds)


def _was_killed(process: multiprocessing.process.BaseProcess, seconds: float | None = None) -> bool:
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), f"the job ended with {process.exitcode}"
    return process.exitcode != 0


def _release(job: config.Job, windows: int | None = None) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    run(job, windows)


def _die_at(job: config.Job, step: str, when: str, windows: int, publishes_blindly: bool) -> None:
    _release(job, windows)
    owner, name = (STEPS | BOOK_STEPS | TOPIC_STEPS)[step]
    original = getattr(owner, name)

    def deadly(*arguments: Any, **named: Any) -> Any:
        if when == "after":
            original(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, deadly)
    if publishes_blindly:
        ledger.Ledger.publish = lambda *_: True  # type: ignore[method-assign]
    _release(job)


def booked(job: config.Job) -> dict[int, dict[bytes, tuple[int, int]]]:
    """By page of the contribution book that is still there, what each user has spent by then: units, and the last window."""
    kept, found = book.Book(contract.book_path(job)), {}
    for series in contract.open_ledger(job).series(job.job.data_set):
        for page in series["pages"]:
            if page["digest"]:
                with contextlib.suppress(book.BookError):  # no longer needed, and deleted
                    shards = list(kept.spent(series["series_id"], page["number"], page["digest"]))
                    users = [user for shard in shards for user in shard.to_pylist()]
                    found[page["number"]] = {user["privacy_id"]: (user["units"], user["last"]) for user in users}
    return found


def told(job: config.Job) -> dict[str | int, Any]:
    """What the releases (exact at example.EXACT) and the book say of each window: the same after a crash as without one."""
    kept, found = store.Store(job.job.store), dict[str | int, Any](booked(job))
    for manifest in published(job):
        counts = kept.read_table(manifest, "item_counts", tables.ITEM_COUNTS).to_pylist()
        found[manifest["window_start"]] = {(row["item_id"], row["event_type"]): (row["users"], row["events"]) for row in counts}
    return found


def letters(job: config.Job) -> dict[tuple[str, ...], int]:
    """How often each message of the job's topic is among its dead letters."""
    if job.kafka is None or job.kafka.dead_letters is None:
        return {}
    sent = kafka_topics.messages(job.kafka.connection, job.kafka.dead_letters)
    headers = (dict(letter.headers) for letter in sent)
    return dict(Counter(tuple(found[name].decode() for name in ("topic", "partition", "offset")) for found in headers))


def violations(job: config.Job, expected: dict[str | int, Any], is_over: bool) -> list[str]:
    """What doesn't hold now, after a kill or (`is_over`) after the job was run again to its end.

    Args:
        expected: what is `told` by the same job when nobody disturbs it.
    """
    account, releases, shown = contract.open_ledger(job), charges(job), published(job)
    series, history = account.series(job.job.data_set), account.history(job.job.data_set)
    windows = [start.isoformat() for start, _ in map(job.window.bounds, range(job.window.closed_count(job.window.end)))]
    window_of = {release["release_id"]: release["window_start"] for release in releases}
    in_order = [window_of[row["body"]["release_id"]] for row in history if row["kind"] == ledger.PUBLISHED]
    there, attempts = store.Store(job.job.store).release_ids(), store.Store(job.job.store).attempts()
    parts = [[part.partition("/")[0] for part in manifest["parts"]] for manifest in shown]
    found = []
    if len(set(window_of.values())) < len(releases):
        found.append(f"{len(releases)} releases for {len(set(window_of.values()))} window(s)")
    paid = len(series) + sum(len(periods) for periods in account.charges(job.job.data_set).values())
    if paid != bool(releases):
        found.append(f"paid {paid} times")
    if not there <= window_of.keys():
        found.append("visible without a charge")
    if any(sorted(of_release) != ["item_counts", "item_pairs", "items"] for of_release in parts):
        found.append("a visible table is missing or there twice")
    if any(spent.cost > contract.contract_of(job).capacity for spent in account.spent(job.job.data_set)):
        found.append("over budget")
    if in_order != windows[: len(in_order)]:
        found.append("windows published twice or out of order")
    if is_over and not len(shown) == len(there) == len(attempts) == len(releases) == len(in_order) == len(windows):
        found.append("not one release a window in the end")
    if is_over and letters(job) != expected["letters"]:
        found.append("not each dead letter once")
    if any(units > (job.window.max_windows_contributed or 0) for page in booked(job).values() for units, _ in page.values()):
        found.append("a user is in too many windows")
    if not told(job).items() <= expected.items():
        found.append("not what an undisturbed run says")
    contract.verify(job, None)
    return found
