"""Whether a whole job keeps its promise, by canaries: users made up to stand out, each there or not by the toss of a coin.

The coins are the operating system's. The job's own functions make a release and train a model of the job's events and of the
canaries that are in; an attacker who knows all of the events, every canary and the code guesses the coins from what came out.
Too many right guesses and the promise is broken: `transforms.privacy.auditing` says how many (Steinke, Nasr and Jagielski
2023). The same without noise must break it, else the audit would have seen nothing.

For events that are nobody's secret: the attacker needs to know them. Nothing of it is kept, charged or published.
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import errors, tables
from data.catalogue import Catalogue
from pipelines import attack, config, evaluate, plan, source
from transforms.privacy import auditing, budget, noise
from transforms.privacy import filter as privacy_filter
from transforms.release import cooccurrence, selection

EPSILON = 8.0
"""The promise that is put to the test: at 1, no attack on a thousand canaries comes out of what chance may do."""
CANARIES = 1000
LEAST_ITEMS = 8
"""To make canaries of."""
SIGNIFICANCE = 0.05
"""How often a promise that is kept would be called broken, at most, for each output."""
WAYS = 3
"""In which coins are guessed, fixed beforehand; each has its part of the significance."""
COUNTS, MODEL, ALL = "counts", "model", "all outputs"
OUTPUTS = {
    budget.SELECTION: (budget.SELECTION,),
    COUNTS: (budget.COUNTS_USERS, budget.COUNTS_EVENTS),
    budget.COOCCURRENCE: (budget.COOCCURRENCE,),
    MODEL: (budget.SELECTION, budget.COOCCURRENCE),
    ALL: (budget.SELECTION, budget.COUNTS_USERS, budget.COUNTS_EVENTS, budget.COOCCURRENCE),
}
"""By output, the mechanisms whose noise it has."""
MOST_CANARIES = 4000
"""In a run: a few matrices of all pairs of them are in memory, 128 MB each."""
AS_PROMISED, WITHOUT_NOISE = "as promised", "without noise"

_Mechanisms = Mapping[str, budget.Mechanism]

log = logging.getLogger(__name__)


class Bound(NamedTuple):
    """What guesses on one output show.

    Attributes:
        claimed: the epsilon of the mechanisms behind it, at the job's delta.
        typical: what guesses usually show where no canary is like another and noise is as claimed.
        guesses: how many were made: in the one of WAYS that shows the most.
        correct: how many of them were right.
        lower: epsilon is above this with 95 % confidence.
    """

    claimed: float
    typical: float
    guesses: int
    correct: int
    lower: float


class Report(NamedTuple):
    """What was found: facts, and by case (AS_PROMISED, WITHOUT_NOISE) and output the bounds."""

    facts: dict[str, Any]
    bounds: dict[str, dict[str, Bound]]


class BrokenPromiseError(errors.UserError):
    """Users can be told from what is released more surely than the budget allows, or the audit wouldn't see it if so."""

    exit_code = 9


class _World(NamedTuple):
    """What stays the same in all runs: the job's events, its plan as promised, and which items the canaries have."""

    job: config.Job
    public: Catalogue | None
    planned: plan.Plan
    batches: list[pa.Table]
    rows: pa.Table
    items: pa.Array


def run(job: config.Job, canaries: int = CANARIES, epsilon: float = EPSILON, runs: int | None = None) -> Report:
    """Releases the job's events with canaries, guesses which were in, and says what that shows of the promise.

    Args:
        job: its total_epsilon is replaced.
        canaries: in each run.
        epsilon: the promise: total_epsilon.
        runs: each with canaries and coins of its own, which count together: every canary is in one run. None: as many as
            guesses that are all right need to exceed the promise.

    Raises:
        config.JobFileError: the job's data are private, or it isn't one over whole files; there are too many canaries.
        errors.RefusedError: too many rows are malformed.
        errors.BadInputError: too few items are released to make canaries of. And what `source.find` raises.
    """
    if job.evaluation.data == "private":
        raise config.JobFileError(
            'audit: evaluation.data = "private" (the default): the attacker must know every event. Take a job over public or '
            "synthetic events (`sottovoce synth`), and say so in [evaluation] data."
        )
    evaluate.check(job, "audit")
    if canaries > MOST_CANARIES:
        raise config.JobFileError(
            f"audit: --canaries {canaries}: at most {MOST_CANARIES} in a run. Take more runs (--runs): "
            "all canaries count together."
        )
    job = config.changed(job, {"privacy.total_epsilon": epsilon})
    delta, alone = job.privacy.total_delta, SIGNIFICANCE / WAYS
    try:
        needed = auditing.canaries_needed(epsilon, delta, alone)
    except ValueError as error:
        raise config.JobFileError(f"audit: --epsilon {epsilon:g}: {error} Take a smaller one.") from error
    runs = runs or -(-needed // canaries)
    world = _read(job)
    cases = {AS_PROMISED: world.planned, WITHOUT_NOISE: evaluate.without_noise(world.planned)}
    bounds = {}
    for case, each in cases.items():
        coins, guesses = [], []
        for number in range(runs):
            log.info("%s: run %d of %d, %d canaries", case, number + 1, runs, canaries)
            drawn, found = _guess(world, each, [of.mechanisms for of in cases.values()], canaries)
            coins.append(drawn)
            guesses.append(found)
        scores = {name: np.concatenate([found[name] for found in guesses], axis=1) for name in OUTPUTS}
        bounds[case] = {name: _bound(world.planned, name, scores[name], np.concatenate(coins)) for name in OUTPUTS}
    facts = {
        "data": job.evaluation.data,
        "data_set": job.job.data_set,
        "total_epsilon": epsilon,
        "total_delta": delta,
        "canaries": canaries,
        "runs": runs,
        "canaries_needed": needed,
        "items_of_a_canary": _items_of_each(job, len(world.items)),
        "most": auditing.epsilon_lower_bound(runs * canaries, runs * canaries, runs * canaries, delta, alone),
    }
    return Report(facts, bounds)


def check(report: Report) -> None:
    """Makes sure that no output shows more than its claim, and that all of them without noise do, where canaries are enough.

    Raises:
        BrokenPromiseError: one of both is not so.
    """
    broken = [name for name, bound in report.bounds[AS_PROMISED].items() if bound.lower > bound.claimed]
    if broken:
        raise BrokenPromiseError(
            f"audit: {', '.join(broken)}: epsilon is above what is claimed, with 95 % confidence for each output: run it again "
            "to rule chance out, and tell us (SECURITY.md)."
        )
    control = report.bounds[WITHOUT_NOISE][ALL]
    if report.facts["most"] > control.claimed >= control.lower:
        raise BrokenPromiseError(
            f"audit: without noise the guesses show an epsilon of {control.lower:.2f} alone, of {control.claimed:g} claimed: "
            "canaries are too much like one another for this audit to mean anything. Take fewer of them in each run "
            "(--canaries)."
        )


def _read(job: config.Job) -> _World:
    public = source.load_catalogue(job)
    public_ids = source.ids_of(public)
    batches = evaluate.read(job, public_ids)
    rows = evaluate.contributions(job, batches)
    # Those that a release keeps: on others, canaries would be in no matrix.
    planned = plan.plan(job, public_ids)
    found = selection.score_table(rows, job.selection.max_partitions_contributed, planned.bounding_key)
    kept = cooccurrence.kept_items(selection.release_scores(found, plan.selection_params(planned)))
    if len(kept) < LEAST_ITEMS:
        raise errors.BadInputError(f"audit: {len(kept)} items are kept, and canaries need at least {LEAST_ITEMS}.")
    return _World(job, public, planned, batches, rows, kept)


def _items_of_each(job: config.Job, n_items: int) -> int:
    """How many items a canary has: all partitions that count, where items are enough to tell canaries apart."""
    most = min(
        job.counts.max_partitions_contributed // len(job.source.event_types),
        job.selection.max_partitions_contributed,
        n_items // 4,
    )
    return max(2, most)


def _guess(
    world: _World, planned: plan.Plan, suspected: Sequence[_Mechanisms], canaries: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One run: the coins (m,), and by output scores (s, m) of the canaries, the higher the likelier one was in.

    Args:
        planned: the release.
        suspected: s ideas of its noise, with each of which the attacker decodes.
        canaries: m.
    """
    tosses = noise.stream(noise.fresh_key())
    ids, batch = _canaries(world, canaries, tosses)
    coins = tosses.integers(0, 2, canaries).astype(bool)
    is_in = pc.is_in(batch["privacy_id"], value_set=ids.filter(pa.array(coins)))
    rows = evaluate.contributions(world.job, [*world.batches, batch.filter(is_in)])
    released = attack.release(world.job, planned, rows, world.public)
    own = attack.terms(planned, released.tables.items, evaluate.contributions(world.job, [batch]), ids)
    return coins, _scores(world, planned, suspected, released, own)


def _canaries(world: _World, canaries: int, tosses: np.random.Generator) -> tuple[pa.Array, pa.Table]:
    """Pseudonyms of canaries, and their events.

    Each has as many partitions as count, which is what moves counts most, and more events in each than count. Its pairs of
    items move the matrix by 1, as any row of norm 1 does: what tells it from others is that no other canary has the same. All
    items are cut into blocks, again and again in another order, so that canaries share few. Event ids are the same for all.
    """
    each = _items_of_each(world.job, len(world.items))
    blocks = len(world.items) // each
    cut = [tosses.permutation(len(world.items))[: blocks * each] for _ in range(-(-canaries // blocks))]
    items = np.concatenate(cut).reshape(-1, each)[:canaries]
    types = sorted(world.job.source.event_types)
    repeats = world.job.counts.max_contributions_per_partition + 1
    width = each * len(types) * repeats
    ids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), canaries, [None, pa.py_buffer(tosses.bytes(16 * canaries))])
    user = np.repeat(np.arange(canaries), width)
    item = np.repeat(items.ravel(), len(types) * repeats).astype(np.int32)
    event_type = np.tile(np.repeat(np.arange(len(types), dtype=np.int32), repeats), canaries * each)
    batch = pa.table(
        {
            "event_id": pa.array(np.tile(np.arange(1, width + 1, dtype=np.uint64), canaries)),
            "privacy_id": ids.take(pa.array(user)),
            "item_id": pa.DictionaryArray.from_arrays(pa.array(item), world.items),
            "event_type": pa.DictionaryArray.from_arrays(pa.array(event_type), pa.array(types)),
            "value": pa.nulls(len(user), pa.float64()),
        }
    )
    return ids, batch


def _scores(
    world: _World, planned: plan.Plan, suspected: Sequence[_Mechanisms], released: attack.Released, own: attack.Terms
) -> dict[str, np.ndarray]:
    base = attack.exact(planned, released.tables.items, world.rows)
    seen = attack.noisy(planned, released).less(base)
    more = _more(world, released, base.matrix + (own.rows.T @ own.rows).toarray() / 2)
    found: dict[str, list[np.ndarray]] = {name: [] for name in OUTPUTS}
    for mechanisms in suspected:
        sums, like = attack.products(own, seen, mechanisms), attack.grams(own, mechanisms)
        for name, behind in OUTPUTS.items():
            if name == MODEL:
                unit = attack.pair_products(own, more) / attack.variance(mechanisms[budget.COOCCURRENCE])
                found[name].append(auditing.decode(unit, like[budget.COOCCURRENCE]))
                continue
            gram = np.sum([like[mechanism] for mechanism in behind], axis=0)
            # Known is also that each canary is in with probability 1/2.
            centred = np.sum([sums[mechanism] for mechanism in behind], axis=0) - gram.sum(1) / 2
            found[name].append(auditing.decode(centred, gram))
    return {name: np.array(scores) for name, scores in found.items()}


def _more(world: _World, released: attack.Released, expected: np.ndarray) -> np.ndarray:
    """How much more the kept items recommend one another than in a model of the matrix that is expected, (k, k)."""
    row, col = np.triu_indices(len(expected))
    pairs = pa.table([row.astype(np.int32), col.astype(np.int32), expected[row, col]], schema=tables.ITEM_PAIRS)
    found = released.tables
    more = released.recommending - attack.recommending(world.job, found.items, pairs, found.noise_sd, world.public)
    np.fill_diagonal(more, 0)
    return more


def _bound(planned: plan.Plan, name: str, scores: np.ndarray, coins: np.ndarray) -> Bound:
    """The largest of the bounds of WAYS: the guesses that the claim makes best, decoded as if noise were as claimed and as if
    there were none; and all guesses, as if there were none.

    Args:
        planned: as promised.
        name: of the output.
        scores: (2, n), decoded with the noise claimed, and with none.
        coins: (n,).
    """
    behind = [planned.mechanisms[each] for each in _costing(planned, name)]
    composition, delta = planned.job.privacy.composition, planned.job.privacy.total_delta
    cost = privacy_filter.total_cost(composition, (each.noise_multiplier for each in behind))
    set_aside = math.fsum(each.delta for each in behind)
    claimed = privacy_filter.spent_epsilon(composition, cost, delta - set_aside)
    mu = math.sqrt(privacy_filter.total_cost("gaussian", (planned.mechanisms[each].noise_multiplier for each in OUTPUTS[name])))
    n = len(coins)
    alone = SIGNIFICANCE / WAYS
    best, typical = auditing.best_guesses(n, mu, delta, alone)
    found = []
    for decoded, guesses in ((scores[0], best), (scores[1], best), (scores[1], n)):
        correct = auditing.correct_guesses(decoded, coins, guesses)
        lower = auditing.epsilon_lower_bound(n, guesses, correct, delta, alone)
        found.append(Bound(claimed, typical, guesses, correct, lower))
    return max(found, key=lambda bound: bound.lower)


def _costing(planned: plan.Plan, name: str) -> set[str]:
    """The mechanisms that an output costs: noisy scores choose the items of the matrix, and without a catalogue of all."""
    chosen = name != COUNTS or planned.items is None
    return {*OUTPUTS[name], *([budget.SELECTION] if chosen else [])}


def as_text(report: Report) -> Iterator[str]:
    """Yields the report's lines: what was tried, and a table of output by case."""
    facts = report.facts
    yield (
        f"{facts['data_set']} ({facts['data']} data): claimed epsilon {facts['total_epsilon']:g}, "
        f"delta {facts['total_delta']:g}; "
        f"{facts['runs']} x {facts['canaries']} canaries of {facts['items_of_a_canary']} items each"
    )
    yield (
        f"lower bounds of epsilon, at 95 % for each output; right guesses alone would show {facts['most']:.2f} "
        f"({facts['canaries_needed']} canaries show the claim)"
    )
    yield ""
    cases = list(report.bounds)
    head = ["output", "claimed", "typical", *(text for case in cases for text in (case, "guesses right"))]
    rows = []
    for name, bound in report.bounds[AS_PROMISED].items():
        found = [report.bounds[case][name] for case in cases]
        shown = [text for each in found for text in (f"{each.lower:.2f}", f"{each.correct} of {each.guesses}")]
        rows.append([name, f"{bound.claimed:.2f}", f"{bound.typical:.2f}", *shown])
    yield from evaluate.table(head, rows)


def as_json(report: Report) -> str:
    """The report as one JSON object: facts, and bounds by case and output."""
    bounds = {case: {name: bound._asdict() for name, bound in of.items()} for case, of in report.bounds.items()}
    return json.dumps({**report.facts, "bounds": bounds}, indent=1)


if __name__ == "__main__":
    from pipelines import cli

    cli.main_of("audit")
