"""EASE on a denoised co-occurrence matrix: each item's linear guess from all others, in closed form.

Steck 2019, "Embarrassingly shallow autoencoders for sparse data", equation 8: B = I - P diag(P)^-1, P = (G + penalty I)^-1.

How large the penalty must be follows from the noise. B minimises tr((I - B)^T G (I - B)) + penalty ||B||^2 with a diagonal of
zeros. If G is known but for an error E of spectral norm at most e, the worst that E can add is

    max over E of tr((I - B)^T E (I - B)) = e ||I - B||^2 = e ||B||^2 + e n,

for B has no diagonal: to be safe against the worst error is to take penalty = e. What `models.denoise` drops or leaves in has
at most about the noise's edge, so that is e.
"""

import numpy as np
import scipy.linalg

from models import denoise


def fit(matrix: np.ndarray, noise_sd: float, max_rank: int = 128) -> np.ndarray:
    """Returns B (n, n): the scores of all items are the history (a row of ones) times B; its diagonal is 0.

    G is the denoised matrix plus what an item has of its own, on the diagonal: on average that of the noisy matrix, as in
    `models.spectral`. The penalty is the noise's edge.

    Args:
        matrix: (n, n) sums of outer products of users' rows of norm 1, plus noise; symmetric.
        noise_sd: of `matrix` off its diagonal.
        max_rank: of the denoised matrix.

    Raises:
        ValueError: an argument breaks its rule.
    """
    signal = denoise.denoise(matrix, noise_sd, max_rank).matrix()
    own = max(float(np.trace(matrix)) / len(matrix), 1e-9)
    return weights(signal, own + denoise.noise_edge(noise_sd, len(matrix)))


def weights(gram: np.ndarray, penalty: float) -> np.ndarray:
    """Returns B (n, n), in the precision of the Gram matrix (float32 or float64).

    Args:
        gram: (n, n), symmetric, its smallest eigenvalue above -penalty.
        penalty: positive.

    Raises:
        ValueError: gram + penalty I isn't positive definite.
    """
    factorise, invert = scipy.linalg.get_lapack_funcs(("potrf", "potri"), (gram,))
    factor, failed = factorise(gram + penalty * np.eye(len(gram), dtype=gram.dtype), lower=1)
    if failed:
        raise ValueError(f"weights: gram plus a penalty of {penalty:g} must be positive definite.")
    lower = np.tril(invert(factor, lower=1)[0])
    precision = lower + np.tril(lower, -1).T
    found = -precision / np.diag(precision)
    np.fill_diagonal(found, 0)
    return found
