"""Training from nothing and from the version before, on released tables of many items: seconds of each stage.

    python -m tests.bench.training --items 20000 --rank 128

The tables are those of a planted world: tastes that fade along a power law, popularity that does too, and Gaussian noise of a
known size. A second window has other noise and slightly other tastes. No event is made: the co-occurrences of so many items
take longer to release than to train on.
"""

import argparse
import dataclasses
import sys
import time

import numpy as np
import pyarrow as pa

from data import tables
from data.catalogue import Catalogue
from models import training

TASTES = 200
GENRES, MAKERS = 40, 2_000


def catalogue(items: int, rng: np.random.Generator) -> Catalogue:
    """A genre and a maker for each item."""
    genres = [[f"g{number}"] for number in rng.integers(0, GENRES, items)]
    makers = [f"m{number}" for number in rng.integers(0, MAKERS, items)]
    table = pa.table({"item_id": _ids(items), "title": _ids(items), "genre": genres, "maker": makers})
    return Catalogue(table, {"genre": "multi", "maker": "categorical"})


def _ids(items: int) -> list[str]:
    return [f"i{number:05d}" for number in range(items)]


def tastes(items: int, rng: np.random.Generator) -> np.ndarray:
    """(items, TASTES): of the popular items more, and the first tastes are the strongest."""
    popularity = (np.arange(items) + 10.0) ** -0.4
    found = rng.normal(size=(items, TASTES)) * (np.arange(TASTES) + 1.0) ** -0.5 * popularity[:, None]
    return found / np.linalg.norm(found)


def window(U: np.ndarray, noise_edge: float, rng: np.random.Generator) -> tuple[pa.Table, pa.Table, float]:
    """ITEMS, ITEM_PAIRS and the noise's standard deviation; the noise's edge is a share of the largest eigenvalue."""
    n = len(U)
    noise_sd = noise_edge * float(np.linalg.norm(U, 2) ** 2) / (2 * n**0.5)
    parts = []
    for row in range(n):
        value = U[row] @ U[row:].T + rng.normal(0, noise_sd, n - row)
        value[0] += (U[row] ** 2).sum()
        columns = [np.full(n - row, row, np.int32), np.arange(row, n, dtype=np.int32), value]
        parts.append(pa.record_batch([pa.array(column) for column in columns], schema=tables.ITEM_PAIRS))
    scores = (np.arange(n) + 10.0) ** -0.8 * n
    items = pa.table([pa.array(_ids(n)), pa.array(scores), pa.array(np.arange(n, dtype=np.int32))], schema=tables.ITEMS)
    return items, pa.Table.from_batches(parts), noise_sd


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=training.Settings().epochs)
    parser.add_argument("--noise-edge", type=float, default=0.01, help="of the largest eigenvalue")
    arguments = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    public, U = catalogue(arguments.items, rng), tastes(arguments.items, rng)
    items, pairs, noise_sd = window(U, arguments.noise_edge, rng)
    settings = dataclasses.replace(training.Settings(), rank=arguments.rank, epochs=arguments.epochs)
    start = time.perf_counter()
    trained = training.train(items, pairs, noise_sd, public, settings)
    print(f"from nothing: {time.perf_counter() - start:.1f} s, {len(trained.embeddings['embedding'][0])} dimensions")


if __name__ == "__main__":
    main(sys.argv[1:])
