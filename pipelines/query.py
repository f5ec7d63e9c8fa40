"""One SQL statement on a store's current database in; a table, CSV, JSON or Parquet out.

The statement can only read, and only that database.
"""

import csv
import datetime as dt
import decimal
import io
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from data import database, errors

Format = Literal["table", "csv", "json", "parquet"]

TABLE_ROWS = 1000
"""Rows that the readable table shows; the other formats have no limit."""
CELL_CHARACTERS = 100
"""Longer values (embeddings, say) are cut in the readable table."""

_BATCH_ROWS = 10_000


class QueryError(errors.BadRequestError):
    """The statement can't be answered; the message is one line for the one who wrote it."""


def run(store: pathlib.Path, sql: str, format: Format, out: BinaryIO) -> None:
    """Answers one SELECT (or FROM, VALUES, DESCRIBE, SUMMARIZE, SHOW) in UTF-8 or, for parquet, bytes.

    Raises:
        database.NothingPublishedError: nothing is published yet.
        QueryError: the statement isn't one that reads, or DuckDB refuses it.
    """
    write = _WRITERS[format]
    try:
        with database.connect(store) as connection:
            reader = connection.sql(_only_select(connection, sql)).to_arrow_reader(_BATCH_ROWS)
            write(_unique(reader.schema), iter(reader), out)
    except (duckdb.Error, pa.ArrowException) as e:
        raise QueryError(_one_line(str(e))) from e


def _only_select(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise QueryError(f"Give one SQL statement, not {len(statements)}.")
    if statements[0].type != duckdb.StatementType.SELECT:
        raise QueryError(
            f"The database is read-only: give SELECT, FROM, VALUES, DESCRIBE, SUMMARIZE or SHOW, not {statements[0].type.name}."
        )
    return statements[0]


def _one_line(message: str) -> str:
    """DuckDB's message without its picture of the place."""
    return " ".join(message.split("\n\nLINE ")[0].split())


def _unique(schema: pa.Schema) -> pa.Schema:
    """Numbers the second and later columns of one name: item_id, item_id_1."""
    names: list[str] = []
    for name in schema.names:
        number, free = 0, name
        while free in names:
            number += 1
            free = f"{name}_{number}"
        names.append(free)
    return pa.schema([field.with_name(name) for field, name in zip(schema, names, strict=True)])


def _rows(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[Any, ...]]:
    for batch in batches:
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _write_table(schema: pa.Schema, batches: Iterator[pa.RecordBatch], out: BinaryIO) -> None:
    rows: list[list[str]] = []
    cut = False
    for row in _rows(batches):
        if len(rows) == TABLE_ROWS:
            cut = True
            break
        rows.append([_cell(value) for value in row])
    widths = [max(map(len, column)) for column in zip(schema.names, *rows, strict=True)]
    right = [_is_number(field.type) for field in schema]
    lines = [schema.names, ["-" * width for width in widths], *rows]
    for line in lines:
        cells = (
            text.rjust(width) if numeric else text.ljust(width)
            for text, width, numeric in zip(line, widths, right, strict=True)
        )
        out.write(("  ".join(cells).rstrip() + "\n").encode())
    if cut:
        print(f"Only the first {TABLE_ROWS} rows are shown; csv, json and parquet give all.", file=sys.stderr)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else _text(value)
    # A title may hold a line break, or codes that a terminal would obey.
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _text(value: Any) -> str:
    """A value that isn't a string, for table and CSV: numbers and times bare, the rest as JSON."""
    if isinstance(value, float):
        return repr(value)
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """The value in what JSON has; it has no NaN and no infinity: null."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case decimal.Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case dt.datetime() | dt.date() | dt.time():
            return value.isoformat()
        case pa.MonthDayNano():  # an INTERVAL, as an ISO 8601 duration
            return f"P{value.months}M{value.days}DT{value.nanoseconds / 1e9:g}S"
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case bytes():
            return value.hex()
        case _:
            return str(value)


def _write_csv(schema: pa.Schema, batches: Iterator[pa.RecordBatch], out: BinaryIO) -> None:
    _csv_lines([schema.names], out)
    for batch in batches:
        _csv_lines([["" if value is None else _text(value) for value in row] for row in _rows(iter([batch]))], out)


def _csv_lines(rows: Sequence[Sequence[str]], out: BinaryIO) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    out.write(text.getvalue().encode())


def _write_json(schema: pa.Schema, batches: Iterator[pa.RecordBatch], out: BinaryIO) -> None:
    start = b"["
    for row in _rows(batches):
        line = json.dumps(dict(zip(schema.names, map(_plain, row), strict=True)), ensure_ascii=False)
        out.write(start + b"\n" + line.encode())
        start = b","
    out.write(b"[]\n" if start == b"[" else b"\n]\n")


def _write_parquet(schema: pa.Schema, batches: Iterator[pa.RecordBatch], out: BinaryIO) -> None:
    with pq.ParquetWriter(out, schema) as writer:
        for batch in batches:
            writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))


_WRITERS = {"table": _write_table, "csv": _write_csv, "json": _write_json, "parquet": _write_parquet}


if __name__ == "__main__":
    from pipelines import cli

    cli.main_of("query")
