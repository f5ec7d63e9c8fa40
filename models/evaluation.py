"""Ranking quality for users that the model has never seen: fold in a part of their items, find the rest again."""

import collections.abc
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

Scores = collections.abc.Callable[[sp.csr_matrix], np.ndarray]
"""Histories (n_users, n_items) in, scores (n_users, n_items) out."""


class Split(NamedTuple):
    """Strong generalisation: whole users are held out. All matrices are (n_users, n_items)."""

    train: sp.csr_matrix
    history: sp.csr_matrix
    held: sp.csr_matrix


def split_users(
    interactions: sp.csr_matrix,
    held_out_users: int,
    rng: np.random.Generator,
    min_items: int = 5,
    held_share: float = 0.2,
) -> Split:
    """Takes users with at least `min_items` items out of training and hides `held_share` of each one's items.

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


def recall_at_k(score: Scores, history: sp.csr_matrix, held: sp.csr_matrix, k: int = 20, batch: int = 1000) -> np.ndarray:
    """Returns each user's Recall@k, shape (n_users,): hits in the top k over min(k, items held); history left out."""
    recalls = []
    for start in range(0, history.shape[0], batch):
        seen, wanted = history[start : start + batch], held[start : start + batch]
        scores = np.array(score(seen), dtype=np.float32)
        scores[seen.nonzero()] = -np.inf
        top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        hits = np.take_along_axis(wanted.astype(bool).toarray(), top, axis=1).sum(1)
        recalls.append(hits / np.minimum(k, np.diff(wanted.indptr)))
    return np.concatenate(recalls)
