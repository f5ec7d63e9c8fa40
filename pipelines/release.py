"""The release job: events in, noisy tables out, charged once.

events -> IngestEvents -> GroupByUser -> (AdmitUsers) -> ReleaseSelection, ReleaseCounts, ReleaseCooccurrence -> CommitRelease
               |-> ReserveBudget: no noise is drawn without the ledger's grant
"""

import contextlib
import dataclasses
import datetime as dt
import functools
import hashlib
import importlib.metadata
import logging
import math
import platform
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa

from data import book, catalogue, errors, ledger, periods, store
from pipelines import config, contract, source
from runners import direct
from transforms import bounding
from transforms.ingest import sources
from transforms.privacy import budget
from transforms.privacy import filter as privacy_filter
from transforms.release import admission, commit, cooccurrence, counts, grant, reference, selection, tally

LEASE_SECONDS = 300.0
"""How long a machine that has died keeps a job from the others."""

Find = Callable[[config.Job, dt.datetime, pa.Array | None], source.Source | source.ClosedWindow]
"""How a run finds its events: of the job and its clock, and of the only items there are (None: any)."""

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that one release does, fixed before any event is read.

    Attributes:
        now: the job's clock.
        mechanisms: by name, as drawn and as charged.
        attempt: random, for each run.
        ledger_url: whom to ask.
        span: from the first to the last window of the series that the window is one of; None: it is charged alone.
    """

    job: config.Job
    now: dt.datetime
    total: budget.Budget
    mechanisms: dict[str, budget.Mechanism]
    catalogue: catalogue.Catalogue | None
    attempt: str
    ledger_url: str
    span: tuple[dt.datetime, dt.datetime] | None

    @property
    def bounding_key(self) -> bytes:
        """Names the release to the choice of what to keep: the same for every retry, runner and block."""
        window = self.job.window
        name = f"{self.job.job.data_set}|{window.start.isoformat()}|{window.end.isoformat()}"
        return hashlib.blake2b(name.encode(), digest_size=32).digest()

    def charge(self) -> dict[str, Any]:
        """What the ledger writes down and the database shows: public configuration and noise, nothing from the data."""
        return {
            "data_set": self.job.job.data_set,
            # The day: how long a job takes is for the operator.
            "created": self.now.replace(hour=0, minute=0, second=0, microsecond=0).isoformat(),
            "window_start": self.job.window.start.isoformat(),
            "window_end": self.job.window.end.isoformat(),
            "unit": self.job.privacy.unit,
            "period": self.job.privacy.period,
            "total_epsilon": self.total.total_epsilon,
            "total_delta": self.total.total_delta,
            "mechanisms": [
                {**dataclasses.asdict(mechanism), "noise_sd": mechanism.noise_sd} for mechanism in self.mechanisms.values()
            ],
            "settings": settings(self.job),
        }

    def request(self, key: bytes, digests: dict[str, str], again: int) -> ledger.Request:
        """What the ledger is asked for. The same query of the same data is the same release.

        Args:
            key: of the pseudonyms.
            digests: of the files that are read, by path; none for a window, which stays closed whatever comes since.
            again: how many of the same were published before.
        """
        job, composition = self.job, self.job.privacy.composition
        cost = privacy_filter.total_cost(composition, (each.noise_multiplier for each in self.mechanisms.values()))
        delta = math.fsum(mechanism.delta for mechanism in self.mechanisms.values())
        # Of a window they say nothing, nor do digests: begun again, it is the same with the catalogue as it is then.
        items = self.catalogue.item_ids if self.catalogue is not None and job.window.size == "all" else []
        return ledger.Request(
            data_set=job.job.data_set,
            source=contract.source_fingerprint(job),
            key_fingerprint=contract.key_fingerprint(key),
            unit=job.privacy.unit,
            period=job.privacy.period,
            composition=composition,
            content={"settings": settings(job), "digests": digests, "items": items, "again": again},
            window_start=job.window.start,
            window_end=job.window.end,
            cost=cost,
            delta=delta,
            charge=self.charge(),
            attempt=self.attempt,
            job=job.job.name,
            code_version=importlib.metadata.version("sottovoce"),
            series=self._series(cost, delta),
        )

    def _series(self, cost: float, delta: float) -> ledger.Series | None:
        window = self.job.window
        if self.span is None or window.max_windows_contributed is None:
            return None
        start, end = self.span
        return ledger.Series(
            start,
            window.duration,
            (end - start - window.duration) // window.step + 1,
            window.max_windows_contributed,
            window.min_separation,
            cost,
            delta,
            window.step if window.step < window.duration else None,
        )


def settings(job: config.Job) -> dict[str, Any]:
    """The keys of the job file that decide what a release says: public."""
    return {
        "job.data_set": job.job.data_set,
        "window.start": job.window.start.isoformat(),
        "window.end": job.window.end.isoformat(),
        **{f"window.{key}": getattr(job.window, key) for key in ("size", "slack_seconds", "budget_share")},
        **(
            {f"window.{key}": getattr(job.window, key) for key in ("max_windows_contributed", "min_separation")}
            if job.window.max_windows_contributed
            else {}
        ),
        **({"window.every": job.window.every} if job.window.every else {}),
        **{
            f"source.{key}": getattr(job.source, key)
            for key in ("columns", "event_types", "time_unit", "min_value", "weigh_by_value", "max_skew_seconds")
        },
        **(
            {f"source.{key}": getattr(job.source, key) for key in ("format", "schema_file", "schemas", "message")}
            if job.source.kind == "kafka"
            else {}
        ),
        **{
            f"privacy.{key}": getattr(job.privacy, key)
            for key in ("total_epsilon", "total_delta", "unit", "period", "composition", "expected_users")
        },
        **{
            f"{section}.{key}": value
            for section in ("selection", "counts", "cooccurrence")
            for key, value in getattr(job, section).model_dump().items()
        },
        "catalogue": job.catalogue is not None,
    }


def plan(job: config.Job, public: catalogue.Catalogue | None, span: tuple[dt.datetime, dt.datetime] | None = None) -> Plan:
    """Splits the job's budget, or the window's share of it, over its mechanisms.

    Args:
        span: of the series that the window is one of, where the contribution book bounds its windows.
    """
    total = budget.Budget(job.privacy.total_epsilon, job.privacy.total_delta)
    share = job.window.budget_share / (job.window.max_windows_contributed or 1)
    selection_delta = contract.selection_delta(job)
    shares = {
        budget.SELECTION: job.selection.budget_share,
        budget.COUNTS_USERS: job.counts.budget_share / 2,
        budget.COUNTS_EVENTS: job.counts.budget_share / 2,
        budget.COOCCURRENCE: job.cooccurrence.budget_share,
    }
    sigma = budget.noise_multipliers(total, shares, selection_delta, job.privacy.composition)
    sigma = {name: multiplier / math.sqrt(share) for name, multiplier in sigma.items()}
    # As sigma: so that the windows' parts add up to no more than the whole.
    window_share = share if share == 1 else share * (1 - 1e-9)
    l0 = math.sqrt(job.counts.max_partitions_contributed)
    mechanisms = [
        budget.Mechanism(budget.SELECTION, sigma[budget.SELECTION], delta=selection_delta * window_share),
        budget.Mechanism(budget.COUNTS_USERS, sigma[budget.COUNTS_USERS], l0),
        budget.Mechanism(budget.COUNTS_EVENTS, sigma[budget.COUNTS_EVENTS], l0 * job.counts.max_contributions_per_partition),
        budget.Mechanism(budget.COOCCURRENCE, sigma[budget.COOCCURRENCE]),
    ]
    by_name = {mechanism.name: mechanism for mechanism in mechanisms}
    if share < 1:
        total = _share_of(total, selection_delta, mechanisms, job.privacy.composition)
    return Plan(job, dt.datetime.now(dt.UTC), total, by_name, public, store.new_id(), contract.ledger_url(job), span)


def _share_of(
    total: budget.Budget,
    selection_delta: float,
    mechanisms: Sequence[budget.Mechanism],
    composition: privacy_filter.Composition,
) -> budget.Budget:
    """What one window alone is worth: its epsilon at the Gaussians' whole delta."""
    cost = privacy_filter.total_cost(composition, (mechanism.noise_multiplier for mechanism in mechanisms))
    delta = total.total_delta - selection_delta
    set_aside = math.fsum(mechanism.delta for mechanism in mechanisms)
    return budget.Budget(privacy_filter.spent_epsilon(composition, cost, delta), delta + set_aside)


def build(
    root: beam.Pipeline,
    plan: Plan,
    request: ledger.Request,
    found: source.Source | source.ClosedWindow,
    group: bounding.GroupByUser,
) -> beam.PCollection[str]:
    """Wires the release of the events that were found; returns the path of the published release (none when refused)."""
    job, store_path = plan.job, str(plan.job.job.store)
    read = found.read(root, group)
    _ = read.dead_letters | "WriteDeadLetters" >> beam.io.WriteToText(
        str(store.Store(store_path).operator("dead_letters") / plan.attempt),
        file_name_suffix=".jsonl",
        shard_name_template="",
    )
    is_reading = isinstance(found, source.Source)
    asked = grant.Asked(
        plan.ledger_url, request, store_path, job.source.max_malformed_share, found.digests, plan.now, is_reading
    )
    grants = read.outcomes | "ReserveBudget" >> grant.ReserveBudget(asked)
    noted = read.grouped | "NoteCounts" >> tally.NoteCounts(read.dead_letters, grants, store_path, plan.attempt)
    users = read.users
    if request.series is not None:
        users, grants = users | "AdmitUsers" >> admission.AdmitUsers(
            str(contract.book_path(job)), plan.ledger_url, grants, group.directory
        )
    release_items = selection.ReleaseSelection(_selection_params(plan), grants, plan.bounding_key)
    items = users | "ReleaseSelection" >> release_items
    release_counts = _counts(plan, items)
    release_pairs = _cooccurrence(plan, items)
    released = {
        "items": items,
        "item_counts": users | "ReleaseCounts" >> release_counts,
        "item_pairs": users | "ReleaseCooccurrence" >> release_pairs,
    }
    reports = {
        "selection": release_items.report(),
        "counts": release_counts.report(),
        "cooccurrence": release_pairs.report(),
    }
    manifest = {**plan.charge(), "reports": reports}
    return released | "CommitRelease" >> commit.CommitRelease(store_path, plan.ledger_url, plan.attempt, manifest, noted)


def run(
    job: config.Job,
    beam_flags: Sequence[str] = (),
    allow_another: bool = False,
    span: tuple[dt.datetime, dt.datetime] | None = None,
    find: Find = source.find,
) -> Path:
    """Runs the release job, or finds that it was done before; returns the published release's path.

    Args:
        span: as `plan`.
        find: finds the events.

    Raises:
        ledger.BudgetRefusedError: the contract doesn't let it through.
        errors.AlreadyReleasedError: it was published into another store, or another run has it in hand.
        errors.RefusedError: too many rows are malformed.
        catalogue.CatalogueError, config.JobFileError, and what `source.find` raises: bad input.
    """
    account = contract.open_ledger(job)
    with _leased(job, account) as (kept, held):
        path = _run(job, account, kept, held, beam_flags, allow_another, span, find)
        source.deliver(job, kept, account)
        return path


def run_until(job: config.Job, until: dt.datetime, beam_flags: Sequence[str] = ()) -> Iterator[Path]:
    """Releases every window that is closed at `until` and that the job hasn't released, in order; yields their paths.

    Raises:
        As `run`, at the first window that is refused; those before it stay released.
    """
    if until > dt.datetime.now(dt.UTC):
        raise config.JobFileError(f"--until {until.isoformat()}: is yet to come; a window that is not over can't be closed.")
    done = settle(job)
    seen_until = None
    for start, end in job.window.closed(until - job.settling):
        if (start, end) not in done:
            yield run_window(job, start, end, functools.partial(source.find, seen_until=seen_until), beam_flags)
        seen_until = end + job.window.slack


def run_window(job: config.Job, start: dt.datetime, end: dt.datetime, find: Find, beam_flags: Sequence[str] = ()) -> Path:
    """Releases one of the job's windows. `find`, returns, raises: as `run`."""
    one = job.model_copy(update={"window": job.window.model_copy(update={"start": start, "end": end})})
    return run(one, beam_flags, span=span_of(job, start), find=find)


def settle(job: config.Job) -> set[tuple[dt.datetime, dt.datetime]]:
    """Ends what a crash cut short in the job's store; returns start and end of each window that the job has published.

    Raises:
        errors.AlreadyReleasedError: the store doesn't hold one of them, or another run has the job in hand.
    """
    account = contract.open_ledger(job)
    with _leased(job, account) as (kept, _):
        releases = account.releases()
        kept.check(releases)
        if account.contract(job.job.data_set):
            kept.settle(releases)
            for series in account.series(job.job.data_set):
                _prune(book.Book(contract.book_path(job)), series)
            source.deliver(job, kept, account)
    done = source.published(job, account)
    for release in done:
        _shown(kept, release["release_id"])
    time = dt.datetime.fromisoformat
    return {(time(release["window_start"]), time(release["window_end"])) for release in done}


def span_of(job: config.Job, start: dt.datetime) -> tuple[dt.datetime, dt.datetime] | None:
    """From the first to the last window of the job in the period that a window is in; None without a contribution book."""
    if not job.window.max_windows_contributed:
        return None
    bounds = periods.bounds(job.privacy.period, start)
    # A period is planned to its end: a job that is made to go on longer goes on with the same series.
    return (max(job.window.start, bounds[0]), bounds[1]) if bounds else (job.window.start, job.window.end)


@contextlib.contextmanager
def _leased(job: config.Job, account: ledger.Ledger) -> Iterator[tuple[store.Store, tuple[str, int]]]:
    """Keeps every other run of this job away, here and on other machines; yields the store, and the lease's name and fence.

    Raises:
        errors.AlreadyReleasedError: there is one.
    """
    name = f"{job.job.data_set}/{job.job.name}"
    with store.Store(job.job.store).running() as kept:
        # Whoever has the store's lock knows that its earlier runs on this machine are over.
        owner = hashlib.sha256(f"{platform.node()}|{uuid.getnode()}|{kept.path.resolve()}".encode()).hexdigest()
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
) -> Path:
    kept.check(account.releases())
    public = source.load_catalogue(job)
    _check_memory(job, public)
    planned = plan(job, public, span)
    found_events = find(job, planned.now, None if public is None else public.table["item_id"].combine_chunks())
    # A window stays closed, whatever comes since.
    digests = found_events.digests if job.window.size == "all" else {}
    request = dataclasses.replace(_request(account, planned, found_events.key, digests, allow_another), lease=held)
    account.check(request)
    kept.settle(account.releases())
    found = account.find(request)
    if found and found.status == ledger.PUBLISHED:
        log.info("%s holds this release: reading it back, at no cost", kept.path)
        return _shown(kept, found.release_id)
    try:
        pipeline = beam.Pipeline(options=direct.options(beam_flags))
    except ValueError as error:
        raise config.JobFileError(str(error)) from error
    log.info("releasing %s from %d part(s) of its source", job.job.data_set, len(found_events.parts))
    buckets = job.runner.buckets or bounding.buckets_for(found_events.rows)
    if request.series is not None:
        buckets = book.SHARDS
    try:
        with kept.spill() as directory, pipeline as root:
            group = bounding.GroupByUser(buckets, job.source.event_types, str(directory) if job.runner.spill else None)
            build(root, planned, request, found_events, group)
    except (RuntimeError, errors.UserError) as error:
        # The runner wraps what a worker raised: in a text of its own, or with the step's name after it.
        if "KeyboardInterrupt" in str(error):
            raise KeyboardInterrupt from error
        if damaged := re.search(r"(?:.*SourceError: )?(.*damaged\?)", str(error)):
            raise sources.SourceError(damaged[1]) from error
        if isinstance(error, errors.UserError):
            raise type(error)(str(error).partition(" [while running")[0]) from error
        raise
    kept.add_to_run_record(planned.attempt, {"finished": dt.datetime.now(dt.UTC).isoformat()})
    record = kept.run_record(planned.attempt)
    if record["refused"]:
        kept.discard(planned.attempt)
        _raise_refusal(record, kept.operator("dead_letters") / f"{planned.attempt}.jsonl")
    log.info("rows by outcome (operator side): %s", record["outcomes"])
    return kept.release_path(record["release_id"])


def _request(account: ledger.Ledger, planned: Plan, key: bytes, digests: dict[str, str], allow_another: bool) -> ledger.Request:
    """The job's request; with `allow_another` the first that was not published before, a crashed one is gone on with."""
    request = planned.request(key, digests, 0)
    again = 0
    while allow_another and (found := account.find(request)) and found.status == ledger.PUBLISHED:
        again += 1
        request = planned.request(key, digests, again)
    return request


def _shown(kept: store.Store, release_id: str) -> Path:
    """Where a published release lies."""
    path = kept.release_path(release_id)
    if not path.exists():
        raise errors.AlreadyReleasedError(
            f"{kept.path} doesn't hold release {release_id}, which was published and paid for: put that store back. "
            "Drawing it anew charges every user once more: ask for it with --new-release."
        )
    return path


def _raise_refusal(record: dict[str, Any], dead_letters: Path) -> None:
    refused, exit_code = record["refused"], record["exit_code"]
    if exit_code == ledger.BudgetRefusedError.exit_code:
        raise ledger.BudgetRefusedError(refused)
    if exit_code == errors.AlreadyReleasedError.exit_code:
        raise errors.AlreadyReleasedError(refused)
    raise errors.RefusedError(f"{refused} Dead letters: {dead_letters}")


def _check_memory(job: config.Job, public: catalogue.Catalogue | None) -> None:
    """Says what the matrix will need at most, and makes sure that it is there."""
    given = job.cooccurrence.max_items
    n_items = cooccurrence.MAX_AUTO_ITEMS if given == "auto" else given
    if public is not None:
        n_items = min(n_items, public.table.num_rows)
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


def _selection_params(plan: Plan) -> selection.SelectionParams:
    job = plan.job
    return selection.SelectionParams(
        mechanism=plan.mechanisms[budget.SELECTION],
        max_partitions_contributed=job.selection.max_partitions_contributed,
        public_items=None if plan.catalogue is None else plan.catalogue.table["item_id"].combine_chunks(),
        max_items=None if job.cooccurrence.max_items == "auto" else job.cooccurrence.max_items,
        cooccurrence_sd=plan.mechanisms[budget.COOCCURRENCE].noise_sd / math.sqrt(2),
        expected_users=job.privacy.expected_users,
    )


def _counts(plan: Plan, items: beam.PCollection[pa.Table]) -> counts.ReleaseCounts | reference.ReleaseReferenceCounts:
    job = plan.job
    params = counts.CountParams(
        total=plan.total,
        users=plan.mechanisms[budget.COUNTS_USERS],
        events=plan.mechanisms[budget.COUNTS_EVENTS],
        max_partitions_contributed=job.counts.max_partitions_contributed,
        max_contributions_per_partition=job.counts.max_contributions_per_partition,
        event_types=sorted(job.source.event_types),
        window_start=job.window.start,
        window_end=job.window.end,
    )
    engine = counts.ReleaseCounts if job.counts.engine == "columnar" else reference.ReleaseReferenceCounts
    return engine(params, items, plan.bounding_key)


def _cooccurrence(
    plan: Plan, items: beam.PCollection[pa.Table]
) -> cooccurrence.ReleaseCooccurrence | reference.ReleaseReferenceCooccurrence:
    section, mechanism = plan.job.cooccurrence, plan.mechanisms[budget.COOCCURRENCE]
    if section.engine == "columnar":
        return cooccurrence.ReleaseCooccurrence(mechanism, items, section.noise)
    # The reference engine has a number here: pipelines.config refuses "auto" for it.
    return reference.ReleaseReferenceCooccurrence(mechanism, items, plan.total, int(section.max_items))


if __name__ == "__main__":
    from pipelines import cli

    cli.main_of("release")
