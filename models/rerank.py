"""Ranked lists made more diverse: from a list's best candidates, those that are good and unlike each other.

Each method takes item after item, always the one of the largest (1 - trade_off) * score + trade_off * spread: the score is the
model's, put on [0, 1] list by list, and the spread says how much the item is unlike those taken before. So 0 is the ranking as
it is, 1 diversity alone, and a setting means the same for models whose scores have other scales.

A list is then in the order of the scores, as any ranking is: what is chosen is for diversity, its order for relevance.

Reads the model, the noisy scores of the release and the public catalogue, never events: post-processing, at no cost to the
budget.
"""

import collections.abc
import dataclasses
from typing import Literal, NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg

from data.catalogue import Catalogue
from models import evaluation, features
from models.ranking import NO_ITEM

Method = Literal["mmr", "dpp"]

NO_CATEGORY = -1
"""Of an item that is in none; no cap counts it."""
OWN = 0.01
"""What each item has of its own in the determinant: two items with one vector are then merely nearly the same, and lists may be
longer than the vectors are."""

FEATURE_DIMENSIONS = 64
"""How many principal directions of the catalogue's features are compared: a fixed cost an item, whatever the catalogue."""

_LISTS_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to re-rank.

    Attributes:
        method: "mmr" or "dpp", the functions of these names.
        trade_off: in [0, 1]; 0: the ranking as it is, 1: diversity alone.
        max_per_category: most items of one category in a list; None: any number.
        category_feature: column of the catalogue that says which category an item is in.
        features: of the catalogue, that make items alike beside their embeddings; None: all of them; empty: embeddings alone.
        serendipity: whether a place of each list is for an item of the long tail; see `serendipity_slot`.
        candidates: how many of the model's best a list is chosen from.

    Raises:
        ValueError: a field breaks its rule.
    """

    method: Method = "mmr"
    trade_off: float = 0.3
    max_per_category: int | None = None
    category_feature: str | None = None
    features: collections.abc.Sequence[str] | None = None
    serendipity: bool = False
    candidates: int = 200

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise ValueError(f"Settings: method must be one of {', '.join(_METHODS)}, not {self.method!r}.")
        _check_trade_off(self.trade_off)
        for name in ("max_per_category", "candidates"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise ValueError(f"Settings: {name} must be positive, not {given}.")


class Items(NamedTuple):
    """What re-ranking knows of the items.

    Attributes:
        vectors: (n_items, d); their cosine is how alike two items are. All zeros: like no other.
        categories: int (n_items,), a number for each category, NO_CATEGORY without one.
        is_tail: bool (n_items,), whether the item is in the long tail.
        names: of the categories, by number.
    """

    vectors: np.ndarray
    categories: np.ndarray
    is_tail: np.ndarray
    names: tuple[str, ...] = ()


class Audit(NamedTuple):
    """What lists are like, whether or not anybody wants them.

    Attributes:
        category_shares: (n_categories,), of all places with an item, those with one of the category.
        gini: of how often each item is shown, in [0, 1); 0: all as often.
        tail_share: of all places with an item, those with one of the long tail.
        diversity: mean over the lists of `evaluation.intra_list_diversity` of the items' vectors.
    """

    category_shares: np.ndarray
    gini: float
    tail_share: float
    diversity: float


def describe(
    ids: collections.abc.Sequence[str],
    embeddings: np.ndarray,
    popularity: np.ndarray,
    catalogue: Catalogue | None,
    settings: Settings,
) -> Items:
    """Returns what re-ranking needs of the items.

    Two items are alike in halves: by the cosine of their embeddings, and by that of their features in the catalogue. An item's
    category is its value of the category feature, or the first of several.

    Args:
        ids: n items.
        embeddings: (n, d).
        popularity: (n,), the release's noisy scores, 0 without one. The most popular items that have a third of all of it
            together are the head (see `evaluation.slices`), all others the long tail.
        catalogue: public. Without one, or without features in it, embeddings are all that is compared.
        settings: say which features are compared, and which one is the category.

    Raises:
        KeyError: the catalogue has no such feature.
    """
    halves = [_unit(embeddings)]
    compared = catalogue if catalogue is None or settings.features is None else catalogue.only(settings.features)
    if compared is not None and compared.kinds:
        halves.append(_unit(_principal(features.of_items(ids, compared).matrix)))
    categories, names = _categories(ids, catalogue, settings.category_feature)
    is_head = evaluation.slices(np.round(np.maximum(popularity, 0)).astype(np.int64))["head"]
    return Items(np.hstack(halves), categories, ~is_head, names)


def _principal(matrix: sp.csr_matrix) -> np.ndarray:
    """Returns the rows of a matrix (n, f) in its FEATURE_DIMENSIONS principal directions, or as they are where f is no more."""
    if min(matrix.shape) <= FEATURE_DIMENSIONS:
        return matrix.toarray()
    # From a fixed start, so that equal catalogues give equal lists.
    start = np.ones(min(matrix.shape))
    left, singular, _ = scipy.sparse.linalg.svds(matrix.astype(np.float64), FEATURE_DIMENSIONS, v0=start)
    return left * singular


def rerank(candidates: np.ndarray, scores: np.ndarray, items: Items, k: int, settings: Settings) -> np.ndarray:
    """Returns lists of k as the settings say, in the order of the candidates; arguments and result as of `mmr`.

    Args:
        candidates: best first.
        scores: as of `mmr`.
        items: see Items.
        k: positive.
        settings: see Settings.
    """
    choose = _METHODS[settings.method]
    cap = settings.max_per_category
    lists = choose(candidates, scores, items.vectors, k, settings.trade_off, items.categories, cap)
    if settings.serendipity:
        lists = serendipity_slot(lists, candidates, scores, items)
    return in_order(lists, candidates)


def mmr(
    candidates: np.ndarray,
    scores: np.ndarray,
    vectors: np.ndarray,
    k: int,
    trade_off: float,
    categories: np.ndarray | None = None,
    cap: int | None = None,
) -> np.ndarray:
    """Returns lists by maximal marginal relevance, int64 (n_lists, k), NO_ITEM where nothing is left to take.

    Carbonell and Goldstein 1998, "The use of MMR, diversity-based reranking", section 2, with trade_off for 1 - lambda: an
    item's spread is minus its largest cosine with an item taken before.

    Args:
        candidates: int (n_lists, n), items of each list, no item twice, NO_ITEM in empty places. Of equals the first is taken.
        scores: (n_lists, n), of the candidates; finite where there is one.
        vectors: (n_items, d).
        k: positive.
        trade_off: in [0, 1].
        categories: int (n_items,), NO_CATEGORY without one; with `cap`.
        cap: most items of one category in a list.

    Raises:
        ValueError: an argument breaks its rule.
    """
    return _in_chunks(_Nearest, candidates, scores, vectors, k, trade_off, categories, cap)


def dpp(
    candidates: np.ndarray,
    scores: np.ndarray,
    vectors: np.ndarray,
    k: int,
    trade_off: float,
    categories: np.ndarray | None = None,
    cap: int | None = None,
) -> np.ndarray:
    """Returns lists that are greedy MAP of a determinantal point process; arguments and result as of `mmr`.

    Chen, Zhang and Zhou 2018, "Fast greedy MAP inference for determinantal point process to improve recommendation diversity",
    Algorithm 1: O(k^2 n) a list. The kernel is theirs, exp(a * score_i) * S_ij * exp(a * score_j), a = (1 - trade_off) /
    trade_off, S the cosines and OWN besides on the diagonal. With d_i^2 what the determinant of S grows by as a factor, an
    item's spread is log d_i: how far it is from the space of those taken before.
    """
    return _in_chunks(_Determinant, candidates, scores, vectors, k, trade_off, categories, cap)


_METHODS: dict[str, collections.abc.Callable[..., np.ndarray]] = {"mmr": mmr, "dpp": dpp}


def in_order(lists: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Returns lists (n_lists, k), filled from the front with candidates (n_lists, n), in the order of these."""
    is_taken = np.zeros(candidates.shape, bool)
    for place in lists.T:
        is_taken |= (candidates == place[:, None]) & (place != NO_ITEM)[:, None]
    order = np.argsort(~is_taken, axis=1, kind="stable")[:, : lists.shape[1]]
    ordered = np.full_like(lists, NO_ITEM)
    ordered[:, : order.shape[1]] = np.where(
        np.take_along_axis(is_taken, order, axis=1), np.take_along_axis(candidates, order, axis=1), NO_ITEM
    )
    return ordered


def serendipity_slot(lists: np.ndarray, candidates: np.ndarray, scores: np.ndarray, items: Items) -> np.ndarray:
    """Returns the lists with the last item of each replaced by the best-scored surprise among its candidates.

    That is an item of the long tail, in no category of the list's other items (an item without a category is in none of them),
    and not in the list before its last place. Where there is none the list stays; so does a list of one item.

    Args:
        lists: int (n_lists, k), filled from the front.
        candidates: as of `mmr`.
        scores: as of `mmr`.
        items: see Items.
    """
    sizes = (lists != NO_ITEM).sum(1)
    before = np.where(np.arange(lists.shape[1]) < sizes[:, None] - 1, lists, NO_ITEM)
    is_open = (candidates != NO_ITEM) & items.is_tail[candidates] & (sizes > 1)[:, None]
    for place in before.T:
        is_open &= (candidates != place[:, None]) & ~_in_category_of(items.categories, candidates, place)
    chosen = np.where(is_open, scores, -np.inf).argmax(1)
    row = np.flatnonzero(is_open.any(1))
    ended = lists.copy()
    ended[row, sizes[row] - 1] = candidates[row, chosen[row]]
    return ended


def audit(lists: np.ndarray, items: Items) -> Audit:
    """Returns what lists (n_lists, k) are like: once before re-ranking and once after, it says what that has done."""
    shown = lists[lists != NO_ITEM]
    places = max(1, len(shown))
    categories = items.categories[shown]
    counts = np.bincount(categories[categories != NO_CATEGORY], minlength=len(items.names))
    alike = evaluation.intra_list_diversity(lists, sp.csr_matrix(items.vectors))
    return Audit(
        counts / places,
        gini(np.bincount(shown, minlength=len(items.categories))),
        float(items.is_tail[shown].sum() / places),
        float(alike.mean()) if len(alike) else 0.0,
    )


def gini(counts: np.ndarray) -> float:
    """Returns the Gini coefficient of counts (n,), in [0, 1): 0 where all are equal, and where there are none.

    Half the mean absolute difference of two of them over their mean, from the sorted counts (Fleder and Hosanagar 2009,
    "Blockbuster culture's next rise or fall", section 3, of items' sales).
    """
    n, total = len(counts), counts.sum()
    if not total:
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ np.sort(counts) / (n * total))


class _Spread(Protocol):
    """How unlike the candidates of lists are to the items taken so far; `spread` is (n_lists, n)."""

    spread: np.ndarray

    def __init__(self, unit: np.ndarray, k: int) -> None: ...

    def take(self, chosen: np.ndarray) -> None:
        """Takes the candidate `chosen` (n_lists,) of each list."""


class _Nearest:
    """The spread of MMR, over unit vectors (n_lists, n, d)."""

    def __init__(self, unit: np.ndarray, k: int) -> None:
        self._unit = unit
        # Of the first item: the same for all.
        self.spread = np.ones(unit.shape[:2])

    def take(self, chosen: np.ndarray) -> None:
        self.spread = np.minimum(self.spread, -_cosines(self._unit, chosen))


class _Determinant:
    """The spread of a determinantal point process, over unit vectors (n_lists, n, d): the Cholesky factor of S, by rows.

    In the paper's words `_gain` is d_i^2, and `_rows` has c_i in its columns.
    """

    def __init__(self, unit: np.ndarray, k: int) -> None:
        self._unit = unit
        self._gain = np.full(unit.shape[:2], 1 + OWN)
        self._rows = np.zeros((len(unit), k, unit.shape[1]))
        self._taken = 0
        self.spread = np.log(self._gain) / 2

    def take(self, chosen: np.ndarray) -> None:
        row, done = np.arange(len(chosen)), self._rows[:, : self._taken]
        shared = np.matmul(done[row, :, chosen][:, None], done)[:, 0]
        factor = (_cosines(self._unit, chosen) - shared) / np.sqrt(self._gain[row, chosen])[:, None]
        self._rows[:, self._taken] = factor
        self._taken += 1
        # For what isn't taken it is at least OWN, rounding aside.
        self._gain = np.maximum(self._gain - factor**2, OWN)
        self.spread = np.log(self._gain) / 2


def _in_chunks(
    spread_of: type[_Spread],
    candidates: np.ndarray,
    scores: np.ndarray,
    vectors: np.ndarray,
    k: int,
    trade_off: float,
    categories: np.ndarray | None,
    cap: int | None,
) -> np.ndarray:
    """Returns the lists, some at a time: what is in hand then fits the processor's cache."""
    _check(candidates, scores, k, trade_off, categories, cap)
    unit = _unit(vectors)
    relevance = (1 - trade_off) * _relevance(candidates, scores)
    lists = np.full((len(candidates), k), NO_ITEM, np.int64)
    for start in range(0, len(lists), _LISTS_AT_ONCE):
        part = slice(start, start + _LISTS_AT_ONCE)
        spread = spread_of(unit[candidates[part]], k)
        lists[part] = _greedy(spread, candidates[part], relevance[part], k, trade_off, categories, cap)
    return lists


def _greedy(
    spread: _Spread,
    candidates: np.ndarray,
    relevance: np.ndarray,
    k: int,
    trade_off: float,
    categories: np.ndarray | None,
    cap: int | None,
) -> np.ndarray:
    lists = np.full((len(candidates), k), NO_ITEM, np.int64)
    row = np.arange(len(candidates))
    is_open = candidates != NO_ITEM
    for place in range(min(k, candidates.shape[1])):
        chosen = np.where(is_open, relevance + trade_off * spread.spread, -np.inf).argmax(1)
        lists[:, place] = np.where(is_open[row, chosen], candidates[row, chosen], NO_ITEM)
        is_open[row, chosen] = False
        if cap is not None and categories is not None:
            is_open &= ~_is_full(categories, candidates, lists, place, cap)
        spread.take(chosen)
    return lists


def _is_full(categories: np.ndarray, candidates: np.ndarray, lists: np.ndarray, place: int, cap: int) -> np.ndarray:
    """Returns which candidates are of the category of the item at `place`, where the list now has `cap` of it."""
    newest = lists[:, place]
    count = _in_category_of(categories, lists[:, : place + 1], newest).sum(1)
    return _in_category_of(categories, candidates, newest) & (count >= cap)[:, None]


def _in_category_of(categories: np.ndarray, items: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns which of `items` (n_lists, n) have the category of `others` (n_lists,), one for each list."""
    has_one = (others != NO_ITEM) & (categories[others] != NO_CATEGORY)
    return (items != NO_ITEM) & (categories[items] == categories[others][:, None]) & has_one[:, None]


def _relevance(candidates: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns each list's scores on [0, 1], its lowest 0 and its highest 1; 0 where all are equal and in empty places."""
    is_item = candidates != NO_ITEM
    given = np.where(is_item, scores, 0).astype(np.float64)
    lowest = np.where(is_item, given, np.inf).min(1, initial=np.inf)[:, None]
    highest = np.where(is_item, given, -np.inf).max(1, initial=-np.inf)[:, None]
    spread = np.where(highest > lowest, highest - lowest, np.inf)
    return np.where(is_item, (given - np.where(is_item, lowest, 0)) / spread, 0.0)


def _cosines(unit: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Returns the cosine of each list's candidates with its chosen one, (n_lists, n)."""
    return np.matmul(unit, unit[np.arange(len(unit)), chosen][:, :, None])[:, :, 0]


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors, dtype=np.float32), where=norms > 0, casting="same_kind")


def _categories(
    ids: collections.abc.Sequence[str], catalogue: Catalogue | None, feature: str | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    found = np.full(len(ids), NO_CATEGORY, np.int64)
    if catalogue is None or feature is None:
        return found, ()
    values = dict(zip(catalogue.item_ids, catalogue.table[feature].to_pylist(), strict=True))
    numbers: dict[str, int] = {}
    for row, item in enumerate(ids):
        value = values.get(item)
        if isinstance(value, list):
            value = value[0] if value else None
        if value is not None:
            found[row] = numbers.setdefault(str(value), len(numbers))
    return found, tuple(numbers)


def _check_trade_off(trade_off: float) -> None:
    if not 0 <= trade_off <= 1:
        raise ValueError(f"rerank: trade_off must be in [0, 1], not {trade_off}.")


def _check(
    candidates: np.ndarray, scores: np.ndarray, k: int, trade_off: float, categories: np.ndarray | None, cap: int | None
) -> None:
    _check_trade_off(trade_off)
    if k < 1:
        raise ValueError(f"rerank: k must be positive, not {k}.")
    if candidates.shape != scores.shape:
        raise ValueError(f"rerank: candidates are of shape {candidates.shape} and scores of {scores.shape}.")
    if not np.isfinite(scores[candidates != NO_ITEM]).all():
        raise ValueError("rerank: scores of candidates must be finite.")
    if cap is not None and (cap < 1 or categories is None):
        raise ValueError(f"rerank: cap must be positive and come with categories, not {cap}.")
