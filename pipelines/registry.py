"""The registry of a job's models: `sottovoce models list | promote | rollback | compare`, and which model `publish` takes.

    candidate   newer than the active one, and never active
    active      the one that people are served
    retired     once active, or passed over

What was decided stands in the ledger, row after row: the last that wasn't refused names the active model. It is written
before people are shown the model, and whoever publishes next shows what it names: so the next run makes a crash between the two
good.
All figures are of what was released and published: post-processing, or charged where they were made.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data import errors, ledger, store, tables
from models import agreement, training, windows
from pipelines import config, contract, evaluate, evaluate_private, source, train, versions
from transforms.privacy import noise

CANDIDATE, ACTIVE, RETIRED = "candidate", "active", "retired"
"""States of a model."""
REFUSED = "refused"
"""What a decision may come to, beside ACTIVE."""
FIRST, ALWAYS, MANUAL, ROLLBACK = "first", "always", "manual", "rollback"
EVALUATION, SCORE, NO_FIGURE = "evaluation", "score", "no figure"
"""Why: there was no other; publish.promote says so; somebody said so; somebody went back; by figures, or for want of them."""
OVERLAP = 20
"""Recommendations of an item that `compare` compares."""

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Figures:
    """A model held against another.

    Attributes:
        by: EVALUATION or SCORE.
        candidate: the model's figure.
        active: that of the other, whose number is `against`.
        low, high: 95 % interval of candidate - active, as far as the noise goes.
    """

    by: str
    candidate: float
    active: float
    low: float
    high: float
    against: int

    def is_below(self, margin: float) -> bool:
        """Says whether the model is worse by more than a share of the other's figure, and by more than the noise explains."""
        return self.candidate < self.active - margin * abs(self.active) and self.high < 0

    def __str__(self) -> str:
        cause = "as the noise alone might make it" if self.low <= 0 <= self.high else "more than the noise makes"
        return (
            f"{self.by} {self.candidate:.4g}, model {self.against} {self.active:.4g}; difference "
            f"{self.candidate - self.active:.4g} [{self.low:.4g}, {self.high:.4g}], {cause}"
        )


class History(NamedTuple):
    """What was decided on a job's models.

    Attributes:
        rows: of the ledger, oldest first; for a store from before there was a registry one that isn't there yet, of its model.
        written: how many of them the ledger has.
    """

    rows: Sequence[ledger.Promotion]
    written: int

    @property
    def active(self) -> int | None:
        """The model that is active."""
        return next((row.model for row in reversed(self.rows) if row.outcome == ACTIVE), None)

    @property
    def before(self) -> int | None:
        """The model that was active before the active one."""
        return next((row.model for row in reversed(self.rows) if row.outcome == ACTIVE and row.model != self.active), None)

    def last(self, model: int) -> ledger.Promotion | None:
        """What was decided on a model last."""
        return next((row for row in reversed(self.rows) if row.model == model), None)

    def was_active(self, model: int) -> bool:
        """Says whether a model is, or was at any time, the active one."""
        return any(row.model == model and row.outcome == ACTIVE for row in self.rows)

    def state(self, model: int) -> str:
        """Returns a model's state."""
        if model == self.active:
            return ACTIVE
        return CANDIDATE if model > (self.active or 0) and not self.was_active(model) else RETIRED


def history(job: config.Job) -> History:
    """Returns what was decided on a job's models."""
    rows = contract.open_ledger(job).promotions(versions.name(job))
    if rows:
        return History(rows, len(rows))
    shown = versions.model(job)
    return History([] if shown is None else [ledger.Promotion(1, shown, ACTIVE, FIRST, {}, "")], 0)


def choose(job: config.Job) -> store.Model | None:
    """Returns the model to publish, None: there is no model. A new one is decided upon first, as [publish] says.

    Raises:
        errors.NothingThereError: the active model is not in the store.
    """
    kept = store.Store(job.job.store)
    while True:
        known, newest = history(job), kept.latest_model()
        if newest is None:
            return None
        if known.active is None:
            decided = _decide(job, known, newest.number, ACTIVE, FIRST)
        elif not _is_up(job, known, newest.number):
            return find(kept, known.active)
        elif job.publish.promote == ALWAYS:
            decided = _decide(job, known, newest.number, ACTIVE, ALWAYS)
        else:
            decided = _guard(job, known, newest, find(kept, known.active))
        if not decided:
            log.info("another run decided on a model meanwhile: looking again")


def _is_up(job: config.Job, known: History, newest: int) -> bool:
    """Says whether the newest model is to be decided upon."""
    if known.state(newest) != CANDIDATE:
        return False
    if job.publish.promote == MANUAL:
        log.info("model %d waits, model %s stays active: `sottovoce models promote JOB.toml %d`", newest, known.active, newest)
        return False
    decided = known.last(newest)
    if job.publish.promote == ALWAYS or decided is None:
        return True
    # An evaluation that was paid for since outweighs what was decided by less.
    return decided.why != EVALUATION and known.active is not None and evaluated(job, newest, known.active) is not None


def _guard(job: config.Job, known: History, candidate: store.Model, active: store.Model) -> bool:
    """Promotes a candidate unless its figure is below the active one's by more than the margin; says whether in time."""
    found = figures(job, candidate, active)
    hint = f"Model {active.number} stays active; `sottovoce models promote JOB.toml {candidate.number}` overrules that."
    if found is None:
        log.warning("model %d has no figure to hold against the active one. %s", candidate.number, hint)
        return _decide(job, known, candidate.number, REFUSED, NO_FIGURE)
    is_refused = found.is_below(job.publish.margin)
    if is_refused:
        log.warning("model %d is not promoted: %s; publish.margin = %g. %s", candidate.number, found, job.publish.margin, hint)
    else:
        log.info("model %d is promoted: %s", candidate.number, found)
    return _decide(job, known, candidate.number, REFUSED if is_refused else ACTIVE, found.by, found)


def _decide(job: config.Job, known: History, model: int, outcome: str, why: str, found: Figures | None = None) -> bool:
    """Writes a decision down after those that were known; says whether there were no others meanwhile."""
    account, name = contract.open_ledger(job), versions.name(job)
    for row in known.rows[known.written :]:
        if not account.promote(name, row.number, row.model, row.outcome, row.why, row.figures):
            return False
    told = {} if found is None else dataclasses.asdict(found)
    return account.promote(name, len(known.rows) + 1, model, outcome, why, told)


# Figures


def figures(job: config.Job, candidate: store.Model, active: store.Model) -> Figures | None:
    """Returns how a model does beside another: by a charged evaluation of both, or else by their scores; None: by neither."""
    return evaluated(job, candidate.number, active.number) or scored(job, candidate, active)


def evaluated(job: config.Job, candidate: int, active: int) -> Figures | None:
    """Returns the recall of two models in the newest charged evaluation that compares them; None: there is none."""
    kept, account = store.Store(job.job.store), contract.open_ledger(job)
    for manifest in reversed(evaluate_private.published(job, kept, account.releases(job.job.data_set))):
        rows = kept.read_table(manifest, evaluate_private.TABLE, tables.EVALUATIONS).to_pylist()
        recalls = {row["version"]: row["value"] for row in rows if row["metric"] == "recall"}
        ours, theirs = recalls.get(candidate), recalls.get(active)
        if ours is None or theirs is None:
            continue
        # Of two noisy sums by one noisy number of users: to first order of the noise.
        [mechanism] = manifest["mechanisms"]
        spread = noise.Z95 * mechanism["noise_sd"] * math.sqrt(2 + (ours - theirs) ** 2) / rows[0]["users"]
        return Figures(EVALUATION, ours, theirs, ours - theirs - spread, ours - theirs + spread, active)
    return None


def scored(job: config.Job, candidate: store.Model, active: store.Model) -> Figures | None:
    """Returns two models' scores (`models.agreement`) on the newest release; None: they have no two items of it in common.

    Those that were trained on that release are fitted anew on half of it, and on what they were trained on beside it.
    """
    kept, manifest = store.Store(job.job.store), train.newest_release(job)
    if manifest is None:
        return None
    catalogue = source.load_catalogue(job)
    released = agreement.most_popular(train.read(kept, manifest, catalogue))
    embeddings = [model.read_table("embeddings", tables.EMBEDDINGS) for model in (candidate, active)]
    in_both = set.intersection(*(set(table["item_id"].to_pylist()) for table in embeddings))
    places = [place for place, row in enumerate(released.known) if released.ids[row] in in_both]
    if len(places) < 2:
        return None
    to_fit, split = agreement.halves(released)
    rows = released.known[places]
    vectors = []
    for model, table in zip((candidate, active), embeddings, strict=True):
        if manifest["release_id"] in model.manifest["release_ids"]:
            log.info("fitting model %d anew on half of the matrix, to hold it against the other half", model.number)
            others = [each for each in model.manifest["release_ids"] if each != manifest["release_id"] and kept.has(each)]
            beside = (train.read(kept, kept.manifest(each), catalogue) for each in reversed(others))
            decay = model.manifest["parameters"].get("decay", 1.0)
            fitted = training.fit(windows.combine(to_fit, beside, decay) if others else to_fit, _settings(model))
            vectors.append(agreement.vectors_of(fitted).take(rows))
        else:
            vectors.append(agreement.vectors_in(table, [released.ids[row] for row in rows]))
    found = agreement.compare(vectors[0], vectors[1], split.take(np.array(places)))
    return Figures(SCORE, found.one, found.other, found.low, found.high, active.number)


def _settings(model: store.Model) -> training.Settings:
    """How a model was trained."""
    names = {field.name for field in dataclasses.fields(training.Settings)}
    return training.Settings(**{name: value for name, value in model.manifest["parameters"].items() if name in names})


# Commands


def find(kept: store.Store, number: int) -> store.Model:
    """Returns a model by its number.

    Raises:
        errors.NothingThereError: it isn't in the store.
    """
    model = kept.model(number)
    if model is None:
        raise errors.NothingThereError(
            f"{kept.place}: there is no model {number}. `sottovoce models list` shows those there are."
        )
    return model


def promote(job: config.Job, number: int) -> str:
    """Makes a model active because somebody says so; returns what there is to say of it. `publish` then shows it."""
    kept = store.Store(job.job.store)
    while True:
        model, known = find(kept, number), history(job)
        if known.active == number:
            return f"model {number} is active already"
        found = None if known.active is None else figures(job, model, find(kept, known.active))
        if _decide(job, known, number, ACTIVE, MANUAL, found):
            return f"model {number} is active" + (
                "" if known.active is None else f" in place of {known.active}: {found or 'no figure'}"
            )


def rollback(job: config.Job, number: int | None) -> tuple[int, str]:
    """Makes a model active that was active before, None: the last such; returns its number and what there is to say of it.

    Raises:
        errors.NothingThereError: there is none, or it was never active.
    """
    kept = store.Store(job.job.store)
    while True:
        known = history(job)
        back = known.before if number is None else number
        if back is None:
            raise errors.NothingThereError(
                f"{kept.place}: no other model was active before. `sottovoce models list` shows all."
            )
        find(kept, back)
        if known.active == back:
            return back, f"model {back} is active already"
        if not known.was_active(back):
            raise errors.NothingThereError(f"model {back} was never active: `sottovoce models promote` makes it so.")
        if _decide(job, known, back, ACTIVE, ROLLBACK):
            return back, f"model {back} is active again in place of {known.active}"


def described(job: config.Job) -> list[dict[str, Any]]:
    """Returns each model, oldest first: what it is, what it comes from, what was decided on it and which versions show it."""
    kept, known, shown_by, current = store.Store(job.job.store), history(job), versions.models(job), versions.active(job)
    return [
        _described(kept, known, find(kept, number), [v for v, model in sorted(shown_by.items()) if model == number], current)
        for number in kept.model_numbers()
    ]


def _described(kept: store.Store, known: History, model: store.Model, shown_by: list[int], current: int) -> dict[str, Any]:
    manifest, decided = model.manifest, known.last(model.number)
    releases = [kept.manifest(release_id) for release_id in manifest["release_ids"] if kept.has(release_id)]
    return {
        "model": model.number,
        "state": known.state(model.number),
        "why": None if decided is None else f"{decided.outcome}: {decided.why}",
        "figures": (decided.figures or None) if decided is not None else None,
        "versions": shown_by,
        "current": current in shown_by,
        "release_ids": manifest["release_ids"],
        "total_epsilon": [release["total_epsilon"] for release in releases],
        "noise_sd": [train.noise_sd(release) for release in releases],
        "kind": manifest["model"],
        "items": manifest["items"],
        "rank": manifest["rank"],
        # An earlier version's model doesn't tell.
        "trained": manifest["trained_at"][:10] if "trained_at" in manifest else None,
        "code_version": manifest["code_version"],
        "parameters": manifest["parameters"],
    }


def as_json(found: Any) -> str:
    """Returns what `described` or `compared` found as JSON."""
    return json.dumps(found, indent=1)


def as_text(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields a table of what `described` found, a line a model."""
    if not found:
        yield "no model is trained yet"
        return
    head = ["model", "state", "version", "trained", "release", "epsilon", "noise", "items", "rank", "code", "decided"]
    rows = [
        [
            f"{each['model']}",
            each["state"],
            (",".join(map(str, each["versions"])) or "-") + ("*" if each["current"] else ""),
            each["trained"] or "-",
            ",".join(release_id[:8] for release_id in each["release_ids"]),
            ",".join(f"{value:g}" for value in each["total_epsilon"]) or "-",
            ",".join(f"{value:.4g}" for value in each["noise_sd"]) or "-",
            f"{each['items']}",
            f"{each['rank']}",
            each["code_version"],
            (each["why"] or "-") + (f" ({Figures(**each['figures'])})" if each["figures"] else ""),
        ]
        for each in found
    ]
    yield from evaluate.table(head, rows)
    yield "* the version that people query"


def compared(job: config.Job, one: int, other: int) -> dict[str, Any]:
    """Returns two models' figures, how far their recommendations are the same, and the parameters that differ.

    Raises:
        errors.NothingThereError: one of them isn't in the store.
    """
    kept = store.Store(job.job.store)
    ours, theirs = find(kept, one), find(kept, other)
    found = figures(job, ours, theirs)
    first, second = (
        _flat({"release_ids": ",".join(m.manifest["release_ids"]), **m.manifest["parameters"]}) for m in (ours, theirs)
    )
    return {
        "models": [one, other],
        "figures": None if found is None else dataclasses.asdict(found),
        "overlap": _overlap(ours, theirs),
        "differ": {
            name: [first.get(name), second.get(name)]
            for name in [*first, *(name for name in second if name not in first)]
            if first.get(name) != second.get(name)
        },
    }


def _flat(parameters: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {before + name: value}
    return found


def _overlap(one: store.Model, other: store.Model) -> float | None:
    """The mean share of an item's first recommendations that another model has too; None: there are none to compare."""
    lists = [_lists(model) for model in (one, other)]
    shares = [
        len(first & second) / max(len(first), len(second))
        for first, second in ((lists[0][item], lists[1][item]) for item in lists[0].keys() & lists[1].keys())
    ]
    return sum(shares) / len(shares) if shares else None


def _lists(model: store.Model) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in model.read_table("recommendations", tables.RECOMMENDATIONS).to_pylist():
        if row["rank"] <= OVERLAP:
            found.setdefault(row["item_id"], set()).add(row["recommended_item_id"])
    return found


def compared_as_text(found: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of what `compared` found."""
    one, other = found["models"]
    yield f"model {one}: {Figures(**found['figures'])}" if found["figures"] else f"models {one} and {other} have no figure"
    overlap = "-" if found["overlap"] is None else f"{found['overlap']:.3f}"
    yield f"overlap@{OVERLAP} of recommendations: {overlap}"
    yield ""
    yield from evaluate.table(
        ["differ in", str(one), str(other)], [[name, *map(str, of)] for name, of in found["differ"].items()]
    )
