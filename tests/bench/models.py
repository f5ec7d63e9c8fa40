"""All models side by side: Recall@20 and NDCG@20 for users that none of them has seen, by epsilon.

    python -m tests.bench.models --data synthetic --users 10000 --seeds 200 201 202 203 204
    python -m tests.bench.models --data online-retail --path online_retail.parquet --max-items 800 --epsilons 1

Data, splits and simulated releases are those of `tests.bench.quality`. Every model of a seed and an epsilon is fitted on the
same release and asked by the same users, so gains over the default are paired. Held-out users' histories are read: on real
data the figures printed here are not differentially private.
"""

import argparse
import collections.abc
import json
import pathlib
import sys
import time

import numpy as np
import pyarrow as pa

from models import denoise, evaluation, ranking, scoring, spectral, training
from tests.bench import quality
from transforms.privacy import budget
from transforms.release import cooccurrence

K = 20
PRESENT = "hybrid, low-rank (default)"
NO_PRIVACY = 1e6
"""The epsilon of "none": the same steps with noise that nobody could see."""
SHRINKAGES = (denoise.at_the_edge, denoise.debias, denoise.keep)


def fits() -> dict[str, scoring.Fit]:
    """Returns the models to compare: those of `models.scoring`, and the spectral one with other shrinkages."""
    return {**scoring.BY_NAME, **{f"spectral, {shrink.__name__}": _with_shrinkage(shrink) for shrink in SHRINKAGES}}


def _with_shrinkage(shrink: denoise.Shrink) -> scoring.Fit:
    def fit(released: training.Released, columns: np.ndarray) -> ranking.Scores:
        spectrum = denoise.denoise(released.matrix, released.noise_sd, scoring.DEFAULT.rank, shrink)
        found = spectral.from_spectrum(spectrum, released.matrix, released.scores[released.known])
        return ranking.fold_in(found.item, found.history, 0.0, columns[released.known])

    return fit


def read(data: quality.Data, simulated: quality.Release) -> tuple[training.Released, np.ndarray]:
    """Returns what the models are fitted on, and where its items are in the data's matrices."""
    released = training.read(simulated.items, simulated.pairs(), simulated.noise_sd, data.catalogue)
    places = pa.array(data.catalogue.item_ids)
    return released, np.array(pa.compute.index_in(pa.array(released.ids), places))


def measure(data: quality.Data, arguments: argparse.Namespace, epsilon: float, seed: int) -> dict[str, tuple[float, float]]:
    """Returns Recall@20 and NDCG@20 by model for one seed of the split, the noise and, if synthetic, the world."""
    held_out = int(quality.HELD_OUT_SHARE * data.rows.shape[0]) if data.real else quality.HELD_OUT_SYNTHETIC
    split = quality.split_users(data.rows, held_out, np.random.default_rng([seed, 0]))
    total = budget.Budget(epsilon, arguments.delta)
    ids = data.catalogue.item_ids
    simulated = quality.release(split.train, ids, total, arguments.max_items, seed, arguments.most_items)
    released, columns = read(data, simulated)
    found = {"items kept": (float(len(released.known)), float(len(released.known)))}
    for name, fit in fits().items():
        if arguments.models and name not in arguments.models:
            continue
        start = time.perf_counter()
        lists = ranking.rank(fit(released, columns), split.history, K)
        recall, ndcg = evaluation.recall_at_k(lists, split.held), evaluation.ndcg_at_k(lists, split.held)
        found[name] = float(recall.mean()), float(ndcg.mean())
        print(f"  seed {seed}: {name} {recall.mean():.4f} {ndcg.mean():.4f}, {time.perf_counter() - start:.1f} s", flush=True)
    return found


def table(runs: list[dict[str, tuple[float, float]]]) -> collections.abc.Iterator[str]:
    """Yields Markdown rows: model, Recall@20, NDCG@20, the gain in Recall@20 over the default; mean and 95 % interval."""
    for name in runs[0]:
        recalls, ndcgs = ([run[name][which] for run in runs] for which in (0, 1))
        if name == "items kept":
            yield f"| {name} | {np.mean(recalls):.0f} | | |"
            continue
        gain = shown([run[name][0] - run[PRESENT][0] for run in runs], "+.4f") if PRESENT in runs[0] else ""
        yield f"| {name} | {shown(recalls)} | {shown(ndcgs)} | {gain} |"


def shown(values: list[float], form: str = ".4f") -> str:
    mean, width = quality.summary(values)
    return f"{mean:{form}} +- {width:.4f}"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["synthetic", "movielens", "online-retail"], default="synthetic")
    parser.add_argument("--path", type=pathlib.Path, help="MovieLens folder, or Online Retail's Parquet file")
    parser.add_argument("--users", type=int, default=10_000, help="of the synthetic world, those held out not counted")
    parser.add_argument("--items", type=int, default=5_000, help="of the synthetic world")
    parser.add_argument("--epsilons", nargs="+", default=["0.5", "1", "2", "4", "none"], help='numbers, or "none"')
    parser.add_argument("--delta", type=float, default=1e-6)
    parser.add_argument("--max-items", type=int, help="kept for co-occurrence; default: the product's own rule")
    parser.add_argument("--most-items", type=int, default=cooccurrence.MAX_ITEMS, help="that the rule may keep")
    parser.add_argument("--models", nargs="*", help="names; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102], help="0 to 4 are for tuning")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/models"))
    arguments = parser.parse_args(argv)
    if arguments.data != "synthetic" and arguments.path is None:
        parser.error(f"--data {arguments.data} needs --path")
    return arguments


def main(argv: list[str]) -> None:
    arguments = parse(argv)
    if arguments.data != "synthetic":
        print("For research only: these figures read real users' histories and are not differentially private.")
    arguments.output.mkdir(parents=True, exist_ok=True)
    worlds = {seed: quality.load(arguments, seed) for seed in arguments.seeds}
    for epsilon in arguments.epsilons:
        number = NO_PRIVACY if epsilon == "none" else float(epsilon)
        runs = [measure(worlds[seed], arguments, number, seed) for seed in arguments.seeds]
        print(f"{arguments.data}, epsilon {epsilon}, {len(runs)} seeds\n| model | Recall@{K} | NDCG@{K} | gain in Recall |")
        print("\n".join(["|---|---|---|---|", *table(runs)]), flush=True)
        record = {"arguments": {k: str(v) for k, v in vars(arguments).items()}, "epsilon": epsilon, "runs": runs}
        name = f"{arguments.data}-items{arguments.max_items or 'auto'}-eps{epsilon}.json"
        (arguments.output / name).write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
