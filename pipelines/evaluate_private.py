"""How good the job's models are, on held-out users of private data: a release with noise, charged as any other.

events -> IngestEvents -> GroupByUser -> KeepHeldOut -> ReleaseEvaluation -> CommitRelease

The users who are asked were kept from what the models were trained on (pipelines.release). What is printed and published are
means with noise; the same question again is read back, at no cost.
"""

import dataclasses
import datetime as dt
import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam

from data import errors, ledger, store, tables
from pipelines import asking, config, contract, evaluate, plan, release, sections, source
from transforms import bounding
from transforms.privacy import budget
from transforms.release import commit, evaluation, holding_out

SECTION = "evaluation"
"""Of a release's report, and by it evaluations are known."""
TABLE = "evaluations"
TOO_FEW = "too few users for the noise"

log = logging.getLogger(__name__)


class Report(NamedTuple):
    """What was released.

    Attributes:
        facts: what was evaluated, what it cost, and how many users were asked.
        metrics: by metric and model.
    """

    facts: dict[str, Any]
    metrics: dict[str, dict[str, evaluation.Estimate]]


def run(job: config.Job, k: int = 20, n_older: int = 0, beam_flags: Sequence[str] = ()) -> Report:
    """Evaluates the newest model, on the last window that it was trained on, or finds that this was done before.

    Args:
        k: length of the lists.
        n_older: how many of the models before it are compared with it, as far as there are any.

    Raises:
        config.JobFileError: the job says nothing of what an evaluation may cost, or a model was trained on those who would be
            asked, or on another window.
        errors.NothingThereError: there is no model yet, or the store hasn't a release that it was trained on.
        And what `release.run` raises.
    """
    if not job.holds_out:
        raise config.JobFileError(
            'evaluation.data = "private" (the default) and evaluation.budget_share = 0: on private data an evaluation is a '
            "release with noise, charged to the users' budget, and asks users whom the models don't know. Give it a share, "
            "take it off another, and release anew. If the events are nobody's secret, the job file must say so: [evaluation] "
            'data = "public", or "synthetic".'
        )
    account = contract.open_ledger(job)
    with release.leased(job, account) as (kept, held):
        return _run(job, account, kept, held, k, n_older, beam_flags)


def _run(
    job: config.Job,
    account: ledger.Ledger,
    kept: store.Store,
    held: tuple[str, int],
    k: int,
    n_older: int,
    beam_flags: Sequence[str],
) -> Report:
    kept.check(account.releases())
    question = _question(job, kept, k, n_older)
    number, part = _window(job, question.release)
    asked = {
        "evaluation.k": k,
        "evaluation.metrics": list(asking.METRICS),
        "evaluation.release": question.release["release_id"],
        "evaluation.models": [{"version": each.number, "digest": each.digest("embeddings")} for each in question.models],
    }
    planned = plan.plan_evaluation(part, len(question.compared) * len(asking.METRICS), asked)
    found = source.find(part, planned.now, source.public_items(job), release.earlier(job, number))
    # A window stays closed, whatever comes since.
    digests = found.digests if job.window.size == "all" else {}
    request = dataclasses.replace(planned.request(found.key, digests, 0), lease=held)
    account.check(request)
    kept.settle(account.releases())
    known = account.find(request)
    if known and known.status == ledger.PUBLISHED:
        log.info("%s holds this evaluation: reading it back, at no cost", kept.place)
        release.check_shown(kept, known.release_id, kept.release_ids())
        release_id = known.release_id
    else:
        log.info("asking held-out users of %s from %d part(s) of its source", job.job.data_set, len(found.parts))
        wire = functools.partial(build, planned=planned, request=request, question=question)
        release_id = release.execute(planned, kept, found, wire, beam_flags)
    return _report(job, kept, kept.manifest(release_id))


def build(
    root: beam.Pipeline,
    found: source.Source | source.ClosedWindow,
    group: bounding.GroupByUser,
    planned: plan.Plan,
    request: ledger.Request,
    question: asking.Question,
) -> beam.PCollection[str]:
    """Wires the evaluation on the events that were found; returns the id of the published release (none when refused)."""
    job, store_path = planned.job, str(planned.job.job.store)
    read, grants = release.read_and_reserve(root, found, group, planned, request)
    release_means = evaluation.ReleaseEvaluation(
        evaluation.EvaluationParams(
            mechanism=planned.mechanisms[budget.EVALUATION],
            models=question.compared,
            metrics=asking.METRICS,
            k=question.k,
            window_start=job.window.start,
            window_end=job.window.end,
        ),
        grants,
        question.prepare,
    )
    means = (
        read.users
        | "KeepHeldOut" >> holding_out.KeepHeldOut(asking.choose(job), True, group.directory)
        | "ReleaseEvaluation" >> release_means
    )
    manifest = {**planned.charge(), "reports": {SECTION: release_means.report()}}
    committing = commit.CommitRelease(store_path, planned.ledger_url, planned.attempt, manifest, grants)
    return {TABLE: means} | "CommitRelease" >> committing


def _question(job: config.Job, kept: store.Store, k: int, n_older: int) -> asking.Question:
    """The newest models, and what they were trained on.

    Raises:
        config.JobFileError: one of them may know those who would be asked.
    """
    models = kept.models(1 + n_older)
    if not models:
        raise errors.NothingThereError(f"{kept.place} holds no model yet: `sottovoce train` makes one.")
    trained_on = [_trained_on(kept, model) for model in models]
    wanted = {f"evaluation.{key}": getattr(job.evaluation, key) for key in plan.HOLDING_OUT}
    for model, manifest in ((model, each) for model, manifests in zip(models, trained_on, strict=True) for each in manifests):
        settings = manifest.get("settings", {})
        held_out = {key: settings[key] for key in wanted if key in settings}
        if held_out != wanted or manifest["data_set"] != job.job.data_set:
            said = ", ".join(f"{key} = {value}" for key, value in held_out.items()) or "nobody held out"
            raise config.JobFileError(
                f"model {model.number} was trained on a release of {manifest['data_set']!r} with {said}, not with "
                + ", ".join(f"{key} = {value}" for key, value in wanted.items())
                + ": it may know those who would be asked. Release and train anew, or set [evaluation] as it was"
                + (", or compare fewer models (--models)." if n_older else ".")
            )
    return asking.Question(kept.place, trained_on[0][-1], models, k, job.evaluation.seed)


def _trained_on(kept: store.Store, model: store.Model) -> list[dict[str, Any]]:
    """The manifests of the releases that a model was trained on, the one of the last window last."""
    release_ids = [str(release_id) for release_id in model.manifest["release_ids"]]
    if missing := [release_id for release_id in release_ids if not kept.has(release_id)]:
        raise errors.NothingThereError(
            f"{kept.place} holds model {model.number}, but not the release {missing[0]} that it was trained on: put it back."
        )
    return [kept.manifest(release_id) for release_id in release_ids]


def published(job: config.Job, kept: store.Store, releases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the manifests of the job's evaluations that are here, oldest first.

    Args:
        releases: the ledger's.
    """
    return kept.published([each for each in releases if each["job"] == job.job.name + sections.EVALUATION])


def _window(job: config.Job, manifest: dict[str, Any]) -> tuple[int, config.Job]:
    """The window of the job that a release is of, by its number, and the part of the job that evaluates it."""
    start, end = (dt.datetime.fromisoformat(manifest[name]) for name in ("window_start", "window_end"))
    number = (start - job.window.start) // job.window.step
    if number < 0 or job.window.bounds(number) != (start, end):
        raise config.JobFileError(
            f"the newest model was trained on events from {start} to {end}, which is no window of the job any more: set "
            "[window] as it was, or release and train anew."
        )
    return number, job.evaluation_of(start, end)


def _report(job: config.Job, kept: store.Store, manifest: dict[str, Any]) -> Report:
    """What a published evaluation says: all of it is public."""
    rows = kept.read_table(manifest, TABLE, tables.EVALUATIONS).to_pylist()
    metrics: dict[str, dict[str, evaluation.Estimate]] = {}
    for row in rows:
        name = row["model"] if row["version"] is None else f"model {row['version']}"
        metrics.setdefault(row["metric"], {})[name] = evaluation.Estimate(row["value"], row["low"], row["high"])
    [mechanism] = manifest["mechanisms"]
    facts = {
        "data": job.evaluation.data,
        "data_set": manifest["data_set"],
        "window_start": manifest["window_start"],
        "window_end": manifest["window_end"],
        "release_id": manifest["release_id"],
        "held_out_share": manifest["settings"]["evaluation.held_out_share"],
        "seed": manifest["settings"]["evaluation.seed"],
        "k": manifest["settings"]["evaluation.k"],
        "total_epsilon": manifest["total_epsilon"],
        "total_delta": manifest["total_delta"],
        "l2_sensitivity": mechanism["l2_sensitivity"],
        "noise_sd": mechanism["noise_sd"],
        "users": {"value": rows[0]["users"], "low": rows[0]["users_low"], "high": rows[0]["users_high"]},
    }
    return Report(facts, metrics)


def as_text(report: Report) -> Iterator[str]:
    """Yields the report's lines: a table of metric by model."""
    facts = report.facts
    users = facts["users"]
    yield (
        f"{facts['data_set']} (private data), {facts['window_start'][:19]} to {facts['window_end'][:19]}, users held out: "
        f"{facts['held_out_share']:g}; asked about {users['value']} [{users['low']:.0f}, {users['high']:.0f}]"
    )
    yield (
        f"means over users from figures with noise, each with its 95 % interval (noise and range); charged: epsilon "
        f"{facts['total_epsilon']:.4g}, delta {facts['total_delta']:.3g}"
    )
    yield ""
    names = {"recall": f"Recall@{facts['k']}", "ndcg": f"NDCG@{facts['k']}", "mrr": f"MRR@{facts['k']}"}
    head = ["", *next(iter(report.metrics.values()))]
    rows = [[names[metric], *map(_shown, of.values())] for metric, of in report.metrics.items()]
    yield from evaluate.table(head, rows)


def _shown(found: evaluation.Estimate) -> str:
    return TOO_FEW if found.value is None else f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"


def as_json(report: Report) -> str:
    """The report as one JSON object: facts, and for each metric and model value, low and high."""
    metrics = {name: {model: each._asdict() for model, each in of.items()} for name, of in report.metrics.items()}
    return json.dumps({**report.facts, "metrics": metrics}, indent=1)
