"""How much privacy a job can afford, and how best to spend it: by simulation, at no cost to anybody's budget.

On private data the simulated users come from a world fitted to what is published already (models/world.py): this reads the
published database and the public catalogue, never events. On public or synthetic data they are the job's own.
"""

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from data import errors, store
from models import world
from models.evaluation import Interval
from pipelines import charts, config, evaluate, fitted, page, simulate, source
from transforms.privacy import budget
from transforms.release import alternatives, cooccurrence

EPSILONS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
USERS = 20_000
"""Most users that are simulated: of more, each stands for several."""
SEEDS, FRESH_SEEDS = 3, 5
"""Draws of users and noise: for a curve and for choosing, and others for what is reported of a choice."""
TOLERANCE = 0.05
"""How far above the least one an epsilon may be that is found for a target, as a share of it."""

_COUNT_BOUNDS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500)
_COUNT_SHARES = (0.02, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5)
_SELECTION_PARTS = (0.03, 0.06, 0.09, 0.15, 0.25)
"""Of what counts leave of the budget."""
_SELECTION_BOUNDS = (50, 200, 500)
_KEPT_FACTORS = (0.5, 0.7, 1.4, 2.0)

log = logging.getLogger(__name__)


class Goal(NamedTuple):
    """What is asked for: at most one of the two."""

    recall: float | None = None
    count_error: float | None = None


NO_GOAL = Goal()


class Point(NamedTuple):
    """The job with its own settings at one epsilon."""

    epsilon: float
    recall: Interval
    items_kept: int
    count_error: float


class Found(NamedTuple):
    """What was found.

    Attributes:
        facts: what was simulated, and how.
        points: by epsilon.
        answer: to the goal; None without one.
        answer_epsilon: the one that reaches it; None: none does.
        settings: the best at the job's epsilon, by key of the job file, beside the job's own.
        own, best: Recall of both, on draws that the search has not seen.
        gain: of best over own, draw by draw.
        own_count_error, best_count_error: of both.
        noise: mechanisms for counts.
        choices: strategies for private selection.
    """

    facts: dict[str, Any]
    points: list[Point]
    answer: str | None
    answer_epsilon: float | None
    settings: dict[str, tuple[Any, Any]]
    own: Interval
    best: Interval
    gain: Interval
    own_count_error: float
    best_count_error: float
    noise: list[alternatives.Noise]
    choices: list[alternatives.Choice]


def run(
    job: config.Job,
    epsilons: Sequence[float] = EPSILONS,
    goal: Goal = NO_GOAL,
    from_events: bool | None = None,
    k: int = 20,
    users: int = USERS,
) -> Found:
    """Simulates the job at several epsilons, looks for the least that reaches the goal, and for the best settings at its own.

    Args:
        job: whose settings are the start.
        epsilons: of the curve; the goal is looked for between the least and the largest.
        goal: see Goal.
        from_events: whether the job's own events are the users; None: where `evaluation.data` says that they are no secret.
        k: recommendations a user.
        users: most to simulate.

    Raises:
        config.JobFileError: the job's data are private, and its events are asked for.
        errors.NothingThereError: a world is to be fitted, and nothing is published yet, or no co-occurrences.
        errors.BadInputError: nothing that is published stands out of its noise. And what `evaluate.weights` raises.
    """
    if from_events is None:
        from_events = job.evaluation.data != "private"
    trials, facts = (_of_events if from_events else _of_published)(job, k, users)
    first = job.evaluation.seed * 1_000
    seeds, fresh = range(first, first + SEEDS), range(first + SEEDS, first + SEEDS + FRESH_SEEDS)
    points = [_point(trials, job, epsilon, seeds) for epsilon in sorted(epsilons)]
    answer, reached = _answer(trials, job, goal, points, seeds, fresh)
    changes, own, best = _best_settings(trials, job, goal.count_error, seeds)
    recalls = trials.recalls(job, fresh), trials.recalls(best, fresh)
    total = budget.Budget(job.privacy.total_epsilon, job.privacy.total_delta)
    people = trials.people(seeds[0])
    return Found(
        {
            **facts,
            "k": k,
            "seeds": SEEDS,
            "fresh seeds": FRESH_SEEDS,
            "epsilon": total.total_epsilon,
            "delta": total.total_delta,
        },
        points,
        answer,
        reached,
        {key: (own[key], value) for key, value in changes.items()},
        simulate.estimate(recalls[0]),
        simulate.estimate(recalls[1]),
        simulate.estimate(recalls[1] - recalls[0]),
        trials.count_error(job, seeds[0]),
        trials.count_error(best, seeds[0]),
        alternatives.count_noise(total, job.counts.max_partitions_contributed),
        alternatives.partition_selection_choices(total, people.train, people.stand_for),
    )


def _of_published(job: config.Job, k: int, users: int) -> tuple[simulate.Trials, dict[str, Any]]:
    """Trials on a world fitted to what the job has published."""
    public = source.load_catalogue(job)
    place = store.Store(job.job.store).local()
    ids, figures = fitted.read(place, public, job.source.event_types, job.privacy.expected_users)
    log.info("fitting a world to the published figures of %d items, %d of them in the matrix", len(ids), len(figures.known))
    try:
        made = world.fit(figures, job.evaluation.seed)
    except ValueError as error:
        raise errors.BadInputError(f"{place}: no world can be fitted to what is published there: {error}") from error
    simulated = min(users, made.users)

    def people_of(seed: int) -> simulate.People:
        # Apart from the seeds that the fit has used.
        rows = made.draw(simulated + simulate.ASKED, 10_000 + seed)
        return simulate.hold_out(rows, simulate.ASKED, made.users / simulated, seed)

    facts = {
        "users are": "made up, from published figures alone",
        "users": made.users,
        "simulated": simulated,
        "items": len(ids),
    }
    return simulate.Trials(ids, public, people_of, k), facts


def _of_events(job: config.Job, k: int, users: int) -> tuple[simulate.Trials, dict[str, Any]]:
    """Trials on the job's own users, who are nobody's secret."""
    if job.evaluation.data == "private":
        raise config.JobFileError(
            'evaluation.data = "private" (the default): figures from the events would be exact. Leave --world out, or '
            "say fitted: then users are made up from what is published."
        )
    public = source.load_catalogue(job)
    ids, rows = evaluate.weights(job, source.ids_of(public))
    asked = min(simulate.ASKED, math.ceil(rows.shape[0] * job.evaluation.held_out_share))
    left = rows.shape[0] - asked
    simulated = min(users, left)

    def people_of(seed: int) -> simulate.People:
        order = np.random.default_rng([seed, 4]).permutation(rows.shape[0])[: simulated + asked]
        return simulate.hold_out(sp.csr_matrix(rows[order]), asked, left / simulated, seed)

    facts = {
        "users are": f"the job's own ({job.evaluation.data} data)",
        "users": left,
        "simulated": simulated,
        "items": len(ids),
    }
    return simulate.Trials(ids, public, people_of, k), facts


def _at(job: config.Job, epsilon: float) -> config.Job:
    return config.changed(job, {"privacy.total_epsilon": epsilon})


def _point(trials: simulate.Trials, job: config.Job, epsilon: float, seeds: Sequence[int]) -> Point:
    there = _at(job, epsilon)
    recall = simulate.estimate(trials.recalls(there, seeds))
    log.info("epsilon %g: Recall@%d %.4f", epsilon, trials.k, recall.mean)
    return Point(epsilon, recall, trials.items_kept(there, seeds[0]), trials.count_error(there, seeds[0]))


# The least epsilon


def least(reaches: Callable[[float], bool], low: float, high: float, tolerance: float = TOLERANCE) -> float | None:
    """Returns an epsilon in [low, high] that reaches a goal, and of which 1 / (1 + tolerance) doesn't; None: none does.

    By bisection of the logarithm: right where more epsilon never does worse.
    """
    if reaches(low):
        return low
    if not reaches(high):
        return None
    while high > low * (1 + tolerance):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def _answer(
    trials: simulate.Trials, job: config.Job, goal: Goal, points: Sequence[Point], seeds: Sequence[int], fresh: Sequence[int]
) -> tuple[str | None, float | None]:
    low, high = points[0].epsilon, points[-1].epsilon
    if goal.recall is not None:
        wanted = goal.recall
        # The same draws for each epsilon: what differs is its doing.
        reaches = functools.cache(lambda epsilon: bool(trials.recalls(_at(job, epsilon), seeds).mean() >= wanted))
        name = f"Recall@{trials.k} {wanted:g}"
    elif goal.count_error is not None:
        limit = goal.count_error
        reaches = functools.cache(lambda epsilon: trials.count_error(_at(job, epsilon), seeds[0]) <= limit)
        name = f"a count error of {limit:.0%}"
    else:
        return None, None
    epsilon = least(reaches, low, high)
    if epsilon is None:
        return f"no epsilon up to {high:g} reaches {name} with the job's own settings", None
    there = _at(job, epsilon)
    if goal.recall is not None:
        log.info("epsilon %.3g reaches the goal; measuring it on fresh draws", epsilon)
        again = simulate.estimate(trials.recalls(there, fresh))
        measured = f"{again} on draws that the search has not seen"
    else:
        measured = f"{trials.count_error(there, fresh[0]):.1%} on draws that the search has not seen"
    or_less = " or less" if epsilon == low else ""
    return f"epsilon {epsilon:.3g}{or_less} reaches {name}: {measured}", epsilon


# The best settings


def search(
    start: Mapping[str, Any],
    space: Mapping[str, Sequence[Any]],
    objective: Callable[[Mapping[str, Any]], float],
    sweeps: int = 2,
) -> dict[str, Any]:
    """Returns the best of what was tried: one key after the other takes its best value, the others staying.

    Args:
        start: a value for each key; it stays where nothing is better.
        space: what each key may be.
        objective: to be made large; asked once for each setting.
        sweeps: at most so many times over all keys.
    """
    known: dict[tuple[Any, ...], float] = {}

    def worth(setting: Mapping[str, Any]) -> float:
        place = tuple(setting[key] for key in start)
        if place not in known:
            known[place] = objective(setting)
        return known[place]

    best = dict(start)
    for _ in range(sweeps):
        before = dict(best)
        for key, values in space.items():
            for value in values:
                tried = {**best, key: value}
                if worth(tried) > worth(best):
                    best = tried
        if best == before:
            break
    return best


def _best_settings(
    trials: simulate.Trials, job: config.Job, count_error: float | None, seeds: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Any], config.Job]:
    """The best keys at the job's epsilon, the job's own values of the same, and the job with the best.

    Counts and the model share nothing but the budget: first the counts get what the goal needs (without one their own share)
    and the bound that suits it, then the rest is spread for Recall.
    """
    counted = _best_counts(trials, job, count_error, seeds[0])
    # What evaluations get stays theirs.
    left = 1 - job.evaluation.budget_share - counted["counts.budget_share"]
    own_part = job.selection.budget_share / (job.selection.budget_share + job.cooccurrence.budget_share)
    kept = trials.items_kept(job, seeds[0])
    sizes = {max(1, min(round(kept * factor), len(trials.ids), cooccurrence.MAX_ITEMS)) for factor in _KEPT_FACTORS}
    start = {
        "part": own_part,
        "cooccurrence.max_items": job.cooccurrence.max_items,
        "selection.max_partitions_contributed": job.selection.max_partitions_contributed,
    }
    space = {
        "part": _SELECTION_PARTS,
        "cooccurrence.max_items": ["auto", *sorted(sizes)],
        "selection.max_partitions_contributed": _SELECTION_BOUNDS,
    }

    def keys(setting: Mapping[str, Any]) -> dict[str, Any]:
        share = round(left * setting["part"], 6)
        return {
            "selection.budget_share": share,
            "cooccurrence.budget_share": left - share,
            **counted,
            **{key: value for key, value in setting.items() if key != "part"},
        }

    found = keys(search(start, space, lambda setting: float(trials.recalls(config.changed(job, keys(setting)), seeds).mean())))
    log.info("the best settings at epsilon %g are found", job.privacy.total_epsilon)
    own = {name: getattr(getattr(job, name.partition(".")[0]), name.partition(".")[2]) for name in found}
    return found, own, config.changed(job, found)


def _best_counts(trials: simulate.Trials, job: config.Job, count_error: float | None, seed: int) -> dict[str, Any]:
    """Share and bound of the counts: the least share that reaches the error, each with its best bound."""
    shares = (job.counts.budget_share,) if count_error is None else _COUNT_SHARES
    best: dict[str, Any] = {}
    for share in shares:
        shared_out = 1 - job.evaluation.budget_share
        rest = (shared_out - share) / (shared_out - job.counts.budget_share)
        shared = {
            "counts.budget_share": share,
            "selection.budget_share": job.selection.budget_share * rest,
            "cooccurrence.budget_share": job.cooccurrence.budget_share * rest,
        }

        def error(bound: int, shared: Mapping[str, Any] = shared) -> float:
            return trials.count_error(config.changed(job, {**shared, "counts.max_partitions_contributed": bound}), seed)

        bound = min((job.counts.max_partitions_contributed, *_COUNT_BOUNDS), key=error)
        best = {"counts.budget_share": share, "counts.max_partitions_contributed": bound}
        if count_error is not None and error(bound) <= count_error:
            break
    return best


# What is said of it


def as_text(found: Found) -> Iterator[str]:
    """Yields the lines of what was found: the curve, the answer, the settings and the mechanisms."""
    yield _told(found)
    yield ""
    for title, head, rows in _tables(found):
        yield title
        yield from evaluate.table(head, rows)
        yield ""
    yield _advice(found)
    if found.answer is not None:
        yield found.answer + (" (fitted world)" if "made up" in found.facts["users are"] else "")


def write(found: Found, name: str, output: Path) -> None:
    """Writes the page, and beside it the chart as a PNG of the same name."""
    png = chart(found)
    output.with_suffix(".png").write_bytes(png)
    tables = [
        page.section(
            title, page.table(head, rows), *([page.picture(png, "Recall and count error by epsilon")] if not number else [])
        )
        for number, (title, head, rows) in enumerate(_tables(found))
    ]
    answer = (
        []
        if found.answer is None
        else [page.paragraph(page.element("strong", found.answer[0].upper() + found.answer[1:] + "."))]
    )
    output.write_bytes(
        page.document(
            f"Privacy and utility: {name}",
            page.paragraph(_told(found)),
            *answer,
            *tables,
            page.paragraph(_advice(found)),
            page.section("How to read it", *map(page.paragraph, _NOTES)),
        )
    )
    log.info("wrote %s and %s", output, output.with_suffix(".png"))


_NOTES = (
    "Recall@k: of the items hidden from a user's history, how many are among k recommendations, over min(k, items hidden). "
    "Means over draws of users and noise, with 95 % intervals (Student's t) over the draws.",
    "Count error: root mean squared error of the number of users over that number, mean of the 100 most popular items; the "
    "limit on each user's items and the noise are both in it. Items count once, whatever the event types.",
    "A world that is fitted to published figures knows what stands out of their noise and no more: what the noise hides is "
    "made up, with tastes as strong as those that can be seen. Where the truth is known its Recall was up to 11 % too low "
    "or too high (docs/model.md): leave room on both sides of a target.",
)


def chart(found: Found) -> bytes:
    """Returns the privacy-utility curve as a PNG."""

    def curves(own: Sequence[Interval], best: Interval) -> list[charts.Curve]:
        x = [point.epsilon for point in found.points]
        return [
            charts.Curve("the job's settings", x, own),
            charts.Curve("best settings found", [found.facts["epsilon"]], [best]),
        ]

    def exact(error: float) -> Interval:
        return Interval(error, error, error)

    panels = {
        f"Recall@{found.facts['k']}": curves([point.recall for point in found.points], found.best),
        "relative error of counts": curves([exact(point.count_error) for point in found.points], exact(found.best_count_error)),
    }
    return charts.privacy_utility(panels, found.answer_epsilon)


def _told(found: Found) -> str:
    facts = found.facts
    return (
        f"Users are {facts['users are']}: {facts['simulated']} simulated for {facts['users']}, {facts['items']} items; "
        f"{facts['seeds']} draws of users and noise, {facts['fresh seeds']} others for what is chosen. Nothing was charged."
    )


def _advice(found: Found) -> str:
    gain = found.gain
    said = "better than" if gain.low > 0 else "the same as" if gain.low == gain.high == 0 else "not surely better than"
    return (
        f"At epsilon {found.facts['epsilon']:g} the best settings found have Recall@{found.facts['k']} {found.best}, "
        f"the job's own {found.own}: {said} those (difference {gain}), on draws that the search has not seen. "
        f"Count error: {found.best_count_error:.1%}, the job's own {found.own_count_error:.1%}."
    )


def _tables(found: Found) -> list[tuple[str, list[str], list[list[str]]]]:
    k, epsilon, delta = (found.facts[name] for name in ("k", "epsilon", "delta"))
    return [
        (
            "Privacy and utility, with the job's settings",
            ["epsilon", f"Recall@{k}", "items kept", "count error"],
            [[f"{at.epsilon:g}", str(at.recall), f"{at.items_kept}", f"{at.count_error:.1%}"] for at in found.points],
        ),
        (
            f"Best settings found at epsilon {epsilon:g}",
            ["key", "the job's", "best"],
            [[key, _value(own), _value(best)] for key, (own, best) in found.settings.items()],
        ),
        (
            f"Noise of counts of users, if all of epsilon {epsilon:g} and delta {delta:g} were theirs",
            ["mechanism", "standard deviation", "95 % interval"],
            [[each.name, f"{each.sd:.4g}", f"+- {each.half_width:.4g}"] for each in found.noise],
        ),
        (
            f"Items that a private selection would show, if all of epsilon {epsilon:g} and delta {delta:g} were its own",
            ["strategy", "best bound", "items, on average"],
            [[each.name, f"{each.max_partitions_contributed}", f"{each.expected_items:.1f}"] for each in found.choices],
        ),
    ]


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    from pipelines import cli

    cli.main_of("tune")
