"""Several guesses at the signal in one noisy matrix, weighed by how well they foretell a fresh noisy copy of it.

There is no second copy, and asking users again costs budget; but the noise is known. With E drawn as the noise is,

    first = matrix + share * E,    second = matrix - E / share

have noises that are independent, for they are Gaussian and uncorrelated (data fission: Leiner, Duan, Wasserman and Ramdas 2023,
section 1.1). So a guess made from `first` alone can be held against `second` as against held-out data: no event is read. The
weights are the least squares ones that aren't negative (Breiman 1996, "Stacked regressions").
"""

import collections.abc

import numpy as np
import scipy.optimize

Estimator = collections.abc.Callable[[np.ndarray, float], np.ndarray]
"""A noisy symmetric matrix (n, n) and the noise's standard deviation in, a guess at the signal (n, n) out."""
SHARE = 0.5
"""`first` has 1 + SHARE^2 times the noise's variance: near to what the estimators will get in the end."""
SPLITS = 2
"""Draws of E that are averaged over."""


def stack(matrix: np.ndarray, noise_sd: float, estimators: collections.abc.Sequence[Estimator], seed: int) -> np.ndarray:
    """Returns the weighted sum of the estimators' guesses, (n, n). Arguments as `weights`."""
    shares = weights(matrix, noise_sd, estimators, seed)
    return np.asarray(sum(share * estimate(matrix, noise_sd) for share, estimate in zip(shares, estimators, strict=True)))


def weights(matrix: np.ndarray, noise_sd: float, estimators: collections.abc.Sequence[Estimator], seed: int) -> np.ndarray:
    """Returns a weight for each estimator, not negative. Arguments as `foretell`."""
    return nonnegative(*foretell(matrix, noise_sd, estimators, seed))


def foretell(
    matrix: np.ndarray, noise_sd: float, estimators: collections.abc.Sequence[Estimator], seed: int, splits: int = SPLITS
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the guesses' products with one another, (k, k), and with `second`, (k,): means over splits, off the diagonal.

    Args:
        matrix: (n, n), symmetric.
        noise_sd: of its noise off the diagonal, Gaussian, independent.
        estimators: k, at least one.
        seed: of the splits' noise, which hides nothing and may be known.
        splits: draws of E.
    """
    rng = np.random.default_rng(seed)
    products, targets = np.zeros((len(estimators), len(estimators))), np.zeros(len(estimators))
    for _ in range(splits):
        first, second = split(matrix, noise_sd, rng)
        guesses = [estimate(first, noise_sd * (1 + SHARE**2) ** 0.5) for estimate in estimators]
        products += [[inner(one, other) for other in guesses] for one in guesses]
        targets += [inner(guess, second) for guess in guesses]
    return products / splits, targets / splits


def split(matrix: np.ndarray, noise_sd: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns `first` and `second`, (n, n), symmetric; their diagonals are the matrix's own."""
    added = np.triu(rng.normal(0, noise_sd, matrix.shape), 1)
    added += added.T
    return matrix + SHARE * added, matrix - added / SHARE


def explained(product: float, square: float) -> float:
    """How much of a matrix's sum of squares the best multiple of a guess takes away; of their product, and the guess's own."""
    return product**2 / square if product > 0 else 0.0


def inner(one: np.ndarray, other: np.ndarray) -> float:
    """The sum of products of cells off the diagonal."""
    return float(np.vdot(one, other) - np.diag(one) @ np.diag(other))


def nonnegative(products: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the weights w >= 0 that minimise w^T products w - 2 targets^T w; all 0 if every guess is 0."""
    values, vectors = np.linalg.eigh(products)
    kept = values > 1e-12 * max(values.max(), np.finfo(float).tiny)
    if not kept.any():
        return np.zeros(len(targets))
    root = np.sqrt(values[kept])
    # products = A^T A and targets = A^T b, as of an ordinary least squares problem.
    return np.asarray(scipy.optimize.nnls(root[:, None] * vectors[:, kept].T, vectors[:, kept].T @ targets / root)[0])
