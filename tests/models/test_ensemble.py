import numpy as np
import pytest
import scipy.sparse as sp

from models import ensemble, ranking, training

N = 60
TASTES = np.random.default_rng(0).normal(size=(N, 4))
SIGNAL = TASTES @ TASTES.T


def release(noise_sd: float = 1.0) -> training.Released:
    noise = np.triu(np.random.default_rng(1).normal(0, noise_sd, SIGNAL.shape), 1)
    ids = [f"i{i}" for i in range(N)]
    features = sp.csr_matrix(np.ones((N, 1), np.float32))
    return training.Released(ids, np.ones(N), np.arange(N), SIGNAL + noise + noise.T, noise_sd, [training.ALL_ITEMS], features)


def good(released: training.Released, columns: np.ndarray) -> ranking.Scores:
    return ranking.linear(SIGNAL, columns)


def bad(released: training.Released, columns: np.ndarray) -> ranking.Scores:
    return ranking.linear(np.random.default_rng(2).normal(size=(N, N)), columns)


def noisy(released: training.Released, columns: np.ndarray) -> ranking.Scores:
    """Repeats the noise that it was fitted on."""
    return ranking.linear(released.matrix - SIGNAL, columns)


def test_a_model_weighs_as_much_as_it_foretells() -> None:
    found = ensemble.weights([good, bad, noisy], release(), seed=0)
    assert found[0] > 0.3
    assert max(found[1:]) < 0.1


def test_models_that_foretell_nothing_weigh_the_same() -> None:
    assert ensemble.weights(
        [lambda _released, columns: ranking.linear(np.zeros((N, N)), columns)] * 2, release(), 0
    ).tolist() == [1, 1]


def test_z_scores_leave_out_what_a_model_does_not_know() -> None:
    found = ensemble.z_scores(np.array([[1.0, 3.0, -np.inf], [5.0, 5.0, 5.0], [-np.inf] * 3]))
    assert found.tolist() == [[-1, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_scores_are_the_weighted_z_scores_and_an_item_of_no_model_is_left_out() -> None:
    released, columns = release(), np.arange(N)
    history = sp.csr_matrix(([1.0], ([0], [3])), shape=(1, N + 1))
    found = ensemble.fit([good, bad], released, columns, seed=0)(history)
    shares = ensemble.weights([good, bad], released, seed=0)
    each = [ensemble.z_scores(fit(released, columns)(history)) for fit in (good, bad)]
    assert found[0, :N] == pytest.approx((shares[0] * each[0] + shares[1] * each[1])[0, :N])
    assert found[0, N] == -np.inf
