"""The black-box audit: what each case shows of its user, and after how many runs each control is caught."""

import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from pipelines import plan
from tests.audit import bounds, invariants, mutations, neighbours, releases
from tests.pipelines import test_guard
from transforms.privacy import budget
from transforms.release import evaluation, selection

RUNS = 100_000
PILOT = 1000
LADDER = (100, 300, 1000, 3000, 10_000, 30_000, 100_000)
"""How many runs a control gets, until it is caught."""


class Audited:
    """The audited jobs: one with a catalogue and two windows, one without a catalogue, and one that evaluates."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        self.job = neighbours.write(directory / "public")
        self.planned = neighbours.plans(self.job)
        self.private_job = neighbours.write(
            directory / "private", [*neighbours.WHOLE, *neighbours.LARGE_NOISE], catalogue=False
        )
        self.private = neighbours.plans(self.private_job)
        held_out = neighbours.write(directory / "evaluated", neighbours.HELD_OUT)
        self.evaluated = plan.plan_evaluation(held_out.evaluation_of(*held_out.window.bounds(0)), 2, {})
        with_items = neighbours.neighbours(self.job, self.planned, neighbours.CASES[neighbours.EXTREME])
        self.extreme = neighbours.direction(self.planned, with_items)
        self._new, self._beside = 0, dict[Any, tuple[releases.Released, releases.Released]]()

    def new_directory(self) -> pathlib.Path:
        """One in which nothing is yet."""
        self._new += 1
        return self.directory / str(self._new)

    def pair(self, case: neighbours.Case) -> tuple[neighbours.Pair, list[dict[str, np.ndarray]]]:
        """Both data sets before noise, and the direction to look in; of who changes nothing, that of who changes most."""
        pair = neighbours.neighbours(self.job, self.planned, case)
        return pair, neighbours.direction(self.planned, pair) if neighbours.shown(self.planned, pair) else self.extreme

    def beside(self, pair: neighbours.Pair, runs: int) -> tuple[releases.Released, releases.Released]:
        """Pilot and runs without the user: cases with the same others look at the same ones."""
        key = (runs, *(of_window.in_units()[name].tobytes() for of_window in pair.without for name in neighbours.MECHANISMS))
        if key not in self._beside:
            self._beside[key] = tuple(releases.release(self.planned, pair.without, n) for n in (PILOT, runs))
        return self._beside[key]

    def forget(self) -> None:
        """Releases anew from now on."""
        self._beside.clear()


class Row(NamedTuple):
    """What one case shows.

    Attributes:
        unit: of the figures: epsilon at the contract's delta, or delta.
        claimed: what the user is charged.
        exact: the most that anybody can learn of this case, by the vectors before noise.
        measured: lower bound, 95 % for the table as a whole.
        is_within: the claim isn't broken, at a false alarm rate of bounds.ALARM for the table as a whole.
    """

    case: str
    unit: str
    claimed: float
    exact: float
    measured: float
    runs: int
    is_within: bool


N_ROWS = len(neighbours.CASES) + len(neighbours.MECHANISMS) + 3
"""Bounds in the table, for Bonferroni."""


def _gaussian(name: str, samples: Sequence[bounds.Sample], claimed: float, exact: float, runs: int) -> Row:
    pilot, counted = samples
    cut = bounds.middle(pilot)
    reported, alarming = (bounds.mu(counted, cut, error / N_ROWS) for error in (bounds.REPORTED, bounds.ALARM))
    figures = (bounds.epsilon_of(mu, neighbours.DELTA) for mu in (claimed, exact, reported))
    return Row(name, "epsilon", *figures, runs, alarming <= claimed)


def measure(audited: Audited, name: str, runs: int) -> Row:
    """One case, by the whole released vector of both windows."""
    case = neighbours.CASES[name]
    pair, direction = audited.pair(case)
    samples = [
        bounds.Sample(
            releases.project(without, direction),
            releases.project(releases.release(audited.planned, pair.joined, n), direction),
        )
        for without, n in zip(audited.beside(pair, runs), (PILOT, runs), strict=True)
    ]
    claimed, exact = neighbours.charged(audited.planned, case.windows), neighbours.shown(audited.planned, pair)
    return _gaussian(name, samples, claimed, exact, runs)


def measure_mechanism(audited: Audited, name: str, runs: int) -> Row:
    """The case that shows most, by what one mechanism gives in both windows."""
    pair, direction = audited.pair(neighbours.CASES[neighbours.EXTREME])
    samples = [releases.sample(audited.planned, pair, direction, n, [name]) for n in (PILOT, runs)]
    claimed, exact = neighbours.charged(audited.planned, 2, [name]), neighbours.shown(audited.planned, pair, [name])
    return _gaussian(f"{name} alone", samples, claimed, exact, runs)


def _scores(audited: Audited, exact: neighbours.Exact, runs: int) -> np.ndarray:
    return releases.scores(audited.private[0], exact, runs)


MANY = [neighbours.event("eve", f"item{number}", f"id{number}") for number in range(10)]


def keys_of_one(audited: Audited, runs: int) -> Row:
    """Without a catalogue: a user alone on as many items as count, of which one appears."""
    pair = neighbours.neighbours(audited.private_job, audited.private, neighbours.Case(MANY, [], 1))
    mechanism = audited.private[0].mechanisms[budget.SELECTION]
    assert pair.without[0].items == ()  # no key can appear
    hits = int(np.sum(np.isfinite(_scores(audited, pair.joined[0], runs)).any(axis=1)))
    reported, alarming = (bounds.lower(hits, runs, error / N_ROWS) for error in (bounds.REPORTED, bounds.ALARM))
    exact = _shown_alone(audited)
    return Row(
        "a new item appears, of a user alone on ten",
        "delta",
        mechanism.delta,
        exact,
        reported,
        runs,
        alarming <= mechanism.delta,
    )


def _shown_alone(audited: Audited) -> float:
    """With how much probability one of ten items of a user alone passes the threshold, by its formula."""
    params = plan.selection_params(audited.private[0])
    sigma = params.mechanism.noise_multiplier
    limit = selection.threshold(sigma, params.mechanism.delta, params.max_partitions_contributed)
    return float(-math.expm1(10 * math.log(0.5 * math.erfc(-(limit - 10**-0.5) / sigma / 2**0.5))))


def keys_of_a_crowd(audited: Audited, runs: int) -> Row:
    """Without a catalogue: an item that others leave just below the threshold; whether it appears, and with what."""
    planned = audited.private[0]
    mechanism = planned.mechanisms[budget.SELECTION]
    params = plan.selection_params(planned)
    others = math.floor(selection.threshold(mechanism.noise_multiplier, mechanism.delta, params.max_partitions_contributed))
    case = neighbours.Case(
        [neighbours.event("eve", "a")], [neighbours.event(f"user{number}", "a") for number in range(others)], 1
    )
    pair = neighbours.neighbours(audited.private_job, audited.private, case)
    samples = [bounds.Sample(*(_scores(audited, exact[0], n)[:, 0] for exact in pair)) for n in (20 * PILOT, runs)]
    total = planned.job.privacy.total_delta
    event = bounds.cut_for(samples[0], total)
    reported, alarming = (bounds.epsilon(samples[1], event, total, error / N_ROWS) for error in (bounds.REPORTED, bounds.ALARM))
    claimed = bounds.epsilon_of(1 / mechanism.noise_multiplier, total - mechanism.delta)
    # Both data sets have the item, so that none of the threshold's own delta is spent on it.
    exact = bounds.epsilon_of(1 / mechanism.noise_multiplier, total)
    return Row("an item at the threshold appears", "epsilon", claimed, exact, reported, runs, alarming <= claimed)


def two_windows_of_scores(audited: Audited, runs: int) -> Row:
    """A user in the second window alone, by what its scores have more than the first one's."""
    case = neighbours.CASES["alone in a window"]
    pair, direction = audited.pair(case)
    along = direction[1][budget.SELECTION]

    def difference(exact: Sequence[neighbours.Exact], n: int) -> np.ndarray:
        first, second = (releases.scores(*given, n) for given in zip(audited.planned, exact, strict=True))
        return (second - first) @ along

    samples = [bounds.Sample(*(difference(exact, n) for exact in pair)) for n in (PILOT, runs)]
    claimed = neighbours.charged(audited.planned, case.windows, [budget.SELECTION])
    return _gaussian("scores of two windows", samples, claimed, claimed / 2**0.5, runs)


def measure_evaluation(audited: Audited, runs: int) -> Row:
    """A held-out user of whom every value is the largest, in one window, beside others whose values are in the middle."""
    planned = audited.evaluated
    params = evaluation.EvaluationParams(
        planned.mechanisms[budget.EVALUATION],
        [("popularity", None)],
        ["one", "other"],
        20,
        planned.job.window.start,
        planned.job.window.end,
    )
    exact = []
    for lines in (neighbours.CROWD, [*neighbours.CASES[neighbours.EXTREME].does, *neighbours.CROWD]):
        neighbours.put(planned.job, lines)
        given = neighbours.contributions(planned)
        # Eve is the one with several items.
        asked = evaluation.exact_sums(given, lambda _, items: np.full(2, 1.0 if len(items) > 1 else 0.5), params.n_values)
        exact.append(evaluation.add_sums([asked], params.n_values))
    along = (exact[1] - exact[0]) * 2.0**-evaluation.GRID_BITS
    samples = [bounds.Sample(*(releases.means(params, of_set, n) @ along for of_set in exact)) for n in (PILOT, runs)]
    claimed = 1 / params.mechanism.noise_multiplier
    return _gaussian(
        "evaluation on held-out users, one window",
        samples,
        claimed,
        float(np.linalg.norm(along)) / params.mechanism.noise_sd,
        runs,
    )


def rows(audited: Audited, runs: int = RUNS) -> Iterator[Row]:
    """The whole table."""
    yield from (measure(audited, name, runs) for name in neighbours.CASES)
    yield from (measure_mechanism(audited, name, runs) for name in neighbours.MECHANISMS)
    yield from (look(audited, runs) for look in (measure_evaluation, keys_of_one, keys_of_a_crowd))


# Negative controls


class Control(NamedTuple):
    """One way to break the guarantee.

    Attributes:
        breaks: does it.
        looks: sees it: a row of the table that isn't within its claim, or an invariant that is broken.
        runs: with how many it is caught, but for a probability of 1e-6; 1: no matter of chance.
    """

    breaks: Callable[[pytest.MonkeyPatch], None]
    looks: Callable[[Audited, int], bool]
    runs: int


def _by(measure_: Callable[..., Row], *given: str) -> Callable[[Audited, int], bool]:
    return lambda audited, runs: not measure_(audited, *given, runs).is_within


def _at_once(broken: Callable[[pathlib.Path], bool]) -> Callable[[Audited, int], bool]:
    return lambda audited, runs: broken(audited.new_directory())


CONTROLS = {
    "noise x0.9": Control(mutations.noise_times_0_9, _by(measure, neighbours.EXTREME), 30_000),
    "bounding dropped": Control(mutations.bounding_dropped, _by(measure, neighbours.EXTREME), 1000),
    "L2 scaling per block": Control(mutations.scaled_by_block, _by(measure_mechanism, budget.COOCCURRENCE), 10_000),
    "off-diagonal noise a further sqrt(2) too small": Control(
        mutations.off_diagonal_noise_too_small, _by(measure_mechanism, budget.COOCCURRENCE), 30_000
    ),
    "selection without noise": Control(mutations.selection_without_noise, _by(keys_of_a_crowd), 1000),
    "selection with the threshold for one item": Control(mutations.threshold_for_one_item, _by(keys_of_one), 10_000),
    "a window charged once and released twice": Control(
        mutations.charged_once_released_twice, _at_once(invariants.released_twice), 1
    ),
    "two attempts both visible": Control(mutations.every_attempt_visible, _at_once(invariants.both_attempts_seen), 1),
    "opt-out applied after counting": Control(mutations.opt_outs_after_counting, _by(measure, "opted out"), 1000),
    "noise key used again": Control(mutations.a_noise_key_used_again, _by(two_windows_of_scores), 1000),
    "repeats dropped by event id alone": Control(mutations.repeats_by_event_id_alone, _by(measure, "others' event ids"), 1000),
    "lateness by payload watermark": Control(
        mutations.lateness_by_payload_times, _by(measure, "far future and far past"), 1000
    ),
    "empty windows left out": Control(mutations.empty_windows_left_out, _at_once(invariants.windows_hang_on_events), 1),
    "model trained on raw pairs": Control(mutations.trained_on_raw_pairs, _at_once(invariants.model_hangs_on_events), 1),
    "source digests published": Control(mutations.source_digests_published, _at_once(invariants.manifest_hangs_on_events), 1),
    "dead-letter counts published": Control(
        test_guard.dead_letters_counted_into_what_commits, _at_once(invariants.manifest_hangs_on_events), 1
    ),
}


INVARIANTS = (
    invariants.released_twice,
    invariants.both_attempts_seen,
    invariants.windows_hang_on_events,
    invariants.model_hangs_on_events,
    invariants.manifest_hangs_on_events,
)


def caught(audited: Audited, control: Control, runs: int) -> bool:
    """Whether a control is caught with so many runs."""
    with pytest.MonkeyPatch.context() as patch:
        control.breaks(patch)
        audited.forget()
        try:
            return control.looks(audited, runs)
        finally:
            audited.forget()


def caught_after(audited: Audited, control: Control) -> int | None:
    """With how many runs of the ladder a control is caught; None: with none."""
    ladder = LADDER if control.runs > 1 else (1,)
    return next((runs for runs in ladder if caught(audited, control, runs)), None)
