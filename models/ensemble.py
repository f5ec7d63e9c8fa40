"""Several models' scores in one: each user's scores of a model are z-scored, weighed and added up.

The weights come from the released matrix alone. Each model is fitted on one part of a split of its noise and scores every
known item as a history of its own; the weights are the non-negative least squares ones to foretell the rows of the other part,
z-scored too, off the diagonal (`models.stacking`, which says why that is as good as held-out data and costs no budget).
"""

import collections.abc

import numpy as np
import scipy.sparse as sp

from models import ranking, stacking, training

Fit = collections.abc.Callable[[training.Released, np.ndarray], ranking.Scores]
"""As `models.scoring.Fit`."""


def fit(fits: collections.abc.Sequence[Fit], released: training.Released, columns: np.ndarray, seed: int) -> ranking.Scores:
    """Returns the weighted sum of the models' z-scores.

    Args:
        fits: of the models.
        released: what they are fitted on.
        columns: (N,), where in the matrices of histories the items are.
        seed: of the split.
    """
    shares = weights(fits, released, seed)
    scores = [each(released, columns) for each in fits]
    return lambda seen: _sum([each(seen) for each in scores], shares)


def weights(fits: collections.abc.Sequence[Fit], released: training.Released, seed: int) -> np.ndarray:
    """Returns a weight for each model, not negative; equal ones if none foretells anything. Arguments as `fit`."""
    first, second = stacking.split(released.matrix, released.noise_sd, np.random.default_rng(seed))
    part = released._replace(matrix=first, noise_sd=released.noise_sd * (1 + stacking.SHARE**2) ** 0.5)
    known, n = released.known, len(released.ids)
    alone = sp.csr_matrix((np.ones(len(known), np.float32), (np.arange(len(known)), known)), shape=(len(known), n))
    guesses = [z_scores(each(part, np.arange(n))(alone)[:, known]) for each in fits]
    products = np.array([[stacking.inner(one, other) for other in guesses] for one in guesses])
    np.fill_diagonal(second, 0)
    targets = np.array([stacking.inner(guess, z_scores(second)) for guess in guesses])
    found = stacking.nonnegative(products, targets)
    return found if found.any() else np.ones(len(fits))


def z_scores(scores: np.ndarray) -> np.ndarray:
    """Returns each row less its mean, by its standard deviation, of its finite cells; 0 for -inf."""
    known = np.isfinite(scores)
    count = np.maximum(known.sum(1, keepdims=True), 1)
    centred = np.where(known, scores, 0.0)
    centred = np.where(known, centred - centred.sum(1, keepdims=True) / count, 0.0)
    spread = np.sqrt((centred**2).sum(1, keepdims=True) / count)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)


def _sum(scores: list[np.ndarray], shares: np.ndarray) -> np.ndarray:
    known = np.any([np.isfinite(each) for each in scores], axis=0)
    total = sum(share * z_scores(each) for share, each in zip(shares, scores, strict=True))
    return np.where(known, total, -np.inf)
