"""Which items to show and to keep: noisy weights, one vector, L2 sensitivity 1."""

import dataclasses
import math
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from scipy import stats

from data import tables
from transforms import bounding, spill, threads
from transforms.privacy import budget, noise
from transforms.release import cooccurrence

GRID_BITS = 30
"""Scores are exact multiples of 2^-30: room for 2^33 users."""


def exact_scores(rows: sp.csr_matrix) -> np.ndarray:
    """Sums what each user adds to its items: 1/sqrt(t) to each of t, rounded down to the grid. int64, (n_items,).

    Whatever t is, one user's vector has L2 norm at most 1.

    Args:
        rows: (n_users, n_items); an item is a user's when its entry is stored.
    """
    sizes = np.diff(rows.indptr)
    steps = np.floor(math.ldexp(1.0, GRID_BITS) / np.sqrt(np.maximum(sizes, 1))).astype(np.int64)
    scores = np.zeros(rows.shape[1], np.int64)
    np.add.at(scores, rows.indices, np.repeat(steps, sizes))
    return scores


def threshold(noise_multiplier: float, delta: float, max_partitions_contributed: int) -> float:
    """The noisy score above which an item of unknown existence may appear.

    A user who alone has t items gives each at most 1/sqrt(t); all t stay hidden with probability 1 - delta when each
    stays below 1/sqrt(t) + sigma * Phi^-1((1 - delta)^(1/t)). The maximum over t <= max_partitions_contributed serves
    every user. (Gopi et al. 2020, "Differentially private set union", theorem 5.1, for uniform weights.)
    """
    t = np.arange(1, max_partitions_contributed + 1)
    # (1 - delta)^(1/t) as a survival probability, exact for tiny delta.
    tail = -np.expm1(np.log1p(-delta) / t)
    return float(np.max(1 / np.sqrt(t) + noise_multiplier * stats.norm.isf(tail)))


SCORES = pa.schema([pa.field("item_id", pa.string(), nullable=False), pa.field("score", pa.int64(), nullable=False)])
"""Exact scores in multiples of 2^-GRID_BITS: the private side of data.tables.ITEMS."""


def score_table(rows: pa.Table, max_partitions_contributed: int, key: bytes) -> pa.Table:
    """The scores of one bucket's CONTRIBUTIONS as SCORES, each user bounded to `max_partitions_contributed` items."""
    rows = bounding.merge_event_types(rows)
    rows = bounding.bound_partitions(rows, ["item_id"], max_partitions_contributed, key)
    items = pc.unique(rows["item_id"]).dictionary_decode()
    return pa.table([items, exact_scores(bounding.user_rows(rows, items).weights)], SCORES)


def add_scores(tables: Iterable[pa.Table]) -> pa.Table:
    """Adds up tables of SCORES."""
    joined = pa.concat_tables([SCORES.empty_table(), *tables])
    added = joined.group_by("item_id", use_threads=False).aggregate([("score", "sum")])
    return added.rename_columns(SCORES.names).cast(SCORES)


KEEP_SIGNAL = 0.02
"""Signal over noise that the least item to keep needs. Found on tuning seeds of the synthetic world, where 0.015 to 0.025 do
as well, and checked on real data (docs/model.md has the table)."""
LEAST_KEPT = 50


def items_to_keep(scores: np.ndarray, noise_sd: float, expected_users: int, most: int) -> int:
    """How many of the best items the co-occurrence matrix should have, from released and public figures alone.

    The last of m items is worth keeping when its row stands out: if items met by popularity alone, row i of the matrix would
    have norm p_i |p| / users. The noise that one more item costs grows with m, the more so as each user's row, whose norm
    is 1, is spread over more items.

    Args:
        scores: p, noisy, in descending order, (n_items,).
        noise_sd: of an off-diagonal cell of the matrix.
        expected_users: a public figure.
        most: that the matrix can have.
    """
    p = np.maximum(scores, 0)
    signal = p * np.linalg.norm(p) / expected_users
    worth = np.flatnonzero(signal >= KEEP_SIGNAL * noise_sd * np.arange(1, len(p) + 1))
    kept = worth[-1] + 1 if len(worth) else 0
    return int(min(max(kept, LEAST_KEPT), most, len(p)))


@dataclasses.dataclass(frozen=True)
class SelectionParams:
    """How items are scored and chosen.

    Attributes:
        mechanism: of the scores; L2 sensitivity 1. Its delta is what private selection may spend.
        max_partitions_contributed: items a user may score.
        public_items: the catalogue's, or None: then only items above the threshold appear.
        max_items: kept for the co-occurrence matrix, None: as many as the noise allows.
        cooccurrence_sd: off-diagonal noise of that matrix.
        expected_users: a public figure.
    """

    mechanism: budget.Mechanism
    max_partitions_contributed: int
    public_items: pa.Array | None
    max_items: int | None
    cooccurrence_sd: float
    expected_users: int


def release_scores(exact: pa.Table, params: SelectionParams) -> pa.Table:
    """Adds noise to SCORES, drops what must stay hidden and ranks the rest: a table of data.tables.ITEMS."""
    if params.public_items is not None:
        ids = params.public_items
        found = pc.index_in(ids, value_set=exact["item_id"].combine_chunks())
        sums = pc.fill_null(exact["score"].combine_chunks().take(found), 0).to_numpy()
    else:
        ids, sums = exact["item_id"].combine_chunks(), exact["score"].to_numpy()
    drawn = noise.draw("chacha", len(sums), params.mechanism.noise_sd, GRID_BITS)
    return choose(ids, (sums + drawn) * 2.0**-GRID_BITS, params)


def choose(ids: pa.Array, scores: np.ndarray, params: SelectionParams) -> pa.Table:
    """Drops of noisy scores (n_items,) what must stay hidden and ranks the rest: a table of data.tables.ITEMS."""
    table = pa.table({"item_id": ids, "score": scores}).sort_by([("score", "descending"), ("item_id", "ascending")])
    if params.public_items is None:
        limit = threshold(params.mechanism.noise_multiplier, params.mechanism.delta, params.max_partitions_contributed)
        table = table.filter(pc.greater(table["score"], limit))
    kept = params.max_items or items_to_keep(
        table["score"].to_numpy(), params.cooccurrence_sd, params.expected_users, cooccurrence.MAX_AUTO_ITEMS
    )
    position = np.arange(table.num_rows)
    return table.append_column("position", pa.array(position, pa.int32(), mask=position >= kept)).cast(tables.ITEMS)


class ReleaseSelection(beam.PTransform):
    """Releases a noisy score for every item that may be shown, and which of them the co-occurrence matrix has.

    Unit of protection: one privacy id with everything it did, added or removed. Mechanism: Gaussian, on the vector of sums of
    1/sqrt(items of the user), L2 sensitivity 1; without public items a threshold besides, which spends the mechanism's delta.

    In: CONTRIBUTIONS, one table a bucket, or where it lies. Out: a table of data.tables.ITEMS for each grant (none if refused).
    """

    def __init__(self, params: SelectionParams, grants: beam.PCollection[str], key: bytes):
        super().__init__()
        self._params, self._grants, self._key = params, grants, key

    def report(self) -> str:
        """Says how the numbers are made."""
        params = self._params
        shown = "Every item of the public catalogue is shown."
        if params.public_items is None:
            limit = threshold(params.mechanism.noise_multiplier, params.mechanism.delta, params.max_partitions_contributed)
            shown = f"Items whose noisy score is at most {limit} are not shown; delta {params.mechanism.delta}."
        return (
            "Sum over users of 1/sqrt(items of the user) for each of them, at most "
            f"{params.max_partitions_contributed} items of each user, chosen by a keyed hash.\n"
            f"Gaussian mechanism: parameter={params.mechanism.noise_sd}; L2 sensitivity 1\n{shown}"
        )

    def expand(self, buckets: beam.PCollection[pa.Table | spill.Part]) -> beam.PCollection[pa.Table]:
        key = self._key

        def score(rows: pa.Table | spill.Part, max_partitions_contributed: int) -> Iterator[pa.Table]:
            yield score_table(spill.read(rows), max_partitions_contributed, key)

        return (
            buckets
            | "ScoreItems"
            >> beam.ParDo(threads.FlatMapOnThreads(score), self._params.max_partitions_contributed).with_output_types(pa.Table)
            | "AddScores" >> beam.CombineGlobally(add_scores)
            | "AddNoise"
            >> beam.FlatMap(
                lambda exact, params, grants: [release_scores(exact, params) for _ in grants],
                self._params,
                beam.pvalue.AsIter(self._grants),
            ).with_output_types(pa.Table)
            # Drawn once: what reads these scores must never see them drawn again.
            | "Fix" >> beam.Reshuffle()
        )
