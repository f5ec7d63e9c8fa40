"""Ways to tell the signal of a released co-occurrence matrix from its noise, under the names that settings know them by.

All take a noisy matrix, a rank and, if there is one, a start (`denoise.denoise`), and return at most so many eigenpairs. Ranks,
thresholds, strengths and weights follow from the known noise.
"""

import collections.abc
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from models import denoise, prior, stacking


class Noisy(NamedTuple):
    """A released matrix, and what is known of its items.

    Attributes:
        matrix: (n, n), symmetric.
        noise_sd: of it, off the diagonal.
        popularity: (n,), 1: an average item.
        loadings: (n, f), public features.
    """

    matrix: np.ndarray
    noise_sd: float
    popularity: np.ndarray
    loadings: sp.csr_matrix


Signal = collections.abc.Callable[[Noisy, int, np.ndarray | None], denoise.Spectrum]
SEED = 0
"""Of the noise that splits the matrix: equal tables give equal models."""


def low_rank(noisy: Noisy, rank: int, start: np.ndarray | None = None) -> denoise.Spectrum:
    """A few strong tastes, whatever the items' features are (`models.denoise`)."""
    return denoise.denoise(noisy.matrix, noisy.noise_sd, rank, start=start)


def by_prior(noisy: Noisy, rank: int, start: np.ndarray | None = None) -> denoise.Spectrum:
    """Many weak tastes that run along features (`models.prior`). Dense: for a few thousand items."""
    return denoise.largest(prior.denoise(*noisy), rank)


def stacked(noisy: Noisy, rank: int, start: np.ndarray | None = None) -> denoise.Spectrum:
    """Both, each weighed by what it foretells of a split of the matrix (`models.stacking`). Dense, as `by_prior`."""
    guesses: list[stacking.Estimator] = [
        lambda matrix, sd: denoise.denoise(matrix, sd, rank).matrix(),
        lambda matrix, sd: prior.denoise(matrix, sd, noisy.popularity, noisy.loadings),
    ]
    return denoise.largest(stacking.stack(noisy.matrix, noisy.noise_sd, guesses, SEED), rank)


BY_NAME: dict[str, Signal] = {"low-rank": low_rank, "prior": by_prior, "stacked": stacked}
