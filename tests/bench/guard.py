"""What the registry's score tells: beside Recall@20, of good and of spoilt models; and how much of it is noise.

    python -m tests.bench.guard --data synthetic --users 10000 --items 1000 --epsilon 1

Data, splits and simulated releases are those of `tests.bench.quality`. Candidates are fitted on half of a release; the active
model is the default one, of another release (same users, other noise), taken as it is: so "default" would be 0 but for the
noise and for what the half costs. Beside it what was not taken for a score: the mean sum of the cells of 20 items' lists.
On real data these figures are not differentially private.
"""

import argparse
import os
import pathlib
import sys

import numpy as np

from models import agreement, evaluation, ranking, training
from tests.bench import models, quality
from transforms.privacy import budget

CANDIDATES = {
    "stacked": training.Settings(signal="stacked"),
    "default": training.Settings(),
    **{f"rank {rank}": training.Settings(rank=rank) for rank in (16, 8, 4, 2, 1)},
    "learning rate 0.5, 5 epochs": training.Settings(learning_rate=0.5, epochs=5),
}
SPOILT = {"a quarter of the items shuffled": 0.25, "all items shuffled": 1.0}


def _cells(vectors: agreement.Vectors, split: agreement.Halves) -> float:
    scores = vectors.history @ vectors.item.T
    np.fill_diagonal(scores, -np.inf)
    return float(np.take_along_axis(split.second, ranking.best(scores, 20), axis=1).sum() / len(scores))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["synthetic", "online-retail"], default="synthetic")
    parser.add_argument("--path", type=pathlib.Path)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=1_000)
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--most-items", type=int, default=400)
    parser.add_argument("--seed", type=int, default=200)
    given = parser.parse_args(argv)
    data, rng = quality.load(given, given.seed), np.random.default_rng(given.seed)
    held_out = int(quality.HELD_OUT_SHARE * data.rows.shape[0]) if data.real else quality.HELD_OUT_SYNTHETIC
    users = quality.split_users(data.rows, held_out, rng)
    total, ids = budget.Budget(given.epsilon, 1e-6), data.catalogue.item_ids
    before, now = (
        models.read(data, quality.release(users.train, ids, total, None, given.seed + draw, given.most_items))
        for draw in (1, 0)
    )
    released, columns = now
    to_fit, split = agreement.halves(released)
    names = [released.ids[row] for row in released.known]
    place = {name: row for row, name in enumerate(before[0].ids)}
    active = agreement.vectors_of(training.fit(before[0], training.Settings())).take(np.array([place[name] for name in names]))
    fitted = {name: agreement.vectors_of(training.fit(to_fit, how)) for name, how in CANDIDATES.items()}
    for name, share in SPOILT.items():
        order = np.arange(len(released.ids))
        some = rng.choice(released.known, round(share * len(released.known)), replace=False)
        order[some] = rng.permutation(some)
        fitted[name] = fitted["default"].take(order)
    print(f"{given.data}, epsilon {given.epsilon:g}: {len(names)} items, load {os.getloadavg()[0]:.0f}")
    print("| candidate | Recall@20 | score | against the active, % | noise of that, % | sum of cells, % |")
    print("|---|---|---|---|---|---|")
    for name, vectors in fitted.items():
        found = agreement.compare(vectors.take(released.known), active, split)
        lists = ranking.rank(ranking.fold_in(*vectors, 0.0, columns), users.history, 20)
        recall = evaluation.recall_at_k(lists, users.held).mean()
        percent = 100 / found.other
        cells = _cells(vectors.take(released.known), split) / _cells(active, split) - 1
        difference, noise = (found.one - found.other) * percent, (found.high - found.low) / 2 * percent
        print(f"| {name} | {recall:.3f} | {found.one:.4f} | {difference:+.1f} | +- {noise:.1f} | {100 * cells:+.1f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
