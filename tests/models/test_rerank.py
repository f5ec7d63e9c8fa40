"""Re-ranking against the papers' definitions, list by list, and what must hold of any list."""

import numpy as np
import pyarrow as pa
import pytest

from data.catalogue import Catalogue
from models import rerank
from tests.models import rerank_plain

METHODS = [pytest.param(getattr(rerank, name), getattr(rerank_plain, name), id=name) for name in ("mmr", "dpp")]
OURS = [pytest.param(getattr(rerank, name), id=name) for name in ("mmr", "dpp")]


def given(seed: int, n_lists: int = 40, n: int = 30, n_items: int = 60, d: int = 5) -> tuple[np.ndarray, ...]:
    """Candidates, best first, some lists shorter than others and one empty; their scores; vectors; categories."""
    rng = np.random.default_rng(seed)
    candidates = np.stack([rng.choice(n_items, n, replace=False) for _ in range(n_lists)])
    candidates[np.arange(n) >= rng.integers(1, 2 * n, n_lists)[:, None]] = -1
    candidates[0] = -1
    scores = -np.sort(-rng.normal(size=candidates.shape), axis=1) * 10
    vectors = rng.normal(size=(n_items, d))
    vectors[:3] = 0
    return candidates, scores, vectors, rng.integers(-1, 4, n_items)


@pytest.mark.parametrize("trade_off", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("cap", [None, 1, 3])
@pytest.mark.parametrize(("ours", "plain"), METHODS)
def test_chooses_as_the_papers_do(ours, plain, cap, trade_off):
    for seed in range(3):
        candidates, scores, vectors, categories = given(seed)
        expected = plain(candidates, scores, vectors, 12, trade_off, categories, cap)
        assert np.array_equal(ours(candidates, scores, vectors, 12, trade_off, categories, cap), expected)


@pytest.mark.parametrize("ours", OURS)
def test_a_trade_off_of_0_is_the_ranking_as_it_is(ours):
    candidates, scores, vectors, _ = given(0)
    assert np.array_equal(ours(candidates, scores, vectors, 12, 0.0), candidates[:, :12])
    assert np.array_equal(ours(candidates, np.zeros(scores.shape), vectors, 12, 0.0), candidates[:, :12])


@pytest.mark.parametrize("ours", OURS)
def test_the_scale_of_scores_is_nothing(ours):
    candidates, scores, vectors, _ = given(1)
    expected = ours(candidates, scores, vectors, 12, 0.5)
    assert np.array_equal(ours(candidates, 1000 * scores - 7, vectors, 12, 0.5), expected)


@pytest.mark.parametrize("cap", [None, 1, 2])
@pytest.mark.parametrize("ours", OURS)
def test_lists_hold_candidates_none_twice_and_no_more_of_a_category_than_the_cap(ours, cap):
    candidates, scores, vectors, categories = given(2)
    lists = ours(candidates, scores, vectors, 50, 0.6, categories, cap)
    assert lists.shape == (40, 50)
    for chosen, whole in zip(lists, candidates, strict=True):
        items = chosen[chosen >= 0]
        assert len(set(items)) == len(items)
        assert set(items) <= set(whole[whole >= 0])
        assert (chosen[len(items) :] == -1).all()
        if cap is None:
            assert len(items) == (whole >= 0).sum()
        else:
            counts = np.bincount(categories[items][categories[items] >= 0], minlength=1)
            assert counts.max() <= cap
            # Items without a category are all there.
            assert (categories[items] == -1).sum() == (categories[whole[whole >= 0]] == -1).sum()


@pytest.mark.parametrize("ours", OURS)
def test_of_equal_items_only_one_comes_early(ours):
    """Items 0-2 have one vector, 3 and 4 others, 5 none."""
    vectors = np.array([[1, 0], [1, 0], [1, 0], [1, 1], [0, 1], [0, 0]], float)
    candidates, scores = np.array([[0, 1, 2, 3, 4, 5]]), np.array([[6, 5, 4, 3, 2, 1.0]])
    assert ours(candidates, scores, vectors, 3, 0.9).tolist() == [[0, 4, 5]]
    # With diversity alone, too, a list is filled; of equals the first.
    assert ours(candidates, scores, vectors, 8, 1.0).tolist() == [[0, 4, 5, 3, 1, 2, -1, -1]]


@pytest.mark.parametrize("ours", OURS)
def test_lists_do_not_depend_on_those_beside_them(ours):
    candidates, scores, vectors, _ = given(3, n_lists=70)
    whole = ours(candidates, scores, vectors, 10, 0.5)
    alone = [ours(candidates[i : i + 1], scores[i : i + 1], vectors, 10, 0.5)[0] for i in range(70)]
    assert np.array_equal(whole, alone)


SLOT = rerank.Items(np.eye(8), np.array([0, 0, 1, 1, 2, 3, -1, 3]), np.array([0, 1, 0, 1, 1, 1, 1, 1], bool))


@pytest.mark.parametrize(
    ("lists", "candidates", "expected"),
    [
        ([0, 2, 1], [0, 2, 1, 3, 4, 5], [0, 2, 4]),
        ([0, 2, 5], [0, 2, 1, 3, 5, 4], [0, 2, 5]),
        ([0, 2, 1], [0, 2, 1, 3], [0, 2, 1]),
        ([0, 2, 1], [0, 2, 1, 3, 6, 4], [0, 2, 6]),
        ([0, 6, 4], [0, 6, 4, 3], [0, 6, 4]),
        ([0, 2, -1], [0, 2, 4], [0, 4, -1]),
        ([0, -1, -1], [0, 4], [0, -1, -1]),
        ([-1, -1, -1], [-1, -1], [-1, -1, -1]),
    ],
    ids=["a surprise", "is there", "none", "no category", "best is last", "short", "one item", "empty"],
)
def test_the_last_place_is_for_the_best_surprise(lists, candidates, expected):
    scores = -np.arange(len(candidates), dtype=float)[None]
    found = rerank.serendipity_slot(np.array([lists]), np.array([candidates]), scores, SLOT)
    assert found.tolist() == [expected]


def test_reranks_as_the_settings_say():
    candidates, scores, vectors, categories = given(4)
    items = rerank.Items(vectors, categories, np.arange(60) > 20)
    settings = rerank.Settings("dpp", 0.4, max_per_category=2, serendipity=True)
    plain = rerank.dpp(candidates, scores, vectors, 6, 0.4, categories, 2)
    surprised = rerank.serendipity_slot(plain, candidates, scores, items)
    assert not np.array_equal(plain, surprised)
    found = rerank.rerank(candidates, scores, items, 6, settings)
    assert [set(row) for row in found] == [set(row) for row in surprised]
    places = [[list(whole).index(item) for item in row if item >= 0] for whole, row in zip(candidates, found, strict=True)]
    assert all(place == sorted(place) for place in places)


def test_what_is_taken_is_put_in_the_order_of_the_candidates():
    lists, candidates = np.array([[5, 7, 1], [2, 0, -1], [-1, -1, -1]]), np.array([[1, 3, 5, 7], [0, 2, -1, -1], [-1] * 4])
    assert rerank.in_order(lists, candidates).tolist() == [[1, 5, 7], [0, 2, -1], [-1, -1, -1]]
    assert rerank.in_order(np.array([[2, 0, -1, -1, -1]]), np.array([[0, 2, 1]])).tolist() == [[0, 2, -1, -1, -1]]


def test_an_audit_says_what_lists_are_like():
    vectors, is_tail = np.array([[1, 0], [1, 0], [0, 1], [0, 1]]), np.array([0, 0, 1, 1], bool)
    items = rerank.Items(vectors, np.array([0, 1, 0, -1]), is_tail, ("x", "y"))
    found = rerank.audit(np.array([[0, 1], [0, 2], [3, -1]]), items)
    assert found.category_shares.tolist() == [0.6, 0.2]
    assert found.tail_share == 0.4
    assert found.diversity == pytest.approx((0 + 1 + 0) / 3)
    # Exposure 2, 1, 1, 1: mean absolute difference of two (with themselves) 6/16, mean 5/4.
    assert found.gini == pytest.approx(6 / 16 / (2 * 5 / 4))


def test_an_audit_of_nothing():
    items = rerank.Items(np.eye(3), np.full(3, -1), np.ones(3, bool))
    for lists in (np.full((2, 3), -1), np.empty((0, 3), np.int64)):
        assert [list(each) if isinstance(each, np.ndarray) else each for each in rerank.audit(lists, items)] == [[], 0, 0, 0]


@pytest.mark.parametrize(("counts", "expected"), [([5, 5, 5], 0), ([0, 0, 9], 2 / 3), ([0, 0], 0), ([1, 3], 0.25)])
def test_gini(counts, expected):
    assert rerank.gini(np.array(counts)) == pytest.approx(expected)


def of(category: str | None = None, features: list[str] | None = None) -> rerank.Settings:
    return rerank.Settings(category_feature=category, features=features)


def test_describes_items_by_catalogue_and_popularity():
    table = pa.table({"item_id": ["a", "b", "c"], "genre": [["x", "y"], [], ["z"]], "maker": ["m", None, "m"]})
    public = Catalogue(table, {"genre": "multi", "maker": "categorical"})
    popularity = np.array([10.0, -3, 0, 6])
    ids = ["d", "a", "c", "b"]
    found = rerank.describe(ids, np.eye(4), popularity, public, of("genre"))
    assert (found.categories.tolist(), found.names) == ([-1, 0, 1, -1], ("x", "z"))
    assert found.is_tail.tolist() == [False, True, True, True]
    assert rerank.describe(ids, np.eye(4), popularity, public, of("maker")).categories.tolist() == [-1, 0, 0, -1]
    assert rerank.describe(["a"], np.eye(1), popularity[:1], None, of(None)).categories.tolist() == [-1]


@pytest.mark.parametrize("directions", [64, 2], ids=["features as they are", "in principal directions"])
def test_items_are_alike_in_halves_by_embeddings_and_features(monkeypatch, directions):
    """Two colours, so two directions say all; d has no colour."""
    monkeypatch.setattr(rerank, "FEATURE_DIMENSIONS", directions)
    table = pa.table({"item_id": list("abcdef"), "colour": ["red", "red", "blue", None, "blue", "red"]})
    public = Catalogue(table, {"colour": "categorical"})
    embeddings = np.array([[5, 0], [0, 1], [2, 0], [3, 0], [0, 1], [0, 0]])
    vectors = rerank.describe(list("abcdef"), embeddings, np.zeros(6), public, of()).vectors
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = [1, 0.5, 0.5, np.sqrt(0.5), 0, np.sqrt(0.5)]
    assert (unit @ unit[0]).tolist() == pytest.approx(expected, abs=1e-6)
    without = rerank.describe(list("abcdef"), embeddings, np.zeros(6), None, of()).vectors
    assert without.tolist() == [[1, 0], [0, 1], [1, 0], [1, 0], [0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("named", "expected"), [(["genre"], 0.5), (["maker"], 0.0), (["genre", "maker"], 0.25), (None, 0.25), ([], 0.0)]
)
def test_only_the_features_that_are_named_make_items_alike(named, expected):
    table = pa.table({"item_id": list("abcd"), "title": ["t"] * 4, "genre": list("xxyy"), "maker": list("mnmn")})
    public = Catalogue(table, {"genre": "categorical", "maker": "categorical"})
    a, b = rerank.describe(["a", "b"], np.eye(2), np.zeros(2), public, of(features=named)).vectors
    assert a @ b / (a @ a) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trade_off": 1.5}, r"trade_off must be in \[0, 1\], not 1.5"),
        ({"k": 0}, "k must be positive, not 0"),
        ({"scores": np.zeros((1, 2))}, r"of shape \(1, 3\) and scores of \(1, 2\)"),
        ({"scores": np.array([[0, np.nan, 0]])}, "scores of candidates must be finite"),
        ({"cap": 0, "categories": np.zeros(3, int)}, "cap must be positive"),
        ({"cap": 1}, "come with categories"),
    ],
)
def test_refuses_what_breaks_a_rule(change, message):
    fine = {"candidates": np.array([[0, 1, -1]]), "scores": np.array([[1, 0, np.nan]]), "vectors": np.eye(3), "k": 2}
    fine |= {"trade_off": 0.5}
    assert rerank.mmr(**fine).tolist() == [[0, 1]]
    with pytest.raises(ValueError, match=message):
        rerank.mmr(**{**fine, **change})


@pytest.mark.parametrize(
    "fields", [{"method": "none"}, {"trade_off": -0.1}, {"max_per_category": 0}, {"candidates": 0}], ids=lambda f: next(iter(f))
)
def test_refuses_settings_that_break_a_rule(fields):
    with pytest.raises(ValueError, match="not"):
        rerank.Settings(**fields)
