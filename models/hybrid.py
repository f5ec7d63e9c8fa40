"""LightFM's hybrid model, started from the spectral embeddings.

An item's representation is its own (identity) embedding plus the sum of its features' embeddings, on both sides: the item
that is ranked and the item in a history (LightFM's "user"). The start splits the spectral embeddings into what a ridge
regression on the features explains and the item's own rest, so before any epoch the model ranks known items exactly as the
spectral one does, and an item without co-occurrences has its features' part. WARP (Weston, Bengio and Usunier 2011) then
trains on each known item's nearest neighbours. Only private aggregates and public features come in.
"""

from typing import Literal, NamedTuple

import lightfm
import numpy as np
import scipy.linalg
import scipy.sparse as sp

from models import ranking, spectral

PENALTIES = np.logspace(-3, 4, 29)
"""Ridge penalties to choose from, for rows of norm about 1."""
BEST_SCORE = 100.0
"""WARP counts a pair as wrong until it leads by 1: the start is scaled so that the best neighbours' median score is this, and
near ties, of which there are many, don't churn."""
SEASONING = 10.0
"""Epochs' worth of squared gradients in Adagrad's state before the first."""
CHUNK = 1_000
"""Rows scored at a time."""
Loss = Literal["warp", "warp-kos", "bpr", "logistic"]
"""LightFM's names. Pairwise, by rank: WARP, and WARP-kOS (Weston, Yee and Weiss 2013). Pairwise: BPR (Rendle et al. 2009).
Pointwise: logistic."""
Kind = Literal["hybrid", "ensemble"]
"""What a model started from: the tastes of the matrix alone, or with them those that features say (`models.ensemble`)."""


class Side(NamedTuple):
    """One side of the model: `identity` (n, d), `features` (f, d) and `loadings` csr (n, f) of items on features."""

    identity: np.ndarray
    features: np.ndarray
    loadings: sp.csr_matrix

    def representation(self) -> np.ndarray:
        """Returns (n, d): own embedding plus features' embeddings."""
        return self.identity + self.loadings @ self.features


class Model(NamedTuple):
    """`item` and `history` sides, the items' own and the features' biases, (n,) and (f,), and what it started from."""

    item: Side
    history: Side
    bias: np.ndarray
    feature_bias: np.ndarray
    kind: Kind = "hybrid"

    def item_bias(self) -> np.ndarray:
        """Returns (n,): own bias plus features' biases."""
        return self.bias + self.item.loadings @ self.feature_bias


def warm_start(
    embeddings: spectral.Embeddings, known: np.ndarray, item_loadings: sp.csr_matrix, history_loadings: sp.csr_matrix
) -> Model:
    """Returns the untrained model: representations of the `known` rows are exactly `embeddings`.

    Args:
        embeddings: of the known items, (len(known), d).
        known: rows of the items with co-occurrences.
        item_loadings: (n, f), all items.
        history_loadings: (n, f), all items.
    """
    item = extend(embeddings.item, known, item_loadings)
    history = extend(embeddings.history, known, history_loadings)
    return Model(item, history, np.zeros(item_loadings.shape[0]), np.zeros(item_loadings.shape[1]))


def extend(embedding: np.ndarray, known: np.ndarray, loadings: sp.csr_matrix) -> Side:
    """Returns the side of all items whose `known` rows are exactly `embedding`, and the others what their features say.

    Args:
        embedding: (len(known), d).
        known: rows of the known items.
        loadings: (n, f), all items.
    """
    of_known = loadings[known]
    features = ridge(of_known, embedding)
    identity = np.zeros((loadings.shape[0], embedding.shape[1]))
    identity[known] = embedding - of_known @ features
    return Side(identity, features, loadings)


def ridge(X: sp.csr_matrix, Y: np.ndarray) -> np.ndarray:
    """Returns B (f, d) of Y = X B + rest for the penalty that generalised cross-validation likes best.

    Golub, Heath and Wahba 1979, equation 1.4: (residual / n) / (1 - degrees of freedom / n)^2, from the singular values of X
    (n, f). Those below 1e-6 of the largest count as 0: the smallest penalty is far above what they could add.
    """
    X = X.astype(np.float64)
    singular, right = _right_vectors(X)
    projected = (right.T @ (X.T @ Y)) / singular[:, None]
    energy = (projected**2).sum(1)
    outside = max(float((Y**2).sum() - energy.sum()), 0.0)
    errors = []
    for penalty in PENALTIES:
        shrink = singular**2 / (singular**2 + penalty)
        residual = outside + float(((1 - shrink) ** 2 * energy).sum())
        errors.append(residual / max(1 - shrink.sum() / X.shape[0], 1e-9) ** 2)
    best = PENALTIES[int(np.argmin(errors))]
    return right @ ((singular / (singular**2 + best))[:, None] * projected)


def _right_vectors(X: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Returns the singular values of X (n, f) that aren't 0, and their right vectors, by columns."""
    if X.shape[1] > X.shape[0]:
        _, singular, right = scipy.linalg.svd(X.toarray(), full_matrices=False, check_finite=False)
        values, vectors = singular**2, right.T
    else:
        values, vectors = scipy.linalg.eigh((X.T @ X).toarray(), check_finite=False)
    kept = values > 1e-12 * values.max(initial=np.finfo(float).tiny)
    return np.sqrt(values[kept]), vectors[:, kept]


def neighbours(embeddings: spectral.Embeddings, count: int) -> sp.coo_matrix:
    """Returns each row's `count` best other rows with their scores as shares of the row's best, in (0, 1]. (m, m)."""
    m = len(embeddings.item)
    count = min(count, m - 1)
    rows, columns, weights = [], [], []
    for start in range(0, m, CHUNK):
        scores = embeddings.history[start : start + CHUNK] @ embeddings.item.T
        own = np.arange(start, start + len(scores))
        scores[np.arange(len(scores)), own] = -np.inf
        top = ranking.best(scores, count)
        share = np.take_along_axis(scores, top, axis=1)
        share /= np.maximum(share[:, :1], np.finfo(float).tiny)
        positive = share > 0
        rows.append(np.repeat(own, count).reshape(top.shape)[positive])
        columns.append(top[positive])
        weights.append(share[positive])
    cells = (np.concatenate(rows), np.concatenate(columns))
    return sp.coo_matrix((np.concatenate(weights), cells), shape=(m, m))


def train(
    model: Model, pairs: sp.coo_matrix, epochs: int, learning_rate: float, seed: int, threads: int = 1, loss: Loss = "warp"
) -> Model:
    """Returns the model after `epochs` of LightFM; the same for the same seed if `threads` is 1.

    Args:
        model: the start.
        pairs: (n, n), row: item in a history, column: item to rank higher; value: weight in (0, 1].
        epochs: 0 returns the start unchanged.
        learning_rate: of Adagrad at the scale of the start (see BEST_SCORE).
        seed: of the order of pairs and of the negative items.
        threads: of LightFM; more than one race for the same memory.
        loss: see Loss.
    """
    if epochs == 0 or not pairs.nnz:
        return model
    scale = _scale(model, pairs)
    signs, weights = _examples(pairs, loss, seed)
    fm = lightfm.LightFM(no_components=model.item.identity.shape[1], loss=loss, learning_rate=learning_rate, random_state=seed)

    def fit(epochs: int) -> None:
        fm.fit_partial(
            signs,
            user_features=_design(model.history.loadings),
            item_features=_design(model.item.loadings),
            sample_weight=weights,
            epochs=epochs,
            num_threads=threads,
        )

    fit(epochs=0)  # allocates weights and Adagrad's state; then the warm start takes the random weights' place
    fm.item_embeddings = _stack(model.item, scale)
    fm.user_embeddings = _stack(model.history, scale)
    _season(fm, model, pairs)
    fit(epochs)
    n = len(model.bias)
    return Model(
        _unstack(fm.item_embeddings / scale, model.item.loadings),
        _unstack(fm.user_embeddings / scale, model.history.loadings),
        fm.item_biases[:n].astype(np.float64) / scale**2,
        fm.item_biases[n:].astype(np.float64) / scale**2,
        model.kind,
    )


def _examples(pairs: sp.coo_matrix, loss: Loss, seed: int) -> tuple[sp.coo_matrix, sp.coo_matrix | None]:
    """Returns what LightFM learns from, 1 or -1, and the weights: WARP-kOS can't be weighed.

    The other losses find their negative items as they go; the pointwise one is given as many as positive ones, drawn evenly.
    """
    row, column, weight = pairs.row, pairs.col, pairs.data.astype(np.float32)
    signs = np.ones(len(row), np.float32)
    if loss == "logistic":
        drawn = np.random.default_rng(seed).integers(0, pairs.shape[1], len(column))
        row, column = np.concatenate([row, row]), np.concatenate([column, drawn.astype(column.dtype)])
        signs, weight = np.concatenate([signs, -signs]), np.concatenate([weight, weight])
    weights = None if loss == "warp-kos" else sp.coo_matrix((weight, (row, column)), shape=pairs.shape)
    return sp.coo_matrix((signs, (row, column)), shape=pairs.shape), weights


def _season(fm: lightfm.LightFM, model: Model, pairs: sp.coo_matrix) -> None:
    """Sets Adagrad's sums of squared gradients as if the pairs had been seen `SEASONING` times.

    LightFM starts each sum at 1: with that the first pairs move a feature that many items share by full steps, and one epoch
    at a rate of 0.003 lost a third of the start's quality.
    """
    item, history = _design(model.item.loadings), _design(model.history.loadings)
    n = len(model.bias)
    # A pair moves its positive item, and a negative one drawn evenly from all items.
    item_seen = item.multiply(item).T @ (np.bincount(pairs.col, pairs.data, n) + pairs.data.sum() / n)
    history_seen = history.multiply(history).T @ np.bincount(pairs.row, pairs.data, n)
    fm.item_embedding_gradients += (SEASONING * item_seen[:, None]).astype(np.float32)
    fm.item_bias_gradients += (SEASONING * item_seen).astype(np.float32)
    fm.user_embedding_gradients += (SEASONING * history_seen[:, None]).astype(np.float32)
    fm.user_bias_gradients += (SEASONING * history_seen).astype(np.float32)


def _scale(model: Model, pairs: sp.coo_matrix) -> float:
    """Returns what to multiply both sides by, so that scores of best neighbours are about BEST_SCORE."""
    best = pairs.data >= 1
    history, item = model.history.representation(), model.item.representation()
    scores = (history[pairs.row[best]] * item[pairs.col[best]]).sum(1)
    return float(np.sqrt(BEST_SCORE / max(float(np.median(np.abs(scores))), np.finfo(float).tiny)))


def _design(loadings: sp.csr_matrix) -> sp.csr_matrix:
    identity = sp.identity(loadings.shape[0], dtype=np.float32, format="csr")
    return sp.csr_matrix(sp.hstack([identity, loadings]), dtype=np.float32)


def _stack(side: Side, scale: float) -> np.ndarray:
    return np.ascontiguousarray(np.vstack([side.identity, side.features]) * scale, np.float32)


def _unstack(weights: np.ndarray, loadings: sp.csr_matrix) -> Side:
    n = loadings.shape[0]
    return Side(weights[:n].astype(np.float64), weights[n:].astype(np.float64), loadings)
