"""From released tables to model tables: a model in closed form, LightFM's training on top if asked, recommendations.

Reads noisy aggregates and the public catalogue, never events: post-processing, at no cost to the budget.
"""

import collections.abc
import dataclasses
import logging
from typing import Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from data import tables
from data.catalogue import Catalogue
from models import alignment, denoise, ensemble, features, hybrid, ranking, rerank, signals, spectral

log = logging.getLogger(__name__)

ALL_ITEMS = "(every item)"
"""A feature of every item: the average taste, all that an item without features of its own has."""
COLD_SHARE = 0.5
"""An item without co-occurrences counts as popular as its noisy score says, but at least as this share of the least popular
item that has them: it can be shown, and seldom takes a known item's place. No bias is needed: on the synthetic world any
share from 0.1 to 1 gave the same Recall@20 over all items as leaving cold items out."""

Signal = Literal["auto", "low-rank", "prior", "stacked"]
CHOICES = {"kind": get_args(hybrid.Kind), "signal": get_args(Signal), "loss": get_args(hybrid.Loss)}

MOST_STACKED = 2_000
"""Kept items up to which the signal "auto" is "stacked": that one needs all eigenvectors, several times over."""
MOST_ENSEMBLE = 6_000
"""Kept items up to which "ensemble" is one: it holds several copies of the matrix. With more it is "hybrid"."""

_PAIRS_AT_ONCE = 1 << 22
_ROWS_AT_ONCE = 1_000


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to train. Equal settings and tables give equal models (with threads = 1).

    Attributes:
        kind: "hybrid" starts from the matrix's tastes, and features stand in for them where there are none (`models.hybrid`);
            "ensemble" from tastes of the matrix and of the features together (`models.ensemble`).
        signal: how the matrix's signal is told from its noise, a name in `models.signals`; "auto": see MOST_STACKED.
        rank: most dimensions of the matrix's tastes; the noise usually leaves fewer.
        feature_rank: most dimensions that the features add to an ensemble's embeddings.
        epochs: of LightFM after the closed-form start; 0 keeps the start.
        loss: that LightFM lowers, see `hybrid.Loss`.
        learning_rate: of LightFM.
        neighbours: best items of each item that LightFM learns to rank first.
        top_k: recommendations an item.
        seed: of LightFM.
        threads: of LightFM; more than one is faster and not reproducible.

    Raises:
        ValueError: a field breaks its rule.
    """

    kind: hybrid.Kind = "ensemble"
    signal: Signal = "auto"
    rank: int = 128
    feature_rank: int = 1024
    epochs: int = 0
    loss: hybrid.Loss = "warp"
    learning_rate: float = 0.0003
    neighbours: int = 50
    top_k: int = 20
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("rank", "feature_rank", "neighbours", "top_k", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"Settings: {name} must be positive, not {getattr(self, name)}.")
        for name in ("epochs", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"Settings: {name} must not be negative, not {getattr(self, name)}.")
        if not 0 < self.learning_rate <= 1:
            raise ValueError(f"Settings: learning_rate must be in (0, 1], not {self.learning_rate}.")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"Settings: {name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}.")


class Released(NamedTuple):
    """All that a model may know: noisy aggregates and public features.

    Attributes:
        ids: N items, those released first, then the catalogue's others.
        scores: (n,), n <= N, noisy popularity of the items released.
        known: (m,), rows in `ids` of the items that `matrix` is of, in its order.
        matrix: (m, m), noisy co-occurrences.
        noise_sd: of `matrix` off its diagonal.
        feature_names: f names, the last is ALL_ITEMS.
        loadings: (N, f), the items' features.
    """

    ids: list[str]
    scores: np.ndarray
    known: np.ndarray
    matrix: np.ndarray
    noise_sd: float
    feature_names: list[str]
    loadings: sp.csr_matrix

    def popularity(self) -> np.ndarray:
        """Returns how popular each of the N items counts, positive, 1: an average known item; see COLD_SHARE."""
        return _popularity(self.scores, self.known, len(self.ids))

    def spectrum(self, signal: str, rank: int, start: np.ndarray | None = None) -> denoise.Spectrum:
        """Returns at most `rank` eigenpairs of the matrix's signal, told from the noise as `Settings.signal` says.

        Args:
            start: see `denoise.denoise`.
        """
        if signal == "auto":
            signal = "stacked" if len(self.known) <= MOST_STACKED else "low-rank"
        scores = self.scores[self.known]
        own_features = sp.csr_matrix(self.loadings[self.known][:, :-1])
        noisy = signals.Noisy(self.matrix, self.noise_sd, spectral.relative(scores, scores), own_features)
        return signals.BY_NAME[signal](noisy, rank, start)

    def embeddings(self, signal: str, rank: int, start: np.ndarray | None = None) -> spectral.Embeddings:
        """Returns the spectral model's embeddings of the known items. Arguments as `spectrum`."""
        return spectral.from_spectrum(self.spectrum(signal, rank, start), self.matrix, self.noise_sd, self.scores[self.known])


class Trained(NamedTuple):
    """Model tables, with the schemas of the same names in `data.tables`, and what they came from.

    Attributes:
        kind: what an ensemble became where it would be no better (`ensemble.LEAST_WEIGHT`, MOST_ENSEMBLE) is "hybrid"; "none":
            there was nothing to learn from.
    """

    embeddings: pa.Table
    feature_embeddings: pa.Table
    recommendations: pa.Table
    popular: pa.Table
    kind: hybrid.Kind | Literal["none"]

    def tables(self) -> dict[str, pa.Table]:
        """Returns the tables by name."""
        return {name: value for name, value in self._asdict().items() if name != "kind"}


def train(
    released: Released,
    catalogue: Catalogue | None,
    settings: Settings,
    diversity: rerank.Settings | None = None,
    before: pa.Table | None = None,
) -> Trained:
    """Returns the model tables for every item released or in the catalogue.

    Args:
        released: what was released, of one window or of several (`models.windows`). Where there are no known items (nothing
            passed the selection's threshold, say) there is nothing to learn: embeddings are zero and nothing is recommended.
        catalogue: the one that `released` was read with.
        settings: see Settings.
        diversity: how the recommendations are re-ranked; None: they aren't.
        before: EMBEDDINGS of the version before: training starts from them, and the vectors are turned to them
            (`models.alignment`). With the same tables, settings and version before the model is the same.
    """
    ids, feature_names = released.ids, released.feature_names
    if not len(released.known):
        return _untrained(ids, released.scores)
    earlier = None if before is None else _earlier(ids, before)
    model = fit(released, settings, None if earlier is None else earlier.item[released.known])
    item, history = model.item.representation(), model.history.representation()
    turn = np.eye(item.shape[1])
    if earlier is not None:
        common = np.flatnonzero(earlier.item.any(1))
        turn = alignment.rotation(item[common], history[common], earlier.item[common], earlier.history[common])
    item, history = _float32(item @ turn), _float32(history @ turn)
    bias = _float32(model.item_bias())
    reranking = None
    if diversity is not None:
        popularity = np.concatenate([released.scores, np.zeros(len(ids) - len(released.scores))])
        reranking = diversity, rerank.describe(ids, item, popularity, catalogue, diversity)
    return Trained(
        _embedding_table(ids, item, history, bias, tables.EMBEDDINGS),
        _embedding_table(
            feature_names,
            _float32(model.item.features @ turn),
            _float32(model.history.features @ turn),
            _float32(model.feature_bias),
            tables.FEATURE_EMBEDDINGS,
        ),
        recommend(ids, item, history, bias, settings.top_k, reranking),
        _popular(ids[: len(released.scores)], released.scores),
        model.kind,
    )


def _earlier(ids: collections.abc.Sequence[str], before: pa.Table) -> spectral.Embeddings:
    """The version before, in the order of `ids`; zeros for items that it doesn't know."""
    place = {item: row for row, item in enumerate(before["item_id"].to_pylist())}
    rows = np.array([place.get(item, -1) for item in ids], np.int64)
    sides = (tables.vectors(before[name]).astype(np.float64) for name in ("embedding", "history_embedding"))
    # Row -1 stands for items that are new.
    return spectral.Embeddings(*(np.vstack([side, np.zeros((1, side.shape[1]))])[rows] for side in sides))


def read(items: pa.Table, pairs: pa.Table, noise_sd: float, catalogue: Catalogue | None) -> Released:
    """Returns what a window's released tables and the public catalogue say, as arrays.

    Args:
        items: schema ITEMS.
        pairs: schema ITEM_PAIRS, every pair of positions once.
        noise_sd: of the pairs' values off the diagonal, in their units.
        catalogue: public items and features; None: the released items alone, no features.

    Raises:
        ValueError: the tables contradict their schemas or each other.
    """
    released = _check_items(items)
    known = _known_rows(items)
    # Where nothing passed the threshold there are no pairs to look at.
    matrix = _matrix(pairs, len(known)) if len(known) else np.empty((0, 0))
    ids = _all_ids(released, catalogue)
    return Released(ids, items["score"].to_numpy(), known, matrix, noise_sd, *_features(ids, catalogue))


def fit(released: Released, settings: Settings, start: np.ndarray | None = None) -> hybrid.Model:
    """Returns the model of all items, trained; `released` must have known items.

    Args:
        start: (m, any), embeddings of the known items in the version before, zeros for those that it doesn't know.
    """
    known = released.known
    log.info("denoising the co-occurrence of %d items", len(known))
    model = _closed_form(released, settings, start)
    if not settings.epochs:
        return model
    log.info("training %d epoch(s) of %s", settings.epochs, settings.loss)
    pairs = neighbours(model, known, settings.neighbours)
    return hybrid.train(model, pairs, settings.epochs, settings.learning_rate, settings.seed, settings.threads, settings.loss)


def neighbours(model: hybrid.Model, known: np.ndarray, count: int) -> sp.coo_matrix:
    """Returns the `count` best other known items of each known item of N, as `hybrid.neighbours`, (N, N)."""
    near = hybrid.neighbours(
        spectral.Embeddings(model.item.representation()[known], model.history.representation()[known]), count
    )
    n = len(model.bias)
    return sp.coo_matrix((near.data, (known[near.row], known[near.col])), shape=(n, n))


def _closed_form(released: Released, settings: Settings, start: np.ndarray | None) -> hybrid.Model:
    """Returns the model before any epoch. Arguments as `fit`."""
    known, loadings, popularity = released.known, released.loadings, released.popularity()
    spectrum = released.spectrum(settings.signal, settings.rank, start)
    if settings.kind == "ensemble" and len(known) <= MOST_ENSEMBLE:
        found = ensemble.fit(
            released.matrix, released.noise_sd, known, popularity, loadings, spectrum, settings.rank, settings.feature_rank
        )
        if found is not None:
            return found
        log.info("features say too little beside the matrix: the model is a hybrid")
    elif settings.kind == "ensemble":
        log.warning("%d kept items are more than an ensemble's %d: the model is a hybrid", len(known), MOST_ENSEMBLE)
    # As D^-1 E on the history's side (models.spectral), so its loadings.
    return hybrid.warm_start(
        spectral.from_spectrum(spectrum, released.matrix, released.noise_sd, released.scores[known]),
        known,
        sp.csr_matrix(sp.diags(popularity) @ loadings),
        sp.csr_matrix(sp.diags(popularity ** (1 - spectral.OWN_POWER)) @ loadings),
    )


def _untrained(ids: list[str], scores: np.ndarray) -> Trained:
    zeros = np.zeros((len(ids), 1), np.float32)
    return Trained(
        _embedding_table(ids, zeros, zeros, zeros.ravel(), tables.EMBEDDINGS),
        tables.FEATURE_EMBEDDINGS.empty_table(),
        tables.RECOMMENDATIONS.empty_table(),
        _popular(ids[: len(scores)], scores),
        "none",
    )


def recommend(
    ids: list[str],
    item: np.ndarray,
    history: np.ndarray,
    bias: np.ndarray,
    top_k: int,
    reranking: tuple[rerank.Settings, rerank.Items] | None = None,
) -> pa.Table:
    """Returns RECOMMENDATIONS: each item's `top_k` best others by history . item + bias; ties by position in `ids`.

    Re-ranked or not, they come from the model, the released scores and the public catalogue alone.

    Args:
        ids: n items.
        item: (n, d) float32.
        history: (n, d) float32.
        bias: (n,) float32.
        top_k: fewer if there are fewer other items.
        reranking: how, and of which items; the scores stay the model's. None: as the model ranks.
    """
    n = len(ids)
    names = pa.array(ids, pa.string())
    chunks = []
    for start in range(0, n, hybrid.CHUNK):
        scores = history[start : start + hybrid.CHUNK] @ item.T + bias
        own = np.arange(start, start + len(scores))
        scores[np.arange(len(scores)), own] = -np.inf
        top = _best(scores, min(top_k, n - 1), reranking)
        row, place = (top != ranking.NO_ITEM).nonzero()
        chunks.append(
            pa.table(
                [
                    names.take(pa.array(own[row])),
                    pa.array(place.astype(np.int32) + 1, pa.int32()),
                    names.take(pa.array(top[row, place])),
                    pa.array(scores[row, top[row, place]]),
                ],
                schema=tables.RECOMMENDATIONS,
            )
        )
    return pa.concat_tables(chunks)


def _best(scores: np.ndarray, k: int, reranking: tuple[rerank.Settings, rerank.Items] | None) -> np.ndarray:
    """Returns the columns of each row's list of k, NO_ITEM in empty places; the row's own score is -inf."""
    if reranking is None or k == 0:
        return ranking.best(scores, k)
    settings, items = reranking
    candidates = ranking.best(scores, min(max(k, settings.candidates), scores.shape[1] - 1))
    return rerank.rerank(candidates, np.take_along_axis(scores, candidates, axis=1), items, k, settings)


def _check_items(items: pa.Table) -> list[str]:
    if not items.schema.equals(tables.ITEMS):
        raise ValueError(f"read: items must have the schema ITEMS, not {items.schema.names}.")
    ids: list[str] = items["item_id"].to_pylist()
    if len(set(ids)) != len(ids):
        raise ValueError(f"read: item_id must be unique, not {len(ids) - len(set(ids))} times repeated.")
    if not np.isfinite(items["score"].to_numpy()).all():
        raise ValueError("read: score of items must be finite.")
    return ids


def _known_rows(items: pa.Table) -> np.ndarray:
    """Returns the rows of `items` that have co-occurrences, ordered by position."""
    rows = np.flatnonzero(items["position"].is_valid().to_numpy())
    positions = items["position"].drop_null().to_numpy()
    if not np.array_equal(np.sort(positions), np.arange(len(positions))):
        raise ValueError(f"read: position of items must be 0 .. {len(positions) - 1}, each once.")
    return rows[np.argsort(positions)]


def _matrix(pairs: pa.Table, m: int) -> np.ndarray:
    """Returns the symmetric matrix (m, m) of an upper triangle."""
    if not pairs.schema.equals(tables.ITEM_PAIRS):
        raise ValueError(f"read: pairs must have the schema ITEM_PAIRS, not {pairs.schema.names}.")
    if pairs.num_rows != m * (m + 1) // 2:
        raise ValueError(f"read: pairs must have {m * (m + 1) // 2} rows for {m} kept items, not {pairs.num_rows}.")
    matrix = np.full((m, m), np.nan)
    # Part by part: the whole matrix is large, and so would copies of it be.
    for part in pairs.to_batches(_PAIRS_AT_ONCE):
        row, column, value = (part[name].to_numpy() for name in ("row", "col", "value"))
        if (row < 0).any() or (row > column).any() or (column >= m).any():
            raise ValueError(f"read: row and col of pairs must have 0 <= row <= col < {m}.")
        matrix[row, column] = value
    # In tiles: a column of a large matrix is all over the memory.
    for start in range(0, m, _ROWS_AT_ONCE):
        rows = matrix[start : start + _ROWS_AT_ONCE, start:]
        square = rows[:, : len(rows)]
        square[:] = np.triu(square) + np.triu(square, 1).T
        if not np.isfinite(rows).all():
            raise ValueError("read: pairs must hold each pair once, with a finite value.")
        matrix[start + len(rows) :, start : start + len(rows)] = rows[:, len(rows) :].T
    return matrix


def _all_ids(released: list[str], catalogue: Catalogue | None) -> list[str]:
    """Returns the released items, then the catalogue's others."""
    if catalogue is None:
        return released
    seen = set(released)
    return released + [item for item in catalogue.item_ids if item not in seen]


def _features(ids: list[str], catalogue: Catalogue | None) -> tuple[list[str], sp.csr_matrix]:
    """Returns the names and the matrix (n, f) of the items' features; the last one is ALL_ITEMS."""
    every = sp.csr_matrix(np.ones((len(ids), 1), np.float32))
    if catalogue is None:
        return [ALL_ITEMS], every
    own = features.of_items(ids, catalogue)
    return [*own.names, ALL_ITEMS], sp.csr_matrix(sp.hstack([own.matrix, every]))


def _popularity(scores: np.ndarray, known: np.ndarray, n: int) -> np.ndarray:
    """Returns how much of its features' embeddings each of the n items takes on, (n,); 1: an average known item.

    Embeddings of known items grow with their scores; what features say is about the direction.
    """
    popularity = np.zeros(n)
    popularity[: len(scores)] = spectral.relative(scores, scores[known])
    return np.maximum(popularity, COLD_SHARE * popularity[known].min())


def _popular(ids: list[str], scores: np.ndarray) -> pa.Table:
    order = np.argsort(-scores, kind="stable")
    columns = [
        pa.array(np.arange(1, len(order) + 1, dtype=np.int32)),
        pa.array(ids, pa.string()).take(pa.array(order)),
        pa.array(scores[order]),
    ]
    return pa.table(columns, schema=tables.POPULAR)


def _embedding_table(
    keys: collections.abc.Sequence[str], item: np.ndarray, history: np.ndarray, bias: np.ndarray, schema: pa.Schema
) -> pa.Table:
    return pa.table([pa.array(keys, pa.string()), _lists(item), _lists(history), pa.array(bias)], schema=schema)


def _lists(rows: np.ndarray) -> pa.ListArray:
    offsets = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.ascontiguousarray(rows).ravel())


def _float32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)
