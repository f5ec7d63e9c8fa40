"""Several released windows in one: the newest one's items, and what all of them say about these.

Each window's noise is drawn afresh, so an average of windows has less of it; tastes change, so older windows weigh less.
"""

import collections.abc

import numpy as np

from models import training

_CELLS_AT_ONCE = 1 << 22


def combine(newest: training.Released, earlier: collections.abc.Iterable[training.Released], decay: float) -> training.Released:
    """Returns the average of the windows, a window weighing `decay` times as much as the next newer one.

    A score or a cell is averaged over those windows that have it; the newest has all of them. So noise differs between cells.
    The noise's edge is at most twice the largest of rows' root sums of variances (Bandeira and van Handel 2016, theorem 1.1,
    leading term); `noise_sd` is the one which `denoise.noise_edge` gives that for.

    Args:
        newest: the window whose items count; its matrix isn't changed.
        earlier: windows before it, the newest of them first; read one by one.
        decay: in (0, 1].

    Raises:
        ValueError: `decay` breaks its rule.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"combine: decay must be in (0, 1], not {decay}.")
    names = newest.ids[: len(newest.scores)]
    matrix, scores, score_weights = newest.matrix.copy(), newest.scores.copy(), np.ones(len(names))
    parts = [(1.0, np.ones(len(newest.known)), newest.noise_sd)]
    for age, window in enumerate(earlier, 1):
        weight = decay**age
        here, there = _common(names, window.ids[: len(window.scores)])
        scores[here] += weight * window.scores[there]
        score_weights[here] += weight
        here, there = _common([names[row] for row in newest.known], [window.ids[row] for row in window.known])
        for start in range(0, len(here), step := max(1, _CELLS_AT_ONCE // max(len(here), 1))):
            rows = slice(start, start + step)
            matrix[np.ix_(here[rows], here)] += weight * window.matrix[np.ix_(there[rows], there)]
        parts.append((weight, np.isin(np.arange(len(newest.known)), here).astype(float), window.noise_sd))
    largest = 0.0
    for row in range(len(matrix)):
        weights = sum(weight * has[row] * has for weight, has, _ in parts)
        matrix[row] /= weights
        variances = sum((weight * noise_sd) ** 2 * has[row] * has for weight, has, noise_sd in parts) / weights**2
        largest = max(largest, float(variances.mean()))
    return newest._replace(scores=scores / score_weights, matrix=matrix, noise_sd=largest**0.5)


def _common(names: collections.abc.Sequence[str], others: collections.abc.Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns where those that both have are in `names`, ascending, and in `others`."""
    place = {name: row for row, name in enumerate(others)}
    here = np.array([row for row, name in enumerate(names) if name in place], np.int64)
    return here, np.array([place[names[row]] for row in here], np.int64)
