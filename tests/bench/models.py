"""All models side by side: Recall@20 and NDCG@20 for users that none of them has seen, by epsilon.

    python -m tests.bench.models --data synthetic --users 10000 --seeds 200 201 202 203 204
    python -m tests.bench.models --data online-retail --path online_retail.parquet --max-items 800 --epsilons 1
    python -m tests.bench.models --data synthetic --users 100000 --epsilons 1 --seeds 200 --models "ensemble (default)"

Data, splits and simulated releases are those of `tests.bench.quality`. Every model of a seed and an epsilon is fitted on the
same release and asked by the same users, so gains over the plain hybrid are paired. "Not kept" is Recall@20 of hidden items
that the matrix wasn't of, ranked among themselves: what features do for items that no co-occurrence is known of.
Held-out users' histories are read: on real data the figures printed here are not differentially private.
"""

import argparse
import collections.abc
import json
import math
import pathlib
import sys
import time
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from models import denoise, evaluation, ranking, scoring, spectral, training
from tests.bench import quality
from transforms.privacy import budget

K = 20
PLAIN = "hybrid, low-rank"
NO_PRIVACY = 1e6
"""The epsilon of "none": the same steps with noise that nobody could see."""
SLOW = ("EASE", "prior", "stacked")
"""In names of models that decompose dense matrices whole: skipped where more than training.MOST_STACKED items are kept."""
SHRINKAGES = (denoise.at_the_edge, denoise.debias, denoise.keep)


def fits() -> dict[str, scoring.Fit]:
    """Returns the models to compare: those of `models.scoring`, and the spectral one with other shrinkages."""
    return {**scoring.BY_NAME, **{f"spectral, {shrink.__name__}": _with_shrinkage(shrink) for shrink in SHRINKAGES}}


def _with_shrinkage(shrink: denoise.Shrink) -> scoring.Fit:
    def fit(released: training.Released, columns: np.ndarray) -> ranking.Scores:
        spectrum = denoise.denoise(released.matrix, released.noise_sd, scoring.DEFAULT.rank, shrink)
        found = spectral.from_spectrum(spectrum, released.matrix, released.noise_sd, released.scores[released.known])
        return ranking.fold_in(found.item, found.history, 0.0, columns[released.known])

    return fit


def read(data: quality.Data, simulated: quality.Release) -> tuple[training.Released, np.ndarray]:
    """Returns what the models are fitted on, and where its items are in the data's matrices."""
    released = training.read(simulated.items, simulated.pairs(), simulated.noise_sd, data.catalogue)
    places = pa.array(data.catalogue.item_ids)
    return released, np.array(pa.compute.index_in(pa.array(released.ids), places))


class Figures(NamedTuple):
    """Means over the held-out users of one seed; `not_kept` over those from whom such an item is hidden (nan: none)."""

    recall: float
    ndcg: float
    not_kept: float


def measure(data: quality.Data, arguments: argparse.Namespace, epsilon: float, seed: int) -> dict[str, Figures]:
    """Returns the figures by model for one seed of the split, the noise and, if synthetic, the world."""
    split, released, columns = simulate(data, arguments, epsilon, seed)
    kept = len(released.known)
    found = {"items kept": Figures(kept, kept, kept)}
    for name, fit in fits().items():
        if arguments.models and name not in arguments.models:
            continue
        if kept > training.MOST_STACKED and any(part in name for part in SLOW):
            print(f"  seed {seed}: {name} is skipped, {kept} items are kept", flush=True)
            continue
        start = time.perf_counter()
        found[name] = figures(fit(released, columns), split, columns[released.known])
        seconds = time.perf_counter() - start
        shown = ", ".join(f"{key} {value:.4f}" for key, value in found[name]._asdict().items())
        print(f"  seed {seed}: {name}: {shown}; {seconds:.1f} s", flush=True)
    return found


def simulate(
    data: quality.Data, arguments: argparse.Namespace, epsilon: float, seed: int
) -> tuple[quality.Split, training.Released, np.ndarray]:
    """Returns users held out, what is released of the others, and where its items are in the data's matrices."""
    held_out = int(quality.HELD_OUT_SHARE * data.rows.shape[0]) if data.real else quality.HELD_OUT_SYNTHETIC
    split = quality.split_users(data.rows, held_out, np.random.default_rng([seed, 0]))
    total = budget.Budget(epsilon, arguments.delta)
    ids = data.catalogue.item_ids
    simulated = quality.release(split.train, ids, total, arguments.max_items, seed, arguments.most_items)
    return split, *read(data, simulated)


def figures(score: ranking.Scores, split: quality.Split, kept: np.ndarray) -> Figures:
    """Returns a model's figures; `kept`: the columns of the items that the matrix is of."""

    def among_others(seen: sp.csr_matrix) -> np.ndarray:
        scores = score(seen)
        scores[:, kept] = -np.inf
        return scores

    others = np.ones(split.held.shape[1], bool)
    others[kept] = False
    not_kept = evaluation.recall_of_items(ranking.rank(among_others, split.history, K), split.held, others)
    lists = ranking.rank(score, split.history, K)
    recall, ndcg = evaluation.recall_at_k(lists, split.held), evaluation.ndcg_at_k(lists, split.held)
    return Figures(*(float(values.mean()) if len(values) else math.nan for values in (recall, ndcg, not_kept)))


def table(runs: list[dict[str, Figures]], base: str) -> collections.abc.Iterator[str]:
    """Yields Markdown rows: model, Figures, the gain in Recall@20 over `base`, if it was run; mean and 95 % interval."""
    for name in runs[0]:
        if name == "items kept":
            yield f"| {name} | {np.mean([run[name].recall for run in runs]):.0f} | | | |"
            continue
        columns = [shown([run[name][which] for run in runs]) for which in range(len(Figures._fields))]
        gain = shown([run[name].recall - run[base].recall for run in runs], "+.4f") if base in runs[0] else ""
        yield f"| {name} | {' | '.join(columns)} | {gain} |"


def shown(values: list[float], form: str = ".4f") -> str:
    mean, width = quality.summary(values)
    return f"{mean:{form}} +- {width:.4f}"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = quality.flags(__doc__, 10_000)
    parser.add_argument("--epsilons", nargs="+", default=["0.5", "1", "2", "4", "none"], help='numbers, or "none"')
    parser.add_argument("--models", nargs="*", help="names; default: all")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/models"))
    return quality.parsed(parser, argv)


def main(argv: list[str]) -> None:
    arguments = parse(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    worlds = {seed: quality.load(arguments, seed) for seed in arguments.seeds}
    for epsilon in arguments.epsilons:
        number = NO_PRIVACY if epsilon == "none" else float(epsilon)
        runs = []
        for seed in arguments.seeds:
            start = time.perf_counter()
            runs.append(measure(worlds[seed], arguments, number, seed))
            print(f"  seed {seed}: {time.perf_counter() - start:.0f} s in all", flush=True)
        print(f"{arguments.data}, epsilon {epsilon}, {len(runs)} seeds\n| model | Recall@{K} | NDCG@{K} | not kept | gain |")
        print("\n".join(["|---|---|---|---|---|", *table(runs, PLAIN)]), flush=True)
        record = {
            "arguments": {k: str(v) for k, v in vars(arguments).items()},
            "epsilon": epsilon,
            "runs": [{name: each._asdict() for name, each in run.items()} for run in runs],
        }
        name = f"{arguments.data}-items{arguments.max_items or 'auto'}-eps{epsilon}.json"
        (arguments.output / name).write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
