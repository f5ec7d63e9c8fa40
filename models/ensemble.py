"""One factor model of all items: tastes that the matrix shows, and tastes that public features say.

A user's row is x = U z + e, as in `models.spectral`, but U has the rows of all N items and two blocks, U = [T, S C]:

- C (N, f + 1): what the catalogue says before any matrix is seen. An item's features times popularity^(1/2), and, as the taste
  that all items share, popularity itself. Two strengths scale features and shared taste, so that C C^T is as near as can be to
  the matrix of the kept items off its diagonal. Thousands of cells against two numbers: the noise hardly moves them, and what
  they say holds for items that weren't kept too.
- T (N, d): what the matrix shows of the kept items; the rows of others are what a ridge regression on features makes of it, as
  in `models.hybrid`. There are two guesses at the signal in the matrix: A, by `models.signals`, and B, which is C C^T plus the
  low-rank signal in what C C^T leaves of the matrix. With w the weight that B earns beside a low-rank signal by foretelling a
  second noisy copy (`models.stacking`), T T^T = (1 - w) A + w (B - C C^T).
- S (N, N), diagonal: w^(1/2) for kept items, 1 for the others.

So U U^T is (1 - w) A + w B among kept items: the ensemble of the two, weighed by what is known of the noise. Between a kept
item and another one features say w^(1/2) C C^T, between two others C C^T. One U is one embedding for each item, whatever it is
known by. Everything is post-processing of a release.
"""

import logging
import math
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import scipy.sparse.linalg

from models import denoise, hybrid, spectral, stacking

log = logging.getLogger(__name__)

FEATURE_POWER = 0.5
"""Popularity to this power scales features: the best of 0.5 and 1 on tuning seeds of Online Retail and the world."""
CHOSEN_ON = 1_000
"""The weight of B is found on so many most popular kept items: there is most of the signal."""
LEAST_WEIGHT = 0.2
LEAST_GAIN = 0.04
"""With less for both w and the gain (`Evidence`) the hybrid was the better model. On tuning seeds, epsilon 0.5 to no noise, w
and gain are 0.02 to 0.19 and 0.02 to 0.03 on the world, where the hybrid is up to 1.6 % better; on Online Retail 0.21 to 0.54
and 0.04 to 0.13, without noise 0.10 and 0.07, where the ensemble is 1.2 to 3.8 times as good. Noise moves both; a hybrid by
chance would cost most where there is much of it."""
SPLITS = 8
"""Of the matrix, for both: with the 2 of `models.stacking` one seed in five of Online Retail became a hybrid by chance."""
SEED = 0
"""Of the noise that splits the matrix: equal tables give equal models."""
_DENSE = 4_000
"""Up to so many features their Gram matrix is decomposed whole; beyond that a Lanczos iteration finds the top."""


class Content(NamedTuple):
    """C in two factors: `loadings` csr (N, f + 1) of the items on features and the shared taste, `tastes` (f + 1, r) of these.

    `share` is how much of C in units of D, the squares of D^(-1/2) C, the r columns hold: 1 where nothing was left out.
    """

    loadings: sp.csr_matrix
    tastes: np.ndarray
    share: float

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Returns C of those items, (len(rows), r)."""
        return np.asarray(self.loadings[rows] @ self.tastes)


def fit(
    matrix: np.ndarray,
    noise_sd: float,
    known: np.ndarray,
    popularity: np.ndarray,
    loadings: sp.csr_matrix,
    signal: denoise.Spectrum,
    rank: int,
    feature_rank: int,
) -> hybrid.Model | None:
    """Returns the model of N items, untrained: representations are E and D^-1 E of `models.spectral` for U = [T, S C].

    The part of C is that of the features' embeddings, the part of T the items' own embeddings; biases are 0. None where
    features say too little: LEAST_WEIGHT, LEAST_GAIN.

    Args:
        matrix: (m, m), noisy co-occurrences of the kept items, symmetric.
        noise_sd: of `matrix` off its diagonal.
        known: (m,), rows of the kept items.
        popularity: (N,), positive; 1: an average kept item.
        loadings: (N, f + 1), public features, rows of norm 1 or 0; then ones.
        signal: in `matrix`, guess A.
        rank: most columns of T.
        feature_rank: most columns of C.
    """
    own = spectral.own_variance(matrix, noise_sd, popularity)
    content = reduce(scale(matrix, known, popularity, loadings), own, feature_rank)
    log.info("features: %d directions hold %.0f %% of what they say", content.tastes.shape[1], 100 * content.share)
    expected = content.of(known)
    weight, gain = weigh(matrix, noise_sd, expected, popularity[known], rank)
    log.info("what features say, beside the tastes of the matrix: weight %.2f, gain %.3f", weight, gain)
    if weight < LEAST_WEIGHT and gain < LEAST_GAIN:
        return None
    mixed = _mix([signal, _left_over(matrix, noise_sd, expected @ expected.T, rank)], [1 - weight, weight], rank)
    tastes = hybrid.extend(mixed, known, sp.csr_matrix(sp.diags(popularity) @ loadings)).representation()
    shares = np.ones(len(popularity))
    shares[known] = np.sqrt(weight)
    return _model(tastes, content._replace(loadings=sp.csr_matrix(sp.diags(shares) @ content.loadings)), own)


def scale(matrix: np.ndarray, known: np.ndarray, popularity: np.ndarray, loadings: sp.csr_matrix) -> sp.csr_matrix:
    """Returns the loadings (N, f + 1) with the popularities and the strengths on them. Arguments as `fit`."""
    features, shared = popularity**FEATURE_POWER, popularity
    own = sp.csr_matrix(sp.diags(features) @ loadings[:, :-1])
    guesses = [(own[known] @ own[known].T).toarray().astype(np.float64), np.outer(shared[known], shared[known])]
    products = np.array([[stacking.inner(one, other) for other in guesses] for one in guesses])
    strengths = stacking.nonnegative(products, np.array([stacking.inner(guess, matrix) for guess in guesses]))
    if not strengths.any():
        # Noise alone: all that is left to rank by is popularity.
        strengths = np.array([0.0, 1.0])
    return sp.csr_matrix(sp.hstack([np.sqrt(strengths[0]) * own, np.sqrt(strengths[1]) * shared[:, None]]))


def reduce(loadings: sp.csr_matrix, own: np.ndarray, rank: int) -> Content:
    """Returns the at most `rank` directions of the features (right singular vectors) that D^(-1/2) C is largest in.

    Args:
        loadings: (N, f + 1), scaled: C before it is reduced.
        own: (N,), the diagonal of D.
        rank: positive.
    """
    f = loadings.shape[1]
    if f <= rank:
        return Content(loadings, np.eye(f), 1.0)
    scaled = sp.csr_matrix(sp.diags(own**-0.5) @ loadings)
    total = float(scaled.multiply(scaled).sum())
    if f <= _DENSE:
        values, tastes = scipy.linalg.eigh((scaled.T @ scaled).toarray(), subset_by_index=(f - rank, f - 1))
    else:
        _, singular, right = scipy.sparse.linalg.svds(scaled, rank, v0=np.ones(min(scaled.shape)))
        values, tastes = singular**2, right.T
    return Content(loadings, tastes, float(values.sum()) / max(total, np.finfo(float).tiny))


class Evidence(NamedTuple):
    """How much features say of a matrix.

    Attributes:
        weight: w, in [0, 1]: B's share beside the low-rank signal in foretelling the other part of a split matrix.
        gain: how much more of the matrix's sum of squares C C^T explains than popularity does, as a share of what the low-rank
            signal foretells. It hardly hangs on the noise, and says what is to be hoped for of items that weren't kept.
    """

    weight: float
    gain: float


def weigh(matrix: np.ndarray, noise_sd: float, expected: np.ndarray, popularity: np.ndarray, rank: int) -> Evidence:
    """Returns what is found on the most popular kept items.

    Args:
        matrix: (m, m), as `noise_sd` and `rank` for `fit`.
        expected: (m, r), C of the kept items.
        popularity: (m,), of the kept items.
    """
    top = np.argsort(-popularity, kind="stable")[:CHOSEN_ON]
    noisy, said, shared = matrix[np.ix_(top, top)], expected[top] @ expected[top].T, popularity[top]
    guesses: list[stacking.Estimator] = [
        lambda noisy, sd: denoise.denoise(noisy, sd, rank).matrix(),
        lambda noisy, sd: said + _left_over(noisy, sd, said, rank).matrix(),
    ]
    products, targets = stacking.foretell(noisy, noise_sd, guesses, SEED, SPLITS)
    by_matrix, by_both = stacking.nonnegative(products, targets)
    # Nothing foretold: the features' guess is the safer one.
    weight = float(by_both / (by_matrix + by_both)) if by_matrix + by_both > 0 else 1.0
    by_features, by_popularity = (
        stacking.explained(stacking.inner(guess, noisy), stacking.inner(guess, guess))
        for guess in (said, np.outer(shared, shared))
    )
    foretold = stacking.explained(targets[0], products[0, 0])
    return Evidence(weight, (by_features - by_popularity) / foretold if foretold > 0 else math.inf)


def _left_over(matrix: np.ndarray, noise_sd: float, said: np.ndarray, rank: int) -> denoise.Spectrum:
    """The low-rank signal in what C C^T, `said`, leaves of the matrix."""
    return denoise.denoise(matrix - said, noise_sd, rank)


def _mix(spectra: list[denoise.Spectrum], shares: list[float], rank: int) -> np.ndarray:
    """Returns T (m, d): the strongest directions of the weighted sum of the signals, times the roots of their strengths."""
    parts = [np.sqrt(share * each.values) * each.vectors for share, each in zip(shares, spectra, strict=True)]
    left, singular, _ = scipy.linalg.svd(np.hstack(parts), full_matrices=False)
    kept = singular[:rank] > 1e-9 * singular.max(initial=0.0)
    return np.asarray((left[:, :rank] * singular[:rank])[:, kept])


def _model(tastes: np.ndarray, content: Content, own: np.ndarray) -> hybrid.Model:
    """Returns E = U R and D^-1 E, U = [T, S C], R as `spectral.rotation` has it; C's part through the features."""
    d = tastes.shape[1]
    rotation = spectral.rotation(np.hstack([tastes, content.loadings @ content.tastes]), own)
    identity, features = tastes @ rotation[:d], content.tastes @ rotation[d:]
    item = hybrid.Side(identity, features, content.loadings)
    history = hybrid.Side(identity / own[:, None], features, sp.csr_matrix(sp.diags(1 / own) @ content.loadings))
    return hybrid.Model(item, history, np.zeros(len(own)), np.zeros(len(features)), "ensemble")
