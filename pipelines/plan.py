"""What a release will do and what it costs, fixed before any event is read: its mechanisms, and the ledger's request."""

import dataclasses
import datetime as dt
import hashlib
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from data import ledger, periods, store
from pipelines import config, contract
from transforms.privacy import budget
from transforms.privacy import filter as privacy_filter
from transforms.release import counts, evaluation, selection

HOLDING_OUT = ("held_out_share", "seed")
"""Keys of [evaluation] that decide who is held out."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that one release does, fixed before any event is read.

    Attributes:
        now: the job's clock.
        mechanisms: by name, as drawn and as charged.
        items: the only ones that are released, public or released before; None: those that pass a private selection.
        attempt: random, for each run.
        ledger_url: whom to ask.
        span: from the first to the last window of the series that the window is one of; None: it is charged alone.
        asked: of an evaluation, what is measured, as settings of its release; of other releases nothing.
    """

    job: config.Job
    now: dt.datetime
    total: budget.Budget
    mechanisms: dict[str, budget.Mechanism]
    items: pa.Array | None
    attempt: str
    ledger_url: str
    span: tuple[dt.datetime, dt.datetime] | None
    asked: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides what the release says: public."""
        return {**settings(self.job), **self.asked}

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
            "settings": self.settings,
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
        # Of a window they say nothing, nor do digests: begun again, it is the same with the items as they are then.
        items = self.items.to_pylist() if self.items is not None and job.window.size == "all" else []
        return ledger.Request(
            data_set=job.job.data_set,
            source=contract.source_fingerprint(job),
            key_fingerprint=contract.key_fingerprint(key),
            unit=job.privacy.unit,
            period=job.privacy.period,
            composition=composition,
            content={"settings": self.settings, "digests": digests, "items": items, "again": again},
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
            dataclasses.replace(window.windows, start=start).count(end),
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
            for section in _released_sections(job)
            for key, value in getattr(job, section).model_dump().items()
        },
        # Who is in no model. Jobs that hold nobody out say nothing of it: their releases are the same as before.
        **({f"evaluation.{key}": getattr(job.evaluation, key) for key in HOLDING_OUT} if job.holds_out else {}),
        **(
            {"evaluation.budget_share": job.evaluation.budget_share, "selection.delta_share": job.selection.delta_share}
            if job.is_evaluation
            else {}
        ),
        "catalogue": job.catalogue is not None,
    }


def _released_sections(job: config.Job) -> tuple[str, ...]:
    if job.is_evaluation:
        return ()
    return ("counts",) if job.is_trending else ("selection", "counts", "cooccurrence")


def plan(job: config.Job, items: pa.Array | None, span: tuple[dt.datetime, dt.datetime] | None = None) -> Plan:
    """Splits the job's budget, or the window's share of it, over its mechanisms.

    Args:
        items: as Plan has them.
        span: of the series that the window is one of, where the contribution book bounds its windows.
    """
    l0 = math.sqrt(job.counts.max_partitions_contributed)
    sensitivity = {budget.COUNTS_USERS: l0, budget.COUNTS_EVENTS: l0 * job.counts.max_contributions_per_partition}
    return _plan(job, items, span, sensitivity, {})


def plan_evaluation(job: config.Job, n_values: int, asked: Mapping[str, Any]) -> Plan:
    """What an evaluation costs: of the job's budget, or the window's share of it, the part that its releases leave.

    Args:
        job: as config.Job.evaluation_of has it.
        n_values: how many are measured of each user.
        asked: as Plan has it.
    """
    return _plan(job, None, None, {budget.EVALUATION: evaluation.sensitivity(n_values)}, asked)


def _plan(
    job: config.Job,
    items: pa.Array | None,
    span: tuple[dt.datetime, dt.datetime] | None,
    sensitivity: Mapping[str, float],
    asked: Mapping[str, Any],
) -> Plan:
    total = budget.Budget(job.privacy.total_epsilon, job.privacy.total_delta)
    share = job.window.budget_share / (job.window.max_windows_contributed or 1)
    selection_delta = contract.selection_delta(job)
    sigma = budget.noise_multipliers(total, _shares(job), selection_delta, job.privacy.composition)
    is_ours = {name: (name == budget.EVALUATION) == job.is_evaluation for name in sigma}
    sigma = {name: multiplier / math.sqrt(share) for name, multiplier in sigma.items() if is_ours[name]}
    # As sigma: so that the windows' parts add up to no more than the whole.
    window_share = share if share == 1 else share * (1 - 1e-9)
    set_aside = {budget.SELECTION: selection_delta * window_share}
    mechanisms = {
        name: budget.Mechanism(name, multiplier, sensitivity.get(name, 1.0), delta=set_aside.get(name, 0.0))
        for name, multiplier in sigma.items()
    }
    if share < 1 or job.holds_out:
        total = _share_of(total, selection_delta, list(mechanisms.values()), job.privacy.composition)
    return Plan(job, dt.datetime.now(dt.UTC), total, mechanisms, items, store.new_id(), contract.ledger_url(job), span, asked)


def _shares(job: config.Job) -> dict[str, float]:
    """Of the budget, by mechanism: of the job's releases, and of evaluations if there are to be any."""
    found = dict.fromkeys((budget.COUNTS_USERS, budget.COUNTS_EVENTS), job.counts.budget_share / 2)
    if job.is_trending:
        return found
    found = {budget.SELECTION: job.selection.budget_share, **found, budget.COOCCURRENCE: job.cooccurrence.budget_share}
    return {**found, budget.EVALUATION: job.evaluation.budget_share} if job.holds_out else found


def _share_of(
    total: budget.Budget,
    selection_delta: float,
    mechanisms: Sequence[budget.Mechanism],
    composition: privacy_filter.Composition,
) -> budget.Budget:
    """What mechanisms that don't spend the whole are worth: their epsilon at the Gaussians' whole delta."""
    cost = privacy_filter.total_cost(composition, (mechanism.noise_multiplier for mechanism in mechanisms))
    delta = total.total_delta - selection_delta
    set_aside = math.fsum(mechanism.delta for mechanism in mechanisms)
    return budget.Budget(privacy_filter.spent_epsilon(composition, cost, delta), delta + set_aside)


def span_of(job: config.Job, start: dt.datetime) -> tuple[dt.datetime, dt.datetime] | None:
    """From the first to the last window of the job in the period that a window is in; None without a contribution book."""
    if not job.window.max_windows_contributed:
        return None
    bounds = periods.bounds(job.privacy.period, start)
    # A period is planned to its end: a job that is made to go on longer goes on with the same series.
    return (max(job.window.start, bounds[0]), bounds[1]) if bounds else (job.window.start, job.window.end)


def selection_params(plan: Plan) -> selection.SelectionParams:
    """How the plan's items are scored and chosen."""
    job = plan.job
    return selection.SelectionParams(
        mechanism=plan.mechanisms[budget.SELECTION],
        max_partitions_contributed=job.selection.max_partitions_contributed,
        public_items=plan.items,
        max_items=None if job.cooccurrence.max_items == "auto" else job.cooccurrence.max_items,
        cooccurrence_sd=plan.mechanisms[budget.COOCCURRENCE].noise_sd / math.sqrt(2),
        expected_users=job.privacy.expected_users,
    )


def count_params(plan: Plan) -> counts.CountParams:
    """How the plan's counts are bounded and protected."""
    job = plan.job
    return counts.CountParams(
        total=plan.total,
        users=plan.mechanisms[budget.COUNTS_USERS],
        events=plan.mechanisms[budget.COUNTS_EVENTS],
        max_partitions_contributed=job.counts.max_partitions_contributed,
        max_contributions_per_partition=job.counts.max_contributions_per_partition,
        event_types=sorted(job.source.event_types),
        window_start=job.window.start,
        window_end=job.window.end,
    )
