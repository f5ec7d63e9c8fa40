"""Many releases in one go: what is exact once for each trial, with the trial in its key, and noise by the shipped functions."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import tables
from pipelines import plan
from tests.audit import neighbours
from tests.audit.bounds import Sample
from transforms.privacy import budget
from transforms.release import cooccurrence, counts, evaluation, selection

_TRIALS_A_BLOCK = 32


@functools.lru_cache(maxsize=4)
def keys(trials: int, items: tuple[str, ...]) -> pa.Array:
    """Names of items by trial, in order."""
    of_trial = pc.utf8_lpad(pc.cast(pa.array(np.repeat(np.arange(trials), len(items))), pa.string()), 8, "0")
    return pc.binary_join_element_wise(of_trial, pa.array(list(items) * trials), "/")


def scores(planned: plan.Plan, exact: neighbours.Exact, trials: int) -> np.ndarray:
    """Released scores (trials, n_items); -inf: the item isn't shown. Without items nothing is, and there are no columns."""
    params, n_items = plan.selection_params(planned), len(exact.items)
    if not n_items:
        return np.zeros((trials, 0))
    names = keys(trials, exact.items)
    table = pa.table([names, np.tile(exact.scores, trials)], selection.SCORES)
    if params.public_items is not None:
        params = dataclasses.replace(params, public_items=names)
    released = selection.release_scores(table, params)
    found = np.full(trials * n_items, -np.inf)
    found[pc.index_in(released["item_id"], value_set=names).to_numpy()] = released["score"].to_numpy()
    assert params.public_items is None or np.isfinite(found).all()
    return found.reshape(trials, n_items)


def counted(planned: plan.Plan, exact: neighbours.Exact, trials: int) -> tuple[np.ndarray, np.ndarray]:
    """Released numbers of users and of events, (trials, n_items) each; the job has one type of events."""
    params, names = plan.count_params(planned), keys(trials, exact.items)
    [event_type] = params.event_types
    figures = [np.tile(exact.users, trials), np.tile(exact.events, trials)]
    table = pa.table([names, pa.array([event_type] * len(names)), *figures], counts.EXACT_COUNTS)
    released = counts.release_counts(table, pa.table({"item_id": names}), params)
    assert released["item_id"].combine_chunks().equals(names)
    users, events = (released[name].to_numpy().reshape(trials, -1) for name in ("users", "events"))
    return users, events


def paired(planned: plan.Plan, exact: neighbours.Exact, trials: int) -> np.ndarray:
    """The upper triangles of released matrices (trials, n_cells): many small ones along the diagonal of a larger."""
    n_items, mechanism = len(exact.items), planned.mechanisms[budget.COOCCURRENCE]
    row, col = np.triu_indices(n_items)
    found = np.empty((trials, len(row)))
    for start in range(0, trials, _TRIALS_A_BLOCK):
        n = min(_TRIALS_A_BLOCK, trials - start)
        size = n * n_items
        sums = np.kron(np.eye(n, dtype=np.int64), exact.pairs)
        released = cooccurrence.release_block(((0, size, size), sums), mechanism.noise_sd, planned.job.cooccurrence.noise)
        assert released.schema == tables.ITEM_PAIRS
        first = np.arange(n)[:, None] * n_items
        # Where a cell of the upper triangle of a matrix lies among its rows.
        place = (first + row) * size - (first + row) * (first + row + 1) // 2 + first + col
        found[start : start + n] = released["value"].to_numpy()[place]
    return found


def means(params: evaluation.EvaluationParams, exact: np.ndarray, trials: int) -> np.ndarray:
    """What readers learn of the sums on held-out users, (trials, 1 + n_values): from the released means and number of users."""
    found = np.empty((trials, 1 + params.n_values))
    for trial in range(trials):
        released = evaluation.release_means(exact, params, "")
        users = released["users"].to_numpy()
        found[trial] = users[0], *(released["value"].to_numpy() - 0.5) * users
    return found


Released = list[dict[str, np.ndarray]]
"""By window and mechanism, what came out, (trials, n_figures)."""


def release(
    planned: Sequence[plan.Plan], exact: Sequence[neighbours.Exact], trials: int, names: Sequence[str] = neighbours.MECHANISMS
) -> Released:
    """Releases all windows so many times: what some mechanisms give, or all."""
    found = []
    for each, of_window in zip(planned, exact, strict=True):
        found.append({})
        if budget.SELECTION in names:
            found[-1][budget.SELECTION] = scores(each, of_window, trials)
        if budget.COUNTS_USERS in names or budget.COUNTS_EVENTS in names:
            found[-1][budget.COUNTS_USERS], found[-1][budget.COUNTS_EVENTS] = counted(each, of_window, trials)
        if budget.COOCCURRENCE in names:
            found[-1][budget.COOCCURRENCE] = paired(each, of_window, trials)
    return found


def project(
    released: Released, direction: Sequence[dict[str, np.ndarray]], names: Sequence[str] = neighbours.MECHANISMS
) -> np.ndarray:
    """Each trial's projection, (trials,)."""
    return sum(of_window[name] @ along[name] for of_window, along in zip(released, direction, strict=True) for name in names)


def sample(
    planned: Sequence[plan.Plan],
    pair: neighbours.Pair,
    direction: Sequence[dict[str, np.ndarray]],
    trials: int,
    names: Sequence[str] = neighbours.MECHANISMS,
) -> Sample:
    """Both neighbours, released so many times each."""
    return Sample(*(project(release(planned, exact, trials, names), direction, names) for exact in pair))
