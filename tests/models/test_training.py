import dataclasses
import functools

import numpy as np
import pyarrow as pa
import pytest

from data import tables
from data.catalogue import Catalogue
from models import hybrid, rerank, training

CLOSED_FORM = training.Settings(epochs=0, top_k=3)


def items(ids: list[str], scores: list[float], positions: list[int | None]) -> pa.Table:
    return pa.table([ids, pa.array(scores, pa.float64()), pa.array(positions, pa.int32())], schema=tables.ITEMS)


def pairs(matrix: np.ndarray) -> pa.Table:
    row, column = np.triu_indices(len(matrix))
    cells = [row.astype(np.int32), column.astype(np.int32), matrix[row, column].astype(np.float64)]
    return pa.table([pa.array(cell) for cell in cells], schema=tables.ITEM_PAIRS)


def world(blocks: int = 3, size: int = 4, cold: int = 1) -> tuple[pa.Table, pa.Table, Catalogue]:
    """Items "b0i0" ..: a block's known items occur together and have one colour; its cold items only the colour."""
    known = [f"b{block}i{item}" for block in range(blocks) for item in range(size)]
    label = np.repeat(np.arange(blocks), size)
    matrix = (label[:, None] == label) * 10.0 + np.eye(len(known)) * 10
    new = [f"b{block}new{item}" for block in range(blocks) for item in range(cold)]
    colours = [f"colour{block}" for block in label] + [f"colour{block}" for block in range(blocks) for _ in range(cold)]
    catalogue = pa.table({"item_id": known + new, "title": known + new, "colour": colours})
    table = items(known, [10.0 - 0.1 * i for i in range(len(known))], list(range(len(known))))
    return table, pairs(matrix), Catalogue(catalogue, {"colour": "categorical"})


def train(
    table: pa.Table,
    cells: pa.Table,
    catalogue: Catalogue | None,
    settings: training.Settings,
    diversity: rerank.Settings | None = None,
    before: pa.Table | None = None,
) -> training.Trained:
    return training.train(training.read(table, cells, 0.1, catalogue), catalogue, settings, diversity, before)


def recommended(trained: training.Trained, item: str) -> list[str]:
    table = trained.recommendations.to_pylist()
    return [row["recommended_item_id"] for row in table if row["item_id"] == item]


def vectors(table: pa.Table, column: str) -> np.ndarray:
    return np.array(table[column].to_pylist())


def test_tables_have_the_agreed_schemas() -> None:
    trained = train(*world(), CLOSED_FORM)
    schemas = (tables.EMBEDDINGS, tables.FEATURE_EMBEDDINGS, tables.RECOMMENDATIONS, tables.POPULAR)
    assert [table.schema for table in trained.tables().values()] == list(schemas)


def test_recommends_the_items_of_the_block() -> None:
    table, cells, _ = world()
    trained = train(table, cells, None, CLOSED_FORM)
    assert set(recommended(trained, "b1i2")) == {"b1i0", "b1i1", "b1i3"}
    assert trained.recommendations["rank"].to_pylist() == [1, 2, 3] * 12


def test_recommends_by_fixed_embeddings_exactly() -> None:
    item = np.array([[1, 0], [2, 0], [0, 3]], np.float32)
    history = np.array([[1, 1], [1, 0], [0, 1]], np.float32)
    table = training.recommend(["a", "b", "c"], item, history, np.array([0, 0, 0.5], np.float32), 2)
    assert table.to_pylist() == [
        {"item_id": "a", "rank": 1, "recommended_item_id": "c", "score": 3.5},
        {"item_id": "a", "rank": 2, "recommended_item_id": "b", "score": 2.0},
        {"item_id": "b", "rank": 1, "recommended_item_id": "a", "score": 1.0},
        {"item_id": "b", "rank": 2, "recommended_item_id": "c", "score": 0.5},
        {"item_id": "c", "rank": 1, "recommended_item_id": "a", "score": 0.0},
        {"item_id": "c", "rank": 2, "recommended_item_id": "b", "score": 0.0},
    ]


def test_recommends_in_chunks_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    item = rng.integers(0, 3, (25, 2)).astype(np.float32)  # many ties
    arguments = ([f"i{i}" for i in range(25)], item, item, np.zeros(25, np.float32), 5)
    whole = training.recommend(*arguments)
    monkeypatch.setattr(training.hybrid, "CHUNK", 7)
    assert training.recommend(*arguments).equals(whole)


def test_recommends_as_it_is_re_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    item, history = rng.normal(size=(2, 30, 4)).astype(np.float32)
    ids, bias = [f"i{i}" for i in range(30)], np.zeros(30, np.float32)
    known = rerank.Items(item, np.arange(30) % 3, np.arange(30) > 9)
    settings = rerank.Settings("dpp", 0.6, max_per_category=2, serendipity=True, candidates=12)
    monkeypatch.setattr(training.hybrid, "CHUNK", 7)
    table = training.recommend(ids, item, history, bias, 8, (settings, known))
    scores = history @ item.T
    for own in range(30):
        others = sorted(set(range(30)) - {own}, key=lambda other: -scores[own, other])[:12]
        [expected] = rerank.rerank(np.array([others]), scores[[own]][:, others], known, 8, settings)
        rows = [row for row in table.to_pylist() if row["item_id"] == f"i{own}"]
        expected = expected[expected >= 0]
        assert len(expected) <= 6, "two of each of three categories"
        assert [row["recommended_item_id"] for row in rows] == [f"i{other}" for other in expected]
        assert [row["rank"] for row in rows] == list(range(1, len(expected) + 1))
        assert [row["score"] for row in rows] == pytest.approx(scores[own, expected].tolist())


def test_trains_with_categories_of_the_catalogue() -> None:
    table, cells, catalogue = world()
    one_each = rerank.Settings("mmr", 0.0, max_per_category=1, category_feature="colour")
    trained = train(table, cells, catalogue, CLOSED_FORM, one_each)
    assert all(sorted(item[:2] for item in recommended(trained, each)) == ["b0", "b1", "b2"] for each in ("b0i0", "b2new0"))
    plain = train(table, cells, catalogue, CLOSED_FORM)
    assert trained.embeddings.equals(plain.embeddings)
    as_it_is = train(table, cells, catalogue, CLOSED_FORM, rerank.Settings("dpp", 0.0))
    assert as_it_is.recommendations.equals(plain.recommendations)


@pytest.mark.parametrize("kind", ["hybrid", "ensemble"])
@pytest.mark.parametrize("epochs", [0, 2])
def test_cold_item_gets_recommendations_through_its_features(epochs: int, kind: hybrid.Kind) -> None:
    table, cells, catalogue = world()
    trained = train(table, cells, catalogue, dataclasses.replace(CLOSED_FORM, epochs=epochs, kind=kind))
    for block in range(3):
        assert all(other.startswith(f"b{block}i") for other in recommended(trained, f"b{block}new0"))


def test_cold_item_comes_after_the_known_ones_of_its_kind() -> None:
    table, cells, catalogue = world()
    trained = train(table, cells, catalogue, dataclasses.replace(CLOSED_FORM, top_k=4))
    assert recommended(trained, "b2i0")[3] == "b2new0"


def test_released_item_that_was_not_kept_gets_recommendations_without_a_catalogue() -> None:
    table = items(["a", "b", "c", "d"], [4.0, 3.0, 2.0, 1.0], [0, 1, 2, None])
    trained = train(table, pairs(np.full((3, 3), 5.0)), None, CLOSED_FORM)
    assert len(recommended(trained, "d")) == 3
    assert trained.feature_embeddings["feature"].to_pylist() == [training.ALL_ITEMS]


def test_a_hybrid_of_no_epochs_scores_as_the_spectral_model() -> None:
    table, cells, catalogue = world()
    settings = dataclasses.replace(CLOSED_FORM, kind="hybrid", signal="low-rank")
    with_features = train(table, cells, catalogue, settings).embeddings.slice(0, 12)
    plain = train(table, cells, None, settings).embeddings
    scores = [vectors(t, "history_embedding") @ vectors(t, "embedding").T for t in (with_features, plain)]
    assert np.allclose(*scores, atol=1e-5)
    assert not any(plain["bias"].to_pylist())


@pytest.mark.parametrize("loss", training.CHOICES["loss"])
@pytest.mark.parametrize("kind", training.CHOICES["kind"])
def test_same_seed_same_tables(loss: hybrid.Loss, kind: hybrid.Kind) -> None:
    table, cells, catalogue = world()
    settings = dataclasses.replace(CLOSED_FORM, epochs=2, loss=loss, kind=kind)
    first, second = (train(table, cells, catalogue, settings) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("limit", "wanted", "taken"),
    [
        ("MOST_STACKED", {"kind": "hybrid", "signal": "auto"}, {"kind": "hybrid", "signal": "low-rank"}),
        ("MOST_ENSEMBLE", {"kind": "ensemble"}, {"kind": "hybrid"}),
    ],
    ids=["stacked", "ensemble"],
)
def test_above_a_number_of_kept_items_a_model_is_a_cheaper_one(monkeypatch, limit, wanted, taken) -> None:
    table, cells, catalogue = world()
    released = training.read(table, cells, 3.0, catalogue)
    train = functools.partial(training.train, released, catalogue)
    settings = dataclasses.replace(CLOSED_FORM, signal="stacked")
    below, cheaper = (train(dataclasses.replace(settings, **each)).embeddings for each in (wanted, taken))
    assert not below.equals(cheaper)
    monkeypatch.setattr(training, limit, 11)
    assert train(dataclasses.replace(settings, **wanted)).embeddings.equals(cheaper)


def test_popular_is_ordered_by_score() -> None:
    table = items(["a", "b", "c"], [1.0, 3.0, 2.0], [None, 0, 1])
    trained = train(table, pairs(np.ones((2, 2))), None, CLOSED_FORM)
    assert trained.popular.to_pylist() == [
        {"rank": 1, "item_id": "b", "score": 3.0},
        {"rank": 2, "item_id": "c", "score": 2.0},
        {"rank": 3, "item_id": "a", "score": 1.0},
    ]


def test_a_single_item_has_nothing_to_recommend() -> None:
    trained = train(items(["a"], [1.0], [0]), pairs(np.ones((1, 1))), None, training.Settings())
    assert trained.embeddings.num_rows == 1
    assert trained.recommendations.num_rows == 0


GOOD_PAIRS = pairs(np.ones((2, 2)))


@pytest.mark.parametrize(
    "released", [items([], [], []), items(["a", "b"], [2.0, 3.0], [None, None])], ids=["none", "none kept"]
)
def test_without_kept_items_there_is_nothing_to_learn(released):
    trained = train(released, tables.ITEM_PAIRS.empty_table(), None, training.Settings())
    ids = released["item_id"].to_pylist()
    assert trained.embeddings.to_pylist() == [
        {"item_id": item, "embedding": [0.0], "history_embedding": [0.0], "bias": 0.0} for item in ids
    ]
    assert trained.recommendations == tables.RECOMMENDATIONS.empty_table()
    assert trained.popular["item_id"].to_pylist() == ids[::-1]
    assert trained.kind == "none"


def test_the_matrix_has_each_pair_on_both_sides_in_whatever_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_ROWS_AT_ONCE", 3)
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(8, 8))
    matrix += matrix.T
    cells = pairs(matrix)
    shuffled = cells.take(rng.permutation(cells.num_rows))
    assert np.array_equal(training.read(items(list("abcdefgh"), [1.0] * 8, list(range(8))), shuffled, 0.1, None).matrix, matrix)


@pytest.mark.parametrize(
    ("released", "cells", "message"),
    [
        (items(["a", "a"], [1.0, 1.0], [0, 1]), GOOD_PAIRS, "item_id must be unique"),
        (items(["a", "b"], [1.0, np.nan], [0, 1]), GOOD_PAIRS, "score of items must be finite"),
        (items(["a", "b"], [1.0, 1.0], [0, 2]), GOOD_PAIRS, "position of items must be 0 .. 1, each once"),
        (items(["a", "b", "c"], [1.0] * 3, [0, 1, 2]), GOOD_PAIRS, "pairs must have 6 rows for 3 kept items, not 3"),
        (items(["a", "b"], [1.0] * 2, [0, 1]), pairs(np.full((2, 2), np.inf)), "pairs must hold each pair once"),
        (items(["a", "b"], [1.0] * 2, [0, 1]), GOOD_PAIRS.take([0, 0, 2]), "pairs must hold each pair once"),
        (pa.table({"item_id": ["a"]}), GOOD_PAIRS, "items must have the schema ITEMS, not"),
        (items(["a", "b"], [1.0] * 2, [0, 1]), pa.table({"row": [0]}), "pairs must have the schema ITEM_PAIRS, not"),
    ],
)
def test_refuses_tables(released: pa.Table, cells: pa.Table, message: str) -> None:
    with pytest.raises(ValueError, match=f"read: {message}"):
        train(released, cells, None, CLOSED_FORM)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("rank", 0, "positive"),
        ("feature_rank", 0, "positive"),
        ("epochs", -1, "not be negative"),
        ("learning_rate", 0.0, r"in \(0, 1\]"),
        ("kind", "loud", "one of hybrid, ensemble"),
        ("signal", "loud", "one of auto, low-rank, prior, stacked"),
        ("loss", "loud", "one of warp, warp-kos, bpr, logistic"),
    ],
)
def test_refuses_settings(field: str, value: float | str, rule: str) -> None:
    with pytest.raises(ValueError, match=f"Settings: {field} must (be )?{rule}, not {value!r}"):
        training.Settings(**{field: value})


def turned_window(seed: int) -> tuple[pa.Table, pa.Table, Catalogue]:
    """The world with another window's noise, and items of the same scores in another order."""
    table, cells, catalogue = world(blocks=4, size=6, cold=1)
    rng = np.random.default_rng(seed)
    order = rng.permutation(table.num_rows)
    values = np.zeros((len(order), len(order)))
    values[cells["row"], cells["col"]] = cells["value"]
    noise = np.triu(rng.normal(0, 0.1, values.shape), 1)
    values = np.triu(values, 1) + np.triu(values).T + noise + noise.T
    ids = [table["item_id"][row].as_py() for row in order]
    return items(ids, [5.0] * len(ids), list(range(len(ids)))), pairs(values[np.ix_(order, order)]), catalogue


@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.parametrize("kind", ["hybrid", "ensemble"])
def test_the_version_before_turns_vectors_and_leaves_scores(epochs: int, kind: hybrid.Kind) -> None:
    settings = dataclasses.replace(CLOSED_FORM, epochs=epochs, kind=kind)
    before = train(*turned_window(1), settings)
    fresh, started = (train(*turned_window(2), settings, before=earlier) for earlier in (None, before.embeddings))

    def in_order(trained: training.Trained, name: str) -> np.ndarray:
        return vectors(trained.embeddings.sort_by("item_id"), name)

    def scores(trained: training.Trained) -> np.ndarray:
        return in_order(trained, "history_embedding") @ in_order(trained, "embedding").T

    assert scores(started) == pytest.approx(scores(fresh), abs=0.02 * np.abs(scores(fresh)).max())

    def nearness(trained: training.Trained) -> float:
        old, new = in_order(before, "history_embedding"), in_order(trained, "history_embedding")
        width = min(old.shape[1], new.shape[1])
        return float((old[:, :width] * new[:, :width]).sum() / np.linalg.norm(old) / np.linalg.norm(new))

    assert nearness(started) > 0.99 > nearness(fresh)
    if kind == "ensemble":
        return
    # A hybrid's item without interactions is what its features are: these are turned like it.
    table, cells, catalogue = turned_window(2)
    loadings = training.read(table, cells, 0.1, catalogue).loadings.toarray()
    by_features = loadings @ vectors(started.feature_embeddings, "embedding")
    expected, found = by_features[-1], vectors(started.embeddings, "embedding")[-1]
    assert expected @ found == pytest.approx(np.linalg.norm(expected) * np.linalg.norm(found))
