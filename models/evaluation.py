"""How good ranked lists are: one definition of each metric, over all users at once.

A list is a row of item numbers, best first, as `models.ranking.rank` makes them: int64 (n_users, k), NO_ITEM in empty places,
no item twice. What a list should have had is `held`, a CSR matrix (n_users, n_items) whose stored entries are the hidden items.
Accuracy asks for those; the other metrics ask what the lists are like, whether or not anybody wants them.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from models.ranking import NO_ITEM

ROUNDS = 2_000
"""Bootstrap samples of an interval: its ends then move by some hundredths of its width from seed to seed."""
SLICES = ("head", "torso", "tail")
"""Each has a third of the interactions in training."""
COLD = "cold"

_DRAWS_AT_ONCE = 1 << 22


class Interval(NamedTuple):
    """A mean, over users or over seeds, and the ends of its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def recall_at_k(lists: np.ndarray, held: sp.csr_matrix) -> np.ndarray:
    """Returns hits / min(k, hidden items) of each user, (n_users,), in [0, 1].

    1 for the best list of k there can be, however many items are hidden (Liang et al. 2018, "Variational autoencoders for
    collaborative filtering", equation 8).

    Raises:
        ValueError: nothing is hidden from some user, or the shapes don't fit. So for `ndcg_at_k` and `mrr`.
    """
    hits = _hits(lists, held)
    return hits.sum(1) / np.minimum(lists.shape[1], np.diff(held.indptr))


def ndcg_at_k(lists: np.ndarray, held: sp.csr_matrix) -> np.ndarray:
    """Returns DCG / ideal DCG of each user, (n_users,), in [0, 1]; DCG = sum over hits of 1 / log2(1 + rank).

    Järvelin and Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques", section 2.2, with gain 1 for a hidden
    item, and the discount of Burges et al. 2005, which counts the second rank less than the first. The ideal list is cut at k.
    """
    hits = _hits(lists, held)
    discount = 1 / np.log2(np.arange(2, lists.shape[1] + 2))
    ideal = np.cumsum(discount)[np.minimum(lists.shape[1], np.diff(held.indptr)) - 1]
    # The same sum in another order may be a rounding error larger.
    return np.minimum(hits @ discount / ideal, 1.0)


def mrr(lists: np.ndarray, held: sp.csr_matrix) -> np.ndarray:
    """Returns 1 / rank of each user's first hit, 0 without one, (n_users,), in [0, 1]: its mean is the MRR (Voorhees 1999)."""
    hits = _hits(lists, held)
    return np.where(hits.any(1), 1 / (1 + hits.argmax(1)), 0.0)


def coverage(lists: np.ndarray, n_items: int) -> float:
    """Returns the share of the catalogue's items that are in any list, in [0, 1] (Ge et al. 2010, "Beyond accuracy")."""
    return len(np.unique(lists[lists != NO_ITEM])) / n_items


def novelty(lists: np.ndarray, item_users: np.ndarray, n_users: int) -> np.ndarray:
    """Returns each list's mean self-information in bits, (n_lists,): -log2 of the share of training users with the item.

    Zhou et al. 2010, "Solving the apparent diversity-accuracy dilemma of recommender systems", section "Metrics". An item that
    nobody has counts as one that a single user has. 0 for an empty list.

    Args:
        lists: see above.
        item_users: (n_items,), how many training users have each item.
        n_users: in training.
    """
    return _mean_of_items(lists, np.log2(n_users / np.maximum(item_users, 1)))


def popularity_share(lists: np.ndarray, item_users: np.ndarray, n_users: int) -> np.ndarray:
    """Returns each list's mean share of training users with the item, (n_lists,), in [0, 1]. Arguments as `novelty`.

    The average recommendation popularity (ARP) of Yin et al. 2012, "Challenging the long tail recommendation", over n_users.
    """
    return _mean_of_items(lists, item_users / n_users)


def intra_list_diversity(lists: np.ndarray, vectors: sp.csr_matrix) -> np.ndarray:
    """Returns each list's mean distance of two of its items, 1 - cosine, (n_lists,); 0 for lists of fewer than two.

    In [0, 1] for vectors without negative entries. The mean over pairs of Ziegler et al. 2005, "Improving recommendation lists
    through topic diversification", equation 5, as a distance (Zhang and Hurley 2008, equation 1). Two items of which one has
    no vector (all zeros) have nothing in common: distance 1.

    Args:
        lists: see above.
        vectors: (n_items, d): what makes items alike.
    """
    norms = np.sqrt(np.asarray(vectors.multiply(vectors).sum(1)).ravel())
    unit = sp.csr_matrix(sp.diags(np.divide(1, norms, out=np.zeros(len(norms)), where=norms > 0)) @ vectors)
    chosen = _indicator(lists, vectors.shape[0])
    sums = chosen @ unit
    # |sum of unit vectors|^2 is the sum of all cosines, each pair twice, and of each vector with itself.
    with_itself = chosen @ (norms > 0).astype(float)
    cosines = np.asarray(sums.multiply(sums).sum(1)).ravel() - with_itself
    sizes = (lists != NO_ITEM).sum(1)
    ordered_pairs = sizes * (sizes - 1)
    distance = 1 - cosines / np.maximum(ordered_pairs, 1)
    # Rounding may put equal vectors a hair below.
    return np.where(ordered_pairs > 0, np.maximum(distance, 0.0), 0.0)


def slices(item_users: np.ndarray) -> dict[str, np.ndarray]:
    """Returns which items are in each of SLICES and which are COLD, bool (n_items,); each item is in one.

    By descending number of training users (ties by number of the item), the first items that have a third of all interactions
    together are the head, the next the torso, the others with any the tail. Items without any are cold.

    Args:
        item_users: (n_items,), how many training users have each item.
    """
    order = np.argsort(-item_users, kind="stable")
    before = np.empty(len(order), np.int64)
    before[order] = np.cumsum(item_users[order]) - item_users[order]
    # Interactions of all more popular items, in thirds of the whole.
    third = (before * len(SLICES)) // max(1, int(item_users.sum()))
    is_warm = item_users > 0
    return {**{name: is_warm & (third == place) for place, name in enumerate(SLICES)}, COLD: ~is_warm}


def recall_of_items(lists: np.ndarray, held: sp.csr_matrix, chosen: np.ndarray) -> np.ndarray:
    """Returns Recall@k over the hidden items that are among the chosen, of the users from whom any is, (n such users,).

    Args:
        lists: see above.
        held: see above.
        chosen: bool (n_items,).
    """
    entries = held.tocoo()
    kept = chosen[entries.col]
    part = sp.csr_matrix((entries.data[kept], (entries.row[kept], entries.col[kept])), shape=held.shape)
    users = np.flatnonzero(np.diff(part.indptr))
    return recall_at_k(lists[users], part[users])


def interval(values: np.ndarray, level: float = 0.95, rounds: int = ROUNDS, seed: int = 0) -> Interval:
    """Returns the mean of users' values and its percentile bootstrap interval (Efron 1979; Efron and Tibshirani 1993, 13.3).

    The users are drawn anew, with replacement: the interval says how much another group of users of the same kind could move
    the mean. It says nothing about another draw of the release's noise.

    Args:
        values: (n,), at least one, finite.
        level: in (0, 1).
        rounds: bootstrap samples.
        seed: the same gives the same interval.

    Raises:
        ValueError: there are no values.
    """
    if not len(values):
        raise ValueError("interval: values must not be empty.")
    rng = np.random.default_rng(seed)
    means = []
    at_once = max(1, _DRAWS_AT_ONCE // len(values))
    for start in range(0, rounds, at_once):
        drawn = rng.integers(len(values), size=(min(at_once, rounds - start), len(values)))
        means.append(values[drawn].mean(1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean(values)), float(low), float(high))


def _hits(lists: np.ndarray, held: sp.csr_matrix) -> np.ndarray:
    """Returns which places of the lists have a hidden item, bool (n_users, k)."""
    if len(lists) != held.shape[0]:
        raise ValueError(f"evaluation: lists are of {len(lists)} users and hidden items of {held.shape[0]}.")
    sizes = np.diff(held.indptr)
    if not sizes.all():
        raise ValueError(f"evaluation: {int((sizes == 0).sum())} users have no hidden item; leave them out.")
    user = np.arange(len(lists))
    wanted = np.repeat(user, sizes) * held.shape[1] + held.indices
    return np.isin(user[:, None] * held.shape[1] + lists, wanted) & (lists != NO_ITEM)


def _mean_of_items(lists: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the mean of `values` (n_items,) over each list, 0 for an empty one, (n_lists,)."""
    is_item = lists != NO_ITEM
    return np.where(is_item, values[lists], 0.0).sum(1) / np.maximum(is_item.sum(1), 1)


def _indicator(lists: np.ndarray, n_items: int) -> sp.csr_matrix:
    """Returns which items each list has, as ones, (n_lists, n_items)."""
    row, place = (lists != NO_ITEM).nonzero()
    return sp.csr_matrix((np.ones(len(row)), (row, lists[row, place])), shape=(len(lists), n_items))
