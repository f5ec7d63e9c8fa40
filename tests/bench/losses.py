"""What training by each loss adds to the closed-form start: Recall@20 and NDCG@20 after so many epochs.

    python -m tests.bench.losses --data synthetic --users 10000 --epsilon 1 --seeds 200 201 202
    python -m tests.bench.losses --data online-retail --path online_retail.parquet --epsilon 4 --seeds 200 201 202

Pointwise (logistic), pairwise (BPR, WARP, WARP-kOS: LightFM's) and listwise (`tests.bench.listwise`), on the same release,
neighbours and start, asked by the same held-out users. "Not kept" as in `tests.bench.models`. On real data the figures printed
here are not differentially private.
"""

import argparse
import itertools
import pathlib
import sys
import time

import numpy as np
import scipy.sparse as sp

from models import hybrid, ranking, training
from tests.bench import listwise, models, quality
from transforms.release import cooccurrence

LOSSES = ("logistic", "bpr", "warp", "warp-kos", "listwise")


def train(start: hybrid.Model, near: sp.coo_matrix, loss: str, epochs: int, rate: float, seed: int) -> hybrid.Model:
    """Returns the start after `epochs` of that loss."""
    if loss == "listwise":
        return listwise.train(start, near, epochs)
    return hybrid.train(start, near, epochs, rate, seed, loss=loss)  # type: ignore[arg-type]


def measure(data: quality.Data, arguments: argparse.Namespace, seed: int) -> dict[str, models.Figures]:
    """Returns the figures by loss, rate and epochs for one seed; "start": of no epochs."""
    split, released, columns = models.simulate(data, arguments, arguments.epsilon, seed)
    settings = training.Settings(kind=arguments.kind, signal=arguments.signal, epochs=0)
    start = training.fit(released, settings)
    near = training.neighbours(start, released.known, settings.neighbours)

    def figures(model: hybrid.Model) -> models.Figures:
        item, history = model.item.representation(), model.history.representation()
        score = ranking.fold_in(item.astype(np.float32), history.astype(np.float32), model.item_bias(), columns)
        return models.figures(score, split, columns[released.known])

    found = {"start": figures(start)}
    for loss, rate, epochs in itertools.product(LOSSES, arguments.rates, arguments.epochs):
        began = time.perf_counter()
        name = f"{loss}, {epochs}" if loss == "listwise" else f"{loss} at {rate:g}, {epochs}"
        if name in found:
            continue
        found[name] = figures(train(start, near, loss, epochs, rate, seed))
        print(f"  seed {seed}: {name}: {found[name].recall:.4f}; {time.perf_counter() - began:.1f} s", flush=True)
    return found


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["synthetic", "movielens", "online-retail"], default="synthetic")
    parser.add_argument("--path", type=pathlib.Path, help="MovieLens folder, or Online Retail's Parquet file")
    parser.add_argument("--users", type=int, default=10_000, help="of the synthetic world, those held out not counted")
    parser.add_argument("--items", type=int, default=5_000, help="of the synthetic world")
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--delta", type=float, default=1e-6)
    parser.add_argument("--max-items", type=int, help="kept for co-occurrence; default: the product's own rule")
    parser.add_argument("--most-items", type=int, default=cooccurrence.MAX_ITEMS, help="that the rule may keep")
    parser.add_argument("--kind", choices=training.CHOICES["kind"], default=training.Settings.kind, help="as model.kind")
    parser.add_argument(
        "--signal", choices=training.CHOICES["signal"], default=training.Settings.signal, help="as model.signal"
    )
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0003, 0.003])
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102], help="0 to 4 are for tuning")
    arguments = parser.parse_args(argv)
    if arguments.data != "synthetic" and arguments.path is None:
        parser.error(f"--data {arguments.data} needs --path")
    return arguments


def main(argv: list[str]) -> None:
    arguments = parse(argv)
    if arguments.data != "synthetic":
        print("For research only: these figures read real users' histories and are not differentially private.")
    runs = [measure(quality.load(arguments, seed), arguments, seed) for seed in arguments.seeds]
    print(f"{arguments.data}, epsilon {arguments.epsilon:g}, {len(runs)} seeds")
    print("| loss | Recall@20 | NDCG@20 | not kept | gain in Recall over the start |\n|---|---|---|---|---|")
    for name in runs[0]:
        columns = [models.shown([run[name][which] for run in runs]) for which in range(len(models.Figures._fields))]
        gain = models.shown([run[name].recall - run["start"].recall for run in runs], "+.4f")
        print(f"| {name} | {' | '.join(columns)} | {gain} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
