from collections.abc import Callable

import numpy as np
import pytest

from models import denoise as module
from models.denoise import denoise

N = 400


def wigner(rng: np.random.Generator, sd: float) -> np.ndarray:
    noise = np.triu(rng.normal(0, sd, (N, N)), 1)
    return noise + noise.T + np.diag(rng.normal(0, sd * 2**0.5, N))


def planted(rng: np.random.Generator, strengths: list[float]) -> tuple[np.ndarray, np.ndarray]:
    vectors = np.linalg.qr(rng.normal(size=(N, len(strengths))))[0]
    return vectors @ np.diag(strengths) @ vectors.T, vectors


def test_recovers_a_planted_matrix_under_noise_whatever_its_diagonal() -> None:
    rng = np.random.default_rng(1)
    edge = 2 * N**0.5
    signal, vectors = planted(rng, [8 * edge, 4 * edge, 3 * edge])
    noisy = signal + wigner(rng, 1.0)
    np.fill_diagonal(noisy, rng.uniform(0, 5 * edge, N))
    spectrum = denoise(noisy, 1.0)
    assert np.abs(np.linalg.svd(spectrum.vectors[:, :3].T @ vectors, compute_uv=False) - 1).max() < 0.02
    assert spectrum.values[:3] == pytest.approx([8 * edge, 4 * edge, 3 * edge], rel=0.05)
    assert spectrum.values[3:].max(initial=0) < 0.5 * edge


def test_finds_next_to_nothing_in_noise() -> None:
    noise = wigner(np.random.default_rng(2), 1.0)
    spectrum = denoise(noise, 1.0)
    assert len(spectrum.values) < 0.05 * N
    assert np.sum(spectrum.values**2) < 0.01 * np.sum(noise**2)


def test_finds_nothing_in_zeros() -> None:
    assert denoise(np.zeros((3, 3)), 0.0).vectors.shape == (3, 0)


def test_without_noise_returns_the_matrix_off_the_diagonal() -> None:
    signal, _ = planted(np.random.default_rng(3), [3.0, 1.0])
    spectrum = denoise(signal, 0.0, max_rank=2)
    off = ~np.eye(N, dtype=bool)
    assert np.allclose((spectrum.vectors * spectrum.values @ spectrum.vectors.T)[off], signal[off], atol=1e-3)


def test_keeps_at_most_max_rank_and_leaves_its_input_alone() -> None:
    signal, _ = planted(np.random.default_rng(4), [5.0, 4.0, 3.0])
    before = signal.copy()
    spectrum = denoise(signal, 0.0, max_rank=2)
    assert spectrum.values.shape == (2,)
    assert np.array_equal(signal, before)


@pytest.mark.parametrize(
    ("shrink", "expected"),
    [
        (module.at_the_edge, [0.0, 0.0, 1.5]),
        (module.debias, [0.0, 0.0, 2.0]),
        (module.keep, [0.0, 0.0, 2.5]),
        (module.before_the_edge, [0.0, 0.6, (6.25 - 3.24) ** 0.5]),
    ],
)
def test_shrinks_an_eigenvalue_as_the_equation_says(shrink: module.Shrink, expected: list[float]) -> None:
    # n = 4, sd 0.5: the edge is 2; t = 2 shows up at 2.5, and its best weight is t - edge^2 / 4t = 1.5.
    assert module.noise_edge(0.5, 4) == 2
    assert shrink(np.array([1.7, 3.6**0.5, 2.5]), 2.0) == pytest.approx(expected)


def test_the_best_weight_in_frobenius_norm_has_the_least_error() -> None:
    rng = np.random.default_rng(5)
    signal, _ = planted(rng, [2.5 * N**0.5, 1.5 * N**0.5])
    noisy = signal + wigner(rng, 1.0)

    def error(shrink: module.Shrink) -> float:
        return float(np.linalg.norm(denoise(noisy, 1.0, shrink=shrink).matrix() - signal))

    best = error(module.at_the_edge)
    assert best < min(error(module.debias), error(module.keep))
    assert best < np.linalg.norm(signal)


def test_the_largest_eigenpairs_of_a_clean_matrix_are_as_they_are() -> None:
    matrix = np.diag([3.0, -5.0, 0.0, 1.0])
    spectrum = module.largest(matrix, 3)
    assert spectrum.values.tolist() == [3, 1]
    assert spectrum.matrix() == pytest.approx(np.diag([3.0, 0, 0, 1]))


@pytest.mark.parametrize(
    ("matrix", "noise_sd", "max_rank", "message"),
    [
        (np.zeros((2, 3)), 1.0, 1, r"matrix must be square and not empty, not of shape \(2, 3\)"),
        (np.zeros((0, 0)), 1.0, 1, "matrix must be square and not empty"),
        (np.array([[0.0, 1.0], [2.0, 0.0]]), 1.0, 1, "matrix must be finite and symmetric"),
        (np.full((2, 2), np.nan), 1.0, 1, "matrix must be finite and symmetric"),
        (np.eye(2), -1.0, 1, "noise_sd must be finite and not negative, not -1.0"),
        (np.eye(2), 1.0, 0, "max_rank must be positive, not 0"),
    ],
)
def test_refuses(matrix: np.ndarray, noise_sd: float, max_rank: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        denoise(matrix, noise_sd, max_rank)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_what_is_not_finite_wherever_it_is(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TILE", 2)
    matrix = np.eye(5)
    matrix[3, 4] = matrix[4, 3] = value
    with pytest.raises(ValueError, match="matrix must be finite"):
        denoise(matrix, 1.0, 1)


def test_a_large_matrix_has_the_same_spectrum(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((300, 5)) * 3
    noisy = rng.standard_normal((300, 300)) / 2
    matrix = signal @ signal.T + noisy + noisy.T
    dense = denoise(matrix, 0.7, 20)
    monkeypatch.setattr(module, "_LARGE", 10)
    iterated = denoise(matrix, 0.7, 20)
    assert gap(iterated.matrix(), dense.matrix()) < 0.01
    assert iterated.vectors[:, :5] == pytest.approx(dense.vectors[:, :5], abs=1e-4)


STARTS = {
    "the window before": lambda before, rng: before,
    "some of it": lambda before, rng: before[:, :2],
    "more than is asked for": lambda before, rng: np.hstack([before, before, rng.normal(size=(N, 30))]),
    "no item in common": lambda before, rng: np.zeros((N, 5)),
    "nothing to do with it": lambda before, rng: rng.normal(size=(N, 8)),
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_from_any_start_the_signal_is_found_as_well(
    start: Callable[[np.ndarray, np.random.Generator], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LARGE", 10)
    rng = np.random.default_rng(7)
    edge = 2 * N**0.5
    signal, _ = planted(rng, [9 * edge, 6 * edge, 4 * edge, 2 * edge])
    before, noisy = denoise(signal + wigner(rng, 1.0), 1.0).vectors, signal + wigner(rng, 1.0)
    fresh = denoise(noisy, 1.0, 20).matrix()
    started = denoise(noisy, 1.0, 20, start=start(before, rng)).matrix()
    assert gap(started, signal) < 1.05 * gap(fresh, signal)


def gap(found: np.ndarray, expected: np.ndarray) -> float:
    """Off the diagonal, as a share."""
    off = ~np.eye(len(found), dtype=bool)
    return float(np.linalg.norm((found - expected)[off]) / np.linalg.norm(expected[off]))
