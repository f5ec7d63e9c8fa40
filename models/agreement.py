"""How well a model's lists agree with a released matrix: a figure to tell a good model from a spoiled one, at no budget.

For each item the model's `TOP` best others are looked up in the matrix, and the cells added up: the mean of these sums over the
items is the score, so many co-occurrences an item. It is a sum of noisy cells with weights, and so has the same expectation as
without noise, and a variance that is known, if the lists hang on nothing of these cells' noise. A model that was trained on the
matrix has learnt its noise; so the matrix is split in two whose noises are independent (`models.stacking.split`; data fission,
Leiner, Duan, Wasserman and Ramdas 2023), the model is fitted anew on one half, and looked up in the other. A model of another
release is taken as it is.

It is not recall: what is frequent weighs most, and who is in the matrix is in training too.
"""

import math
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from models import hybrid, ranking, stacking, training

TOP = 20
"""Items in a list; where there are few items, at most half of the others, for a list of all would be everybody's."""
_Z = 1.959963984540054
"""95 % of a Gaussian lie within so many standard deviations."""


class Half(NamedTuple):
    """The part of a released matrix in which models are looked up.

    Attributes:
        matrix: (m, m), symmetric.
        noise_sd: of its noise off the diagonal.
    """

    matrix: np.ndarray
    noise_sd: float


class Vectors(NamedTuple):
    """What a model ranks n items by: score of item j beside item i is `history[i] @ item[j] + bias[j]`.

    Attributes:
        item: (n, d).
        history: (n, d).
        bias: (n,).
    """

    item: np.ndarray
    history: np.ndarray
    bias: np.ndarray

    def take(self, rows: np.ndarray) -> "Vectors":
        """Returns those of some of the items."""
        return Vectors(self.item[rows], self.history[rows], self.bias[rows])


class Agreement(NamedTuple):
    """The scores of two models, co-occurrences an item, and the 95 % interval of their difference, one - other.

    Attributes:
        low, high: what the noise leaves open; of sampling users it says nothing.
        items: on how many items both were held against the matrix.
    """

    one: float
    other: float
    low: float
    high: float
    items: int


def halves(released: training.Released, seed: int = 0) -> tuple[training.Released, Half]:
    """Splits a release: what a model is to be fitted on anew, and where it may be looked up then.

    Args:
        released: with known items.
        seed: of the split, which hides nothing and may be known. The same for all models of a release: so figures are too.
    """
    first, second = stacking.split(released.matrix, released.noise_sd, np.random.default_rng(seed))
    to_fit = released._replace(matrix=first, noise_sd=released.noise_sd * math.sqrt(1 + stacking.SHARE**2))
    return to_fit, Half(second, released.noise_sd * math.sqrt(1 + stacking.SHARE**-2))


def vectors_of(model: hybrid.Model) -> Vectors:
    """Returns the vectors of a model's N items."""
    return Vectors(model.item.representation(), model.history.representation(), model.item_bias())


def vectors_in(embeddings: pa.Table, ids: list[str]) -> Vectors:
    """Returns the vectors of some items, all of which must be in a model's table (EMBEDDINGS)."""
    place = {item: row for row, item in enumerate(embeddings["item_id"].to_pylist())}
    rows = embeddings.take(pa.array([place[item] for item in ids], pa.int64()))
    item, history = (
        np.reshape(rows[name].combine_chunks().flatten().to_numpy(), (len(ids), -1))
        for name in ("embedding", "history_embedding")
    )
    return Vectors(item, history, rows["bias"].to_numpy())


def compare(one: Vectors, other: Vectors, half: Half) -> Agreement:
    """Returns how well two models of the same n items, n at least 2, agree with a half of the matrix (n, n).

    Both must be independent of the half's noise.
    """
    n = len(half.matrix)
    ours, theirs = _weights(one), _weights(other)
    scores = [float(np.vdot(weights, half.matrix)) / n for weights in (ours, theirs)]
    # A cell and its mirror image are one draw of noise.
    of_pairs = np.triu((ours - theirs) + (ours - theirs).T, 1)
    spread = _Z * half.noise_sd * math.sqrt(float(np.vdot(of_pairs, of_pairs))) / n
    difference = scores[0] - scores[1]
    return Agreement(scores[0], scores[1], difference - spread, difference + spread, n)


def _weights(vectors: Vectors) -> np.ndarray:
    """(n, n): in each row a one for each item of its list."""
    n = len(vectors.item)
    found = np.zeros((n, n), np.float32)
    for start in range(0, n, hybrid.CHUNK):
        scores = vectors.history[start : start + hybrid.CHUNK] @ vectors.item.T + vectors.bias
        own = np.arange(start, start + len(scores))
        scores[np.arange(len(scores)), own] = -np.inf
        lists = ranking.best(scores, min(TOP, max(1, (n - 1) // 2)))
        np.put_along_axis(found[start : start + len(scores)], lists, 1.0, axis=1)
    return found
