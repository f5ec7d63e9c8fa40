"""What a model may learn from and what it is asked for: splits of interactions for evaluation.

Who is held out and what is hidden is a keyed hash of the user's and the item's own numbers: the same for a seed, in whatever
order the rows come, and never changed by another user.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from data import hashing

HIDDEN_ONE_IN = 5
"""Of a held-out user's items one in so many is hidden, rounded down: the model folds in the other 80 %."""

_USERS, _ITEMS = 1, 2
"""Two hashes of one seed."""


class Interactions(NamedTuple):
    """Who met what, and when first: three columns of one length, each pair (user, item) once.

    Attributes:
        user: any number of the user's own, uint64.
        item: from 0 on, int64.
        time: of the first time, any unit, int64.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray


class Split(NamedTuple):
    """Rows of Interactions, as bool columns: what is trained on, and of the users who are asked, what is known and hidden.

    By users, nobody who is asked is in training. By time, their history is a part of the training rows.
    """

    train: np.ndarray
    history: np.ndarray
    hidden: np.ndarray


def first_meetings(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> Interactions:
    """Returns the earliest row of each pair, ordered by user and item. The columns are as those of Interactions."""
    order = np.lexsort((time, item, user))
    user, item, time = user[order], item[order], time[order]
    is_first = np.r_[True, (user[1:] != user[:-1]) | (item[1:] != item[:-1])][: len(user)]
    return Interactions(user[is_first], item[is_first], time[is_first])


def held_out(user: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Returns which rows are of users that are held out, bool: each user is, with probability `share`, by a keyed hash."""
    return _uniform(user, seed, _USERS) < share


def by_users(met: Interactions, share: float, seed: int) -> Split:
    """Holds whole users out: strong generalisation (Marlin 2004, section 2.3; Liang et al. 2018, section 4.1).

    One in HIDDEN_ONE_IN of a held-out user's items is hidden, the others are the history. Users with fewer items aren't asked.

    Args:
        met: see Interactions.
        share: of the users, in (0, 1).
        seed: of the hash.

    Raises:
        ValueError: share isn't in (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"by_users: share must be in (0, 1), not {share}.")
    return of_users(met, held_out(met.user, share, seed), seed)


def of_users(met: Interactions, is_out: np.ndarray, seed: int) -> Split:
    """Holds chosen users out, and hides items from them, as `by_users` does.

    Args:
        met: see Interactions.
        is_out: the rows of those users, bool.
        seed: of the hash that hides.
    """
    is_hidden = hidden(met.user, met.item, seed)
    _, place = np.unique(met.user, return_inverse=True)
    is_asked = is_out & (np.bincount(place, is_hidden) > 0)[place]
    return Split(~is_out, is_asked & ~is_hidden, is_asked & is_hidden)


def hidden(user: np.ndarray, item: np.ndarray, seed: int) -> np.ndarray:
    """Returns which rows are hidden from users who are asked, bool: one in HIDDEN_ONE_IN of each user's, rounded down.

    Args:
        user: uint64 (n,).
        item: any numbers, int64 (n,); each pair of the two once.
        seed: of the hash.
    """
    _, place, sizes = np.unique(user, return_inverse=True, return_counts=True)
    order = np.lexsort((_uniform(user ^ hashing.mix(item.astype(np.uint64)), seed, _ITEMS), place))
    rank = np.empty(len(place), np.int64)
    rank[order] = np.arange(len(place)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank < (sizes // HIDDEN_ONE_IN)[place]


def by_time(met: Interactions, test_start: int) -> Split:
    """Trains on what was met before a time; users who met items before and others after it are asked for the latter.

    Args:
        met: see Interactions.
        test_start: in the units of its times; what happens then is in the test.
    """
    is_before = met.time < test_start
    _, place = np.unique(met.user, return_inverse=True)
    before, all_of = np.bincount(place, is_before), np.bincount(place)
    is_asked = ((before > 0) & (before < all_of))[place]
    return Split(is_before, is_asked & is_before, is_asked & ~is_before)


def start_of_test(met: Interactions, share: float) -> int:
    """Returns the time from which on about `share` of the interactions are; the latest of all if there are few."""
    return int(np.quantile(met.time, 1 - share, method="lower"))


def matrix(met: Interactions, rows: np.ndarray, users: np.ndarray, n_items: int) -> sp.csr_matrix:
    """Returns chosen rows as ones, float32 (n_users, n_items).

    Args:
        met: see Interactions.
        rows: bool; all of them are of these users.
        users: the matrix's rows, sorted.
        n_items: the matrix's columns.
    """
    place = np.searchsorted(users, met.user[rows])
    return sp.csr_matrix((np.ones(len(place), np.float32), (place, met.item[rows])), shape=(len(users), n_items))


def _uniform(numbers: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """Returns a hash of each number under a key, as a double in [0, 1)."""
    key = hashing.mix(hashing.mix(np.array([seed], np.uint64)) ^ np.uint64(stream))
    return (hashing.mix(hashing.mix(numbers.astype(np.uint64)) ^ key) >> np.uint64(11)) * 2.0**-53
