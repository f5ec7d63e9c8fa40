import concurrent.futures
import dataclasses
import datetime as dt
import multiprocessing
import pathlib
import stat
import time
from collections.abc import Callable

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from data import catalogue, comments, database, tables
from models import rerank
from tests.data import readers

DAY = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
NEXT_DAY = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)

CATALOGUE = catalogue.Catalogue(
    pa.table({"item_id": ["a", "b", "z"], "title": ["A", None, "Z"], "genre": [["x", "y"], [], None]}),
    {"genre": "multi"},
)


def rows(schema: pa.Schema, *values: tuple) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in values], schema)


def count(window_start: dt.datetime, window_end: dt.datetime, item: str, users: int) -> tuple:
    return (window_start, window_end, item, "view", users, 2 * users, users - 1.5, users + 1.5, 0.0, 99.0)


def spent(release: str, mechanism: str, epsilon: float, delta: float) -> tuple:
    fixed = ("shop", DAY, DAY, NEXT_DAY, "user", "lifetime", mechanism, "gaussian", 2.0, 6.0, 3.0, 0.0)
    return (release, *fixed, epsilon, delta)


def make_contents(version: int = 1, **changes: object) -> database.Contents:
    return dataclasses.replace(
        database.Contents(
            catalogue=CATALOGUE,
            items=rows(tables.ITEMS, ("a", 9.0, 0), ("b", 5.0, 1), ("c", 4.0, 2), ("d", -1.0, None)),
            item_counts=rows(
                tables.ITEM_COUNTS,
                count(DAY, DAY, "d", 99),
                count(DAY, NEXT_DAY, "a", 7),
                count(DAY, NEXT_DAY, "b", -2),
                count(DAY, NEXT_DAY, "c", 8),
            ),
            trending_counts=tables.ITEM_COUNTS.empty_table(),
            item_pairs=rows(tables.ITEM_PAIRS, (0, 0, 3.5), (0, 1, -0.5), (1, 2, 2.0)),
            embeddings=rows(
                tables.EMBEDDINGS,
                ("a", [1, 0], [1, 0], 0.0),
                ("b", [0, 1], [0, 1], 0.0),
                ("c", [1, 1], [0, -1], -0.25),
                ("d", [-1, 0], [0, 0], 0.0),
            ),
            feature_embeddings=rows(tables.FEATURE_EMBEDDINGS, ("genre=x", [1, 0], [0, 1], 0.5)),
            recommendations=rows(tables.RECOMMENDATIONS, ("a", 1, "c", 0.5)),
            popular=rows(tables.POPULAR, (1, "a", 9.0), (2, "b", 5.0), (3, "c", 4.0)),
            model_versions=rows(tables.MODEL_VERSIONS, (version, DAY, ["r1"], "ensemble", 2, 10, 3, '{"lam": 1}', "0.1.0")),
            evaluations=rows(
                tables.EVALUATIONS,
                (DAY, NEXT_DAY, "r3", "popularity", None, "recall", 20, 0.25, 0.125, 0.5, 90, 80.0, 100.0),
                (DAY, NEXT_DAY, "r3", "ensemble", 1, "recall", 20, None, 0.0, 1.0, 90, 80.0, 100.0),
            ),
            privacy_ledger=rows(
                tables.PRIVACY_LEDGER,
                spent("r1", "selection", 0.5, 1e-6),
                spent("r1", "cooccurrence", 0.5, 1e-6),
                spent("r2", "counts.users", 0.25, 1e-6),
            ),
            privacy_periods=rows(
                tables.PRIVACY_PERIODS,
                ("shop", "2026-02", "user", "gaussian", 1, 0.5, 1e-6, 2.0, 1e-6),
                ("shop", "2026-01", "user", "gaussian", 2, 0.6, 1e-6, 2.0, 1e-6),
            ),
            release_report=rows(tables.RELEASE_REPORT, ("r1", "limits", 1, "50 items per user")),
        ),
        **changes,
    )


def answer(store: pathlib.Path, sql: str) -> list[tuple]:
    with database.connect(store) as connection:
        return connection.execute(sql).fetchall()


def numbers(store: pathlib.Path) -> list[str]:
    return sorted(path.name for path in (store / "versions").glob("*.duckdb"))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("store")
    database.publish(path, make_contents(), 5)
    return path


# Versions


def test_a_version_is_read_only_and_current_is_a_relative_link_to_it(store):
    version = store / "versions" / "1.duckdb"
    assert stat.S_IMODE(version.stat().st_mode) == 0o444
    assert (store / "current.duckdb").readlink() == pathlib.Path("versions/1.duckdb")
    assert sorted(p.name for p in store.rglob("*")) == [".lock", "1.duckdb", "current.duckdb", "versions"]


def test_a_reader_keeps_its_deleted_version_and_the_same_process_sees_the_new_one(tmp_path):
    database.publish(tmp_path, make_contents(1), 1)
    with database.connect(tmp_path) as reader:
        database.publish(tmp_path, make_contents(2), 1)
        assert numbers(tmp_path) == ["2.duckdb"]
        assert answer(tmp_path, "SELECT version FROM model_versions") == [(2,)]
        assert reader.execute("SELECT version FROM model_versions").fetchall() == [(1,)]
        assert len(reader.execute("FROM recommend(['a'])").fetchall()) == 3


def test_old_versions_are_deleted_beyond_keep_versions(tmp_path):
    for version in range(1, 12):
        database.publish(tmp_path, make_contents(version), 3)
    assert numbers(tmp_path) == ["10.duckdb", "11.duckdb", "9.duckdb"]
    assert answer(tmp_path, "SELECT version FROM model_versions") == [(11,)]


def two_models(store: pathlib.Path) -> list[set[str]]:
    """Publishes two versions of two models; returns what may be answered of each."""
    found = []
    for model in (1, 2):
        popular = rows(tables.POPULAR, (1, "a", 9.0 * model))
        database.publish(store, make_contents(model, popular=popular), 5)
        found.append(readers.answers(store))
    return found


def back_and_forth(store: pathlib.Path) -> Callable[[], None]:
    """Work of a second."""

    def work() -> None:
        for number in range(60):
            assert database.show(store, 1 + number % 2)

    return work


def test_no_query_fails_while_another_process_goes_back_and_forth(tmp_path):
    of_first, of_second = two_models(tmp_path)
    told, _ = readers.asked_while(tmp_path, back_and_forth(tmp_path))
    assert told.keys() == {"keeping", "opening"}
    answers = set().union(*told.values())
    assert answers <= of_first | of_second
    assert answers & of_first
    assert answers & of_second


def test_a_link_that_is_unlinked_and_made_anew_fails_queries(tmp_path, monkeypatch):
    """The negative control."""

    def point(store: pathlib.Path, version: pathlib.Path) -> None:
        (store / "current.duckdb").unlink(missing_ok=True)
        time.sleep(0.005)
        (store / "current.duckdb").symlink_to(version.relative_to(store))

    monkeypatch.setattr(database, "_point", point)
    two_models(tmp_path)
    told, _ = readers.asked_while(tmp_path, back_and_forth(tmp_path))
    assert any(answer.startswith("failed") for of_one in told.values() for answer in of_one)


def test_a_model_is_shown_again_by_its_newest_version_and_numbers_go_on(tmp_path):
    for model in (1, 1, 2):
        database.publish(tmp_path, make_contents(model), 5)
    assert database.show(tmp_path, 3) is None
    assert database.show(tmp_path, 1) == tmp_path / "versions" / "2.duckdb"
    assert (database.current(tmp_path), database.models(tmp_path)) == (2, {1: 1, 2: 1, 3: 2})
    assert answer(tmp_path, "SELECT version FROM model_versions") == [(1,)]
    assert database.publish(tmp_path, make_contents(1), 1).name == "4.duckdb"
    assert (database.current(tmp_path), database.models(tmp_path)) == (4, {4: 1})


def test_a_store_without_versions_has_none_to_show(tmp_path):
    assert database.show(tmp_path, 1) is None
    assert database.models(tmp_path) == {}


def test_publishers_at_once_never_share_a_number_and_current_is_the_newest(tmp_path):
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(3, context) as pool:
        published = [pool.submit(database.publish, tmp_path, make_contents(), 100) for _ in range(9)]
        names = [future.result().name for future in published]
    assert sorted(names) == sorted(f"{n}.duckdb" for n in range(1, 10)) == numbers(tmp_path)
    assert (tmp_path / "current.duckdb").resolve().name == "9.duckdb"


def test_what_a_killed_publisher_leaves_is_never_current_and_the_next_one_clears_it(tmp_path):
    database.publish(tmp_path, make_contents(1), 5)
    draft = tmp_path / "versions" / ".publishing-x" / "draft.duckdb"
    draft.parent.mkdir()
    draft.write_bytes(b"half")
    (tmp_path / ".current.duckdb.next").symlink_to("versions/7.duckdb")
    assert answer(tmp_path, "SELECT version FROM model_versions") == [(1,)]
    database.publish(tmp_path, make_contents(2), 5)
    assert answer(tmp_path, "SELECT version FROM model_versions") == [(2,)]
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        ".lock", "1.duckdb", "2.duckdb", "current.duckdb", "versions",
    ]  # fmt: skip


def test_a_number_that_is_taken_is_never_written_over(tmp_path):
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions" / "3.duckdb").write_text("linked by a publisher that was then killed")
    assert database.publish(tmp_path, make_contents(), 5).name == "4.duckdb"


def test_contents_that_do_not_fit_leave_the_old_version(tmp_path):
    database.publish(tmp_path, make_contents(1), 5)
    ragged = rows(tables.EMBEDDINGS, ("a", [1], [1], 0.0), ("b", [1, 2], [1, 2], 0.0))
    with pytest.raises(ValueError, match=r"all embeddings must have one length, not \[1, 2\]"):
        database.publish(tmp_path, make_contents(2, embeddings=ragged), 5)
    assert numbers(tmp_path) == ["1.duckdb"]


def test_an_empty_store_says_so(tmp_path):
    with pytest.raises(database.NothingPublishedError, match="nothing is published in this store yet"):
        database.connect(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"items": pa.table({"item_id": ["a"]})}, "items must have the schema", id="schema"),
        pytest.param({"items": rows(tables.ITEMS, ("a", 1.0, 1))}, "must run from 0 without a gap", id="gap in positions"),
        pytest.param({"item_pairs": rows(tables.ITEM_PAIRS, (0, 3, 1.0))}, r"0 <= row <= col < 3", id="pair beyond the kept"),
        pytest.param({"item_pairs": rows(tables.ITEM_PAIRS, (1, 0, 1.0))}, r"0 <= row <= col < 3", id="lower triangle"),
    ],
)
def test_tables_that_do_not_fit_together_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        database.publish(tmp_path, make_contents(**changes), 5)


def test_keeping_no_version_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep_versions must be at least 1, not 0"):
        database.publish(tmp_path, make_contents(), 0)


# Tables


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        pytest.param(
            "items",
            [
                ("a", "A", ["x", "y"], 9.0, True, 0),
                ("b", None, [], 5.0, True, 1),
                ("c", None, None, 4.0, True, 2),
                ("d", None, None, -1.0, False, None),
                ("z", "Z", None, None, False, None),
            ],
            id="items: the catalogue's and the released",
        ),
        pytest.param("item_pairs", [("a", "a", 3.5), ("a", "b", -0.5), ("b", "c", 2.0)], id="item_pairs: ids"),
        pytest.param("item_embeddings LIMIT 1", [("a", (1.0, 0.0), (1.0, 0.0), 0.0)], id="item_embeddings: fixed-size arrays"),
        pytest.param(
            "feature_embeddings", [("genre=x", (1.0, 0.0), (0.0, 1.0), 0.5)], id="feature_embeddings: fixed-size arrays"
        ),
        pytest.param(
            "model_versions",
            [(1, dt.datetime(2026, 1, 1), ["r1"], "ensemble", 2, 10, 3, '{"lam": 1}', "0.1.0")],
            id="model_versions: UTC without a zone",
        ),
    ],
)
def test_tables_hold_the_contents(store, table, expected):
    assert answer(store, f"FROM {table}") == expected


def test_without_a_catalogue_items_are_the_released_ones(tmp_path):
    database.publish(tmp_path, make_contents(catalogue=None), 1)
    assert answer(tmp_path, "FROM items LIMIT 1") == [("a", None, 9.0, True, 0)]


def test_a_feature_named_title_shares_the_column(tmp_path):
    items = catalogue.Catalogue(pa.table({"item_id": ["a"], "title": ["A"]}), {"title": "text"})
    database.publish(tmp_path, make_contents(catalogue=items), 1)
    assert answer(tmp_path, "FROM items LIMIT 1") == [("a", "A", 9.0, True, 0)]


def test_awkward_feature_names_are_quoted(tmp_path):
    items = catalogue.Catalogue(pa.table({"item_id": ["a"], "title": ["A"], "x\"; y's": [1.5]}), {"x\"; y's": "number"})
    database.publish(tmp_path, make_contents(catalogue=items), 1)
    assert answer(tmp_path, 'SELECT "x""; y\'s" FROM items LIMIT 1') == [(1.5,)]


def test_no_data_at_all_still_gives_every_table_and_macro(tmp_path):
    nothing = {name: getattr(make_contents(), name).schema.empty_table() for name in database._SCHEMAS}
    database.publish(tmp_path, make_contents(catalogue=None, **nothing), 1)
    for name in comments.TABLES:
        assert answer(tmp_path, f"FROM {name}") == []
    for call in ("recommend(['a'])", "recommend_diverse(['a'])", "similar_items('a')", "trending()", "privacy_spent()"):
        assert answer(tmp_path, f"FROM {call}") == []


# Nothing else gets out


def test_the_columns_are_these_and_no_others(store):
    found = answer(store, "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal")
    expected = [(table, column) for table, columns in comments.COLUMNS.items() for column in columns]
    assert sorted(found) == sorted([*expected, ("items", "genre")])


def test_no_path_gets_into_the_file(store):
    written = (store / "versions" / "1.duckdb").read_bytes()
    assert b".publishing" not in written
    assert str(store).encode() not in written


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("SELECT table_name FROM duckdb_tables() WHERE comment IS NULL", id="tables"),
        pytest.param(
            "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND comment IS NULL", id="columns"
        ),
        pytest.param("SELECT function_name FROM duckdb_functions() WHERE NOT internal AND comment IS NULL", id="macros"),
    ],
)
def test_no_comment_is_missing(store, query):
    assert answer(store, query) == []


def test_comments_on_counts_say_what_they_count_and_what_is_protected(store):
    [(table,)] = answer(store, "SELECT comment FROM duckdb_tables() WHERE table_name = 'item_counts'")
    assert "Protected: one user per lifetime." in table
    assert "may be negative" in table
    [(column,)] = answer(
        store, "SELECT comment FROM duckdb_columns() WHERE table_name = 'item_counts' AND column_name = 'users_low'"
    )
    assert "95 % interval of the bounded count" in column


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param("INSERT INTO items (item_id) VALUES ('x')", id="insert"),
        pytest.param("FROM read_text('STORE/secret')", id="read a file"),
        pytest.param("FROM 'STORE/secret.csv'", id="read a file by name"),
        pytest.param("FROM glob('STORE/*')", id="list files"),
        pytest.param("COPY items TO 'STORE/x.csv'", id="write a file"),
        pytest.param("COPY items TO 'STORE/versions/1.duckdb.wal'", id="write the log"),
        pytest.param("WITH x AS (COPY items TO 'STORE/versions/1.duckdb.wal') FROM x", id="write the log in WITH"),
        pytest.param("ATTACH 'STORE/x.duckdb'", id="attach"),
        pytest.param("SET enable_external_access = true", id="allow access"),
        pytest.param("SET disabled_filesystems = ''", id="allow files"),
        pytest.param("INSTALL httpfs", id="install"),
    ],
)
def test_sql_reaches_nothing_else(store, sql):
    before = sorted(store.rglob("*"))
    for _ in range(2):  # the second connection in a process finds the first one's settings
        with database.connect(store) as connection, pytest.raises(duckdb.Error):
            connection.execute(sql.replace("STORE", str(store)))
    assert sorted(store.rglob("*")) == before


# Macros

VECTORS = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
VECTORS[5::50] = 0
VECTORS[6::50] = VECTORS[7]


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> pathlib.Path:
    """A database of 300 items."""
    path = tmp_path_factory.mktemp("many")
    ids = [f"i{number}" for number in range(len(VECTORS))]
    embeddings = [(item, *2 * [VECTORS[number].tolist()], 0.001 * number) for number, item in enumerate(ids)]
    contents = make_contents(
        embeddings=rows(tables.EMBEDDINGS, *embeddings),
        feature_embeddings=tables.FEATURE_EMBEDDINGS.empty_table(),
        popular=rows(tables.POPULAR, *((rank, item, 1000.0 - rank**1.5) for rank, item in enumerate(reversed(ids), 1))),
    )
    database.publish(path, contents, 1)
    return path


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        pytest.param("recommend(['a'])", [(1, "c", None, 0.75), (2, "b", None, 0.0), (3, "d", None, -1.0)], id="one"),
        pytest.param("recommend(['b', 'a'])", [(1, "c", None, 0.75), (2, "d", None, -0.5)], id="mean of two"),
        pytest.param("recommend(['a', 'a', 'b'], 1)", [(1, "c", None, 0.75)], id="repeats count once"),
        pytest.param("recommend(['a', '?'], 1)", [(1, "c", None, 0.75)], id="unknown ids ignored"),
        pytest.param("recommend(['c'], k := 2)", [(1, "a", "A", 0.0), (2, "d", None, 0.0)], id="history side, ties by id"),
        pytest.param("recommend([], 2)", [(1, "a", "A", 9.0), (2, "b", None, 5.0)], id="empty: popular"),
        pytest.param("recommend(NULL, 1)", [(1, "a", "A", 9.0)], id="null: popular"),
        pytest.param("recommend(['?', 7::VARCHAR], 1)", [(1, "a", "A", 9.0)], id="unknown only: popular"),
        pytest.param("recommend([7], 1)", [(1, "a", "A", 9.0)], id="numbers are ids too"),
        pytest.param("recommend_diverse(['b', 'a'])", [(1, "c", None, 0.75), (2, "d", None, -0.5)], id="diverse: fewer than k"),
        pytest.param("recommend_diverse(['a'], 2, 0)", [(1, "c", None, 0.75), (2, "b", None, 0.0)], id="diverse: not at all"),
        pytest.param("recommend_diverse(['a'], 2, 1)", [(1, "c", None, 0.75), (2, "d", None, -1.0)], id="diverse: that alone"),
        pytest.param("recommend_diverse([], k := 1)", [(1, "a", "A", 9.0)], id="diverse, without a history: popular"),
        pytest.param("recommend_diverse(['a'], 0)", [], id="diverse: none"),
        pytest.param(
            "similar_items('b')", [(1, "c", None, np.sqrt(0.5)), (2, "a", "A", 0.0)], id="similar: kept with kept items"
        ),
        pytest.param("similar_items('b', 1)", [(1, "c", None, np.sqrt(0.5))], id="similar, k"),
        pytest.param("similar_items('?')", [], id="similar to an unknown item"),
        pytest.param(
            "(SELECT rank, item_id, title, users, users_low, users_high FROM trending(2))",
            [(1, "c", None, 8, 6.5, 9.5), (2, "a", "A", 7, 5.5, 8.5)],
            id="trending: newest window only",
        ),
        pytest.param(
            "(SELECT period, releases, spent_epsilon, total_epsilon FROM privacy_spent())",
            [("2026-01", 2, 0.6, 2.0), ("2026-02", 1, 0.5, 2.0)],
            id="privacy spent by period",
        ),
    ],
)
def test_macros_answer(store, call, expected):
    assert answer(store, f"FROM {call}") == [
        tuple(pytest.approx(v) if isinstance(v, float) else v for v in row) for row in expected
    ]


@pytest.mark.parametrize("trade_off", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_diverse_recommendations_are_those_of_the_model_room(many, trade_off):
    """As `models.rerank.mmr` chooses from the same 200; items without a direction are among them, and some have one vector."""
    for history in ("['i3', 'i100']", "['i77']", "[]"):
        best = answer(many, f"SELECT item_id, score FROM recommend({history}, 200) ORDER BY rank")
        items = np.array([[int(item[1:]) for item, _ in best]])
        expected = rerank.mmr(items, np.array([[score for _, score in best]]), VECTORS, 20, trade_off)
        [expected] = rerank.in_order(expected, items)
        found = answer(many, f"SELECT rank, item_id FROM recommend_diverse({history}, 20, {trade_off})")
        assert found == [(rank, f"i{item}") for rank, item in enumerate(expected, 1)]


def test_what_is_trending_is_of_the_newest_short_window_beside_the_mean_of_those_before(tmp_path):
    hours = [DAY + i * dt.timedelta(hours=1) for i in range(4)]
    short = [
        count(hours[i], hours[i + 1], item, users) for i, item, users in ((0, "a", 1), (1, "a", 4), (2, "a", 6), (2, "b", 9))
    ]
    database.publish(tmp_path, make_contents(trending_counts=rows(tables.ITEM_COUNTS, *short)), 1)
    found = answer(tmp_path, "SELECT rank, item_id, users, users_before FROM trending()")
    assert found == [(1, "b", 9, None), (2, "a", 6, 2.5)]


def test_an_item_without_direction_is_similar_to_none(tmp_path):
    zero = rows(tables.EMBEDDINGS, ("a", [1, 0], [1, 0], 0.0), ("b", [0, 0], [0, 0], 0.0))
    database.publish(tmp_path, make_contents(embeddings=zero), 1)
    assert answer(tmp_path, "FROM similar_items('a')") == []
