"""Who is kept from a job's models, and what each of them is asked: so that nothing of a user's answer hangs on another user."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from data import files, store, tables
from models import evaluation, ranking, splits
from pipelines import config
from transforms import bounding
from transforms.privacy import keyed_hash
from transforms.release import holding_out

METRICS = ("recall", "ndcg", "mrr")
"""Of each model, in this order; all in [0, 1]."""
POPULARITY = "popularity"

_MEASURES = {"recall": evaluation.recall_at_k, "ndcg": evaluation.ndcg_at_k, "mrr": evaluation.mrr}
_HASH_KEY = bytes(32)
"""Items are told apart by it, not hidden."""


def choose(job: config.Job) -> holding_out.Choose:
    """Who is held out of the job's models, by the pseudonym: the same users as long as its key, share and seed are the same."""
    section = job.evaluation
    return functools.partial(_is_held_out, share=section.held_out_share, seed=section.seed)


def _is_held_out(pseudonyms: pa.FixedSizeBinaryArray, share: float, seed: int) -> np.ndarray:
    return splits.held_out(bounding.user_hash(pseudonyms), share, seed)


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of each held-out user: public, or released before.

    Attributes:
        place: of the store.
        release: the manifest of the release whose popular items are compared.
        models: newest first.
        k: length of the lists.
        seed: of what is hidden from the models.
    """

    place: files.Name
    release: dict[str, Any]
    models: Sequence[store.Model]
    k: int
    seed: int

    @property
    def compared(self) -> list[tuple[str, int | None]]:
        """Kind and version of all that is compared."""
        return [(POPULARITY, None), *((str(model.manifest["model"]), model.number) for model in self.models)]

    def prepare(self) -> "Measure":
        """Reads the models."""
        items = store.Store(self.place).read_table(self.release, "items", tables.ITEMS)
        embeddings = [model.read_table("embeddings", tables.EMBEDDINGS) for model in self.models]
        ids = pa.concat_arrays([table["item_id"].combine_chunks() for table in (items, *embeddings)]).unique().sort()
        place = {item: number for number, item in enumerate(ids.to_pylist())}

        def columns(table: pa.Table) -> np.ndarray:
            return np.array([place[item] for item in table["item_id"].to_pylist()], np.int64)

        scores = [ranking.same_for_all(items["score"].to_numpy(), columns(items))]
        scores += [ranking.fold_in(*_vectors(table), columns(table)) for table in embeddings]
        return Measure(place, scores, self.k, self.seed)


def _vectors(embeddings: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of items to rank and of items of a history, (n, d), and biases, (n,)."""
    item, history = (tables.vectors(embeddings[name]) for name in ("embedding", "history_embedding"))
    return item, history, embeddings["bias"].to_numpy()


@dataclasses.dataclass(frozen=True)
class Measure:
    """Asks one user (transforms.release.evaluation.Measure).

    Attributes:
        place: column of each item that any of the models knows.
        scores: of each model.
        k, seed: as Question has them.
    """

    place: Mapping[str, int]
    scores: Sequence[ranking.Scores]
    k: int
    seed: int

    def __call__(self, user: int, items: pa.StringArray) -> np.ndarray | None:
        """METRICS of each model, for the items that are hidden from them; None: the user has too few to hide any."""
        if len(items) < splits.HIDDEN_ONE_IN:
            return None
        # By the items' names: places would hang on what others have.
        names = keyed_hash.keyed_hash(items, _HASH_KEY)[:, 0].astype(np.int64)
        is_hidden = splits.hidden(np.full(len(items), user, np.uint64), names, self.seed)
        columns, n_columns = self._columns(items)
        history, held = (_row(columns[which], n_columns) for which in (~is_hidden, is_hidden))
        # One user at a time: how a product of many is rounded hangs on how many there are.
        lists = [ranking.rank(score, history, self.k) for score in self.scores]
        return np.array([_MEASURES[metric](shown, held)[0] for shown in lists for metric in METRICS])

    def _columns(self, items: pa.StringArray) -> tuple[np.ndarray, int]:
        """Where items are in a row, and how long it is: items that no model knows come behind all others."""
        known = np.array([self.place.get(item, -1) for item in items.to_pylist()], np.int64)
        is_unknown = known < 0
        known[is_unknown] = len(self.place) + np.arange(is_unknown.sum())
        return known, len(self.place) + int(is_unknown.sum())


def _row(columns: np.ndarray, n_columns: int) -> sp.csr_matrix:
    columns = np.sort(columns)
    return sp.csr_matrix((np.ones(len(columns), np.float32), columns, [0, len(columns)]), shape=(1, n_columns))
