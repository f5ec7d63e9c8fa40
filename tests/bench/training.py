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


def moved(U: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Tastes a window later: so large a share of them, by norm, is new."""
    return (1 - share**2) ** 0.5 * U + share * tastes(len(U), rng)


def train(
    window: tuple[pa.Table, pa.Table, float], public: Catalogue, settings: training.Settings, before: pa.Table | None
) -> tuple[training.Trained, float]:
    """Trains from the tables on; returns the model and the seconds."""
    start = time.perf_counter()
    trained = training.train(training.read(*window, public), public, settings, before=before)
    return trained, time.perf_counter() - start


def some_histories(items: int, rng: np.random.Generator) -> np.ndarray:
    """Of 2,000 users, 20 items each, by popularity."""
    popularity = (np.arange(items) + 10.0) ** -0.8
    return rng.choice(items, (2_000, 20), p=popularity / popularity.sum())


def error(trained: training.Trained, U: np.ndarray, rng: np.random.Generator) -> float:
    """How far 2,000 users' scores are from those by the true tastes: 1 less their mean correlation."""
    histories = some_histories(len(U), rng)
    found = (
        tables.vectors(trained.embeddings["history_embedding"])[histories].mean(1)
        @ tables.vectors(trained.embeddings["embedding"]).T
    )
    true = (U[histories] / (np.linalg.norm(U, axis=1) ** 2)[histories, None]).mean(1) @ U.T
    return float(1 - np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(found, true, strict=True)]))


def stays(first: training.Trained, second: training.Trained, rng: np.random.Generator) -> float:
    """The mean cosine between a user's vectors of two versions."""
    old, new = (tables.vectors(trained.embeddings["history_embedding"]) for trained in (first, second))
    histories = some_histories(len(old), rng)
    width = min(old.shape[1], new.shape[1])
    users = [side[:, :width][histories].mean(1) for side in (old, new)]
    return float(np.mean((users[0] * users[1]).sum(1) / np.prod([np.linalg.norm(side, axis=1) for side in users], axis=0)))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=training.Settings().epochs)
    parser.add_argument("--noise-edge", type=float, default=0.01, help="of the largest eigenvalue")
    parser.add_argument("--moved", type=float, default=0.2, help="how much of the tastes is new in the second window")
    arguments = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    public, U = catalogue(arguments.items, rng), tastes(arguments.items, rng)
    settings = dataclasses.replace(training.Settings(), rank=arguments.rank, epochs=arguments.epochs)
    first, seconds = train(window(U, arguments.noise_edge, rng), public, settings, None)
    print(
        f"first window, from nothing: {seconds:.1f} s, {tables.vectors(first.embeddings['embedding']).shape[1]} dimensions",
        flush=True,
    )
    U = moved(U, arguments.moved, rng)
    second = window(U, arguments.noise_edge, rng)
    for name, before in (("from nothing", None), ("from the version before", first.embeddings)):
        trained, seconds = train(second, public, settings, before)
        print(
            f"second window, {name}: {seconds:.1f} s, error {error(trained, U, np.random.default_rng(1)):.4f}, "
            f"cosine of a user's vectors {stays(first, trained, np.random.default_rng(2)):.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
