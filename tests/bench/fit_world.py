"""Compares the frozen synthetic world with ml-latest-small, and searches for the parameters again.

    python -m tests.bench.fit_world --movielens DIR [--first-seed SEED] [--large USERS] [--search]

The data stay where they are: MovieLens may not be redistributed or used commercially.
"""

import argparse
import collections.abc
import itertools
import pathlib
import time

import numpy as np
import pyarrow.compute as pc
import pyarrow.csv
import scipy.sparse as sp

from data.synthetic import World
from models.ranking import Scores
from tests.bench.quality import Split, recall, split_users

REFERENCE_USERS = 603
"""Users of ml-latest-small with at least `MIN_POSITIVES` ratings of `POSITIVE` or more."""
MIN_POSITIVES = 5
POSITIVE = 4.0
HELD_OUT_SHARE = 0.15
MOST_HELD_OUT = 2_000
LAMBDAS = (30, 100, 200, 400, 1000, 3000, 10_000)
RANKS = (8, 16, 32, 64, 128)
SHRINKS = (1.0, 3.0, 10.0)


def read_movielens(directory: pathlib.Path) -> sp.csr_matrix:
    """Returns the positives as (users, items), only users with `MIN_POSITIVES` and items that any of them has."""
    ratings = pyarrow.csv.read_csv(directory / "ratings.csv")
    ratings = ratings.filter(pc.greater_equal(ratings["rating"], POSITIVE))
    user, item = ratings["userId"].to_numpy(), ratings["movieId"].to_numpy()
    keep = np.bincount(user)[user] >= MIN_POSITIVES
    users, row = np.unique(user[keep], return_inverse=True)
    items, col = np.unique(item[keep], return_inverse=True)
    return sp.csr_matrix((np.ones(len(row), np.int8), (row, col)), shape=(len(users), len(items)))


def gini(interactions: sp.csr_matrix) -> float:
    """Returns the Gini coefficient of users per item over the items that anyone has."""
    users = np.sort(np.bincount(interactions.indices))
    users = users[users > 0].astype(float)
    n = len(users)
    return float((2 * np.arange(1, n + 1) - n - 1) @ users / (n * users.sum()))


def eigenpairs(rows: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Returns vectors (items, r) and values (r,) of rows' co-occurrence, largest first, by its smaller Gram matrix."""
    wide = rows.shape[0] < rows.shape[1]
    values, vectors = np.linalg.eigh((rows @ rows.T if wide else rows.T @ rows).toarray())
    keep = np.flatnonzero(values > 1e-3)[::-1]
    values, vectors = values[keep], vectors[:, keep]
    return (rows.T @ vectors / np.sqrt(values) if wide else vectors).astype(np.float32), values.astype(np.float32)


def ease(vectors: np.ndarray, values: np.ndarray, lam: float) -> Scores:
    """EASE (Steck 2019): B = I - P / diag(P) with P = (X'X + lam I)^-1, by the eigenpairs of X'X."""
    share = values / (values + lam)
    diagonal = 1 - vectors**2 @ share
    return lambda history: history.toarray() - (history.toarray() - (history @ vectors * share) @ vectors.T) / diagonal


def spectral(vectors: np.ndarray, values: np.ndarray, rank: int, lam: float) -> Scores:
    """Projects on the top eigenvectors of the row-normalised co-occurrence, shrunk by w / (w + lam)."""
    top, share = vectors[:, :rank], values[:rank] / (values[:rank] + lam)
    return lambda history: (history @ top * share) @ top.T


def recalls(split: Split) -> dict[str, float]:
    """Returns the mean Recall@20 of each setting in the grid and of popularity, for one split."""
    train = split.train.astype(np.float64)
    popular = np.asarray(train.sum(0))
    scores: dict[str, Scores] = {"popularity": lambda history: np.repeat(popular, history.shape[0], axis=0)}
    pairs = eigenpairs(train)
    scores |= {f"EASE lambda {lam}": ease(*pairs, lam) for lam in LAMBDAS}
    lengths = np.maximum(np.diff(train.indptr), 1)
    pairs_of_normalised = eigenpairs(sp.diags(1 / np.sqrt(lengths)) @ train)
    for rank, lam in itertools.product(RANKS, SHRINKS):
        scores[f"spectral rank {rank} shrink {lam:g}"] = spectral(*pairs_of_normalised, rank, lam)
    return {name: recall(score, split) for name, score in scores.items()}


def describe(matrices: collections.abc.Sequence[sp.csr_matrix], splits: int) -> dict[str, float | str]:
    """Returns each statistic: activity over all users, the others averaged over matrices and `splits` splits of each.

    The best setting is the one with the best mean, so it isn't chosen anew for each split.
    """
    activity = np.concatenate([np.diff(matrix.indptr) for matrix in matrices])
    runs = []
    for matrix, i in itertools.product(matrices, range(splits)):
        held_out = min(MOST_HELD_OUT, round(matrix.shape[0] * HELD_OUT_SHARE))
        runs.append(recalls(split_users(matrix, held_out, np.random.default_rng(i))))
    mean = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    popular = mean.pop("popularity")
    best = max(mean, key=lambda name: mean[name])
    return {
        "item Gini": float(np.mean([gini(matrix) for matrix in matrices])),
        "positives per user, mean": float(activity.mean()),
        "positives per user, median": float(np.median(activity)),
        "positives per user, 90th percentile": float(np.quantile(activity, 0.9)),
        "best / popularity Recall@20": mean[best] / popular,
        "popularity Recall@20": popular,
        "best Recall@20": mean[best],
        "best model": best,
    }


def small_worlds(seeds: collections.abc.Iterable[int], samples: int, **parameters: float) -> list[sp.csr_matrix]:
    """Returns `samples` disjoint groups of `REFERENCE_USERS` users from each seed's world."""
    worlds = [World(seed=seed, users=samples * REFERENCE_USERS, **parameters).interactions() for seed in seeds]  # type: ignore[arg-type]
    starts = range(0, samples * REFERENCE_USERS, REFERENCE_USERS)
    return [world[start : start + REFERENCE_USERS] for world in worlds for start in starts]


def print_table(reference: dict[str, float | str], world: dict[str, float | str], name: str) -> None:
    print(f"| statistic | ml-latest-small | {name} | ratio |\n|---|---|---|---|")
    for statistic, theirs in reference.items():
        ours = world[statistic]
        if isinstance(theirs, str) or isinstance(ours, str):
            print(f"| {statistic} | {theirs} | {ours} | |")
        else:
            print(f"| {statistic} | {theirs:.3f} | {ours:.3f} | {ours / theirs:.3f} |")


def search(reference: dict[str, float | str], seeds: collections.abc.Iterable[int]) -> None:
    """Prints how far each point of a grid around the frozen parameters is from the reference, the nearest first."""
    rows = []
    names = ("popularity_power", "popularity_head", "taste_strength")
    for point in itertools.product((2.2, 2.4, 2.6), (0.04, 0.05, 0.06), (2.4, 2.7, 3.0)):
        found = describe(small_worlds(seeds, 1, **dict(zip(names, point, strict=True))), 1)
        ratios = [float(found[key]) / float(reference[key]) for key in ("item Gini", "best / popularity Recall@20")]
        rows.append((max(abs(np.log(ratios))), point, ratios))
    for _, point, ratios in sorted(rows):
        print(dict(zip(names, point, strict=True)), "Gini ratio {:.3f}, Recall ratio {:.3f}".format(*ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--movielens", type=pathlib.Path, required=True, help="the folder with ratings.csv")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of five seeds; 0-4 are for tuning")
    parser.add_argument("--samples", type=int, default=6, help=f"groups of {REFERENCE_USERS} users from each seed")
    parser.add_argument("--large", type=int, default=0, help="describe a world of so many users as well")
    parser.add_argument("--search", action="store_true", help="compare a grid of parameters")
    args = parser.parse_args()
    reference = describe([read_movielens(args.movielens)], splits=20)
    seeds = range(args.first_seed, args.first_seed + 5)
    if args.search:
        search(reference, seeds)
        return
    print_table(reference, describe(small_worlds(seeds, args.samples), splits=2), f"world, {REFERENCE_USERS} users")
    if args.large:
        start = time.monotonic()
        large = World(seed=args.first_seed, users=args.large).interactions()
        print(f"\n{args.large} users drawn in {time.monotonic() - start:.1f} s\n")
        print_table(reference, describe([large], splits=1), f"world, {args.large} users")


if __name__ == "__main__":
    main()
