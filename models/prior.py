"""The signal in a noisy co-occurrence matrix, as public features and popularity make it likely before the matrix is seen.

With few users the noise drowns most tastes. What is known without it: items with the same features occur together, and
popular items do so more often. So the signal S (n, n) is taken for a Gaussian matrix whose cells covary as their rows' items
and their columns' items do,

    cov(S_ij, S_kl) = strength * K_ik * K_jl,    K = D ((1 - common) ((1 - features) I + features F F^T) + common 1 1^T) D,

with F the items' features (rows of norm 1) and D the diagonal of popularity^power: `common` is the taste that all items share,
the identity what an item has of its own. Features as a prior for private aggregates: Curmei, Krichene, Zhang and Sundararajan
2023, "Private matrix factorization with public item features"; there as an added factor, here as a covariance.

The noise is known, so the rest follows: with K = V L V^T and R = V^T matrix V, the cells of R are independent, of variance
strength * L_a * L_b + noise_sd^2. The four numbers are those of a grid that make the matrix most likely, and the mean of the
signal given the matrix shrinks each cell of R by its share of signal (Rasmussen and Williams 2006, "Gaussian processes for
machine learning", equations 5.8 and 2.23).
"""

import itertools
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse as sp

POWERS = (0.5, 0.75, 1.0)
COMMON = (0.0, 0.1, 0.25, 0.5)
FEATURES = (0.0, 0.5, 0.75, 0.95)
SIGNAL_SHARES = tuple(np.logspace(-3, 0, 13))
"""Shares of the matrix's sum of squares that may be signal: each stands for a strength."""
CHOSEN_ON = 300
"""The prior is chosen on so many most popular items: most of the signal is there, and each of 48 trials needs eigenvectors."""
ROUNDS = 3
"""Passes that fill in the diagonal."""


class Prior(NamedTuple):
    """See the module. `power`, `common` and `features` are in [0, 1]; `strength` isn't negative."""

    power: float
    common: float
    features: float
    strength: float


def denoise(matrix: np.ndarray, noise_sd: float, popularity: np.ndarray, loadings: sp.csr_matrix) -> np.ndarray:
    """Returns the mean of the signal given the noisy matrix, (n, n), by the prior that fits the matrix best.

    Args:
        matrix: (n, n), symmetric; its diagonal isn't read.
        noise_sd: standard deviation of the noise off the diagonal.
        popularity: (n,), positive, 1: an average item.
        loadings: (n, f), features of the items, rows of norm 1 or 0; f may be 0.
    """
    top = np.argsort(-popularity, kind="stable")[:CHOSEN_ON]
    chosen = choose(matrix[np.ix_(top, top)], noise_sd, popularity[top], loadings[top])
    return posterior(matrix, noise_sd, covariance(chosen, popularity, loadings), chosen.strength)


def choose(matrix: np.ndarray, noise_sd: float, popularity: np.ndarray, loadings: sp.csr_matrix) -> Prior:
    """Returns the prior of the grid under which the matrix is most likely. Arguments as `denoise`."""
    known = _without_diagonal(matrix)
    shares = FEATURES if loadings.shape[1] else (0.0,)
    best, best_likelihood = Prior(1.0, 0.0, 0.0, 0.0), -np.inf
    for power, common, features in itertools.product(POWERS, COMMON, shares):
        prior = Prior(power, common, features, 1.0)
        values, vectors = _eigenpairs(covariance(prior, popularity, loadings))
        squares = (vectors.T @ known @ vectors) ** 2
        signal = np.outer(values, values)
        for share in SIGNAL_SHARES:
            strength = float(share * squares.sum() / signal.sum())
            likelihood = _log_likelihood(squares, strength * signal + _variance(noise_sd, squares))
            if likelihood > best_likelihood:
                best, best_likelihood = prior._replace(strength=strength), likelihood
    return best


def covariance(prior: Prior, popularity: np.ndarray, loadings: sp.csr_matrix) -> np.ndarray:
    """Returns K, (n, n). Arguments as `denoise`."""
    alike = prior.features * (loadings @ loadings.T).toarray().astype(np.float64)
    alike += (1 - prior.features) * np.eye(len(popularity))
    scale = popularity**prior.power
    return scale[:, None] * ((1 - prior.common) * alike + prior.common) * scale


def posterior(matrix: np.ndarray, noise_sd: float, covariance: np.ndarray, strength: float) -> np.ndarray:
    """Returns the mean of the signal given the noisy matrix, (n, n). The diagonal is filled in from the signal itself."""
    values, vectors = _eigenpairs(covariance)
    variance = strength * np.outer(values, values)
    known = _without_diagonal(matrix)
    signal = known
    for _ in range(ROUNDS):
        rotated = vectors.T @ known @ vectors
        noise = _variance(noise_sd, rotated**2)
        signal = vectors @ (rotated * (variance / (variance + noise))) @ vectors.T
        np.fill_diagonal(known, np.diag(signal))
    return (signal + signal.T) / 2


def _log_likelihood(squares: np.ndarray, variance: np.ndarray) -> float:
    return float(-(np.log(variance) + squares / variance).sum())


def _variance(noise_sd: float, squares: np.ndarray) -> float:
    """Returns the noise's variance, at least what rounding leaves: without noise a cell of no variance divides by it."""
    return max(noise_sd**2, 1e-12 * float(squares.mean()), np.finfo(float).tiny)


def _eigenpairs(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = scipy.linalg.eigh(covariance, check_finite=False)
    return np.maximum(values, 0), vectors


def _without_diagonal(matrix: np.ndarray) -> np.ndarray:
    known = np.array(matrix, np.float64)
    np.fill_diagonal(known, 0)
    return known
