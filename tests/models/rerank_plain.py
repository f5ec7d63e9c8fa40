"""MMR and greedy MAP of a determinantal point process as the papers have them: list by list, each step from its definition."""

from collections.abc import Callable

import numpy as np

from models.rerank import OWN


def _lists(
    gain: Callable[[np.ndarray, list[int], int], float],
    candidates: np.ndarray,
    scores: np.ndarray,
    vectors: np.ndarray,
    k: int,
    trade_off: float,
    categories: np.ndarray | None = None,
    cap: int | None = None,
) -> np.ndarray:
    found = np.full((len(candidates), k), -1)
    for row, (given, values) in enumerate(zip(candidates, scores, strict=True)):
        items, values = given[given >= 0], values[given >= 0]
        cosines = _cosines(vectors[items])
        low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
        relevance = (values - low) / (high - low) if high > low else np.zeros(len(values))
        taken: list[int] = []
        while len(taken) < k:
            left = [i for i in range(len(items)) if i not in taken and not _is_full(items, taken, i, categories, cap)]
            if not left:
                break
            worth = [(1 - trade_off) * relevance[i] + trade_off * gain(cosines, taken, i) for i in left]
            taken.append(left[int(np.argmax(worth))])
        found[row, : len(taken)] = items[taken]
    return found


def _cosines(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1)
    unit = vectors / np.where(norms > 0, norms, 1)[:, None]
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, 1.0)
    return cosines


def _is_full(items: np.ndarray, taken: list[int], i: int, categories: np.ndarray | None, cap: int | None) -> bool:
    if categories is None or cap is None or categories[items[i]] < 0:
        return False
    return sum(categories[items[j]] == categories[items[i]] for j in taken) >= cap


def _nearest(cosines: np.ndarray, taken: list[int], i: int) -> float:
    return -max((cosines[i, j] for j in taken), default=0.0)


def _determinant(cosines: np.ndarray, taken: list[int], i: int) -> float:
    """Half of log det(S of taken and i) - log det(S of taken)."""
    kernel = cosines + OWN * np.eye(len(cosines))
    with_it = [*taken, i]
    after, before = (np.linalg.slogdet(kernel[np.ix_(each, each)])[1] for each in (with_it, taken))
    return (after - before) / 2


def mmr(*arguments: object, **named: object) -> np.ndarray:
    return _lists(_nearest, *arguments, **named)


def dpp(*arguments: object, **named: object) -> np.ndarray:
    return _lists(_determinant, *arguments, **named)
