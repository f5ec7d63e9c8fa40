import numpy as np
import pytest
import scipy.sparse as sp
import scipy.special

from models import hybrid, spectral
from tests.bench import listwise


def start(known: int = 12, cold: int = 3) -> tuple[hybrid.Model, sp.coo_matrix]:
    """A model and pairs that it doesn't rank first."""
    embeddings = spectral.Embeddings(*(np.random.default_rng(seed).normal(size=(known, 3)) for seed in (1, 2)))
    loadings = sp.random(known + cold, 5, 0.5, format="csr", random_state=3, dtype=np.float32)
    model = hybrid.warm_start(embeddings, np.arange(known), loadings, loadings)
    ring = (np.arange(known), (np.arange(known) + 1) % known)
    return model, sp.coo_matrix((np.ones(known), ring), shape=(known + cold,) * 2)


def scores(model: hybrid.Model, known: int = 12) -> np.ndarray:
    found = model.history.representation()[:known] @ model.item.representation()[:known].T + model.item_bias()[:known]
    np.fill_diagonal(found, -np.inf)
    return found


def test_training_lowers_the_loss() -> None:
    model, pairs = start()
    target = pairs.toarray()[:12, :12]
    beta = listwise.temperature(scores(model), target)
    losses = [listwise.loss(scores(listwise.train(model, pairs, epochs)), target, beta) for epochs in (0, 1, 5)]
    assert losses[0] > losses[1] > losses[2]


def test_a_start_that_says_just_what_the_weights_do_stays() -> None:
    model, _ = start()
    wanted = np.exp(scores(model))
    row, column = wanted.nonzero()
    pairs = sp.coo_matrix((wanted[row, column], (row, column)), shape=(15, 15))
    trained = listwise.train(model, pairs, 3)
    others = ~np.eye(12, dtype=bool)
    assert np.allclose(scores(trained)[others], scores(model)[others], atol=1e-3)
    target = wanted / wanted.sum(1, keepdims=True)
    assert listwise.temperature(scores(model), target) == pytest.approx(1, rel=1e-3)


def test_no_epochs_return_the_start() -> None:
    model, pairs = start()
    assert listwise.train(model, pairs, 0) is model


def test_the_gradient_is_that_of_the_loss() -> None:
    model, pairs = start()
    target, rows, columns = listwise._target(pairs)
    packed, step = listwise._pack(listwise._arrays(model)), 1e-6

    def value(parameters: np.ndarray) -> float:
        return listwise.loss(listwise._scores(listwise._unpack(model, parameters), rows, columns), target, 0.7)

    scores = listwise._scores(model, rows, columns)
    wrong = 0.7 * (scipy.special.softmax(0.7 * scores, axis=1) - target) / len(rows)
    gradient = listwise._gradient(model, wrong, rows, columns)
    for place in range(0, len(packed), 7):
        moved = packed.copy()
        moved[place] += step
        assert gradient[place] == pytest.approx((value(moved) - value(packed)) / step, rel=1e-3, abs=1e-6)
