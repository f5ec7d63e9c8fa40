"""Release jobs that are killed (SIGKILL) in the middle, and what must hold afterwards."""

import multiprocessing
import multiprocessing.process
import os
import pathlib
import signal
from typing import Any

from data import ledger, store
from pipelines import contract, release
from tests.pipelines.example import charges, load, published
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


# Forked from a process that has imported everything and run nothing: one that has run a pipeline has threads, and no safe fork.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.pipelines.crashes"])


def killed_at(path: pathlib.Path, step: str, when: str, publishes_blindly: bool = False) -> bool:
    """Runs the job in a process that dies on entering the step (`when` before) or on leaving it (after).

    `publishes_blindly`: it doesn't ask the ledger which attempt may be shown.
    """
    return _was_killed(_PROCESSES.Process(target=_die_at, args=(path, step, when, publishes_blindly)))


def killed_after(path: pathlib.Path, seconds: float) -> bool:
    """Runs the job in a process that is killed after so many seconds; says whether it was still running."""
    return _was_killed(_PROCESSES.Process(target=_release, args=(path,)), seconds)


def _was_killed(process: multiprocessing.process.BaseProcess, seconds: float | None = None) -> bool:
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), f"the job ended with {process.exitcode}"
    return process.exitcode != 0


def _release(path: pathlib.Path) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    release.run(load(path))


def _die_at(path: pathlib.Path, step: str, when: str, publishes_blindly: bool) -> None:
    owner, name = STEPS[step]
    original = getattr(owner, name)

    def deadly(*arguments: Any, **named: Any) -> Any:
        if when == "after":
            original(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, deadly)
    if publishes_blindly:
        ledger.Ledger.publish = lambda *_: True  # type: ignore[method-assign]
    _release(path)


def violations(path: pathlib.Path, is_over: bool) -> list[str]:
    """What doesn't hold now, after a kill or (`is_over`) after the job was run again to its end."""
    job = load(path)
    releases, shown = charges(job), published(job)
    folder = job.job.store / "releases"
    there = list(folder.iterdir()) if folder.exists() else []
    visible = [entry for entry in there if not entry.name.startswith(".")]
    found = []
    if len(releases) > 1:
        found.append(f"{len(releases)} charges for one release")
    if len(visible) > 1 or any(entry.name != releases[0]["release_id"] for entry in visible):
        found.append("visible without a charge, or twice")
    if any(len(list(entry.glob(f"{table}/*"))) != 1 for entry in visible for table in ("items", "item_counts", "item_pairs")):
        found.append("a visible table is missing or there twice")
    if any(spent.cost > contract.contract_of(job).capacity for spent in contract.open_ledger(job).spent(job.job.data_set)):
        found.append("over budget")
    if is_over and not (len(shown) == len(there) == len(releases) == 1 and releases[0]["status"] == ledger.PUBLISHED):
        found.append("not one release in the end")
    contract.verify(job, None)
    return found
