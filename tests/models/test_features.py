import numpy as np
import pyarrow as pa
import pytest

from data.catalogue import Catalogue
from models.features import encode, of_items

TABLE = pa.table(
    {
        "item_id": ["a", "b", "c", "d"],
        "maker": ["acme", "bolt", "acme", None],
        "genre": [["Drama", "Comedy"], ["Comedy", "Comedy"], None, ["Drama"]],
        "title": ["The red Kettle", "the blue kettle", "the RED-hot pan", None],
        "price": pa.array([1.0, 2.0, 3.0, None]),
    }
)


def row(names: list[str], matrix: np.ndarray, item: int) -> dict[str, float]:
    return {names[j]: round(float(matrix[item, j]), 4) for j in np.flatnonzero(matrix[item])}


@pytest.mark.parametrize(
    ("column", "kind", "names", "rows"),
    [
        ("maker", "categorical", ["maker=acme"], [[1], [0], [1], [0]]),
        ("genre", "multi", ["genre=Comedy", "genre=Drama"], [[0.7071, 0.7071], [1, 0], [0, 0], [0, 1]]),
        ("title", "text", ["title:kettle", "title:red"], [[0.7071, 0.7071], [1, 0], [0, 1], [0, 0]]),
    ],
)
def test_encodes_a_column(column: str, kind: str, names: list[str], rows: list[list[float]]) -> None:
    encoded = encode(TABLE, {column: kind})
    assert encoded.names == names
    assert encoded.matrix.dtype == np.float32
    assert np.allclose(encoded.matrix.toarray(), rows, atol=1e-4)


def test_numbers_fall_into_quantile_buckets() -> None:
    table = pa.table({"price": pa.array([*np.arange(32.0), None, np.nan])})
    encoded = encode(table, {"price": "number"})
    assert encoded.names == [f"price:q{bucket}" for bucket in range(8)]
    assert encoded.matrix[:4].toarray()[:, 0].tolist() == [1, 1, 1, 1]
    assert encoded.matrix[28:].toarray()[:, 7].tolist() == [1, 1, 1, 1, 0, 0]


def test_columns_weigh_the_same_within_a_row_of_norm_1() -> None:
    encoded = encode(TABLE, {"maker": "categorical", "genre": "multi"})
    assert row(encoded.names, encoded.matrix.toarray(), 0) == {
        "maker=acme": 0.7071,
        "genre=Comedy": 0.5,
        "genre=Drama": 0.5,
    }
    assert row(encoded.names, encoded.matrix.toarray(), 1) == {"genre=Comedy": 1.0}


def test_no_kinds_give_no_features() -> None:
    encoded = encode(TABLE, {})
    assert encoded.names == []
    assert encoded.matrix.shape == (4, 0)


@pytest.mark.parametrize("kind", ["categorical", "text"])
def test_an_empty_column_gives_no_features(kind: str) -> None:
    encoded = encode(pa.table({"x": pa.array([None, None], pa.string())}), {"x": kind})
    assert encoded.matrix.shape == (2, 0)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"colour": "categorical"}, "kinds must name columns of the table, not 'colour'"),
        ({"maker": "colour"}, "kind of 'maker' must be one of .*, not 'colour'"),
    ],
)
def test_refuses(kinds: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(TABLE, kinds)


def test_of_items_has_their_rows_and_none_for_unknown_ones() -> None:
    kinds = {"maker": "categorical", "genre": "multi"}
    whole, found = encode(TABLE, kinds), of_items(["c", "?", "a", "c"], Catalogue(TABLE, kinds))
    assert found.names == whole.names
    expected = whole.matrix.toarray()[[2, 0, 0, 2]]
    expected[1] = 0
    assert np.array_equal(found.matrix.toarray(), expected)
