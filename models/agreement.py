"""How much of what users do a model foretells, by a released matrix alone: to hold one model against another, at no budget.

A model says of item j beside a history's item i: history[i] . item[j]. Put together, B (n, n) with a diagonal of zeros
foretells each user's row x of the matrix from its other items, as a * B x. The matrix M is the sum of x x^T over the users, so
how much nearer that is to x than nothing at all is, summed up over the users,

    sum |x|^2 - |x - a B x|^2  =  2 a <B, M> - a^2 <B^T B, M>,

is linear in M: it has the same expectation as without noise, and a variance that is known, if B hangs on nothing of M's noise.
(It is the loss of EASE: Steck 2019, equation 2.) A model that was trained on M has learnt its noise; so M is split in two whose
noises are independent (`models.stacking.split`; data fission, Leiner, Duan, Wasserman and Ramdas 2023): the model is fitted
anew on one half, and looked up in the other. A model of another release is taken as it is. The a of each model is the one by
which it foretells that other half best: there the score's derivative by a is 0, so what a hangs on the noise moves the score by
the square of a's relative error alone, upwards, and any two models alike. (On the half that a model was fitted on it would be
too large, and the model worse than one of another release for that.)

The score is the share of sum |x|^2. It isn't recall, and users who are in the matrix are in training too; docs/model.md says
how well it goes along with recall, and that the plain sum of the cells of a model's lists, which is linear as well, does not.
"""

import math
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from data import tables
from models import hybrid, stacking, training

_Z = 1.959963984540054
"""95 % of a Gaussian lie within so many standard deviations."""


MOST_ITEMS = 5_000
"""Known items that models are held against each other by."""


class Halves(NamedTuple):
    """A released matrix, split.

    Attributes:
        first, second: (m, m), symmetric, with independent noise.
        second_sd: of the second's noise off the diagonal; on it, sqrt(2) times that.
    """

    first: np.ndarray
    second: np.ndarray
    second_sd: float

    def take(self, places: np.ndarray) -> "Halves":
        """Returns what is of some of the items."""
        return Halves(self.first[places][:, places], self.second[places][:, places], self.second_sd)


class Vectors(NamedTuple):
    """What a model has of n items, `item` and `history` (n, d); its biases foretell nothing of one user rather than another."""

    item: np.ndarray
    history: np.ndarray

    def take(self, rows: np.ndarray) -> "Vectors":
        """Returns those of some of the items."""
        return Vectors(self.item[rows], self.history[rows])


class Agreement(NamedTuple):
    """The scores of two models, and the 95 % interval of their difference, one - other.

    Attributes:
        low, high: what the noise leaves open; of sampling users it says nothing.
    """

    one: float
    other: float
    low: float
    high: float


def most_popular(released: training.Released) -> training.Released:
    """Returns what was released of the MOST_ITEMS most popular known items: several matrices are held at a time."""
    return released._replace(known=released.known[:MOST_ITEMS], matrix=released.matrix[:MOST_ITEMS, :MOST_ITEMS])


def halves(released: training.Released, seed: int = 0) -> tuple[training.Released, Halves]:
    """Splits a release; returns what a model is to be fitted on anew as well.

    Args:
        released: with known items.
        seed: of the split, which hides nothing and may be known. The same for all models of a release: so figures are too.
    """
    # Not the generator by which models split what they are fitted on: their noise would be this one's.
    rng = np.random.default_rng([seed, 1])
    first, second = stacking.split(released.matrix, released.noise_sd, rng)
    added = rng.normal(0, math.sqrt(2) * released.noise_sd, len(first))
    np.fill_diagonal(first, np.diag(first) + stacking.SHARE * added)
    np.fill_diagonal(second, np.diag(second) - added / stacking.SHARE)
    to_fit = released._replace(matrix=first, noise_sd=released.noise_sd * math.sqrt(1 + stacking.SHARE**2))
    return to_fit, Halves(first, second, released.noise_sd * math.sqrt(1 + stacking.SHARE**-2))


def vectors_of(model: hybrid.Model) -> Vectors:
    """Returns the vectors of a model's N items."""
    return Vectors(model.item.representation(), model.history.representation())


def vectors_in(embeddings: pa.Table, ids: list[str]) -> Vectors:
    """Returns the vectors of some items, all of which must be in a model's table (EMBEDDINGS)."""
    place = {item: row for row, item in enumerate(embeddings["item_id"].to_pylist())}
    rows = embeddings.take(pa.array([place[item] for item in ids], pa.int64()))
    return Vectors(*(tables.vectors(rows[name]).astype(np.float64) for name in ("embedding", "history_embedding")))


def compare(one: Vectors, other: Vectors, split: Halves) -> Agreement:
    """Returns how much of users' rows two models of the same n items foretell, n at least 2.

    Args:
        one, other: independent of the second half's noise.
        split: (n, n), of the same items.
    """
    # No less than its noise: there may be nothing but that.
    total = max(float(np.trace(split.first)), split.second_sd)
    weights = _weights(one, split.second)
    score = float(np.vdot(weights, split.second))
    theirs = _weights(other, split.second)
    base = float(np.vdot(theirs, split.second))
    weights -= theirs
    # A cell and its mirror image are one draw of noise: together they weigh twice. On the diagonal it has twice the variance.
    spread = _Z * split.second_sd * math.sqrt(2) * float(np.linalg.norm(weights)) / total
    difference = (score - base) / total
    return Agreement(score / total, base / total, difference - spread, difference + spread)


def _weights(vectors: Vectors, matrix: np.ndarray) -> np.ndarray:
    """Returns 2 a B - a^2 B^T B, made symmetric, (n, n), with the a that is best on the matrix, at least 0."""
    foretold = vectors.item @ vectors.history.T
    np.fill_diagonal(foretold, 0)
    squared = foretold.T @ foretold
    linear, quadratic = float(np.vdot(foretold, matrix)), float(np.vdot(squared, matrix))
    scale = max(linear, 0.0) / quadratic if quadratic > 0 else 0.0
    return scale * (foretold + foretold.T) - scale**2 * squared
