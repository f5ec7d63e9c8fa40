"""The release job: events in, noisy tables out, charged once.

events -> IngestEvents -> GroupByUser -> ReleaseSelection, ReleaseCounts, ReleaseCooccurrence -> CommitRelease
               |-> ReserveBudget: no noise is drawn without its grant
"""

import dataclasses
import datetime as dt
import hashlib
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa

from data import catalogue, errors, store
from pipelines import config
from runners import direct
from transforms import bounding
from transforms.ingest import decode, events, pseudonym, sources
from transforms.privacy import budget
from transforms.release import commit, cooccurrence, counts, grant, reference, selection

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that one release does, fixed before any event is read.

    Attributes:
        now: the job's clock.
        mechanisms: by name, as drawn and as charged.
        release_id: random; that of an abandoned reservation when this run is its retry.
        attempt: random, for each run.
    """

    job: config.Job
    now: dt.datetime
    total: budget.Budget
    mechanisms: dict[str, budget.Mechanism]
    catalogue: catalogue.Catalogue | None
    release_id: str
    attempt: str

    @property
    def bounding_key(self) -> bytes:
        """Names the release to the choice of what to keep: the same for every retry, runner and block."""
        window = self.job.window
        name = f"{self.job.job.data_set}|{window.start.isoformat()}|{window.end.isoformat()}"
        return hashlib.blake2b(name.encode(), digest_size=32).digest()

    def charge(self) -> dict[str, Any]:
        """What the ledger writes down: public configuration and noise, nothing from the data."""
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


def settings(job: config.Job) -> dict[str, Any]:
    """The keys of the job file that decide what a release says: public, and compared before one is read back."""
    return {
        "job.data_set": job.job.data_set,
        "window.start": job.window.start.isoformat(),
        "window.end": job.window.end.isoformat(),
        **{f"source.{key}": getattr(job.source, key) for key in ("event_types", "min_value", "weigh_by_value")},
        **{
            f"privacy.{key}": getattr(job.privacy, key)
            for key in ("total_epsilon", "total_delta", "unit", "period", "expected_users")
        },
        **{
            f"{section}.{key}": value
            for section in ("selection", "counts", "cooccurrence")
            for key, value in getattr(job, section).model_dump().items()
        },
        "catalogue": job.catalogue is not None,
    }


def check_same(job: config.Job, manifest: dict[str, Any]) -> None:
    """Makes sure that a published release is what this job asks for, before it is read back.

    Raises:
        errors.AlreadyReleasedError: it is another one's; names the keys that differ.
    """
    released = manifest["settings"]
    changed = {key: value for key, value in settings(job).items() if value != released[key]}
    differ = [f"{key} = {value!r}, released with {released[key]!r}" for key, value in changed.items()]
    if differ:
        raise errors.AlreadyReleasedError(
            f"{job.job.store} holds a release that this job doesn't ask for: {'; '.join(differ)}. Use the same keys, another "
            "job.store, or --new-release, which charges every user once more."
        )


def plan(job: config.Job, public: catalogue.Catalogue | None) -> Plan:
    """Splits the job's budget over its mechanisms."""
    total = budget.Budget(job.privacy.total_epsilon, job.privacy.total_delta)
    selection_delta = 0.0 if public else total.total_delta * job.selection.delta_share
    shares = {
        budget.SELECTION: job.selection.budget_share,
        budget.COUNTS_USERS: job.counts.budget_share / 2,
        budget.COUNTS_EVENTS: job.counts.budget_share / 2,
        budget.COOCCURRENCE: job.cooccurrence.budget_share,
    }
    sigma = budget.noise_multipliers(total, shares, selection_delta)
    l0 = math.sqrt(job.counts.max_partitions_contributed)
    mechanisms = [
        budget.Mechanism(budget.SELECTION, sigma[budget.SELECTION], delta=selection_delta),
        budget.Mechanism(budget.COUNTS_USERS, sigma[budget.COUNTS_USERS], l0),
        budget.Mechanism(budget.COUNTS_EVENTS, sigma[budget.COUNTS_EVENTS], l0 * job.counts.max_contributions_per_partition),
        budget.Mechanism(budget.COOCCURRENCE, sigma[budget.COOCCURRENCE]),
    ]
    by_name = {mechanism.name: mechanism for mechanism in mechanisms}
    planned = Plan(job, dt.datetime.now(dt.UTC), total, by_name, public, store.new_id(), store.new_id())
    abandoned = store.Store(job.job.store).abandoned(planned.charge())
    return dataclasses.replace(planned, release_id=abandoned) if abandoned else planned


def event_rules(job: config.Job, now: dt.datetime) -> decode.EventRules:
    """The job file's [source] and [window] as rules for one row."""
    source = job.source
    return decode.EventRules(
        columns=source.columns,
        event_types=source.event_types,
        window_start=job.window.start,
        window_end=job.window.end,
        now=now,
        context=source.context,
        time_unit=source.time_unit,
        min_value=source.min_value,
        weigh_by_value=source.weigh_by_value,
        max_skew_seconds=source.max_skew_seconds,
        slack_seconds=job.window.slack_seconds,
    )


def build(
    root: beam.Pipeline,
    plan: Plan,
    ingest: events.IngestEvents,
    group: bounding.GroupByUser,
    allow_another: bool,
) -> beam.PCollection[str]:
    """Wires the release. `ingest` is its source; returns the path of the published release (none when refused)."""
    job, store_path = plan.job, str(plan.job.job.store)
    ingested = root | "IngestEvents" >> ingest
    _ = ingested.dead_letters | "WriteDeadLetters" >> beam.io.WriteToText(
        str(store.Store(store_path).operator("dead_letters") / plan.release_id),
        file_name_suffix=".jsonl",
        shard_name_template="",
    )
    grants = ingested.outcomes | "ReserveBudget" >> grant.ReserveBudget(
        store_path, plan.release_id, plan.charge(), job.source.max_malformed_share, allow_another
    )
    users = ingested.events | "GroupByUser" >> group
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
    return released | "CommitRelease" >> commit.CommitRelease(store_path, plan.attempt, _manifest(plan, reports), grants)


def run(job: config.Job, beam_flags: Sequence[str] = (), allow_another: bool = False) -> Path:
    """Runs the release job; returns the published release's path.

    Raises:
        errors.AlreadyReleasedError: the store holds a release and `allow_another` is false.
        errors.RefusedError: too many rows are malformed.
        sources.SourceError, catalogue.CatalogueError, pseudonym.PseudonymKeyError, config.JobFileError: bad input.
    """
    with store.Store(job.job.store).running() as kept:
        return _run(job, kept, beam_flags, allow_another)


def _run(job: config.Job, kept: store.Store, beam_flags: Sequence[str], allow_another: bool) -> Path:
    kept.check()
    public = load_catalogue(job)
    _check_memory(job, public)
    planned = plan(job, public)
    is_retry = any(charge["release_id"] == planned.release_id for charge in kept.ledger())
    if kept.ledger() and not is_retry and not allow_another:
        raise errors.AlreadyReleasedError(kept.refusal())
    rules = event_rules(job, planned.now)
    fragments = sources.find_fragments(job.source.kind, job.source.paths, rules.source_columns)
    ingest = events.IngestEvents(
        fragments,
        rules,
        pseudonym.read_key(job.privacy.key_file),
        _opt_outs(job),
        None if public is None else public.table["item_id"].combine_chunks(),
        [name for name in bounding.BUCKET_EVENTS.names if name != "value" or job.source.weigh_by_value],
    )
    try:
        pipeline = beam.Pipeline(options=direct.options(beam_flags))
    except ValueError as error:
        raise config.JobFileError(str(error)) from error
    log.info("releasing %s of %s from %d file part(s)", planned.release_id, job.job.data_set, len(fragments))
    kept.discard_attempts(planned.release_id)
    buckets = job.runner.buckets or bounding.buckets_for(sum(fragment.rows for fragment in fragments))
    try:
        with kept.spill() as directory, pipeline as root:
            group = bounding.GroupByUser(buckets, job.source.event_types, str(directory) if job.runner.spill else None)
            build(root, planned, ingest, group, allow_another)
    except (RuntimeError, sources.SourceError) as error:
        # The runner wraps what a worker raised: in a text of its own, or with the step's name after it.
        if "KeyboardInterrupt" in str(error):
            raise KeyboardInterrupt from error
        if damaged := re.search(r"(?:.*SourceError: )?(.*damaged\?)", str(error)):
            raise sources.SourceError(damaged[1]) from error
        raise
    record = kept.run_record(planned.release_id)
    if record["refused"]:
        kept.discard_attempts(planned.release_id)
        if record["exit_code"] == errors.AlreadyReleasedError.exit_code:
            raise errors.AlreadyReleasedError(record["refused"])
        raise errors.RefusedError(
            f"{record['refused']} Dead letters: {kept.operator('dead_letters') / planned.release_id}.jsonl"
        )
    log.info("rows by outcome (operator side): %s", record["outcomes"])
    return kept.release_path(planned.release_id)


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


def load_catalogue(job: config.Job) -> catalogue.Catalogue | None:
    """Reads the job's catalogue, if it has one."""
    section = job.catalogue
    if section is None:
        return None
    return catalogue.load(section.path, section.columns, section.features, section.kinds, section.multi_separator)


def _opt_outs(job: config.Job) -> pa.Array | None:
    path = job.privacy.opt_out
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise config.JobFileError(
            f"privacy.opt_out = {path}: can't be read ({reason}); give a file of one id a line."
        ) from error
    # An id may have spaces around it, and so may a line: whoever either names stays out.
    ids = {id_ for line in lines for id_ in (line, line.strip()) if id_}
    return pa.array(sorted(ids), pa.string())


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


def _manifest(plan: Plan, reports: dict[str, str]) -> dict[str, Any]:
    """What is published beside the tables: public configuration, the charge, and how each number was made."""
    return {"release_id": plan.release_id, **plan.charge(), "reports": reports}


if __name__ == "__main__":
    from pipelines import cli

    cli.main_of("release")
