import datetime as dt
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import catalogue

SAMPLE = pathlib.Path(__file__).parents[2] / "data" / "samples" / "online_retail_items.parquet"

MOVIES = 'movieId,title,genres\n1,Toy Story (1995),Adventure|Animation\n11,"American President, The (1995)",Comedy\n007,,\n'


def parquet(path: pathlib.Path, **columns: object) -> pathlib.Path:
    pq.write_table(pa.table(columns), path / "items.parquet")
    return path / "items.parquet"


def csv(path: pathlib.Path, text: str) -> pathlib.Path:
    (path / "items.csv").write_text(text)
    return path / "items.csv"


def test_movielens_layout_loads_from_csv(tmp_path):
    loaded = catalogue.load(csv(tmp_path, MOVIES), {"item_id": "movieId", "title": "title"}, ["genres"], {"genres": "multi"})
    assert loaded.table.to_pylist() == [
        {"item_id": "1", "title": "Toy Story (1995)", "genres": ["Adventure", "Animation"]},
        {"item_id": "11", "title": "American President, The (1995)", "genres": ["Comedy"]},
        {"item_id": "007", "title": None, "genres": None},
    ]
    assert loaded.kinds == {"genres": "multi"}
    assert loaded.item_ids == ["1", "11", "007"]


def test_schema_is_the_contract(tmp_path):
    path = parquet(tmp_path, item_id=["a"], tags=[["x"]], price=[1], brand=["b"])
    loaded = catalogue.load(path, features=["price", "tags", "brand"])
    assert loaded.table.schema.equals(
        pa.schema(
            [
                pa.field("item_id", pa.string(), nullable=False),
                pa.field("title", pa.string()),
                pa.field("price", pa.float64()),
                pa.field("tags", pa.list_(pa.string())),
                pa.field("brand", pa.string()),
            ]
        )
    )
    assert loaded.kinds == {"price": "number", "tags": "multi", "brand": "categorical"}


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        pytest.param(pa.array([1, 20]), ["1", "20"], id="integers"),
        pytest.param(pa.array([1.0, 123456789.0]), ["1", "123456789"], id="whole floats"),
        pytest.param(pa.array([" a", "001", "1.0"]), [" a", "001", "1.0"], id="strings as they are"),
        pytest.param(pa.array(["a", "b"]).dictionary_encode(), ["a", "b"], id="dictionary"),
        pytest.param(pa.array(["a", "b"], pa.large_string()), ["a", "b"], id="large strings"),
    ],
)
def test_item_ids_become_text(tmp_path, given, ids):
    assert catalogue.load(parquet(tmp_path, item_id=given)).item_ids == ids


@pytest.mark.parametrize(
    ("given", "kind", "expected"),
    [
        pytest.param(pa.array([2.5, None]), None, [2.5, None], id="number"),
        pytest.param(pa.array(["2.5", None]), "number", [2.5, None], id="number from text"),
        pytest.param(pa.array([1995.0, None]), "categorical", ["1995", None], id="categorical from whole floats"),
        pytest.param(pa.array([True, None]), None, ["true", None], id="categorical from booleans"),
        pytest.param(pa.array([dt.date(2020, 1, 2), None]), "text", ["2020-01-02", None], id="text from dates"),
        pytest.param(pa.array([["a", "", None], None]), None, [["a"], None], id="multi, empty parts left out"),
        pytest.param(pa.array(["a|b", ""]), "multi", [["a", "b"], []], id="multi from text"),
    ],
)
def test_features_take_the_type_of_their_kind(tmp_path, given, kind, expected):
    path = parquet(tmp_path, item_id=["1", "2"], f=given)
    loaded = catalogue.load(path, features=["f"], kinds={"f": kind} if kind else {})
    assert loaded.table["f"].to_pylist() == expected


def test_csv_kinds_are_inferred_from_the_text(tmp_path):
    loaded = catalogue.load(csv(tmp_path, "item_id,price,brand\n1,2.5,x\n2,,7\n"), features=["price", "brand"])
    assert loaded.kinds == {"price": "number", "brand": "categorical"}


def test_jsonl_keeps_text_that_looks_like_a_date(tmp_path):
    path = tmp_path / "items.jsonl"
    rows = [{"item_id": "2020-01-01", "tags": ["x"]}, {"item_id": "b", "title": "B"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    loaded = catalogue.load(path, features=["tags"])
    assert loaded.table.to_pylist() == [
        {"item_id": "2020-01-01", "title": None, "tags": ["x"]},
        {"item_id": "b", "title": "B", "tags": None},
    ]


@pytest.mark.parametrize(
    ("columns", "feature", "names"),
    [
        pytest.param({"title": "name"}, "name", ["item_id", "title", "name"], id="a column each"),
        pytest.param({"title": "title"}, "title", ["item_id", "title"], id="one column when both are named title"),
    ],
)
def test_the_title_may_be_a_feature_too(tmp_path, columns, feature, names):
    path = parquet(tmp_path, item_id=["1"], title=["t"], name=["n"])
    loaded = catalogue.load(path, columns, [feature], {feature: "text"})
    assert loaded.table.column_names == names
    assert loaded.kinds == {feature: "text"}


def test_sample_product_list_loads():
    loaded = catalogue.load(SAMPLE, {"item_id": "StockCode", "title": "Description"})
    assert len(loaded.item_ids) == 3801
    assert {"item_id": "85123A", "title": "WHITE HANGING HEART T-LIGHT HOLDER"} in loaded.table.to_pylist()


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        pytest.param({"id": ["a"]}, {}, r"columns.item_id: there is no column 'item_id'; .* one of id", id="no id column"),
        pytest.param({"item_id": ["a"]}, {"columns": {"title": "t"}}, r"columns.title: .* no column 't'", id="no title"),
        pytest.param({"item_id": ["a"]}, {"columns": {"name": "n"}}, r"'name' is not a column of ours", id="not ours"),
        pytest.param({"item_id": ["a", None, ""]}, {}, r"'item_id' is empty in 2 of 3 rows", id="null and empty ids"),
        pytest.param({"item_id": [1.0, float("nan")]}, {}, r"is empty in 1 of 2 rows", id="nan ids"),
        pytest.param({"item_id": [1.5]}, {}, r"'item_id' is double .*text or whole numbers", id="fractional ids"),
        pytest.param({"item_id": [True]}, {}, r"holds bool; item ids are text or whole numbers", id="boolean ids"),
        pytest.param(
            {"item_id": list("aabbccddeeff")}, {}, r"6 ids are .*: a, b, c, d, e, \.\.\.; keep one row", id="repeated ids"
        ),
        pytest.param({"item_id": ["a"]}, {"features": ["f"]}, r"features: there is no column 'f'", id="no feature"),
        pytest.param({"item_id": ["a"], "Score": [1]}, {"features": ["Score"]}, r"rename the column", id="reserved"),
        pytest.param({"item_id": ["a"], "Title": ["b"]}, {"features": ["Title"]}, r"rename the column", id="other title"),
        pytest.param({"item_id": ["a"], "f": [1]}, {"features": ["f", "f"]}, r"'f' is there twice", id="feature twice"),
        pytest.param({"item_id": ["a"]}, {"kinds": {"f": "text"}}, r"'f' is not among the features", id="kind of none"),
        pytest.param(
            {"item_id": ["a"], "f": [1]}, {"features": ["f"], "kinds": {"f": "x"}}, r"'x' is no kind", id="unknown kind"
        ),
        pytest.param(
            {"item_id": ["a"], "f": ["x"]}, {"features": ["f"], "kinds": {"f": "number"}}, r"'f' is not numeric", id="text"
        ),
        pytest.param(
            {"item_id": ["a"], "f": [float("inf")]}, {"features": ["f"]}, r"'f' is not finite in 1 rows", id="infinite"
        ),
        pytest.param(
            {"item_id": ["a"], "f": [["x"]]},
            {"features": ["f"], "kinds": {"f": "text"}},
            r"kinds.f: 'f' holds lists",
            id="list as text",
        ),
        pytest.param({"item_id": ["a"], "f": [dt.date(2020, 1, 1)]}, {"features": ["f"]}, r"kind can't be guessed", id="date"),
        pytest.param({"item_id": ["a"]}, {"multi_separator": ""}, r"multi_separator: it is empty", id="no separator"),
        pytest.param({"item_id": pa.array([], pa.string())}, {}, r"the file has no rows", id="no rows"),
    ],
)
def test_bad_catalogues_are_refused_by_name(tmp_path, columns, settings, message):
    with pytest.raises(catalogue.CatalogueError, match=message) as error:
        catalogue.load(parquet(tmp_path, **columns), **settings)
    assert str(error.value).startswith(f"Catalogue {tmp_path / 'items.parquet'}: [catalogue] ")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        pytest.param("items.csv", None, r"there is no such file; give the path", id="missing"),
        pytest.param("items.csv", "", r"the file is empty", id="empty"),
        pytest.param("items.csv", "item_id\n", r"the file has no rows", id="header alone"),
        pytest.param("items.csv", "item_id,item_id\na,b\n", r"there are 2 columns 'item_id'", id="column twice"),
        pytest.param("items.csv", "item_id,t\na\n", r"as .csv \(.*Expected 2 columns, got 1\); write", id="ragged csv"),
        pytest.param("items.xlsx", "x", r"can't tell how to read '.xlsx'; .*parquet, .csv, .jsonl", id="suffix"),
        pytest.param("items.parquet", "x", r"not readable as .parquet", id="not parquet"),
        pytest.param("items.jsonl", '{"item_id": 1}\n[2]\n', r"line 2 is not a JSON object", id="jsonl array"),
        pytest.param("items.jsonl", "{", r"not readable as .jsonl", id="not json"),
    ],
)
def test_unreadable_files_are_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(catalogue.CatalogueError, match=message):
        catalogue.load(tmp_path / name)
