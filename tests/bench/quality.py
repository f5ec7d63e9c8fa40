"""How good private recommendations are: Recall@20 for users the models have never seen.

    python -m tests.bench.quality --data synthetic --users 100000 --items 5000 --epsilon 1 --delta 1e-6 --seeds 100 101 102
    python -m tests.bench.quality --data movielens --path ml-latest-small --epsilon 4 --seeds 100 101 102

The release is made by the product's own plain functions, with seeded noise in place of the operating system's; the models
are trained by `models.training` on the released tables. Held-out users' histories are read to score them: on real data the
figures printed here are not differentially private.
"""

import argparse
import collections.abc
import dataclasses
import json
import math
import pathlib
import sys
import time
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import scipy.linalg
import scipy.sparse as sp
from scipy import stats

from data import synthetic, tables
from data.catalogue import Catalogue, FeatureKind
from models import ease, evaluation, ranking, scoring, spectral, training
from transforms.privacy import budget
from transforms.release import cooccurrence, selection

SHARES = {budget.SELECTION: 0.08, "counts": 0.12, budget.COOCCURRENCE: 0.8}
HELD_OUT_SYNTHETIC = 2_000
HELD_OUT_SHARE = 0.15
EASE_PENALTIES = (30, 100, 300, 1_000, 3_000, 10_000)
FACTOR_RANKS = (64, 128)
LOW_RANK = 512
LOW_RANK_PENALTIES = (30, 100, 300)


class Data(NamedTuple):
    """Users' items, their public catalogue and whether the users are real."""

    rows: sp.csr_matrix
    catalogue: Catalogue
    real: bool


class Split(NamedTuple):
    """Whole users are held out. All matrices are (n_users, n_items)."""

    train: sp.csr_matrix
    history: sp.csr_matrix
    held: sp.csr_matrix


class Release(NamedTuple):
    """What leaves the privacy boundary: ITEMS, the noisy matrix of the kept ones and the noise off its diagonal."""

    items: pa.Table
    matrix: np.ndarray
    noise_sd: float

    def pairs(self) -> pa.Table:
        row, column = np.triu_indices(len(self.matrix))
        cells = [row.astype(np.int32), column.astype(np.int32), self.matrix[row, column]]
        return pa.table([pa.array(cell) for cell in cells], schema=tables.ITEM_PAIRS)


def load_synthetic(seed: int, users: int, items: int) -> Data:
    world = synthetic.World(seed=seed, users=users + HELD_OUT_SYNTHETIC, items=items)
    kinds: dict[str, FeatureKind] = {"title": "text", "genre": "multi", "maker": "categorical", "price": "number"}
    return Data(world.interactions().astype(np.float32), Catalogue(world.catalogue(), kinds), real=False)


def load_movielens(path: pathlib.Path) -> Data:
    """Ratings of 4 and more of an unpacked MovieLens archive."""
    ratings = pyarrow.csv.read_csv(path / "ratings.csv")
    rows, ids = _matrix(ratings.filter(pc.greater_equal(ratings["rating"], 4)), "userId", "movieId")
    movies = pyarrow.csv.read_csv(path / "movies.csv")
    movies = movies.take(pc.index_in(ids, movies["movieId"].combine_chunks()))
    table = pa.table(
        {"item_id": ids.cast(pa.string()), "title": movies["title"], "genre": pc.split_pattern(movies["genres"], "|")}
    )
    return Data(rows, Catalogue(table, {"title": "text", "genre": "multi"}), real=True)


def load_online_retail(path: pathlib.Path) -> Data:
    """Purchases by known customers, cancelled ones left out."""
    table = pq.read_table(path)
    bought = pc.and_(pc.greater(table["Quantity"], 0), pc.invert(pc.starts_with(table["InvoiceNo"], "C")))
    rows, ids = _matrix(table.filter(pc.and_(pc.is_valid(table["CustomerID"]), bought)), "CustomerID", "StockCode")
    titles = table["Description"].take(pc.index_in(ids, table["StockCode"].combine_chunks()))
    catalogue = pa.table({"item_id": ids.cast(pa.string()), "title": titles})
    return Data(rows, Catalogue(catalogue, {"title": "text"}), real=True)


def _matrix(table: pa.Table, user: str, item: str) -> tuple[sp.csr_matrix, pa.Array]:
    users = table[user].combine_chunks().dictionary_encode().indices.to_numpy()
    items = table[item].combine_chunks().dictionary_encode()
    rows = sp.csr_matrix((np.ones(len(users), np.float32), (users, items.indices.to_numpy())))
    rows.data[:] = 1
    return rows, items.dictionary


def release(
    rows: sp.csr_matrix,
    ids: list[str],
    total: budget.Budget,
    max_items: int | None,
    seed: int,
    most_items: int = cooccurrence.MAX_ITEMS,
) -> Release:
    """Simulates a release of counts, selection and co-occurrence with the noise of the budget's shares."""
    rng = np.random.default_rng([seed, 1])
    sigmas = budget.noise_multipliers(total, SHARES)
    exact = selection.exact_scores(rows) * 2.0**-selection.GRID_BITS
    scores = exact + rng.normal(0, sigmas[budget.SELECTION], len(exact))
    order = np.argsort(-scores, kind="stable")
    sigma = sigmas[budget.COOCCURRENCE]
    kept = max_items or selection.items_to_keep(scores[order], sigma / math.sqrt(2), rows.shape[0], most_items)
    quantised = cooccurrence.quantise_rows(rows[:, order[:kept]].tocsr())
    matrix = cooccurrence.exact_matrix(quantised) * 2.0**-cooccurrence.GRID_BITS
    upper = np.triu(rng.normal(0, sigma / math.sqrt(2), matrix.shape), 1)
    matrix += upper + upper.T + np.diag(rng.normal(0, sigma, kept))
    position = np.arange(len(order), dtype=np.int32)
    columns = [pa.array([ids[i] for i in order]), pa.array(scores[order]), pa.array(position, mask=position >= kept)]
    return Release(pa.table(columns, schema=tables.ITEMS), matrix, sigma / math.sqrt(2))


def split_users(
    interactions: sp.csr_matrix,
    held_out_users: int,
    rng: np.random.Generator,
    min_items: int = 5,
    held_share: float = 0.2,
) -> Split:
    """Takes users with at least `min_items` items out of training and hides `held_share` of each one's items.

    As `models.splits.by_users`, but with an exact number of users, by the seeds that docs/model.md's figures are of.

    Raises:
        ValueError: fewer than `held_out_users` users have `min_items` items.
    """
    lengths = np.diff(interactions.indptr)
    eligible = np.flatnonzero(lengths >= min_items)
    if len(eligible) < held_out_users:
        raise ValueError(
            f"split_users: held_out_users is {held_out_users}, but only {len(eligible)} users have {min_items} items."
        )
    chosen = np.zeros(len(lengths), bool)
    chosen[rng.choice(eligible, held_out_users, replace=False)] = True
    test = interactions[chosen].tocoo()
    # Rank each user's items in random order; the first share of them is hidden.
    order = np.lexsort((rng.random(test.nnz), test.row))
    sizes = np.bincount(test.row, minlength=test.shape[0])
    rank = np.empty(test.nnz, np.int64)
    rank[order] = np.arange(test.nnz) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    hidden = rank < np.maximum(1, (sizes * held_share).astype(int))[test.row]

    def part(mask: np.ndarray) -> sp.csr_matrix:
        return sp.csr_matrix((test.data[mask], (test.row[mask], test.col[mask])), shape=test.shape)

    return Split(interactions[~chosen], part(~hidden), part(hidden))


def recall(score: ranking.Scores, split: Split, k: int = 20) -> float:
    """Returns the mean Recall@k of the held-out users."""
    return float(evaluation.recall_at_k(ranking.rank(score, split.history, k), split.held).mean())


def private_models(
    data: Data, released: Release, all_epochs: list[int], seed: int, settings: training.Settings = scoring.DEFAULT
) -> collections.abc.Iterator[tuple[str, ranking.Scores]]:
    """Yields names and scores of the models trained on the released tables alone; epochs and seed are put into `settings`."""
    place = {item: column for column, item in enumerate(data.catalogue.item_ids)}
    columns = np.array([place[item] for item in released.items["item_id"].to_pylist()])
    scores = released.items["score"].to_numpy()
    yield "popularity", ranking.same_for_all(scores, columns)
    kept = len(released.matrix)
    closed = spectral.fit(released.matrix, scores[:kept], released.noise_sd)
    yield "spectral, kept items", ranking.fold_in(closed.item, closed.history, 0.0, columns[:kept])
    read = training.read(released.items, released.pairs(), released.noise_sd, data.catalogue)
    for epochs in all_epochs:
        own = dataclasses.replace(settings, epochs=epochs, seed=seed)
        trained = training.train(read, data.catalogue, own).embeddings
        where = np.array([place[item] for item in trained["item_id"].to_pylist()])
        item, history = (tables.vectors(trained[name]) for name in ("embedding", "history_embedding"))
        yield f"{settings.kind}, {epochs} epochs", ranking.fold_in(item, history, trained["bias"].to_numpy(), where)


def public_models(split: Split) -> collections.abc.Iterator[tuple[str, ranking.Scores]]:
    """Yields models without privacy over all items: EASE (Steck 2019) and spectral ones, for each regulariser."""
    rows = split.train.astype(np.float64)
    n = rows.shape[1]
    every = np.arange(n)
    gram = (rows.T @ rows).toarray().astype(np.float32)
    for penalty in EASE_PENALTIES:
        weights = ease.weights(gram, penalty)
        yield f"EASE, penalty {penalty}", ranking.linear(weights, every)
    sizes = np.sqrt(np.maximum(1, np.asarray(rows.sum(1)).ravel()))
    scaled = sp.csr_matrix(sp.diags(1 / sizes) @ rows)
    scores = np.asarray(scaled.sum(0)).ravel()
    gram = (scaled.T @ scaled).toarray()
    for rank in FACTOR_RANKS:
        own = spectral.fit(gram, scores, 0.0, rank)
        yield f"factor model, rank {rank}", ranking.fold_in(own.item, own.history, 0.0, every)
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=(max(0, n - LOW_RANK), n - 1))
    for penalty in LOW_RANK_PENALTIES:
        item = vectors * np.sqrt(np.maximum(values, 0) / (np.maximum(values, 0) + penalty))
        yield f"spectral, penalty {penalty}", ranking.fold_in(item, item, 0.0, every)
        # EASE in closed form on the low-rank matrix: no item recommends itself.
        apart = item / np.maximum(1 - (item**2).sum(1, keepdims=True), 0.05)
        yield f"low-rank EASE, penalty {penalty}", ranking.fold_in(apart, item, 0.0, every)


def measure(data: Data, arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """Returns Recall@20 by model for one seed of the split, the noise and, if synthetic, the world."""
    n_users = data.rows.shape[0]
    held_out = int(HELD_OUT_SHARE * n_users) if data.real else HELD_OUT_SYNTHETIC
    split = split_users(data.rows, held_out, np.random.default_rng([seed, 0]))

    total = budget.Budget(arguments.epsilon, arguments.delta)
    released = release(split.train, data.catalogue.item_ids, total, arguments.max_items, seed, arguments.most_items)
    results = {"items kept": float(len(released.matrix))}
    settings = training.Settings(kind=arguments.kind, signal=arguments.signal)
    for name, scores in private_models(data, released, arguments.epochs, seed, settings):
        results[name] = recall(scores, split)
    print(f"  seed {seed}: " + ", ".join(f"{name} {value:.4f}" for name, value in results.items()), flush=True)
    if arguments.without_privacy:
        public = {name: recall(scores, split) for name, scores in public_models(split)}
        best = max(public, key=lambda name: public[name])
        print(f"  best without privacy, seed {seed}: {best}, {public[best]:.4f}")
        results["without privacy, best"] = public[best]
        best_private = max(value for name, value in results.items() if name.startswith(("spectral", arguments.kind)))
        results["private / without privacy"] = best_private / public[best]
    return results


def summary(values: list[float]) -> tuple[float, float]:
    """Returns the mean and the half width of its 95 % interval (Student's t; nan for one value)."""
    if len(values) < 2:
        return values[0], math.nan
    width = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values)), float(width)


def flags(description: str | None, users: int) -> argparse.ArgumentParser:
    """Returns the flags of all benches of models: whose data, how many items, which seeds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["synthetic", "movielens", "online-retail"], default="synthetic")
    parser.add_argument("--path", type=pathlib.Path, help="MovieLens folder, or Online Retail's Parquet file")
    parser.add_argument("--users", type=int, default=users, help="of the synthetic world, those held out not counted")
    parser.add_argument("--items", type=int, default=5_000, help="of the synthetic world")
    parser.add_argument("--delta", type=float, default=1e-6)
    parser.add_argument("--max-items", type=int, help="kept for co-occurrence; default: the product's own rule")
    parser.add_argument("--most-items", type=int, default=cooccurrence.MAX_ITEMS, help="that the rule may keep")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102], help="0 to 4 are for tuning")
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of benches of one model at one epsilon."""
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--kind", choices=training.CHOICES["kind"], default=training.Settings.kind, help="as model.kind")
    parser.add_argument(
        "--signal", choices=training.CHOICES["signal"], default=training.Settings.signal, help="as model.signal"
    )


def parsed(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Returns the arguments; says what figures of real data are."""
    arguments = parser.parse_args(argv)
    if arguments.data != "synthetic":
        if arguments.path is None:
            parser.error(f"--data {arguments.data} needs --path")
        print("For research only: these figures read real users' histories and are not differentially private.")
    return arguments


def parse(argv: list[str]) -> argparse.Namespace:
    parser = flags(__doc__, 100_000)
    add_model(parser)
    parser.add_argument("--epochs", type=int, nargs="*", default=[0, 1, 3, 10])
    parser.add_argument("--without-privacy", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/quality"))
    return parsed(parser, argv)


def load(arguments: argparse.Namespace, seed: int) -> Data:
    if arguments.data == "movielens":
        return load_movielens(arguments.path)
    if arguments.data == "online-retail":
        return load_online_retail(arguments.path)
    return load_synthetic(seed, arguments.users, arguments.items)


def main(argv: list[str]) -> None:
    arguments = parse(argv)
    runs = []
    for seed in arguments.seeds:
        start = time.perf_counter()
        runs.append(measure(load(arguments, seed), arguments, seed))
        print(f"  seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    table = {name: summary([run[name] for run in runs]) for name in runs[0]}
    print(f"{arguments.data}, epsilon {arguments.epsilon:g}, {len(runs)} seeds: Recall@{20}, mean and 95 % interval")
    for name, (mean, width) in table.items():
        print(f"  {name:32} {mean:10.4f} +- {width:.4f}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    name = f"{arguments.data}-users{arguments.users}-eps{arguments.epsilon:g}.json"
    record = {"arguments": {k: str(v) for k, v in vars(arguments).items()}, "runs": runs, "table": table}
    (arguments.output / name).write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
