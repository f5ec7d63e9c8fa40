import numpy as np
import scipy.sparse as sp

from models import ranking
from models.ranking import NO_ITEM

HISTORIES = sp.csr_matrix(np.array([[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], np.float32))


def test_ranks_by_score_and_leaves_the_history_out() -> None:
    lists = ranking.rank(lambda seen: np.tile([4.0, 1, 3, 2], (seen.shape[0], 1)), HISTORIES, 2)
    assert lists.tolist() == [[2, 3], [0, 1], [0, 2]]


def test_scores_that_are_the_same_for_all_rank_alike_but_for_the_history() -> None:
    score = ranking.same_for_all(np.array([2.0, 1.0, 3.0]), np.array([0, 1, 2]))
    assert ranking.rank(score, HISTORIES, 3).tolist() == [[2, 1, NO_ITEM], [0, 1, NO_ITEM], [2, 0, 1]]


def test_equal_scores_come_in_order_of_the_items() -> None:
    assert ranking.rank(lambda seen: np.zeros(seen.shape), HISTORIES, 3).tolist() == [[1, 2, 3], [0, 1, NO_ITEM], [0, 1, 2]]


def test_a_list_that_is_longer_than_there_are_items_has_empty_places() -> None:
    lists = ranking.rank(lambda seen: np.tile([-np.inf, 1, 3, 2], (seen.shape[0], 1)), HISTORIES, 5)
    assert lists.tolist() == [[2, 3, 1, NO_ITEM, NO_ITEM], [1] + [NO_ITEM] * 4, [2, 3, 1, NO_ITEM, NO_ITEM]]


def test_ranks_in_parts_as_at_once(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, (7, 9)).astype(np.float32)
    histories = sp.csr_matrix(np.c_[np.arange(1, 8), rng.integers(0, 2, (7, 8))].astype(np.float32))

    def score(seen: sp.csr_matrix) -> np.ndarray:
        return scores[seen[:, [0]].toarray().astype(int).ravel() - 1]

    whole = ranking.rank(score, histories, 4)
    monkeypatch.setattr(ranking, "_USERS_AT_ONCE", 2)
    assert (ranking.rank(score, histories, 4) == whole).all()


def test_folds_in_the_mean_of_the_history() -> None:
    item, history = np.array([[1.0, 0], [0, 2]]), np.array([[1.0, 3], [2, 0]])
    score = ranking.fold_in(item, history, np.array([0, 0.5]), np.array([2, 0]))
    seen = sp.csr_matrix(np.array([[1, 1, 1], [0, 1, 0], [1, 0, 0]], np.float32))
    # Item 1 has no embedding: it says nothing, and can't be recommended.
    assert score(seen).tolist() == [[3.5, -np.inf, 1.5], [0.5, -np.inf, 0], [0.5, -np.inf, 2]]


def test_lists_come_with_their_scores():
    lists, scores = ranking.rank_with_scores(lambda seen: np.tile([4.0, 1, 3, 2], (seen.shape[0], 1)), HISTORIES, 4)
    assert np.array_equal(lists, ranking.rank(lambda seen: np.tile([4.0, 1, 3, 2], (seen.shape[0], 1)), HISTORIES, 4))
    of_items = np.where(lists == NO_ITEM, -np.inf, np.array([4.0, 1, 3, 2])[lists])
    assert np.array_equal(scores, of_items)
