"""Ways to tell the signal of a released co-occurrence matrix from its noise, under the names that settings know them by.

All take the noisy matrix (n, n), the noise's standard deviation, the items' popularity (n,), 1: average, their public features
(n, f), a rank and, if there is one, a start (`denoise.denoise`), and return at most so many eigenpairs. Ranks, thresholds,
strengths and weights follow from the known noise.
"""

import collections.abc

import numpy as np
import scipy.sparse as sp

from models import denoise, prior, stacking

Signal = collections.abc.Callable[[np.ndarray, float, np.ndarray, sp.csr_matrix, int, np.ndarray | None], denoise.Spectrum]
SEED = 0
"""Of the noise that splits the matrix: equal tables give equal models."""


def low_rank(
    matrix: np.ndarray,
    noise_sd: float,
    popularity: np.ndarray,
    loadings: sp.csr_matrix,
    rank: int,
    start: np.ndarray | None = None,
) -> denoise.Spectrum:
    """A few strong tastes, whatever the items' features are (`models.denoise`)."""
    return denoise.denoise(matrix, noise_sd, rank, start=start)


def by_prior(
    matrix: np.ndarray,
    noise_sd: float,
    popularity: np.ndarray,
    loadings: sp.csr_matrix,
    rank: int,
    start: np.ndarray | None = None,
) -> denoise.Spectrum:
    """Many weak tastes that run along features (`models.prior`). Dense: for a few thousand items."""
    return denoise.largest(prior.denoise(matrix, noise_sd, popularity, loadings), rank)


def stacked(
    matrix: np.ndarray,
    noise_sd: float,
    popularity: np.ndarray,
    loadings: sp.csr_matrix,
    rank: int,
    start: np.ndarray | None = None,
) -> denoise.Spectrum:
    """Both, each weighed by what it foretells of a split of the matrix (`models.stacking`). Dense, as `by_prior`."""
    guesses: list[stacking.Estimator] = [
        lambda noisy, sd: denoise.denoise(noisy, sd, rank).matrix(),
        lambda noisy, sd: prior.denoise(noisy, sd, popularity, loadings),
    ]
    return denoise.largest(stacking.stack(matrix, noise_sd, guesses, SEED), rank)


BY_NAME: dict[str, Signal] = {"low-rank": low_rank, "prior": by_prior, "stacked": stacked}
