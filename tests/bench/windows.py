"""What bounding the windows of a user buys: a month of hourly windows on the synthetic world.

    python -m tests.bench.windows --users 100000 --seeds 100 101 102

Each of the T = 720 windows releases counts, item scores and a co-occurrence matrix. Charged one by one, a window has 1/720 of
the month's budget; with `max_windows_contributed` = W it has 1/W, and users are left out of windows after their W-th, as the
contribution book does (the first come). Reported: the error of a window's user counts, that of the month's sums of them, and
Recall@20, for users never seen, of the model trained on the sum of the month's windows.

Noise is seeded; that of T windows' sum is drawn once, with T times the variance.
"""

import argparse
import datetime as dt
import math
import sys
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from data import synthetic, tables
from data.catalogue import Catalogue, FeatureKind
from models import training
from tests.bench import quality
from transforms.privacy import budget
from transforms.release import cooccurrence, selection

WINDOWS = 720
HOUR = 3_600_000_000
SHARES = {budget.SELECTION: 0.08, budget.COUNTS_USERS: 0.06, budget.COUNTS_EVENTS: 0.06, budget.COOCCURRENCE: 0.8}


class Month(NamedTuple):
    """Who met what when: distinct (user, window, item) triples in order, and the month as one row a user.

    The users from number `trained` on are for evaluation alone.
    """

    user: np.ndarray
    window: np.ndarray
    item: np.ndarray
    rows: sp.csr_matrix
    catalogue: Catalogue
    trained: int


def load(seed: int, users: int, items: int) -> Month:
    start = dt.datetime(2025, 6, 1, tzinfo=dt.UTC)
    end = start + dt.timedelta(hours=WINDOWS)
    world = synthetic.World(seed=seed, users=users + 2 * quality.HELD_OUT_SYNTHETIC, items=items, start=start, end=end)
    kinds: dict[str, FeatureKind] = {"title": "text", "genre": "multi", "maker": "categorical", "price": "number"}
    first = int(start.timestamp()) * 1_000_000
    found = []
    for batch in world.events(range(world.chunks)):
        # Ids are a letter and a number.
        user, item = (pc.utf8_slice_codeunits(batch[name], 1).cast(pa.int64()).to_numpy() for name in ("privacy_id", "item_id"))
        window = (batch["event_time"].cast(pa.int64()).to_numpy() - first) // HOUR
        found.append((user * WINDOWS + window) * items + item)
    triples = np.unique(np.concatenate(found))
    pair, item = np.divmod(triples, items)
    user, window = np.divmod(pair, WINDOWS)
    rows = sp.csr_matrix((np.ones(len(user), np.float32), (user, item)), shape=(world.users, items))
    rows.data[:] = 1
    return Month(user, window, item, rows, Catalogue(world.catalogue(), kinds), users)


def first_windows(month: Month, most: int) -> np.ndarray:
    """Which triples lie in one of the first `most` windows of their user, bool."""
    pair = month.user * WINDOWS + month.window
    opens = np.r_[True, pair[1:] != pair[:-1]]
    begins = np.flatnonzero(np.r_[True, month.user[1:] != month.user[:-1]])
    number = np.cumsum(opens)
    place = number - np.repeat(number[begins], np.diff(np.r_[begins, len(pair)]))
    return place < most


def window_counts(month: Month, among: np.ndarray, max_partitions: int) -> np.ndarray:
    """Users of each item in each window, (WINDOWS, n_items), each user bounded to so many items a window."""
    pair = (month.user * WINDOWS + month.window)[among]
    begins = np.flatnonzero(np.r_[True, pair[1:] != pair[:-1]])
    place = np.arange(len(pair)) - np.repeat(begins, np.diff(np.r_[begins, len(pair)]))
    n_items = month.rows.shape[1]
    cell = (month.window * n_items + month.item)[among][place < max_partitions]
    return np.bincount(cell, minlength=WINDOWS * n_items).reshape(WINDOWS, n_items)


def measure(month: Month, arguments: argparse.Namespace, most: int | None, seed: int) -> dict[str, float]:
    """One way of charging: None charges every window in full to everybody."""
    rng = np.random.default_rng([seed, 2])
    split = quality.split_users(month.rows[month.trained :], quality.HELD_OUT_SYNTHETIC, np.random.default_rng([seed, 0]))
    is_trained = month.user < month.trained
    among = is_trained & (first_windows(month, most) if most else True)
    total = budget.Budget(arguments.epsilon, arguments.delta)
    factor = math.sqrt(most or WINDOWS)
    sigma = {name: factor * each for name, each in budget.noise_multipliers(total, SHARES).items()}

    exact = window_counts(month, is_trained, month.rows.shape[1])
    noisy = window_counts(month, among, arguments.max_partitions) + rng.normal(
        0, sigma[budget.COUNTS_USERS] * math.sqrt(arguments.max_partitions), exact.shape
    )
    results = {
        "left out": 1 - among.sum() / is_trained.sum(),
        "error of a window's count": math.sqrt(np.mean((noisy - exact) ** 2)),
        "error of the month's count": math.sqrt(np.mean((noisy.sum(0) - exact.sum(0)) ** 2)),
        "mean count a month": float(exact.sum(0).mean()),
    }

    pair, place = np.unique((month.user * WINDOWS + month.window)[among], return_inverse=True)
    visits = sp.csr_matrix((np.ones(len(place)), (place, month.item[among])), shape=(len(pair), exact.shape[1]))
    scores = selection.exact_scores(visits) * 2.0**-selection.GRID_BITS
    scores += rng.normal(0, sigma[budget.SELECTION] * math.sqrt(WINDOWS), len(scores))
    matrix = cooccurrence.exact_matrix(cooccurrence.quantise_rows(visits)) * 2.0**-cooccurrence.GRID_BITS
    sd = sigma[budget.COOCCURRENCE] * math.sqrt(WINDOWS)
    upper = np.triu(rng.normal(0, sd / math.sqrt(2), matrix.shape), 1)
    matrix += upper + upper.T + np.diag(rng.normal(0, sd, len(matrix)))
    order = np.argsort(-scores, kind="stable")
    columns = [
        pa.array([month.catalogue.item_ids[i] for i in order]),
        pa.array(scores[order]),
        pa.array(np.arange(len(order), dtype=np.int32)),
    ]
    released = quality.Release(pa.table(columns, schema=tables.ITEMS), matrix[np.ix_(order, order)], sd / math.sqrt(2))
    data = quality.Data(month.rows, month.catalogue, real=False)
    for name, score in quality.private_models(data, released, [training.Settings.epochs], seed):
        results[f"Recall@20, {name}"] = quality.recall(score, split)
    return results


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--delta", type=float, default=1e-6)
    parser.add_argument("--max-partitions", type=int, default=10, help="L0 of the counts")
    parser.add_argument("--most", type=int, nargs="*", default=[6, 12, 24, 48], help="max_windows_contributed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    arguments = parser.parse_args(argv)
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in arguments.seeds:
        month = load(seed, arguments.users, arguments.items)
        visits = len(np.unique(month.user * WINDOWS + month.window)) / month.rows.shape[0]
        print(f"seed {seed}: {len(month.user)} events, a user is in {visits:.1f} windows", flush=True)
        for most in (None, *arguments.most):
            name = f"W = {most}" if most else f"all {WINDOWS} charged"
            runs.setdefault(name, []).append(measure(month, arguments, most, seed))
    for name, found in runs.items():
        print(name)
        for key in found[0]:
            mean, width = quality.summary([run[key] for run in found])
            print(f"  {key:32} {mean:12.4f} +- {width:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
