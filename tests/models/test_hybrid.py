import numpy as np
import pytest
import scipy.sparse as sp

from models import hybrid, spectral

RNG = np.random.default_rng(0)


def start(known: int = 12, cold: int = 4, dimensions: int = 3) -> tuple[spectral.Embeddings, hybrid.Model]:
    embeddings = spectral.Embeddings(*(np.random.default_rng(seed).normal(size=(known, dimensions)) for seed in (1, 2)))
    loadings = sp.random(known + cold, 5, 0.5, format="csr", random_state=3, dtype=np.float32)
    return embeddings, hybrid.warm_start(embeddings, np.arange(known), loadings, loadings)


def same(first: hybrid.Model, second: hybrid.Model) -> bool:
    parts = (np.array_equal(a.representation(), b.representation()) for a, b in zip(first[:2], second[:2], strict=True))
    return all(parts) and np.array_equal(first.item_bias(), second.item_bias())


def in_all(pairs: sp.coo_matrix, n: int) -> sp.coo_matrix:
    return sp.coo_matrix((pairs.data, (pairs.row, pairs.col)), shape=(n, n))


def test_start_represents_known_items_exactly_and_cold_ones_by_features() -> None:
    embeddings, model = start()
    assert np.allclose(model.item.representation()[:12], embeddings.item, atol=1e-6)
    assert np.allclose(model.history.representation()[:12], embeddings.history, atol=1e-6)
    assert not model.item.identity[12:].any()
    assert np.allclose(model.item.representation()[12:], (model.item.loadings @ model.item.features)[12:])


def test_no_epochs_return_the_start() -> None:
    embeddings, model = start()
    trained = hybrid.train(model, in_all(hybrid.neighbours(embeddings, 3), 16), 0, 0.01, seed=0)
    assert same(trained, model)


def test_training_is_deterministic_and_moves_the_start_a_little() -> None:
    embeddings, model = start()
    pairs = in_all(hybrid.neighbours(embeddings, 3), 16)
    first, second = (hybrid.train(model, pairs, 3, 0.001, seed=5) for _ in range(2))
    assert same(first, second)
    assert not same(first, model)
    assert np.abs(first.item.representation() - model.item.representation()).max() < 0.05


@pytest.mark.parametrize(("loss", "share"), [("warp", 0.5), ("bpr", 0.8), ("logistic", 0.8)])
def test_training_moves_the_neighbours_up(loss: hybrid.Loss, share: float) -> None:
    _, model = start()
    pairs = sp.coo_matrix((np.ones(12, np.float32), (np.arange(12), (np.arange(12) + 1) % 12)), shape=(16, 16))
    trained = hybrid.train(model, pairs, 200, 0.05, seed=0, loss=loss)
    assert mean_rank(trained, pairs) < share * mean_rank(model, pairs)


def test_the_pointwise_loss_is_given_negative_items_and_warp_kos_no_weights() -> None:
    pairs = sp.coo_matrix(([1.0, 0.5], ([0, 1], [1, 2])), shape=(4, 4))
    signs, weights = hybrid._examples(pairs, "logistic", 0)
    assert weights is not None
    assert (signs.data.tolist(), weights.data.tolist()) == ([1, 1, -1, -1], [1, 0.5, 1, 0.5])
    assert (signs.row == weights.row).all()
    assert (signs.col == weights.col).all()
    assert hybrid._examples(pairs, "warp-kos", 0)[1] is None


def mean_rank(model: hybrid.Model, pairs: sp.coo_matrix) -> float:
    scores = model.history.representation() @ model.item.representation().T + model.item_bias()
    return float((scores[pairs.row] > scores[pairs.row, pairs.col][:, None]).sum(1).mean())


def test_neighbours_leave_the_item_itself_out() -> None:
    item = np.array([[1.0, 0.0], [0.5, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    near = hybrid.neighbours(spectral.Embeddings(item, item), 2)
    assert list(zip(near.row.tolist(), near.col.tolist(), near.data.tolist(), strict=True)) == [(0, 1, 1.0), (1, 0, 1.0)]


def test_ridge_finds_planted_weights() -> None:
    X, B = RNG.normal(size=(200, 4)), RNG.normal(size=(4, 2))
    assert np.allclose(hybrid.ridge(sp.csr_matrix(X), X @ B + RNG.normal(0, 0.01, (200, 2))), B, atol=0.01)


def test_ridge_explains_noise_by_little() -> None:
    X, Y = RNG.normal(size=(200, 100)), RNG.normal(size=(200, 20))
    assert np.linalg.norm(X @ hybrid.ridge(sp.csr_matrix(X), Y)) < 0.3 * np.linalg.norm(Y)


@pytest.mark.parametrize("features", [1, 30], ids=["fewer features than items", "more"])
def test_ridge_takes_any_shape(features: int) -> None:
    assert hybrid.ridge(sp.csr_matrix(RNG.normal(size=(10, features))), RNG.normal(size=(10, 2))).shape == (features, 2)
