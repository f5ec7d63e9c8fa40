"""Models by name, behind one small interface: fit on what was released, then score histories.

A `Fit` takes `training.Released` (noisy aggregates, public features) and where its items are in the matrices of histories; it
returns `ranking.Scores`. No model sees an event. Items that a model knows nothing of have a score of -inf.
"""

import collections.abc
import functools
from typing import Protocol

import numpy as np

from models import ease, ranking, training
from models import spectral as spectral_model

DEFAULT = training.Settings()


class Fit(Protocol):
    """Makes scores of a release; `columns` (N,): where in the matrices of histories the items `released.ids` are."""

    def __call__(self, released: training.Released, columns: np.ndarray) -> ranking.Scores: ...


def popularity(released: training.Released, columns: np.ndarray) -> ranking.Scores:
    """The noisy scores, the same for everybody."""
    return ranking.same_for_all(released.scores, columns[: len(released.scores)])


def content(released: training.Released, columns: np.ndarray) -> ranking.Scores:
    """An item's features by those of the history: factor scores whose tastes are the features, U = popularity^(1/2) F.

    All items; the noisy scores say which are popular, and the matrix's diagonal on average what an item has of its own. Nothing
    else is asked of the matrix.
    """
    features, popularity = released.loadings[:, :-1].toarray().astype(np.float64), released.popularity()
    own = spectral_model.own_variance(released.matrix, released.noise_sd, popularity)
    found = spectral_model.factor_scores(np.sqrt(popularity)[:, None] * features, own)
    return ranking.fold_in(found.item, found.history, 0.0, columns)


def spectral(
    released: training.Released, columns: np.ndarray, signal: str = "low-rank", rank: int = DEFAULT.rank
) -> ranking.Scores:
    """Factor scores of the known items (`models.spectral`) from the signal of that name (`models.signals`)."""
    embeddings = released.embeddings(signal, rank)
    return ranking.fold_in(embeddings.item, embeddings.history, 0.0, columns[released.known])


def shallow(released: training.Released, columns: np.ndarray) -> ranking.Scores:
    """EASE on the known items (`models.ease`)."""
    return ranking.linear(ease.fit(released.matrix, released.noise_sd), columns[released.known])


def hybrid(released: training.Released, columns: np.ndarray, settings: training.Settings = DEFAULT) -> ranking.Scores:
    """The published model of all items, `training.fit`: "hybrid" or "ensemble" by its settings."""
    model = training.fit(released, settings)
    return ranking.fold_in(model.item.representation(), model.history.representation(), model.item_bias(), columns)


BY_NAME: collections.abc.Mapping[str, Fit] = {
    "popularity": popularity,
    "content": content,
    "EASE": shallow,
    "spectral, low-rank": spectral,
    "spectral, prior": functools.partial(spectral, signal="prior"),
    "spectral, stacked": functools.partial(spectral, signal="stacked"),
    "hybrid, low-rank": functools.partial(hybrid, settings=training.Settings(kind="hybrid", signal="low-rank")),
    "hybrid, stacked": functools.partial(hybrid, settings=training.Settings(kind="hybrid", signal="stacked")),
    "ensemble (default)": hybrid,
    "ensemble, low-rank": functools.partial(hybrid, settings=training.Settings(kind="ensemble", signal="low-rank")),
    "ensemble, stacked": functools.partial(hybrid, settings=training.Settings(kind="ensemble", signal="stacked")),
}
