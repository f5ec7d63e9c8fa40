import numpy as np
import pytest
import scipy.sparse as sp

from models import prior

N, GROUPS = 60, 6
GROUP = np.arange(N) % GROUPS
LOADINGS = sp.csr_matrix(np.eye(GROUPS)[GROUP])
ALIKE = (GROUP[:, None] == GROUP) * 1.0
POPULARITY = np.linspace(2, 0.5, N)


def noisy(signal: np.ndarray, sd: float, seed: int = 0) -> np.ndarray:
    noise = np.triu(np.random.default_rng(seed).normal(0, sd, signal.shape), 1)
    return signal + noise + noise.T


def error(guess: np.ndarray, signal: np.ndarray) -> float:
    off = ~np.eye(len(signal), dtype=bool)
    return float(np.linalg.norm((guess - signal)[off]) / np.linalg.norm(signal[off]))


def test_features_find_a_signal_that_is_weaker_than_its_noise() -> None:
    signal = ALIKE * np.outer(POPULARITY, POPULARITY)
    matrix = noisy(signal, 3.0)
    with_features = error(prior.denoise(matrix, 3.0, POPULARITY, LOADINGS), signal)
    without = error(prior.denoise(matrix, 3.0, POPULARITY, LOADINGS[:, :0]), signal)
    assert with_features < 0.6 < without


def test_features_that_say_nothing_are_not_believed() -> None:
    rng = np.random.default_rng(1)
    tastes = rng.normal(size=(N, 3))
    chosen = prior.choose(noisy(tastes @ tastes.T, 1.0), 1.0, np.ones(N), LOADINGS)
    assert chosen.features == 0


def test_a_matrix_without_noise_stays_as_it_is_off_the_diagonal() -> None:
    rng = np.random.default_rng(2)
    tastes = rng.normal(size=(N, 3))
    signal = tastes @ tastes.T
    assert error(prior.denoise(signal, 0.0, POPULARITY, LOADINGS), signal) < 1e-3


def test_noise_alone_shrinks_to_next_to_nothing() -> None:
    noise = noisy(np.zeros((N, N)), 1.0)
    assert np.linalg.norm(prior.denoise(noise, 1.0, POPULARITY, LOADINGS)) < 0.2 * np.linalg.norm(noise)


def test_the_mean_is_the_one_of_all_cells_as_one_gaussian_vector() -> None:
    rng = np.random.default_rng(3)
    square = rng.normal(size=(5, 5))
    covariance, matrix = square @ square.T, noisy(np.zeros((5, 5)), 2.0)
    whole = 0.7 * np.kron(covariance, covariance)
    # As `posterior` reaches it: the diagonal is what the mean itself says.
    known = matrix.copy()
    np.fill_diagonal(known, 0)
    for _ in range(prior.ROUNDS):
        mean = (whole @ np.linalg.solve(whole + 4 * np.eye(25), known.ravel())).reshape(5, 5)
        np.fill_diagonal(known, np.diag(mean))
    assert prior.posterior(matrix, 2.0, covariance, 0.7) == pytest.approx(mean)


def test_the_covariance_is_its_equation() -> None:
    found = prior.covariance(prior.Prior(1.0, 0.5, 0.25, 1.0), np.array([1.0, 2.0]), sp.csr_matrix([[1.0], [1.0]]))
    assert found.tolist() == [[1.0, 2 * (0.5 * 0.25 + 0.5)], [2 * (0.5 * 0.25 + 0.5), 4.0]]


def test_leaves_its_input_alone_and_is_symmetric() -> None:
    matrix = noisy(ALIKE, 1.0)
    before = matrix.copy()
    found = prior.denoise(matrix, 1.0, POPULARITY, LOADINGS)
    assert np.array_equal(matrix, before)
    assert np.array_equal(found, found.T)


def test_zeros_give_zeros() -> None:
    assert prior.denoise(np.zeros((3, 3)), 0.0, np.ones(3), LOADINGS[:3]) == pytest.approx(np.zeros((3, 3)))
