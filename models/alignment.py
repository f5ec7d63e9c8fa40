"""Turning a model's embeddings to where the version before has them, so that vectors of both can be compared.

Scores are inner products: they don't change when all vectors, of items, histories and features, are turned by one rotation, and
a factor model is settled only up to one. Nothing says that two windows' models lie alike, even where they say the same; a
vector that somebody keeps from one version (a user's, the mean of a history) would mean nothing to the next.
"""

import numpy as np
import scipy.linalg


def rotation(item: np.ndarray, history: np.ndarray, earlier_item: np.ndarray, earlier_history: np.ndarray) -> np.ndarray:
    """Returns R, (d, max(d, e)), R R^T = 1: `item` R and `history` R are as near to the earlier ones as can be.

    The orthogonal Procrustes problem (Schoenemann 1966), over both sides, each scaled to norm 1: min ||A R - B||. The side with
    fewer dimensions gets zeros for those that it lacks.

    Args:
        item: (n, d), of the items that both versions have.
        history: (n, d).
        earlier_item: (n, e), of the same items in the version before.
        earlier_history: (n, e).
    """
    d, e = item.shape[1], earlier_item.shape[1]
    cross = np.zeros((d, max(d, e)))
    for new, old in ((item, earlier_item), (history, earlier_history)):
        size = np.linalg.norm(new) * np.linalg.norm(old)
        if size > 0:
            cross[:, :e] += new.T.astype(np.float64) @ old / size
    left, _, right = scipy.linalg.svd(cross, full_matrices=False, check_finite=False)
    return left @ right
