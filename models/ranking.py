"""From scores to ranked lists: the best items for each user, those of the user's history left out."""

import collections.abc

import numpy as np
import scipy.sparse as sp

Scores = collections.abc.Callable[[sp.csr_matrix], np.ndarray]
"""Histories (n_users, n_items) in, scores (n_users, n_items) out; -inf: this item can't be recommended."""

NO_ITEM = -1
"""Fills a list up where there are fewer items to recommend than places."""

_USERS_AT_ONCE = 1_000


def fold_in(item: np.ndarray, history: np.ndarray, bias: np.ndarray | float, columns: np.ndarray) -> Scores:
    """Scores as the macro `recommend` does: the mean of the history's embeddings, by the items' own, and the bias.

    Args:
        item: (n, d), of the items to rank.
        history: (n, d), of the items of a history.
        bias: (n,), or one number.
        columns: (n,), where in the matrices these items are; items elsewhere can't be recommended.
    """

    def score(seen: sp.csr_matrix) -> np.ndarray:
        part = seen[:, columns].tocsr()
        lengths = np.maximum(np.asarray(part.sum(1)), 1)
        scores = np.full(seen.shape, -np.inf, np.float32)
        scores[:, columns] = _inner_products((part @ history) / lengths, item) + bias
        return scores

    return score


def _inner_products(rows: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Of rows (m, d) and items (n, d): (m, n)."""
    # For one row BLAS's threads do more harm than good: on a busy machine a hundredfold.
    return np.einsum("id,jd->ij", rows, item) if len(rows) == 1 else rows @ item.T


def linear(weights: np.ndarray, columns: np.ndarray) -> Scores:
    """Scores by the sum of the history's rows of weights.

    Args:
        weights: (n, n), from the items of a history to the items to rank.
        columns: (n,), where in the matrices these items are; items elsewhere can't be recommended.
    """

    def score(seen: sp.csr_matrix) -> np.ndarray:
        scores = np.full(seen.shape, -np.inf, np.float32)
        scores[:, columns] = seen[:, columns] @ weights
        return scores

    return score


def same_for_all(given: np.ndarray, columns: np.ndarray) -> Scores:
    """Scores alike for every user.

    Args:
        given: (n,), of the items to rank.
        columns: (n,), where in the matrices these items are; items elsewhere can't be recommended.
    """

    def score(seen: sp.csr_matrix) -> np.ndarray:
        scores = np.full(seen.shape, -np.inf, np.float32)
        scores[:, columns] = given
        return scores

    return score


def rank(score: Scores, histories: sp.csr_matrix, k: int) -> np.ndarray:
    """Returns each user's k best items, best first, int64 (n_users, k); equal scores by column, NO_ITEM in empty places.

    Args:
        score: see Scores.
        histories: (n_users, n_items), ones; what is in them isn't recommended.
        k: positive.
    """
    return rank_with_scores(score, histories, k)[0]


def rank_with_scores(score: Scores, histories: sp.csr_matrix, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lists of `rank` and the scores in them, float32 (n_users, k), -inf in empty places."""
    lists = np.full((histories.shape[0], k), NO_ITEM, np.int64)
    found = np.full(lists.shape, -np.inf, np.float32)
    width = min(k, histories.shape[1])
    for start in range(0, len(lists), _USERS_AT_ONCE):
        seen = histories[start : start + _USERS_AT_ONCE]
        scores = np.array(score(seen), np.float32)
        scores[seen.nonzero()] = -np.inf
        top = best(scores, width)
        found[start : start + len(top), :width] = np.take_along_axis(scores, top, axis=1)
        lists[start : start + len(top), :width] = top
    return np.where(found > -np.inf, lists, NO_ITEM), found


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Returns the columns of each row's k best, best first, equal scores by column. (rows, k)."""
    if k == 0:
        return np.empty((len(scores), 0), np.int64)
    worst = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    chosen = scores >= worst
    # Where the k-th best has equals: as many of them as fit, the lowest columns first.
    crowded = np.flatnonzero(np.count_nonzero(chosen, axis=1) > k)
    above, equal = scores[crowded] > worst[crowded], scores[crowded] == worst[crowded]
    chosen[crowded] = above | (equal & (np.cumsum(equal, axis=1) <= k - above.sum(1, keepdims=True)))
    columns = chosen.nonzero()[1].reshape(len(scores), k)
    order = np.argsort(-np.take_along_axis(scores, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)
