import gzip
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.ingest import sources

COLUMNS = ["user", "item"]


def write(path: pathlib.Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def read(kind: sources.Kind, *paths: str, columns: list[str] = COLUMNS) -> list[tuple]:
    """All rows as (row, the columns' values..., problem, raw), in the order of their row numbers."""
    rows = []
    for fragment in sources.find_fragments(kind, paths, columns):
        for table in sources.read(fragment, columns):
            assert table.column_names == [*columns, sources.ROW, sources.PROBLEM, sources.RAW]
            rows += [(r[sources.ROW], *(r[c] for c in columns), r[sources.PROBLEM], r[sources.RAW]) for r in table.to_pylist()]
    return sorted(rows, key=lambda row: row[0])


def test_parquet_row_groups_join_into_fragments_whose_row_numbers_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_FRAGMENT_ROWS", 4)
    path = str(tmp_path / "a.parquet")
    table = pa.table({"item": ["x", "y", "z", "x", "y"], "other": [1] * 5, "user": [1, 2, 3, 4, None]})
    pq.write_table(table, path, row_group_size=2)
    assert sources.find_fragments("parquet", [path], COLUMNS) == [
        sources.Fragment("parquet", path, (0, 1), 1, 4),
        sources.Fragment("parquet", path, (2,), 5, 1),
    ]
    assert read("parquet", path) == [
        (1, 1, "x", None, None),
        (2, 2, "y", None, None),
        (3, 3, "z", None, None),
        (4, 4, "x", None, None),
        (5, None, "y", None, None),
    ]


def test_a_row_group_larger_than_a_batch_goes_on_counting(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_BATCH_ROWS", 2)
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"user": ["a", "b", "c", "d", "e"], "item": ["x"] * 5}), path, row_group_size=3)
    assert [(row, user) for row, user, *_ in read("parquet", path)] == [(1, "a"), (2, "b"), (3, "c"), (4, "d"), (5, "e")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(b"item,other,user\nx,1,a\n", [(1, "a", "x", None, None)], id="columns by name, others left"),
        pytest.param(b"user,item\na,x", [(1, "a", "x", None, None)], id="no newline at the end"),
        pytest.param(b"user,item\r\na,x\r\n", [(1, "a", "x", None, None)], id="windows line ends"),
        pytest.param(b"user,item\n1,\n", [(1, "1", "", None, None)], id="numbers stay text, empty stays empty"),
        pytest.param(b"user,item\nNULL,NaN\n", [(1, "NULL", "NaN", None, None)], id="no word is null"),
        pytest.param(
            b'user,item\n"a","x,y"\nc,"say ""x"""\n',
            [(1, "a", "x,y", None, None), (2, "c", 'say "x"', None, None)],
            id="quoted comma and quote",
        ),
        pytest.param(
            b"user,item\n\na,x\n\n\nb,y\n", [(2, "a", "x", None, None), (5, "b", "y", None, None)], id="blank lines are no rows"
        ),
        pytest.param(
            b"user,item\na,x\nb\nc,y\nd,z,1\ne,w\n",
            [
                (1, "a", "x", None, None),
                (2, None, None, "CSV row has 1 columns, not 2", "b"),
                (3, "c", "y", None, None),
                (4, None, None, "CSV row has 3 columns, not 2", "d,z,1"),
                (5, "e", "w", None, None),
            ],
            id="too few and too many columns",
        ),
        pytest.param(
            b"user,item\na\nb\n\nc,x\n",
            [
                (1, None, None, "CSV row has 1 columns, not 2", "a"),
                (2, None, None, "CSV row has 1 columns, not 2", "b"),
                (4, "c", "x", None, None),
            ],
            id="wrong rows first",
        ),
        pytest.param(
            b'user,item\n"a\nb,x\nc"\nd,y\n',
            [
                (1, None, None, "CSV row has an open quote", '"a'),
                (2, "b", "x", None, None),
                (3, None, None, "CSV row has an open quote", 'c"'),
                (4, "d", "y", None, None),
            ],
            id="an open quote takes no neighbour along",
        ),
        pytest.param(
            b"user,item\na\xff,x\nb\xc3\xa9,y\n",
            [(1, "a\ufffd", "x", "not UTF-8", None), (2, "bé", "y", None, None)],
            id="not UTF-8",
        ),
        pytest.param(b"user,item,other\na,x,\xff\n", [(1, "a", "x", None, None)], id="an unread column may be anything"),
        pytest.param(b"user,item\n", [], id="header alone"),
    ],
)
def test_csv(tmp_path, text, expected):
    assert read("csv", write(tmp_path / "a.csv", text)) == expected


def test_csv_row_numbers_hold_over_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 64)
    lines = [b"bad" if n % 7 == 3 else b"u%d,i%d" % (n, n) for n in range(1, 101)]
    rows = read("csv", write(tmp_path / "a.csv", b"user,item\n" + b"\n".join(lines)))
    assert rows == [
        (n, None, None, "CSV row has 1 columns, not 2", "bad") if n % 7 == 3 else (n, f"u{n}", f"i{n}", None, None)
        for n in range(1, 101)
    ]


def test_a_csv_row_with_too_many_columns_that_is_not_utf8_takes_no_neighbour_along(tmp_path):
    rows = read("csv", write(tmp_path / "a.csv", b"user,item\na,x\n\xff,y,1\nb,z\n"))
    assert [(row, user, item, problem is None) for row, user, item, problem, _ in rows] == [
        (1, "a", "x", True),
        (2, None, None, False),
        (3, "b", "z", True),
    ]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            b"\xef\xbb\xbfuser,item\na,x\n",
            id="byte order mark",
        ),
    ],
)
def test_csv_headers_as_spreadsheets_write_them(tmp_path, text):
    assert read("csv", write(tmp_path / "a.csv", text)) == [(1, "a", "x", None, None)]


def test_csv_header_alone_without_newline_has_no_rows(tmp_path):
    assert read("csv", write(tmp_path / "a.csv", b"user,item")) == []


LINE = '{"user": "a", "item": "x"}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(f"{LINE}\n", [(1, "a", "x", None, LINE)], id="strings"),
        pytest.param(LINE, [(1, "a", "x", None, LINE)], id="no newline at the end"),
        pytest.param(
            '{"item": true, "user": 17850, "more": [1]}\n',
            [(1, "17850", "true", None, '{"item": true, "user": 17850, "more": [1]}')],
            id="numbers and truth values as text",
        ),
        pytest.param('{"item": "x"}\n', [(1, None, "x", None, '{"item": "x"}')], id="absent member"),
        pytest.param('{"user": null, "item": "x"}', [(1, None, "x", None, '{"user": null, "item": "x"}')], id="null member"),
        pytest.param(
            '{"user": {"a": 1}, "item": ["x"]}',
            [(1, None, None, None, '{"user": {"a": 1}, "item": ["x"]}')],
            id="nested members",
        ),
        pytest.param(
            f'{LINE}\n{{"user": "b", \n{LINE}\n',
            [(1, "a", "x", None, LINE), (2, None, None, "not a JSON object", '{"user": "b", '), (3, "a", "x", None, LINE)],
            id="broken line between two",
        ),
        pytest.param('["a", "x"]\n', [(1, None, None, "not a JSON object", '["a", "x"]')], id="array"),
        pytest.param('"a"\n', [(1, None, None, "not a JSON object", '"a"')], id="scalar"),
        pytest.param(f"{LINE} x\n", [(1, None, None, "not a JSON object", f"{LINE} x")], id="more after the object"),
        pytest.param(
            f"\n{LINE}\n  \n\r\n{LINE}\n", [(2, "a", "x", None, LINE), (5, "a", "x", None, LINE)], id="blank lines count"
        ),
        pytest.param("\n", [], id="a blank line alone"),
    ],
)
def test_jsonl(tmp_path, text, expected):
    assert read("jsonl", write(tmp_path / "a.jsonl", text.encode())) == expected


def test_jsonl_line_that_is_not_utf8_has_a_problem_and_spares_its_neighbour(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"user": "\xff", "item": "x"}\n' + LINE.encode())
    assert [(row, problem, raw) for row, _, _, problem, raw in read("jsonl", path)] == [
        (1, "not UTF-8", '{"user": "\ufffd", "item": "x"}'),
        (2, None, LINE),
    ]


def test_jsonl_lines_hold_over_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_BLOCK_BYTES", 10)
    path = write(tmp_path / "a.jsonl", b"".join(b'{"user": "u%d", "item": "x"}\n\n' % n for n in range(5)))
    assert [(row, user) for row, user, *_ in read("jsonl", path)] == [(1, "u0"), (3, "u1"), (5, "u2"), (7, "u3"), (9, "u4")]


@pytest.mark.parametrize(
    "name", ["a.b", 'a"b', "a\\b", "a'b", "a b", "a*", "$", "$.user", "[0]", "ü", "'; drop table lines; --"]
)
def test_jsonl_member_names_are_taken_literally(tmp_path, name):
    line = json.dumps({"a": {"b": "wrong"}, "user": "wrong", name: "right"})
    assert read("jsonl", write(tmp_path / "a.jsonl", line.encode()), columns=[name]) == [(1, "right", None, line)]


def test_jsonl_may_start_with_a_byte_order_mark(tmp_path):
    assert read("jsonl", write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + LINE.encode())) == [(1, "a", "x", None, LINE)]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_names_that_differ_in_case_are_two_columns(tmp_path, kind):
    text = {"csv": b"ID,id\na,x\n", "jsonl": b'{"ID": "a", "id": "x"}\n'}[kind]
    [row] = read(kind, write(tmp_path / "file", text), columns=["ID", "id"])
    assert row[1:3] == ("a", "x")


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        pytest.param(
            "csv",
            "a.csv.gz",
            b"user,item\na,x\n",
            id="csv",
        ),
        pytest.param("jsonl", "a.jsonl.gz", LINE.encode(), id="jsonl"),
    ],
)
def test_gz_files_are_decompressed(tmp_path, kind, name, content):
    assert [row[:4] for row in read(kind, write(tmp_path / name, gzip.compress(content)))] == [(1, "a", "x", None)]


def test_an_empty_parquet_file_with_a_schema_has_no_rows(tmp_path):
    pq.write_table(pa.schema([("user", pa.string()), ("item", pa.string())]).empty_table(), tmp_path / "a.parquet")
    assert read("parquet", str(tmp_path / "a.parquet")) == []


def test_patterns_match_several_files_in_the_order_of_their_names(tmp_path):
    for name in ("b.csv", "a.csv", "c.txt"):
        write(tmp_path / name, f"user,item\n{name},x\n".encode())
    fragments = sources.find_fragments("csv", [str(tmp_path / "c.txt"), str(tmp_path / "*.csv")], COLUMNS)
    assert fragments == [sources.Fragment("csv", str(tmp_path / name)) for name in ("c.txt", "a.csv", "b.csv")]


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        pytest.param("csv", b"", r"file is empty \(0 bytes\)\. An empty data set still has a header", id="0 bytes, csv"),
        pytest.param("jsonl", b"", r"file is empty \(0 bytes\)", id="0 bytes, jsonl"),
        pytest.param("parquet", b"", r"file is empty \(0 bytes\)", id="0 bytes, parquet"),
        pytest.param("csv", b"user,thing\n", r"file has no column 'item'\. Set source\.columns", id="csv column"),
        pytest.param("csv", b"\nuser,item\n", r"the first line must name the columns", id="blank line before the header"),
        pytest.param("csv", b"us\xffer,item\n", r"the first line must name the columns, in UTF-8", id="header not UTF-8"),
        pytest.param("csv", b"item,user,item\n", r"file has more than one column 'item'", id="two of a name"),
        pytest.param("csv", b"user;item\n", r"no column 'user', 'item'\..*with commas between", id="semicolons"),
        pytest.param("parquet", b"user,item\na,x\n", r"file can't be read as Parquet \(Arrow", id="csv given as parquet"),
    ],
)
def test_unusable_files_are_refused(tmp_path, kind, content, message):
    with pytest.raises(sources.SourceError, match=message):
        sources.find_fragments(kind, [write(tmp_path / "file", content)], COLUMNS)


def test_a_parquet_file_without_a_mapped_column_is_refused(tmp_path):
    pq.write_table(pa.table({"user": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(sources.SourceError, match=r"a\.parquet has no column 'item'\. It has 'user'\."):
        sources.find_fragments("parquet", [str(tmp_path / "a.parquet")], COLUMNS)


def test_a_pattern_that_matches_nothing_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", b"user,item\n")
    with pytest.raises(sources.SourceError, match=r"source\.paths: no file matches '.*/nothing\*'\."):
        sources.find_fragments("csv", [path, str(tmp_path / "nothing*")], COLUMNS)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda path: str(path), id="a directory"),
        pytest.param(lambda path: "nosuch://a/b.csv", id="unknown scheme"),
        pytest.param(lambda path: write(path / "a.csv.gz", b"not gzip"), id="not gzip"),
        pytest.param(lambda path: write(path / "a.csv.gz", gzip.compress(b"")), id="nothing inside the gzip"),
    ],
)
def test_paths_that_cannot_be_read_are_refused_as_sources(tmp_path, make):
    with pytest.raises(sources.SourceError):
        sources.find_fragments("csv", [make(tmp_path)], COLUMNS)
