"""The metrics: against RecTools and scikit-learn, by hand, and what must hold of any list."""

import hypothesis
import numpy as np
import pytest
import scipy.sparse as sp
import sklearn.metrics
from hypothesis import strategies as st

from models import evaluation
from models.ranking import NO_ITEM
from tests.models import rectools_values as rectools

ACCURACY = [evaluation.recall_at_k, evaluation.ndcg_at_k, evaluation.mrr]


def held(by_user: list[list[int]], n_items: int) -> sp.csr_matrix:
    row = np.repeat(np.arange(len(by_user)), [len(items) for items in by_user])
    column = np.array([item for items in by_user for item in items], np.int64)
    return sp.csr_matrix((np.ones(len(row)), (row, column)), shape=(len(by_user), n_items))


LISTS = np.array(rectools.LISTS)
HIDDEN = held(rectools.HIDDEN, len(rectools.FEATURES))
N_TRAINING = len(rectools.TRAINING)
ITEM_USERS = np.bincount(np.concatenate(rectools.TRAINING), minlength=len(rectools.FEATURES))
FEATURES = sp.csr_matrix(np.array(rectools.FEATURES, float))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("hits", evaluation.recall_at_k(LISTS, HIDDEN) * np.minimum(rectools.K, np.diff(HIDDEN.indptr))),
        ("ndcg", evaluation.ndcg_at_k(LISTS, HIDDEN)),
        ("mrr", evaluation.mrr(LISTS, HIDDEN)),
        ("novelty", evaluation.novelty(LISTS, ITEM_USERS, N_TRAINING)),
        ("popularity", evaluation.popularity_share(LISTS, ITEM_USERS, N_TRAINING) * N_TRAINING),
        ("diversity", evaluation.intra_list_diversity(LISTS, FEATURES)),
        ("coverage", [evaluation.coverage(LISTS, len(rectools.FEATURES))]),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_says_what_rectools_says(name: str, values: np.ndarray) -> None:
    assert np.allclose(values, rectools.EXPECTED[name], atol=1e-9)


def test_recall_is_that_of_rectools_where_no_more_is_hidden_than_a_list_has_places() -> None:
    few = np.diff(HIDDEN.indptr) <= rectools.K
    assert np.allclose(evaluation.recall_at_k(LISTS, HIDDEN)[few], np.array(rectools.EXPECTED["recall"])[few])
    assert not few.all()


def test_says_what_scikit_learn_says() -> None:
    rng = np.random.default_rng(1)
    wanted = rng.random((50, 30)) < 0.3
    wanted[:, 0] = True
    scores = rng.random((50, 30))
    lists = np.argsort(-scores, axis=1)[:, :7]
    expected = [sklearn.metrics.ndcg_score(wanted[[user]], scores[[user]], k=7) for user in range(50)]
    assert np.allclose(evaluation.ndcg_at_k(lists, sp.csr_matrix(wanted)), expected)
    vectors = rng.random((30, 4))
    apart = sklearn.metrics.pairwise_distances(vectors, metric="cosine")
    expected = [apart[np.ix_(row, row)].sum() / (7 * 6) for row in lists]
    assert np.allclose(evaluation.intra_list_diversity(lists, sp.csr_matrix(vectors)), expected)


@pytest.mark.parametrize(
    ("shown", "recall", "ndcg", "mrr"),
    [
        ([0, 1, 2], 1, 1, 1),
        ([2, 1, 0], 1, 1, 1),
        ([5, 4, 3], 0, 0, 0),
        ([5, 0, NO_ITEM], 1 / 3, 0.6309297535714575 / 2.1309297535714578, 1 / 2),
        ([NO_ITEM] * 3, 0, 0, 0),
    ],
    ids=["perfect", "perfect in any order", "no hit", "a short list", "an empty list"],
)
def test_accuracy_by_hand(shown: list[int], recall: float, ndcg: float, mrr: float) -> None:
    lists, hidden = np.array([shown]), held([[0, 1, 2, 6]], 7)
    assert [measure(lists, hidden)[0] for measure in ACCURACY] == pytest.approx([recall, ndcg, mrr])


def test_lists_by_hand() -> None:
    lists = np.array([[0, 1, NO_ITEM], [2, NO_ITEM, NO_ITEM], [NO_ITEM] * 3])
    users = np.array([8, 2, 0, 5])
    assert evaluation.coverage(lists, 4) == 3 / 4
    assert evaluation.novelty(lists, users, 8).tolist() == [1, 3, 0]
    assert evaluation.popularity_share(lists, users, 8).tolist() == [5 / 8, 0, 0]
    alike = sp.csr_matrix(np.array([[1.0, 1], [1, 0], [0, 0], [0, 2]]))
    assert evaluation.intra_list_diversity(lists, alike) == pytest.approx([1 - 0.5**0.5, 0, 0])


def test_items_without_vectors_have_nothing_in_common() -> None:
    vectors = sp.csr_matrix(np.array([[0.0, 0], [0, 0], [1, 0], [2, 0]]))
    assert evaluation.intra_list_diversity(np.array([[0, 1], [1, 2], [2, 3]]), vectors).tolist() == [1, 1, 0]


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, sp.csr_matrix]:
    """Lists without repeats, with gaps at their end, and at least one hidden item of each user."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_users, n_items = draw(st.integers(1, 12)), draw(st.integers(2, 15))
    k = draw(st.integers(1, n_items))
    lists = np.argsort(rng.random((n_users, n_items)), axis=1)[:, :k]
    lists[np.arange(k) >= rng.integers(0, k + 1, (n_users, 1))] = NO_ITEM
    hidden = rng.random((n_users, n_items)) < draw(st.floats(0, 1))
    hidden[np.arange(n_users), rng.integers(0, n_items, n_users)] = True
    return lists, sp.csr_matrix(hidden)


def per_user(lists: np.ndarray, hidden: sp.csr_matrix) -> np.ndarray:
    """Every metric of single users, (metrics, n_users)."""
    n_items = hidden.shape[1]
    users = np.arange(n_items) % 5
    vectors = sp.csr_matrix(np.arange(3 * n_items).reshape(n_items, 3) % 4)
    return np.array(
        [
            *(measure(lists, hidden) for measure in ACCURACY),
            evaluation.popularity_share(lists, users, 5),
            evaluation.intra_list_diversity(lists, vectors),
            evaluation.novelty(lists, users, 5),
        ]
    )


@hypothesis.given(cases())
def test_values_lie_between_0_and_1(case: tuple[np.ndarray, sp.csr_matrix]) -> None:
    values = per_user(*case)
    assert (values >= 0).all()
    assert (values[:5] <= 1).all()
    assert 0 <= evaluation.coverage(case[0], case[1].shape[1]) <= 1


@hypothesis.given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_users_changes_nothing(case, random) -> None:
    lists, hidden = case
    order = list(range(len(lists)))
    random.shuffle(order)
    assert np.allclose(per_user(lists[order], hidden[order]), per_user(lists, hidden)[:, order])
    assert evaluation.coverage(lists[order], hidden.shape[1]) == evaluation.coverage(lists, hidden.shape[1])


@hypothesis.given(cases())
def test_a_perfect_list_has_1_and_a_hit_further_up_is_worth_more(case: tuple[np.ndarray, sp.csr_matrix]) -> None:
    lists, hidden = case
    k = lists.shape[1]
    perfect = np.argsort(-hidden.toarray().astype(int), axis=1, kind="stable")[:, :k]
    for measure in ACCURACY:
        assert np.allclose(measure(perfect, hidden), 1)
    # Hits first, in the same list: no metric falls.
    is_hit = np.take_along_axis(hidden.toarray(), lists, axis=1) & (lists != NO_ITEM)
    sorted_lists = np.take_along_axis(lists, np.argsort(~is_hit, axis=1, kind="stable"), axis=1)
    for measure in ACCURACY:
        assert (measure(sorted_lists, hidden) >= measure(lists, hidden) - 1e-12).all()


def test_slices_have_a_third_of_the_interactions_each() -> None:
    found = evaluation.slices(np.array([1, 30, 0, 10, 10, 10, 14, 14, 1, 0]))
    assert {name: chosen.nonzero()[0].tolist() for name, chosen in found.items()} == {
        "head": [1],
        "torso": [3, 6, 7],
        "tail": [0, 4, 5, 8],
        "cold": [2, 9],
    }


@hypothesis.given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_every_item_is_in_one_slice(users: list[int]) -> None:
    found = evaluation.slices(np.array(users))
    assert (sum(chosen.astype(int) for chosen in found.values()) == 1).all()
    assert (found["cold"] == (np.array(users) == 0)).all()


def test_the_recall_of_a_slice_is_over_its_own_hidden_items_and_their_users() -> None:
    lists, hidden = np.array([[0, 1], [2, 3], [0, 2]]), held([[0, 4], [3, 4], [4]], 5)
    first, cold = np.array([True] * 4 + [False]), np.array([False] * 4 + [True])
    assert evaluation.recall_of_items(lists, hidden, first).tolist() == [1, 1]
    assert evaluation.recall_of_items(lists, hidden, cold).tolist() == [0, 0, 0]
    assert not len(evaluation.recall_of_items(lists, hidden, np.zeros(5, bool)))


def test_an_interval_is_the_same_for_a_seed_and_holds_the_mean() -> None:
    values = np.random.default_rng(0).random(300)
    found = evaluation.interval(values)
    assert found == evaluation.interval(values)
    assert found.low < found.mean == values.mean() < found.high
    # Within a tenth of the normal approximation's.
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 300**0.5, rel=0.1)
    assert evaluation.interval(np.full(5, 0.25)) == (0.25, 0.25, 0.25)


def test_an_interval_in_parts_is_that_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(30)
    whole = evaluation.interval(values)
    monkeypatch.setattr(evaluation, "_DRAWS_AT_ONCE", 100)
    assert evaluation.interval(values) == whole


@pytest.mark.parametrize(("stretch", "accepted"), [(1, True), (0.7, False), (1.3, False)], ids=["as it is", "x0.7", "x1.3"])
def test_an_interval_has_the_true_mean_in_it_as_often_as_it_says(stretch: float, accepted: bool) -> None:
    """2,000 samples of 200 users with Beta(1/2, 2) values, as recalls are: skewed, of mean 1/5.

    The percentile interval's true coverage is 0.942 there (20,000 trials), stretched 0.821 and 0.986. Of 2,000, outside [0.91,
    0.97] with a probability of 1e-7, and within it, stretched, of less than 1e-6: binomial tails.
    """
    rng = np.random.default_rng()
    inside = 0
    for trial in range(2_000):
        mean, low, high = evaluation.interval(rng.beta(0.5, 2, 200), rounds=400, seed=trial)
        inside += mean - (mean - low) * stretch <= 0.2 <= mean + (high - mean) * stretch
    assert (0.91 <= inside / 2_000 <= 0.97) == accepted


@pytest.mark.parametrize("measure", ACCURACY)
def test_refuses_users_without_a_hidden_item(measure) -> None:
    with pytest.raises(ValueError, match="1 users have no hidden item; leave them out"):
        measure(np.array([[0], [1]]), held([[0], []], 2))
    with pytest.raises(ValueError, match="lists are of 1 users and hidden items of 2"):
        measure(np.array([[0]]), held([[0], [1]], 2))


def test_refuses_an_interval_of_nothing() -> None:
    with pytest.raises(ValueError, match="interval: values must not be empty"):
        evaluation.interval(np.empty(0))
