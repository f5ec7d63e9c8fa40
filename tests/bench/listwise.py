"""A listwise loss for the hybrid model: each item's row of scores as one distribution over all items.

ListNet's loss with top-one probabilities (Cao, Qin, Liu, Tsai and Li 2007, "Learning to rank: from pairwise approach to
listwise approach"): for each row i of the pairs, with q_i the weights of its neighbours put to a sum of 1,

    loss = - mean over i of sum over j of q_ij log p_ij,    p_i = softmax over j != i of beta * (h_i . e_j + b_j).

beta > 0 is the number that makes the start's loss least, and stays. The gradient by the scores is beta (p_i - q_i) / rows, 0
where the model says just what the weights do. Full batches: with a few thousand items an iteration is a few matrix products.
"""

import numpy as np
import scipy.optimize
import scipy.sparse as sp
import scipy.special

from models import hybrid


def train(model: hybrid.Model, pairs: sp.coo_matrix, epochs: int) -> hybrid.Model:
    """Returns the model after `epochs` iterations of L-BFGS over all pairs at once; nothing in it is random.

    Args:
        model: the start.
        pairs: (n, n), row: item in a history, column: item to rank higher; value: weight in (0, 1]. Items in neither a row nor
            a column aren't ranked here; they move with their features.
        epochs: 0 returns the start unchanged.
    """
    if epochs == 0 or not pairs.nnz:
        return model
    target, rows, columns = _target(pairs)
    beta = temperature(_scores(model, rows, columns), target)

    def value_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        moved = _unpack(model, parameters)
        scores = _scores(moved, rows, columns)
        wrong = beta * (scipy.special.softmax(beta * scores, axis=1) - target) / len(rows)
        return loss(scores, target, beta), _gradient(moved, wrong, rows, columns)

    found = scipy.optimize.minimize(
        value_and_gradient, _pack(_arrays(model)), jac=True, method="L-BFGS-B", options={"maxiter": epochs}
    )
    return _unpack(model, found.x)


def loss(scores: np.ndarray, target: np.ndarray, beta: float) -> float:
    """Returns the mean cross-entropy of (rows, columns) scores; a score of -inf is the row's own item."""
    logs = scipy.special.log_softmax(beta * scores, axis=1)
    return float(-np.sum(target * np.where(np.isfinite(logs), logs, 0.0)) / len(target))


def temperature(scores: np.ndarray, target: np.ndarray) -> float:
    """Returns the beta of least loss, between 1/1000 and 1000 over the scores' spread."""
    spread = max(float(np.std(scores[np.isfinite(scores)])), np.finfo(float).tiny)
    found = scipy.optimize.minimize_scalar(
        lambda log: loss(scores, target, np.exp(log) / spread), bounds=(np.log(1e-3), np.log(1e3)), method="bounded"
    )
    return float(np.exp(found.x) / spread)


def _target(pairs: sp.coo_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns q (rows, columns) and which rows and columns of the pairs these are."""
    rows, row = np.unique(pairs.row, return_inverse=True)
    columns = np.unique(np.concatenate([pairs.row, pairs.col]))
    target = np.zeros((len(rows), len(columns)))
    target[row, np.searchsorted(columns, pairs.col)] = pairs.data
    return target / target.sum(1, keepdims=True), rows, columns


def _scores(model: hybrid.Model, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    scores = model.history.representation()[rows] @ model.item.representation()[columns].T + model.item_bias()[columns]
    scores[np.arange(len(rows)), np.searchsorted(columns, rows)] = -np.inf
    return np.asarray(scores)


def _gradient(model: hybrid.Model, wrong: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns the gradient by the parameters, packed, of that by the scores, `wrong` (rows, columns)."""
    history, item, bias = np.zeros_like(model.history.identity), np.zeros_like(model.item.identity), np.zeros(len(model.bias))
    history[rows] = wrong @ model.item.representation()[columns]
    item[columns] = wrong.T @ model.history.representation()[rows]
    bias[columns] = wrong.sum(0)
    through = model.item.loadings.T
    return _pack([history, model.history.loadings.T @ history, item, through @ item, bias, through @ bias])


def _arrays(model: hybrid.Model) -> list[np.ndarray]:
    history, item = model.history, model.item
    return [history.identity, history.features, item.identity, item.features, model.bias, model.feature_bias]


def _pack(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([each.ravel() for each in arrays])


def _unpack(model: hybrid.Model, parameters: np.ndarray) -> hybrid.Model:
    shapes = [each.shape for each in _arrays(model)]
    ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
    parts = [part.reshape(shape) for part, shape in zip(np.split(parameters, ends), shapes, strict=True)]
    return hybrid.Model(
        model.item._replace(identity=parts[2], features=parts[3]),
        model.history._replace(identity=parts[0], features=parts[1]),
        parts[4],
        parts[5],
    )
