import csv
import io
import json
import pathlib

import pyarrow.parquet as pq
import pytest

from data import database, errors
from pipelines import query
from tests.data.test_database import make_contents


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("store")
    database.publish(path, make_contents(), 5)
    return path


def run(store: pathlib.Path, sql: str, format: query.Format) -> bytes:
    out = io.BytesIO()
    query.run(store, sql, format, out)
    return out.getvalue()


def test_table_is_aligned_and_numbers_stand_right(store):
    assert run(store, "FROM recommend(['?'], 2)", "table").decode() == (
        "rank  item_id  title  score\n"
        "----  -------  -----  -----\n"
        "   1  a        A          9\n"
        "   2  b                   5\n"
    )  # fmt: skip


def test_csv_quotes_and_writes_lists_as_json(store):
    text = run(store, "SELECT item_id, title, genre, score FROM items LIMIT 2", "csv").decode()
    assert list(csv.reader(io.StringIO(text))) == [
        ["item_id", "title", "genre", "score"],
        ["a", "A", '["x", "y"]', "9.0"],
        ["b", "", "[]", "5.0"],
    ]


def test_json_is_an_array_of_objects(store):
    text = run(store, "SELECT item_id, genre, score, kept, sum(position) AS n FROM items GROUP BY ALL LIMIT 1", "json")
    assert json.loads(text) == [{"item_id": "a", "genre": ["x", "y"], "score": 9.0, "kept": True, "n": 0}]


def test_parquet_reads_back(store):
    table = pq.read_table(io.BytesIO(run(store, "FROM item_pairs", "parquet")))
    assert table.to_pylist()[1] == {"item_id": "a", "other_item_id": "b", "value": -0.5}


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        pytest.param("SELECT 'nan'::FLOAT AS x", [{"x": None}], id="nan is null"),
        pytest.param("SELECT 1 AS x, 2 AS x", [{"x": 1, "x_1": 2}], id="repeated names are numbered"),
        pytest.param("SELECT sum(9)::HUGEINT AS x, 1.5::DECIMAL(9, 2) AS y", [{"x": 9, "y": 1.5}], id="decimals"),
        pytest.param("SELECT DATE '2026-01-01' AS x, INTERVAL 1 DAY AS y", [{"x": "2026-01-01", "y": "P0M1DT0S"}], id="times"),
        pytest.param("SELECT {'a': [1]} AS x, 'a'::BLOB AS y", [{"x": {"a": [1]}, "y": "61"}], id="nested and bytes"),
        pytest.param("FROM items LIMIT 0", [], id="no rows"),
        pytest.param("VALUES (1);", [{"col0": 1}], id="values, with a semicolon"),
        pytest.param("SHOW TABLES; -- all", None, id="show"),
        pytest.param("DESCRIBE items", None, id="describe"),
        pytest.param("SUMMARIZE items", None, id="summarize"),
    ],
)
def test_statements_that_read_are_answered(store, sql, expected):
    answer = json.loads(run(store, sql, "json"))
    assert answer if expected is None else answer == expected


@pytest.mark.parametrize("format", ["table", "csv", "json", "parquet"])
def test_every_format_takes_an_answer_without_rows(store, format):
    assert run(store, "FROM items LIMIT 0", format)


def test_long_answers_are_cut_with_a_note_in_the_table_alone(store, capsys):
    sql = f"SELECT range AS n FROM range({query.TABLE_ROWS + 5})"
    assert run(store, sql, "table").count(b"\n") == 2 + query.TABLE_ROWS
    assert "Only the first 1000 rows are shown" in capsys.readouterr().err
    assert run(store, sql, "csv").count(b"\n") == 1 + query.TABLE_ROWS + 5
    assert capsys.readouterr().err == ""


def test_table_shows_no_control_characters(store):
    assert b"a\xef\xbf\xbdb\n" in run(store, r"SELECT E'a\nb' AS x", "table")


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        pytest.param("SELEC 1", 'Parser Error: syntax error at or near "SELEC"', id="syntax"),
        pytest.param("FROM itemz", 'Table with name itemz does not exist! Did you mean "items"?', id="unknown table"),
        pytest.param("SELECT 'a'::INT", "Conversion Error: Could not convert string 'a'", id="while it runs"),
        pytest.param("", "Give one SQL statement, not 0.", id="nothing"),
        pytest.param("SELECT 1; SELECT 2", "Give one SQL statement, not 2.", id="two"),
        pytest.param("DELETE FROM items", "The database is read-only: give SELECT, .*, not DELETE.", id="delete"),
        pytest.param("COPY items TO 'x.csv'", "The database is read-only: give SELECT, .*, not COPY.", id="copy"),
        pytest.param("SET threads = 1", "The database is read-only: give SELECT, .*, not SET.", id="set"),
        pytest.param("FROM read_text('/etc/hosts')", "Permission Error: .* disabled by configuration", id="read a file"),
        pytest.param("WITH x AS (COPY items TO 'x') FROM x", "Permission Error: .* disabled", id="write a file"),
    ],
)
def test_refusals_are_one_line(store, sql, message):
    with pytest.raises(query.QueryError, match=message) as error:
        run(store, sql, "table")
    assert "\n" not in str(error.value)


def test_a_store_without_a_database_says_so(tmp_path):
    with pytest.raises(errors.NothingThereError, match="nothing is published in this store yet"):
        run(tmp_path, "FROM items", "table")
