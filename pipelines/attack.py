"""What an attacker sees of users in a release: what each adds to the exact sums, and how much of that is in what came out.

The attacker knows all other users' events and the code, as differential privacy grants. For events that are nobody's secret
(`pipelines.audit`): what is made here is exact.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from data import tables
from data.catalogue import Catalogue
from models import training
from pipelines import config, evaluate, plan
from transforms import bounding, codes
from transforms.privacy import budget
from transforms.release import cooccurrence, counts, selection

_LEAST_NOISE = 1e-4
"""Noise multipliers below count as this one where users are told apart: a double can't hold more."""


class Terms(NamedTuple):
    """What each of m users adds to the exact sums, before noise; n released items, p partitions, k kept items.

    Attributes:
        scores: (m, n).
        users, events: (m, p), the partitions by item and then event type.
        rows: (m, k), of norm 1: a user adds its outer product.
    """

    scores: sp.csr_matrix
    users: sp.csr_matrix
    events: sp.csr_matrix
    rows: sp.csr_matrix


class Sums(NamedTuple):
    """Sums of terms, exact or with noise: scores (n,), users and events (p,), matrix (k, k)."""

    scores: np.ndarray
    users: np.ndarray
    events: np.ndarray
    matrix: np.ndarray

    def less(self, others: "Sums") -> "Sums":
        """These less others."""
        return Sums(*(ours - theirs for ours, theirs in zip(self, others, strict=True)))


class Released(NamedTuple):
    """One release: its tables, and the scores (k, k) of the kept items for each kept item as a history."""

    tables: evaluate.Release
    item_counts: pa.Table
    recommending: np.ndarray


def release(job: config.Job, planned: plan.Plan, rows: pa.Table, public: Catalogue | None) -> Released:
    """What a release of CONTRIBUTIONS and the model of it would say, by the job's own functions; less the ledger."""
    found = evaluate.release(planned, rows)
    params = plan.count_params(planned)
    bounded = counts.bounded_rows(rows, params, found.items, planned.bounding_key)
    item_counts = counts.release_counts(counts.exact_counts(bounded), found.items, params)
    return Released(found, item_counts, recommending(job, found.items, found.pairs, found.noise_sd, public))


def recommending(job: config.Job, items: pa.Table, pairs: pa.Table, noise_sd: float, public: Catalogue | None) -> np.ndarray:
    """Trains the job's model: its scores (k, k) of the kept items, a row for each kept item as the only one of a history."""
    kept = cooccurrence.kept_items(items)
    found = training.train(training.read(items, pairs, noise_sd, public), public, job.model.settings).embeddings
    place = pc.index_in(kept, value_set=found["item_id"].combine_chunks()).to_numpy()
    item, history = (tables.vectors(found[name])[place] for name in ("embedding", "history_embedding"))
    return np.asarray(history @ item.T + found["bias"].to_numpy()[place], np.float64)


def terms(planned: plan.Plan, items: pa.Table, rows: pa.Table, ids: pa.Array) -> Terms:
    """What users add to the sums that are released, after all bounds.

    Args:
        items: as released.
        rows: the users' CONTRIBUTIONS.
        ids: (m,), the users' pseudonyms, in the order wanted.
    """
    job, key = planned.job, planned.bounding_key
    merged = bounding.merge_event_types(rows)
    scored = bounding.bound_partitions(merged, ["item_id"], job.selection.max_partitions_contributed, key)
    sizes = np.maximum(np.bincount(_places(scored, "privacy_id", ids), minlength=len(ids)), 1)
    shown = bounding.within(scored, "item_id", items["item_id"].combine_chunks())
    user = _places(shown, "privacy_id", ids)
    scores = _matrix(user, _places(shown, "item_id", items["item_id"]), 1 / np.sqrt(sizes[user]), len(ids), items.num_rows)
    params = plan.count_params(planned)
    bounded = counts.bounded_rows(rows, params, items, key)
    types = pa.array(params.event_types)
    partition = _places(bounded, "item_id", items["item_id"]) * len(types) + _places(bounded, "event_type", types)
    user, events = _places(bounded, "privacy_id", ids), bounded["events"].to_numpy().astype(np.float64)
    n = items.num_rows * len(types)
    found = bounding.user_rows(rows, cooccurrence.kept_items(items))
    quantised = cooccurrence.quantise_rows(found.weights).astype(np.float64) * 2.0**-cooccurrence.ROW_BITS
    place = pc.index_in(found.privacy_ids, value_set=ids).to_numpy()
    order = sp.csr_matrix((np.ones(len(place)), (place, np.arange(len(place)))), shape=(len(ids), len(place)))
    return Terms(
        scores,
        _matrix(user, partition, np.ones(len(user)), len(ids), n),
        _matrix(user, partition, events, len(ids), n),
        sp.csr_matrix(order @ quantised),
    )


def exact(planned: plan.Plan, items: pa.Table, rows: pa.Table) -> Sums:
    """The sums of CONTRIBUTIONS without noise, of the items that were released."""
    params = plan.count_params(planned)
    found = selection.score_table(rows, planned.job.selection.max_partitions_contributed, planned.bounding_key)
    place = pc.index_in(items["item_id"].combine_chunks(), value_set=found["item_id"].combine_chunks())
    scores = pc.fill_null(found["score"].combine_chunks().take(place), 0).to_numpy() * 2.0**-selection.GRID_BITS
    counted = counts.exact_counts(counts.bounded_rows(rows, params, items, planned.bounding_key))
    users, events = (_by_partition(counted, name, items, params.event_types) for name in ("users", "events"))
    quantised = cooccurrence.quantise_rows(bounding.user_rows(rows, cooccurrence.kept_items(items)).weights)
    return Sums(scores, users, events, cooccurrence.exact_matrix(quantised) * 2.0**-cooccurrence.GRID_BITS)


def noisy(planned: plan.Plan, released: Released) -> Sums:
    """The sums as they were released."""
    items, types = released.tables.items, plan.count_params(planned).event_types
    users, events = (_by_partition(released.item_counts, name, items, types) for name in ("users", "events"))
    read = training.read(items, released.tables.pairs, released.tables.noise_sd, None)
    return Sums(items["score"].to_numpy(), users, events, read.matrix)


def _places(rows: pa.Table, column: str, values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Where in `values` each row's is."""
    known = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    found = pc.fill_null(pc.index_in(codes.values(rows, column), value_set=known), -1).to_numpy()
    return np.asarray(found[codes.codes(rows, column)], np.int64)


def _matrix(row: np.ndarray, column: np.ndarray, value: np.ndarray, m: int, n: int) -> sp.csr_matrix:
    return sp.csr_matrix((value, (row, column)), shape=(m, n))


def _by_partition(table: pa.Table, name: str, items: pa.Table, types: Sequence[str]) -> np.ndarray:
    """A column of a table of partitions, (p,); 0 where it has no row."""
    place = pc.index_in(table["item_id"], value_set=items["item_id"].combine_chunks()).to_numpy()
    kind = pc.index_in(table["event_type"], value_set=pa.array(types)).to_numpy()
    found = np.zeros(items.num_rows * len(types))
    found[place * len(types) + kind] = table[name].to_numpy()
    return found


def products(own: Terms, seen: Sums, mechanisms: Mapping[str, budget.Mechanism]) -> dict[str, np.ndarray]:
    """By mechanism the inner product of each user's term with what was seen, (m,), in units of the noise's variance."""
    found = {
        budget.SELECTION: own.scores @ seen.scores,
        budget.COUNTS_USERS: own.users @ seen.users,
        budget.COUNTS_EVENTS: own.events @ seen.events,
        budget.COOCCURRENCE: pair_products(own, seen.matrix),
    }
    return {name: values / variance(mechanisms[name]) for name, values in found.items()}


def pair_products(own: Terms, matrix: np.ndarray) -> np.ndarray:
    """<x x^T, matrix> for each user's row x, (m,): off the diagonal twice, where noise has half the variance."""
    return np.asarray(own.rows.multiply(own.rows @ matrix).sum(1)).ravel()


def grams(own: Terms, mechanisms: Mapping[str, budget.Mechanism]) -> dict[str, np.ndarray]:
    """By mechanism the inner products of users' terms, (m, m), in units of the noise's variance."""
    found = {
        budget.SELECTION: (own.scores @ own.scores.T).toarray(),
        budget.COUNTS_USERS: (own.users @ own.users.T).toarray(),
        budget.COUNTS_EVENTS: (own.events @ own.events.T).toarray(),
        budget.COOCCURRENCE: (own.rows @ own.rows.T).toarray() ** 2,
    }
    return {name: values / variance(mechanisms[name]) for name, values in found.items()}


def variance(mechanism: budget.Mechanism) -> float:
    """The noise's, at least what a double can hold."""
    return max(mechanism.noise_sd, _LEAST_NOISE * mechanism.l2_sensitivity) ** 2
