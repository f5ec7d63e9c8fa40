import numpy as np
import pytest

from models import stacking

N = 200


def symmetric(rng: np.random.Generator, sd: float) -> np.ndarray:
    upper = np.triu(rng.normal(0, sd, (N, N)), 1)
    return upper + upper.T


def test_the_two_copies_have_noises_that_are_independent() -> None:
    # Sample correlation of 19,900 cells: its standard deviation is 0.007.
    rng = np.random.default_rng(0)
    noise = symmetric(rng, 2.0)
    first, second = stacking.split(noise, 2.0, rng)
    cells = np.triu_indices(N, 1)
    assert abs(np.corrcoef(first[cells], second[cells])[0, 1]) < 0.04
    assert first[cells].std() == pytest.approx(2 * (1 + stacking.SHARE**2) ** 0.5, rel=0.03)
    assert second[cells].std() == pytest.approx(2 * (1 + stacking.SHARE**-2) ** 0.5, rel=0.03)


def test_noise_that_an_estimator_repeats_earns_it_nothing() -> None:
    rng = np.random.default_rng(1)
    signal = symmetric(rng, 1.0)
    found = stacking.weights(signal + symmetric(rng, 3.0), 3.0, [lambda _matrix, _sd: signal, lambda matrix, _sd: matrix], 0)
    assert found == pytest.approx([1, 0], abs=0.1)


def test_one_estimator_is_scaled_to_its_share_of_signal() -> None:
    # The matrix itself: signal variance 1, of a first copy's 1 + 1 * 1.25.
    rng = np.random.default_rng(2)
    matrix = symmetric(rng, 1.0) + symmetric(rng, 1.0)
    [found] = stacking.weights(matrix, 1.0, [lambda matrix, _sd: matrix], 0)
    assert found == pytest.approx(1 / 2.25, abs=0.06)


def test_equal_guesses_together_weigh_as_one_and_opposite_ones_nothing() -> None:
    signal = symmetric(np.random.default_rng(3), 1.0)
    found = stacking.weights(signal, 0.0, [lambda matrix, _sd: matrix, lambda matrix, _sd: matrix], 0)
    assert found.sum() == pytest.approx(1)
    assert stacking.weights(signal, 0.0, [lambda matrix, _sd: -matrix], 0).tolist() == [0]


def test_guesses_of_nothing_make_nothing() -> None:
    assert stacking.stack(np.ones((3, 3)), 1.0, [lambda matrix, _sd: 0 * matrix], 0).tolist() == [[0] * 3] * 3


def test_stacks_the_guesses_from_the_whole_matrix() -> None:
    matrix = symmetric(np.random.default_rng(4), 1.0)
    assert stacking.stack(matrix, 0.0, [lambda matrix, _sd: matrix / 2], 0) == pytest.approx(matrix)
