"""The release job: events in, noisy tables out, charged once.

events -> IngestEvents -> GroupByUser -> (AdmitUsers) -> ReleaseSelection, ReleaseCounts, ReleaseCooccurrence -> CommitRelease
               |-> ReserveBudget: no noise is drawn without the ledger's grant

Where models are to be evaluated on held-out users, these are left out of selection and co-occurrence: of what trains models.
"""

import contextlib
import dataclasses
import datetime as dt
import functools
import hashlib
import logging
import platform
import re
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa

from data import book, errors, files, ledger, store, tables, vault
from pipelines import asking, config, contract, engine, plan, retention, source
from runners import direct
from transforms import bounding
from transforms.ingest import decode, sources
from transforms.privacy import budget
from transforms.release import admission, commit, cooccurrence, counts, grant, holding_out, reference, selection, tally

LEASE_SECONDS = 300.0
"""How long a machine that has died keeps a job from the others."""

Find = Callable[[config.Job, dt.datetime, pa.Array | None], source.Source | source.ClosedWindow]
"""How a run finds its events: of the job and its clock, and of the only items there are (None: any)."""

log = logging.getLogger(__name__)


def build(
    root: beam.Pipeline,
    found: source.Source | source.ClosedWindow,
    group: bounding.GroupByUser,
    planned: plan.Plan,
    request: ledger.Request,
) -> beam.PCollection[str]:
    """Wires the release of the events that were found; returns the id of the published release (none when refused)."""
    job, store_path = planned.job, str(planned.job.job.store)
    read, grants = read_and_reserve(root, found, group, planned, request)
    noted = read.grouped | "NoteCounts" >> tally.NoteCounts(read.dead_letters, grants, store_path, planned.attempt)
    users = read.users
    if request.series is not None:
        users, grants = users | "AdmitUsers" >> admission.AdmitUsers(
            contract.open_book(job), planned.ledger_url, grants, group.directory
        )
    if job.is_trending:
        released, reports = _short(users, planned, grants)
    else:
        released, reports = _whole(users, planned, grants, group.directory)
    manifest = {**planned.charge(), "reports": reports}
    return released | "CommitRelease" >> commit.CommitRelease(store_path, planned.ledger_url, planned.attempt, manifest, noted)


def read_and_reserve(
    root: beam.Pipeline,
    found: source.Source | source.ClosedWindow,
    group: bounding.GroupByUser,
    planned: plan.Plan,
    request: ledger.Request,
) -> tuple[source.Read, beam.PCollection[ledger.Grant]]:
    """Wires what every release begins with: reads events, keeps dead letters for the operator, and asks the ledger."""
    job, store_path = planned.job, str(planned.job.job.store)
    read = found.read(root, group)
    keys = vault.read(job.privacy.encryption_key_file)
    letters = read.dead_letters | "EncryptDeadLetters" >> beam.Map(keys.seal_line).with_output_types(str)
    _ = letters | "WriteDeadLetters" >> beam.io.WriteToText(
        store.Store(store_path).letters(planned.attempt), shard_name_template=""
    )
    is_reading = isinstance(found, source.Source)
    asked = grant.Asked(
        planned.ledger_url, request, store_path, job.source.max_malformed_share, found.digests, planned.now, is_reading
    )
    return read, read.outcomes | "ReserveBudget" >> grant.ReserveBudget(asked)


Released = tuple[dict[str, beam.PCollection[pa.Table]], dict[str, str]]
"""Tables by name, and how they were made by section of the report."""


def _whole(
    users: beam.PCollection[Any], planned: plan.Plan, grants: beam.PCollection[ledger.Grant], directory: str | None
) -> Released:
    trained_on = users
    if planned.job.holds_out:
        trained_on |= "LeaveOutHeldOut" >> holding_out.KeepHeldOut(asking.choose(planned.job), False, directory)
    release_items = selection.ReleaseSelection(plan.selection_params(planned), grants, planned.bounding_key)
    items = trained_on | "ReleaseSelection" >> release_items
    release_counts, release_pairs = _counts(planned, items), _cooccurrence(planned, items)
    released = {
        "items": items,
        "item_counts": users | "ReleaseCounts" >> release_counts,
        "item_pairs": trained_on | "ReleaseCooccurrence" >> release_pairs,
    }
    return released, {
        "selection": release_items.report(),
        "counts": release_counts.report(),
        "cooccurrence": release_pairs.report(),
    }


def _short(users: beam.PCollection[Any], planned: plan.Plan, grants: beam.PCollection[ledger.Grant]) -> Released:
    """Counts alone, of items that are known already."""
    known = pa.table({"item_id": planned.items})
    items = grants | "KnownItems" >> beam.Map(lambda _: known).with_output_types(pa.Table)
    release_counts = _counts(planned, items)
    return {"item_counts": users | "ReleaseCounts" >> release_counts}, {"trending": release_counts.report()}


def run(
    job: config.Job,
    beam_flags: Sequence[str] = (),
    allow_another: bool = False,
    span: tuple[dt.datetime, dt.datetime] | None = None,
    find: Find = source.find,
) -> str:
    """Runs the release job, or finds that it was done before; returns the published release's id.

    Args:
        span: as `plan.plan`.
        find: finds the events.

    Raises:
        ledger.BudgetRefusedError: the contract doesn't let it through.
        errors.AlreadyReleasedError: it was published into another store, or another run has it in hand.
        errors.RefusedError: too many rows are malformed.
        errors.NothingThereError: it is of a short window, and no items are known yet.
        engine.EngineError: Flink failed; the same run again goes on.
        catalogue.CatalogueError, config.JobFileError, vault.VaultError, and what `source.find` raises: bad input.
    """
    account = contract.open_ledger(job)
    with leased(job, account) as (kept, held):
        if job.window.size == "all":  # of windows once a run: `settle`
            retention.expire(job, kept, account)
        release_id = _run(job, account, kept, held, beam_flags, allow_another, span, find)
        source.deliver(job, kept, account)
        return release_id


def run_until(job: config.Job, until: dt.datetime, beam_flags: Sequence[str] = ()) -> Iterator[tuple[config.Job, str]]:
    """Releases every window that is closed at `until` and that the job hasn't released, in the order in which they end.

    Yields:
        The part of the job that the window is of, and the release's id.

    Raises:
        As `run`: of the first window of each part that is refused, the error of the first. The others stay released.
    """
    if until > dt.datetime.now(dt.UTC):
        raise config.JobFileError(f"--until {until.isoformat()}: is yet to come; a window that is not over can't be closed.")
    parts, refused = job.parts, dict[int, errors.UserError]()
    for place, number in waiting(job, until):
        part = parts[place]
        if place in refused:
            continue
        try:
            release_id = run_window(part, number, functools.partial(source.find, earlier=earlier(part, number)), beam_flags)
        except (ledger.BudgetRefusedError, errors.RefusedError, errors.NothingThereError) as error:
            refused[place] = error
        else:
            yield part, release_id
    for why in refused.values():
        raise why


def earlier(part: config.Job, number: int) -> decode.Earlier | None:
    """The windows of a part of a job before one; None: there are none."""
    window = part.window
    return decode.Earlier(window.start, window.bounds(number - 1)[1] + window.slack) if number else None


def waiting(job: config.Job, until: dt.datetime) -> Iterator[tuple[int, int]]:
    """Settles the job, and yields of config.Job.windows those that it hasn't released.

    Raises:
        As `settle`.
    """
    done, parts = settle(job), job.parts
    for place, number in job.windows(until - job.settling):
        if parts[place].window.bounds(number) not in done[place]:
            yield place, number


def run_window(part: config.Job, number: int, find: Find, beam_flags: Sequence[str] = ()) -> str:
    """Releases a window of a part of a job. `find`, returns, raises: as `run`."""
    start, end = part.window.bounds(number)
    one = part.model_copy(update={"window": part.window.model_copy(update={"start": start, "end": end})})
    return run(one, beam_flags, span=plan.span_of(part, start), find=find)


def settle(job: config.Job) -> list[set[tuple[dt.datetime, dt.datetime]]]:
    """Ends what a crash cut short in the job's store; returns start and end of each published window, by the job's parts.

    Raises:
        errors.AlreadyReleasedError: the store doesn't hold one of them, or another run has the job in hand.
    """
    account = contract.open_ledger(job)
    with leased(job, account) as (kept, _):
        releases = account.releases()
        kept.check(releases)
        if account.contract(job.job.data_set):
            kept.settle(releases)
            for series in account.series(job.job.data_set):
                _prune(contract.open_book(job), series)
            source.deliver(job, kept, account)
        retention.expire(job, kept, account)
    done: list[set[tuple[dt.datetime, dt.datetime]]] = []
    there = kept.release_ids()
    for part in job.parts:
        done.append(set())
        for release in source.published(part, account):
            check_shown(kept, release["release_id"], there)
            start, end = (dt.datetime.fromisoformat(release[name]) for name in ("window_start", "window_end"))
            done[-1].add((start, end))
    return done


@contextlib.contextmanager
def leased(job: config.Job, account: ledger.Ledger) -> Iterator[tuple[store.Store, tuple[str, int]]]:
    """Keeps every other run of this job away, here and on other machines; yields the store, and the lease's name and fence.

    Raises:
        errors.AlreadyReleasedError: there is one.
    """
    name = f"{job.job.data_set}/{job.job.whole}"
    with store.Store(job.job.store).running() as kept:
        # Whoever has the store's lock knows that its earlier runs on this machine are over.
        owner = hashlib.sha256(f"{platform.node()}|{uuid.getnode()}|{kept.local().resolve()}".encode()).hexdigest()
        fence = account.lease(name, owner, LEASE_SECONDS)
        is_over = threading.Event()

        def renew() -> None:
            while not is_over.wait(LEASE_SECONDS / 3):
                # If it can't be renewed, it may be taken: the ledger will then refuse this run.
                with contextlib.suppress(ledger.LedgerError):
                    account.renew(name, fence, LEASE_SECONDS)

        renewing = threading.Thread(target=renew, daemon=True)
        renewing.start()
        try:
            yield kept, (name, fence)
        finally:
            is_over.set()
            renewing.join()
            account.renew(name, fence, 0)


def expire(job: config.Job) -> None:
    """Deletes what is older than the job's retention.

    Raises:
        errors.AlreadyReleasedError: another run has the job in hand.
    """
    account = contract.open_ledger(job)
    with leased(job, account) as (kept, _):
        retention.expire(job, kept, account)


@contextlib.contextmanager
def alone(job: config.Job) -> Iterator[tuple[store.Store, Path | None]]:
    """Keeps runs and streams of this job away; yields the store, and where a stream leaves its files (None: nowhere).

    Raises:
        errors.AlreadyReleasedError: there is one.
    """
    with leased(job, contract.open_ledger(job)) as (kept, _):
        if files.is_url(kept.place):
            yield kept, None
            return
        with kept.streaming(goes_on=True) as directory:
            yield kept, directory


def _prune(kept: book.Book, series: dict[str, Any]) -> None:
    """Leaves the newest page, and those whose releases are yet to be published."""
    booked = [page for page in series["pages"] if page["digest"]]
    needed = [page for page in booked if page["status"] != ledger.PUBLISHED] + booked[-1:]
    if not series["is_closed"]:
        kept.prune(series["series_id"], {(page["number"], page["digest"]) for page in needed})


def _run(
    job: config.Job,
    account: ledger.Ledger,
    kept: store.Store,
    held: tuple[str, int],
    beam_flags: Sequence[str],
    allow_another: bool,
    span: tuple[dt.datetime, dt.datetime] | None,
    find: Find,
) -> str:
    kept.check(account.releases())
    public_items = source.public_items(job)
    if job.is_trending:
        items = _known_items(job, kept, account) if public_items is None else public_items
    else:
        items = public_items
        _check_memory(job, items)
    planned = plan.plan(job, items, span)
    found_events = find(job, planned.now, public_items)
    # A window stays closed, whatever comes since.
    digests = found_events.digests if job.window.size == "all" else {}
    request = dataclasses.replace(_request(account, planned, found_events.key, digests, allow_another), lease=held)
    account.check(request)
    kept.settle(account.releases())
    found = account.find(request)
    if found and found.status == ledger.PUBLISHED:
        log.info("%s holds this release: reading it back, at no cost", kept.place)
        check_shown(kept, found.release_id, kept.release_ids())
        return found.release_id
    log.info("releasing %s from %d part(s) of its source", job.job.data_set, len(found_events.parts))
    return execute(planned, kept, found_events, functools.partial(build, planned=planned, request=request), beam_flags)


Build = Callable[[beam.Pipeline, source.Source | source.ClosedWindow, bounding.GroupByUser], Any]
"""Wires a release of the events that were found, which are to be grouped so."""


def execute(
    planned: plan.Plan,
    kept: store.Store,
    found: source.Source | source.ClosedWindow,
    wire: Build,
    beam_flags: Sequence[str],
) -> str:
    """Runs a release's pipeline; returns the id of the published release, which the run record has.

    Raises: as `run`.
    """
    job = planned.job
    pipeline = engine.pipeline(job, beam_flags)
    buckets = job.runner.buckets or bounding.buckets_for(found.rows)
    if planned.span is not None:
        buckets = book.SHARDS
    try:
        with kept.spill() as directory, pipeline as root:
            wire(root, found, bounding.GroupByUser(buckets, job.source.event_types, directory if job.runner.spill else None))
    except (RuntimeError, errors.UserError) as error:
        # The runner wraps what a worker raised: in a text of its own, or with the step's name after it.
        if "KeyboardInterrupt" in str(error):
            raise KeyboardInterrupt from error
        if damaged := re.search(r"(?:.*SourceError: )?(.*damaged\?)", str(error)):
            raise sources.SourceError(damaged[1]) from error
        if isinstance(error, errors.UserError):
            raise type(error)(str(error).partition(" [while running")[0]) from error
        if job.runner.kind == "flink":
            raise engine.failed(job, error) from error
        raise
    kept.add_to_run_record(planned.attempt, {"finished": dt.datetime.now(dt.UTC).isoformat()})
    record = kept.run_record(planned.attempt)
    if record["refused"]:
        kept.discard(planned.attempt)
        _raise_refusal(record, kept.letters(planned.attempt))
    log.info("rows by outcome (operator side): %s", record["outcomes"])
    return str(record["release_id"])


def _known_items(job: config.Job, kept: store.Store, account: ledger.Ledger) -> pa.Array:
    """The items of the job's own release that ended last before the short window starts.

    Raises:
        errors.NothingThereError: there is none.
    """
    start, end = job.window.start.isoformat(), job.window.end.isoformat()
    ended = [release for release in account.releases(job.job.data_set) if release["window_end"] <= start]
    newest = kept.newest(ended, budget.COOCCURRENCE)
    if not newest:
        why = (
            f"trending: none of the job's own windows that ended by {start} is released, so it isn't known which items to "
            "count; nothing was spent."
        )
        grant.note_refusal(kept, f"unknown-items-{start}", start, end, why, errors.NothingThereError.exit_code)
        raise errors.NothingThereError(why)
    items: pa.Array = kept.read_table(newest[0], "items", tables.ITEMS)["item_id"].combine_chunks()
    return items


def _request(
    account: ledger.Ledger, planned: plan.Plan, key: bytes, digests: dict[str, str], allow_another: bool
) -> ledger.Request:
    """The job's request; with `allow_another` the first that was not published before, a crashed one is gone on with."""
    request = planned.request(key, digests, 0)
    again = 0
    while allow_another and (found := account.find(request)) and found.status == ledger.PUBLISHED:
        again += 1
        request = planned.request(key, digests, again)
    return request


def check_shown(kept: store.Store, release_id: str, there: Collection[str]) -> None:
    """Makes sure that a published release is among those that the store has."""
    if release_id not in there:
        raise errors.AlreadyReleasedError(
            f"{kept.place} doesn't hold release {release_id}, which was published and paid for: put that store back. "
            "Drawing it anew charges every user once more: ask for it with --new-release."
        )


def _raise_refusal(record: dict[str, Any], dead_letters: str) -> None:
    refused, exit_code = record["refused"], record["exit_code"]
    if exit_code == ledger.BudgetRefusedError.exit_code:
        raise ledger.BudgetRefusedError(refused)
    if exit_code == errors.AlreadyReleasedError.exit_code:
        raise errors.AlreadyReleasedError(refused)
    raise errors.RefusedError(f"{refused} Dead letters (`sottovoce letters` shows them): {dead_letters}")


def _check_memory(job: config.Job, items: pa.Array | None) -> None:
    """Says what the matrix will need at most, and makes sure that it is there."""
    given = job.cooccurrence.max_items
    n_items = cooccurrence.MAX_AUTO_ITEMS if given == "auto" else given
    if items is not None:
        n_items = min(n_items, len(items))
    available = direct.memory() if job.runner.memory_gb is None else int(job.runner.memory_gb * 1e9)
    needed = cooccurrence.memory_needed(n_items)
    log.info(
        "up to %d items in the matrix: %.1f GB of memory beside the events, of %.1f GB", n_items, needed / 1e9, available / 1e9
    )
    if needed > available:
        raise config.JobFileError(
            f"cooccurrence.max_items = {given!r}: a matrix of {n_items} items needs {needed / 1e9:.1f} GB of memory, and "
            f"{available / 1e9:.1f} GB may be used. Set it to at most {cooccurrence.most_items(available)}, raise "
            "runner.memory_gb, or take a larger machine."
        )


def _counts(planned: plan.Plan, items: beam.PCollection[pa.Table]) -> counts.ReleaseCounts | reference.ReleaseReferenceCounts:
    engine = counts.ReleaseCounts if planned.job.counts.engine == "columnar" else reference.ReleaseReferenceCounts
    return engine(plan.count_params(planned), items, planned.bounding_key)


def _cooccurrence(
    planned: plan.Plan, items: beam.PCollection[pa.Table]
) -> cooccurrence.ReleaseCooccurrence | reference.ReleaseReferenceCooccurrence:
    section, mechanism = planned.job.cooccurrence, planned.mechanisms[budget.COOCCURRENCE]
    if section.engine == "columnar":
        return cooccurrence.ReleaseCooccurrence(mechanism, items, section.noise)
    # The reference engine has a number here: pipelines.config refuses "auto" for it.
    return reference.ReleaseReferenceCooccurrence(mechanism, items, planned.total, int(section.max_items))


if __name__ == "__main__":
    from pipelines import cli

    cli.main_of("release")
