"""Releases that are none: users in memory, real or made up, and what a job would make of them with other settings.

Exact sums by the release's own functions, noise of the job's own size but from a seed, the job's own model: the same seed gives
the same figures, and two settings that are compared have the same users and the same draws. Nothing is kept or charged.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from scipy import stats

from data import tables
from data.catalogue import Catalogue
from models import evaluation, ranking, splits, training
from pipelines import config, plan
from transforms.privacy import budget, noise
from transforms.release import cooccurrence, selection

ASKED = 2_000
"""Most users who are held out and asked."""
COUNTED = 100
"""Of the most popular items, those whose counts are judged."""


class People(NamedTuple):
    """Users as rows of weights on items, csr (n_users, n_items): those in training, and of the others what is shown and hidden.

    `stand_for` is how many users of the job each of those in training stands for.
    """

    train: sp.csr_matrix
    history: sp.csr_matrix
    hidden: sp.csr_matrix
    stand_for: float


def estimate(values: Sequence[float] | np.ndarray) -> evaluation.Interval:
    """Returns the mean of the figures of some seeds and its 95 % interval (Student's t): the mean itself for a single seed."""
    n, mean = len(values), float(np.mean(values))
    margin = 0.0 if n < 2 else float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return evaluation.Interval(mean, mean - margin, mean + margin)


def hold_out(rows: sp.csr_matrix, asked: int, stand_for: float, seed: int) -> People:
    """Splits users: the last `asked` rows are held out, and of their items one in five is hidden.

    Args:
        rows: (n_users, n_items).
        asked: at most; of those with fewer than five items nothing can be hidden, and they aren't asked.
        stand_for: see People.
        seed: of what is hidden.
    """
    train, others = rows[:-asked], rows[-asked:].tocoo()
    met = splits.first_meetings(others.row.astype(np.uint64), others.col.astype(np.int64), np.zeros(others.nnz, np.int64))
    split = splits.of_users(met, np.ones(len(met.user), bool), seed)
    users = np.unique(met.user[split.hidden])
    shown = [splits.matrix(met, part, users, rows.shape[1]) for part in (split.history, split.hidden)]
    return People(train, shown[0], shown[1], stand_for)


@dataclasses.dataclass
class Trials:
    """Simulated releases of one population under any settings of one job.

    Attributes:
        ids: of the items, the columns of all matrices.
        public: the job's catalogue; None: items are selected privately.
        people_of: the users of a seed.
        k: recommendations a user.
    """

    ids: pa.Array
    public: Catalogue | None
    people_of: Callable[[int], People]
    k: int = 20
    _people: dict[int, People] = dataclasses.field(default_factory=dict)

    def people(self, seed: int) -> People:
        """Returns the users of a seed; drawn once."""
        if seed not in self._people:
            self._people[seed] = self.people_of(seed)
        return self._people[seed]

    def recalls(self, job: config.Job, seeds: Sequence[int]) -> np.ndarray:
        """Returns Recall@k of the job's model for each seed, (n_seeds,): a mean over the users who are asked."""
        return np.array([self._recall(job, seed) for seed in seeds])

    def items_kept(self, job: config.Job, seed: int) -> int:
        """Returns how many items the matrix of a simulated release has."""
        people = self.people(seed)
        return len(cooccurrence.kept_items(_items(self._planned(job, people), people.train, self.ids, seed)))

    def count_error(self, job: config.Job, seed: int) -> float:
        """Returns the relative error of the counts of users of the COUNTED most popular items, by formula.

        The mean of root mean squared error over users of the item: what the bound on each user's items leaves out, and the
        noise. Items count once, whatever the event types.
        """
        people = self.people(seed)
        bound = job.counts.max_partitions_contributed
        sizes = np.diff(people.train.indptr)
        counted = np.repeat(np.minimum(1, bound / np.maximum(sizes, 1)), sizes)
        users, bounded = (
            people.stand_for * np.bincount(people.train.indices, each, minlength=len(self.ids))
            for each in (np.ones(len(counted)), counted)
        )
        best = np.argsort(-users, kind="stable")[:COUNTED]
        best = best[users[best] > 0]
        noise_sd = plan.plan(job, self._public_ids).mechanisms[budget.COUNTS_USERS].noise_sd
        return float((np.hypot(users - bounded, noise_sd)[best] / users[best]).mean())

    @property
    def _public_ids(self) -> pa.Array | None:
        return None if self.public is None else self.ids

    def _planned(self, job: config.Job, people: People) -> plan.Plan:
        return _for_fewer(plan.plan(job, self._public_ids), people.stand_for)

    def _recall(self, job: config.Job, seed: int) -> float:
        people = self.people(seed)
        score = _model(job, self._planned(job, people), people.train, self.ids, self.public, seed)
        lists = ranking.rank(score, people.history, self.k)
        return float(evaluation.recall_at_k(lists, people.hidden).mean())


def _for_fewer(planned: plan.Plan, stand_for: float) -> plan.Plan:
    """The plan with as little noise as fewer users have: signal over noise stays.

    The sums of N users and their noise, both divided by s, are what N/s users give, but for those users' own chance: it is s
    times as large in variance. So fewer users foretell a little less than there will be, never more.
    """
    mechanisms = {
        name: dataclasses.replace(each, noise_multiplier=each.noise_multiplier / stand_for)
        for name, each in planned.mechanisms.items()
    }
    privacy = planned.job.privacy
    users = max(1, round(privacy.expected_users / stand_for))
    job = planned.job.model_copy(update={"privacy": privacy.model_copy(update={"expected_users": users})})
    return dataclasses.replace(planned, job=job, mechanisms=mechanisms)


def _items(planned: plan.Plan, rows: sp.csr_matrix, ids: pa.Array, seed: int) -> pa.Table:
    """ITEMS as a release of these users would have them."""
    params = plan.selection_params(planned)
    sums = selection.exact_scores(_bounded(rows, params.max_partitions_contributed, seed))
    drawn = noise.grid_gaussian(len(sums), params.mechanism.noise_sd, selection.GRID_BITS, _key(seed, "selection"))
    there = np.ones(len(sums), bool) if params.public_items is not None else sums > 0
    scores = (sums + drawn) * 2.0**-selection.GRID_BITS
    return selection.choose(ids.filter(pa.array(there)), scores[there], params)


def _bounded(rows: sp.csr_matrix, bound: int, seed: int) -> sp.csr_matrix:
    """At most `bound` of each user's items, chosen at random."""
    sizes = np.diff(rows.indptr)
    if not (sizes > bound).any():
        return rows
    user = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((np.random.default_rng([seed, 3]).random(rows.nnz), user))
    kept = order[np.arange(rows.nnz) - np.repeat(rows.indptr[:-1], sizes) < bound]
    return sp.csr_matrix((rows.data[kept], (user[kept], rows.indices[kept])), shape=rows.shape)


def _pairs(rows: sp.csr_matrix, noise_sd: float, seed: int) -> pa.Table:
    """ITEM_PAIRS of these users, whose columns are the kept items in order of position."""
    sums = cooccurrence.exact_matrix(cooccurrence.quantise_rows(rows))
    row, col = np.triu_indices(len(sums))
    drawn = noise.grid_gaussian(len(row), noise_sd / math.sqrt(2), cooccurrence.GRID_BITS, _key(seed, "cells"))
    diagonal = row == col
    drawn[diagonal] = noise.grid_gaussian(len(sums), noise_sd, cooccurrence.GRID_BITS, _key(seed, "diagonal"))
    cells = (sums[row, col] + drawn) * 2.0**-cooccurrence.GRID_BITS
    return pa.table([row.astype(np.int32), col.astype(np.int32), cells], schema=tables.ITEM_PAIRS)


def _model(
    job: config.Job, planned: plan.Plan, rows: sp.csr_matrix, ids: pa.Array, public: Catalogue | None, seed: int
) -> ranking.Scores:
    """How the job's model of a simulated release ranks."""
    items = _items(planned, rows, ids, seed)
    kept = cooccurrence.kept_items(items)
    columns = {item: number for number, item in enumerate(ids.to_pylist())}
    if not len(kept):
        # By the released scores alone, as `recommend` does without a model.
        return ranking.same_for_all(
            items["score"].to_numpy(), np.array([columns[item] for item in items["item_id"].to_pylist()], np.int64)
        )
    noise_sd = planned.mechanisms[budget.COOCCURRENCE].noise_sd
    pairs = _pairs(rows[:, [columns[item] for item in kept.to_pylist()]], noise_sd, seed)
    released = training.read(items, pairs, noise_sd / math.sqrt(2), public)
    model = training.fit(released, job.model.settings)
    item, history, bias = (
        np.ascontiguousarray(each, np.float32)
        for each in (model.item.representation(), model.history.representation(), model.item_bias())
    )
    return ranking.fold_in(item, history, bias, np.array([columns[name] for name in released.ids]))


def _key(seed: int, what: str) -> bytes:
    """Of noise that protects nobody: from the seed, so that it is the same again."""
    return hashlib.blake2b(f"{seed}|{what}".encode(), digest_size=32).digest()
