"""The closed-form model: what a history says about other items, from the denoised co-occurrence matrix alone.

A user's row of items is tastes plus chance, x = U z + e, with U U^T the denoised co-occurrences and e independent with
variances D. The best linear guess of the tastes given a history is (factor scores: Bartholomew, Knott and Moustaki 2011,
equation 3.8)

    E[U z | x] = U (I + A)^-1 U^T D^-1 x,    A = U^T D^-1 U.

With A = Q L Q^T it splits into E = U Q (I + L)^-1/2 for the items to rank and D^-1 E for the items of the history: a common
item in a history says less than a rare one.
"""

from typing import NamedTuple

import numpy as np

from models import denoise

OWN_POWER = 0.5
"""D grows with the item's score to this power. 1 would be pure chance; rows scaled to norm 1 and shrunk tastes flatten it.
Chosen on tuning seeds and Online Retail among 0.25 .. 1."""
OWN_SHARE = 1.5
LEAST_OWN = 0.4
"""D's mean is d * OWN_SHARE / (1 + edge / d), at least d * LEAST_OWN, with d the mean of the matrix's diagonal and edge the
noise's (`models.denoise`): the noisier the matrix, the more its tastes are shrunk, and D with them. On tuning seeds of the
world the best mean is some d / 2 with 100,000 users and epsilon 1 (edge 1.7 d; a mean of d costs 0.7 % of recall), 0.7 d to d
at epsilon 4 (edge d), and more than d with a million users or no noise; on Online Retail (edge 2 d to 7 d) 0.35 d to d / 2."""
SCORE_FLOOR = 0.1
"""Lowest share of the mean score that an item counts as: noise may leave a score near or below 0."""


class Embeddings(NamedTuple):
    """Float64 (n, d): a history's scores are `item` times the mean of the `history` rows of its items."""

    item: np.ndarray
    history: np.ndarray


def fit(matrix: np.ndarray, scores: np.ndarray, noise_sd: float, max_rank: int = 128) -> Embeddings:
    """Returns the embeddings of the n items of a noisy co-occurrence matrix; d is at least 1.

    Args:
        matrix: (n, n) sums of outer products of users' rows of norm 1, plus noise; symmetric.
        scores: (n,) noisy popularity.
        noise_sd: of `matrix` off its diagonal.
        max_rank: at most so many dimensions.

    Raises:
        ValueError: an argument breaks its rule.
    """
    _check(matrix, scores)
    return from_spectrum(denoise.denoise(matrix, noise_sd, max_rank), matrix, noise_sd, scores)


def from_spectrum(spectrum: denoise.Spectrum, matrix: np.ndarray, noise_sd: float, scores: np.ndarray) -> Embeddings:
    """Returns the embeddings of n items whose tastes are known, however they were told from the noise; d is at least 1.

    Args:
        spectrum: of the signal in `matrix`.
        matrix: (n, n), noisy: only its diagonal is read.
        noise_sd: of `matrix` off its diagonal.
        scores: (n,) noisy popularity.

    Raises:
        ValueError: `scores` breaks its rule.
    """
    _check(matrix, scores)
    if not len(spectrum.values):
        spectrum = _popularity(scores)
    own = own_variance(matrix, noise_sd, relative(scores, scores))
    return factor_scores(spectrum.vectors * np.sqrt(spectrum.values), own)


def factor_scores(tastes: np.ndarray, own: np.ndarray) -> Embeddings:
    """Returns the embeddings of U = `tastes` (n, d) and the diagonal of D = `own` (n,): see the module's equation."""
    item = tastes @ rotation(tastes, own)
    return Embeddings(item, item / own[:, None])


def rotation(tastes: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Returns Q (I + L)^-1/2, (d, d), the strongest direction first. Arguments as `factor_scores`."""
    explained, vectors = np.linalg.eigh(tastes.T @ (tastes / own[:, None]))
    return np.asarray(vectors[:, ::-1] / np.sqrt(1 + np.maximum(explained[::-1], 0)))


def own_variance(matrix: np.ndarray, noise_sd: float, popularity: np.ndarray) -> np.ndarray:
    """Returns the diagonal of D, (N,): what of an item no taste explains.

    Args:
        matrix: (n, n), noisy: only its diagonal is read.
        noise_sd: of `matrix` off its diagonal.
        popularity: (N,), positive, of any items; 1: an average one of the matrix.
    """
    # The noise on the diagonal averages out.
    mean = max(float(np.trace(matrix)) / len(matrix), 1e-9)
    share = OWN_SHARE / (1 + denoise.noise_edge(noise_sd, len(matrix)) / mean)
    return max(share, LEAST_OWN) * mean * popularity**OWN_POWER


def _check(matrix: np.ndarray, scores: np.ndarray) -> None:
    if scores.shape != matrix.shape[:1] or not np.isfinite(scores).all():
        raise ValueError(f"fit: scores must be finite, one for each of the {len(matrix)} rows, not {scores.shape}.")


def relative(scores: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns scores as multiples of the mean of the `known` ones, at least SCORE_FLOOR; 1 where there is no mean."""
    mean = np.maximum(known, 0).mean() if len(known) else 0.0
    return np.maximum(scores / mean, SCORE_FLOOR) if mean > 0 else np.ones(len(scores))


def _popularity(scores: np.ndarray) -> denoise.Spectrum:
    """One dimension that ranks by score: all there is to say when no pattern stands out of the noise."""
    vector = relative(scores, scores)
    return denoise.Spectrum(np.ones(1), (vector / np.linalg.norm(vector))[:, None])
