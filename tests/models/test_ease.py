import numpy as np
import pytest

from models import denoise, ease


def gram(seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(50, 8))
    return rows.T @ rows


def test_weights_solve_the_regression_of_each_item_on_the_others() -> None:
    matrix, penalty = gram(), 3.0
    weights = ease.weights(matrix, penalty)
    for item in range(8):
        others = np.arange(8) != item
        own = np.linalg.solve(matrix[np.ix_(others, others)] + penalty * np.eye(7), matrix[others, item])
        assert weights[others, item] == pytest.approx(own)
        assert weights[item, item] == 0


def test_keeps_the_precision_of_the_matrix() -> None:
    single = ease.weights(gram().astype(np.float32), 3.0)
    assert single.dtype == np.float32
    assert single == pytest.approx(ease.weights(gram(), 3.0), abs=1e-4)


def test_refuses_a_penalty_that_is_too_small() -> None:
    with pytest.raises(ValueError, match="gram plus a penalty of 1 must be positive definite"):
        ease.weights(np.diag([-2.0, 1.0]), 1.0)


def test_the_noises_edge_is_the_penalty_that_guards_against_the_worst_error() -> None:
    rng = np.random.default_rng(1)
    weights, edge = ease.weights(gram(), 2.0), 2.0
    away = np.eye(8) - weights
    for _ in range(20):
        error = rng.normal(size=(8, 8))
        error += error.T
        error *= edge / np.abs(np.linalg.eigvalsh(error)).max()
        assert np.trace(away.T @ error @ away) <= edge * ((weights**2).sum() + 8) + 1e-9


def test_fit_recommends_the_block_of_the_history() -> None:
    label = np.repeat(np.arange(3), 4)
    blocks = (label[:, None] == label) * 5.0 + np.eye(12) * 5.0
    noise = np.triu(np.random.default_rng(2).normal(0, 0.3, (12, 12)), 1)
    scores = np.eye(12)[5] @ ease.fit(blocks + noise + noise.T, 0.3)
    assert set(np.argsort(-scores)[:3]) == {4, 6, 7}


def test_fit_takes_penalty_and_own_part_from_the_matrix_and_its_noise() -> None:
    matrix = gram()
    clean = denoise.denoise(matrix, 0.1).matrix()
    expected = ease.weights(clean, np.trace(matrix) / 8 + 2 * 0.1 * 8**0.5)
    assert ease.fit(matrix, 0.1) == pytest.approx(expected)
