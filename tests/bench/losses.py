"""What training by each loss adds to the closed-form start: Recall@20 and NDCG@20 after so many epochs.

    python -m tests.bench.losses --data synthetic --users 10000 --epsilon 1 --seeds 200 201 202
    python -m tests.bench.losses --data online-retail --path online_retail.parquet --epsilon 4 --seeds 200 201 202

Pointwise (logistic), pairwise (BPR, WARP, WARP-kOS: LightFM's) and listwise (`tests.bench.listwise`), on the same release,
neighbours and start, asked by the same held-out users. "Not kept" as in `tests.bench.models`. On real data the figures printed
here are not differentially private.
"""

import argparse
import itertools
import sys
import time

import numpy as np
import scipy.sparse as sp

from models import hybrid, ranking, training
from tests.bench import listwise, models, quality

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
    parser = quality.flags(__doc__, 10_000)
    quality.add_model(parser)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0003, 0.003])
    return quality.parsed(parser, argv)


def main(argv: list[str]) -> None:
    arguments = parse(argv)
    runs = [measure(quality.load(arguments, seed), arguments, seed) for seed in arguments.seeds]
    print(f"{arguments.data}, epsilon {arguments.epsilon:g}, {len(runs)} seeds")
    print("| loss | Recall@20 | NDCG@20 | not kept | gain in Recall over the start |\n|---|---|---|---|---|")
    print("\n".join(models.table(runs, "start")))


if __name__ == "__main__":
    main(sys.argv[1:])
