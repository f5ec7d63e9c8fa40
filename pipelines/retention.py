"""How long the operator's raw and exact files stay (`privacy.retention`): dead letters, run records, what streams have left.

What is older goes when a run starts, and every hour while a stream runs; never what is yet to be sent to its topic, or what
the newest release of each part of the job, or one that isn't finished, is told by.
"""

import contextlib
import datetime as dt
import logging
from collections.abc import Mapping
from pathlib import Path

from data import errors, files, ledger, store
from pipelines import config, sections, source

log = logging.getLogger(__name__)


def expire(job: config.Job, kept: store.Store, account: ledger.Ledger) -> None:
    """Deletes what is older than the job's retention, if it has one. Whoever calls has the job in hand.

    Args:
        kept: the job's store.
    """
    if job.privacy.retention is None:
        return
    before = dt.datetime.now(dt.UTC) - sections.time_of(job.privacy.retention)
    letters, records = kept.written("dead_letters"), kept.written("runs")
    releases = account.releases(job.job.data_set)
    unsent = {release["attempt"] for release, _ in source.unsent(job, kept, account)}
    newest = {release["job"]: release["attempt"] for release in releases if release["status"] == ledger.PUBLISHED}
    unfinished = {release["attempt"] for release in releases if release["status"] == ledger.RESERVED}
    # A letter is as old as its run: it may have been encrypted anew since.
    of_runs = {_attempt(name): written for name, written in records.items()}
    ages = {name: min(written, of_runs.get(_attempt(name), written)) for name, written in letters.items()}
    old_letters = _older(ages, before, unsent)
    old_records = _older(records, before, unsent | unfinished | set(newest.values()))
    kept.delete_drafts()
    for place, old in (("dead_letters", old_letters), ("runs", old_records)):
        files.delete(*(files.join(kept.operator(place), name) for name in old))
    is_left = _expire_stream(kept, before)
    if old_letters or old_records or is_left:
        log.info(
            "privacy.retention = %s: deleted %d file(s) of dead letters, %d run record(s)%s",
            job.privacy.retention,
            len(old_letters),
            len(old_records),
            " and what a stream has left" if is_left else "",
        )


def _older(written: Mapping[str, dt.datetime], before: dt.datetime, needed: set[str]) -> list[str]:
    return [name for name, at in written.items() if at < before and _attempt(name) not in needed]


def _attempt(name: str) -> str:
    """Of a file that is named by one."""
    return name.partition(".")[0]


def _expire_stream(kept: store.Store, before: dt.datetime) -> bool:
    """Deletes what a stream that doesn't run has left, if nothing of it is newer; says whether there was any."""
    if files.is_url(kept.place) or not (Path(kept.place) / "operator" / "stream").exists():
        return False
    with contextlib.suppress(errors.AlreadyReleasedError), kept.streaming(goes_on=True) as directory:
        written = [files.modified(path) for path in directory.glob("*/**/*") if path.is_file()]
        if written and max(written) < before:
            store.clear(directory)
            return True
    return False
