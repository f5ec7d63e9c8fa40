"""Messages into rows of a source's own columns, row for row: JSON, and Avro and Protobuf by their schemas.

A message that can't be decoded stays a row, with its problem, and never takes its neighbours along.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import errors
from transforms.ingest import avro, datum, protobuf

Kind = Literal["json", "avro", "protobuf"]

PROBLEM = "__problem"
RAW = "__raw"
"""Columns beside the source's own: why the message couldn't be decoded, its text where it has one."""

NO_VALUE = "the message has no value"
NOT_JSON = "not a JSON object"
NOT_TEXT = "not UTF-8"
NOT_WIRE = "not in Confluent's wire format"
OTHER_SCHEMA = "source.schemas doesn't have the message's schema"
OUT_OF_RANGE = "a value is out of range"

_WIRE_BYTES = 5
"""Before the datum in Confluent's wire format: a zero, and the schema's id."""


class SchemaError(errors.BadInputError):
    """A schema that messages are to be decoded with can't be used: the message names the file, the rule and the way out."""


class Format(Protocol):
    """How a source's messages are decoded. Pickles as its settings alone; one thread at a time."""

    def decode(self, values: pa.BinaryArray) -> pa.Table:
        """Decodes messages row for row: the mapped columns under the source's names, and PROBLEM and RAW."""


def of(
    kind: Kind,
    columns: Sequence[str],
    schema_file: str | None = None,
    schemas: Mapping[str, str] | None = None,
    message: str | None = None,
) -> Format:
    """Returns the format, its schemas read and checked.

    Args:
        kind: of the messages.
        columns: the mapped ones, by the source's names.
        schema_file: Avro: the reader's schema (.avsc). Protobuf: a FileDescriptorSet.
        schemas: Avro in Confluent's wire format: the writers' schemas (.avsc), by the registry's id.
        message: Protobuf: the message type's full name.

    Raises:
        SchemaError: what is wrong with which schema.
    """
    if kind == "json":
        _refuse_settings(kind, schema_file=schema_file, schemas=schemas, message=message)
        return Json(columns)
    if schema_file is None:
        raise SchemaError(f"source.format = {kind!r} needs schema_file.")
    if kind == "avro":
        _refuse_settings(kind, message=message)
        by_id = None if schemas is None else {_schema_id(name): _read_file(path) for name, path in schemas.items()}
        return Avro(columns, _read_file(schema_file), by_id)
    _refuse_settings(kind, schemas=schemas)
    if message is None:
        raise SchemaError(f"source.format = {kind!r} needs message: the full name of a message in {schema_file}.")
    return Protobuf(columns, _read_file(schema_file), message)


class SchemaFile(NamedTuple):
    """A schema as it was when the job was built: workers needn't reach the file."""

    path: str
    content: bytes


def _refuse_settings(kind: Kind, **given: Any) -> None:
    needless = [name for name, value in given.items() if value is not None]
    if needless:
        raise SchemaError(f"source.format = {kind!r} takes no {' and no '.join(needless)}.")


def _schema_id(name: str) -> int:
    if not (name.isascii() and name.isdigit() and int(name) < 1 << 32):
        raise SchemaError(f"source.schemas: {name!r} must be the number that the registry gave to the schema.")
    return int(name)


def _read_file(path: str) -> SchemaFile:
    try:
        return SchemaFile(path, pathlib.Path(path).read_bytes())
    except OSError as error:
        raise SchemaError(f"{path} can't be read ({type(error).__name__}): it is to be the schema of messages.") from error


@contextlib.contextmanager
def _told_of(file: SchemaFile) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise SchemaError(f"{file.path}: {error}.") from error


class Json:
    """A JSON object a message. Takes scalar members as text; an absent, null or nested member is null.

    A column is a member's name, taken literally: `item.id` has a dot in its name. Of a repeated name the first counts.
    """

    def __init__(self, columns: Sequence[str]):
        self._columns = list(columns)
        self._connection: duckdb.DuckDBPyConnection | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._columns,)

    def decode(self, values: pa.BinaryArray) -> pa.Table:
        scalars = json_scalars("message", "texts", self._columns)
        query = f"""
            select {scalars}, coalesce({PROBLEM}, case when message is null then {sql_string(NOT_JSON)} end), {RAW}
            from (select *, {json_texts("message", self._columns)} as texts from objects)
        """
        table = self._ask(query, values)
        return table.rename_columns([*self._columns, PROBLEM, RAW])

    def _ask(self, query: str, values: pa.BinaryArray) -> pa.Table:
        """Asks about `objects`: each message's PROBLEM, RAW and, if it's an object, itself as `message`.

        DuckDB keeps the order of a single table that is only projected.
        """
        raw, bad = text_of(values)
        problem = pc.if_else(pa.array(bad), NOT_TEXT, pa.scalar(None, pa.string()))
        messages = pa.table({PROBLEM: pc.if_else(pc.is_null(values), NO_VALUE, problem), RAW: raw})
        if self._connection is None:
            self._connection = duckdb.connect(config={"threads": 1})
        self._connection.register("messages", messages)
        message = f"case when json_valid({RAW}) and json_type({RAW}) = 'OBJECT' then {RAW} end as message"
        table = self._connection.sql(f"with objects as (select *, {message} from messages) from ({query})").to_arrow_table()
        self._connection.unregister("messages")
        return table


def json_texts(document: str, names: Sequence[str]) -> str:
    """SQL for these members as a list of texts, nested ones as JSON; the document is gone through once for all."""
    return f"json_extract_string({document}, [{', '.join(map(pointer, names))}])"


def json_scalars(document: str, texts: str, names: Sequence[str]) -> str:
    """SQL for scalar members as text, by `json_texts` of the same: an absent, null or nested one is null.

    Only what looks nested is looked at again.
    """
    scalars = []
    for i, name in enumerate(names, 1):
        text = f"{texts}[{i}]"
        is_text = f"json_type({document}, {pointer(name)}) = 'VARCHAR'"
        looks_nested = " or ".join(f"starts_with({text}, '{bracket}')" for bracket in "{[")
        scalars.append(f"case when {looks_nested} then case when {is_text} then {text} end else {text} end")
    return ", ".join(scalars)


def pointer(name: str) -> str:
    """A JSON pointer (RFC 6901) takes every name literally."""
    return sql_string("/" + name.replace("~", "~0").replace("/", "~1"))


class Avro:
    """An Avro datum a message, by the schema alone or, in Confluent's wire format, by the writer's that the message names.

    Columns are fields of the reader's schema; `item.id` is field id of record item.

    Raises:
        SchemaError: what is wrong with which schema.
    """

    def __init__(self, columns: Sequence[str], schema: SchemaFile, schemas: Mapping[int, SchemaFile] | None = None):
        self._settings = columns, schema, schemas
        with _told_of(schema):
            ours = avro.parse(schema.content.decode())
            self._plain = avro.Reader(ours, ours, columns)
        self._by_id: dict[int, avro.Reader] = {}
        for number, file in (schemas or {}).items():
            with _told_of(file):
                self._by_id[number] = avro.Reader(ours, avro.parse(file.content.decode()), columns)

    def __reduce__(self) -> tuple[Any, ...]:
        return Avro, self._settings

    def decode(self, values: pa.BinaryArray) -> pa.Table:
        columns, _, schemas = self._settings
        return _table(values, self._plain.read if schemas is None else self._read_wire, columns, self._plain.types)

    def _read_wire(self, value: bytes) -> list[Any]:
        if len(value) < _WIRE_BYTES or value[0]:
            raise datum.MalformedError(NOT_WIRE)
        reader = self._by_id.get(int.from_bytes(value[1:_WIRE_BYTES], "big"))
        if reader is None:
            raise datum.MalformedError(OTHER_SCHEMA)
        return reader.read(value[_WIRE_BYTES:])


class Protobuf:
    """A Protobuf message a message, by a FileDescriptorSet. Columns are fields; `item.id` is field id of message item.

    Raises:
        SchemaError: what is wrong with the set.
    """

    def __init__(self, columns: Sequence[str], schema: SchemaFile, message: str):
        self._settings = columns, schema, message
        with _told_of(schema):
            self._reader = protobuf.Reader(schema.content, message, columns)

    def __reduce__(self) -> tuple[Any, ...]:
        return Protobuf, self._settings

    def decode(self, values: pa.BinaryArray) -> pa.Table:
        return _table(values, self._reader.read, self._settings[0], self._reader.types)


def _table(
    values: pa.BinaryArray, read: Callable[[bytes], list[Any]], columns: Sequence[str], types: Sequence[pa.DataType]
) -> pa.Table:
    """Reads message after message; text that isn't UTF-8 and values that Arrow's type can't hold are problems of their row."""
    nothing = [None] * len(columns)
    rows, problems = [], np.full(len(values), None, object)
    for i, value in enumerate(values.to_pylist()):
        row = nothing
        try:
            if value is None:
                problems[i] = NO_VALUE
            else:
                row = read(value)
        except (datum.MalformedError, protobuf.MalformedError) as error:
            problems[i] = str(error)
        rows.append(row)
    table = {}
    for name, kind, given in zip(columns, types, zip(*rows, strict=True) if rows else [()] * len(columns), strict=True):
        column, is_out = _column(given, kind)
        table[name], is_bad = text_of(column)
        problems[is_bad] = NOT_TEXT
        problems[is_out] = OUT_OF_RANGE
    return pa.table({**table, PROBLEM: pa.array(problems, pa.string()), RAW: pa.nulls(len(values), pa.string())})


def _column(values: Sequence[Any], kind: pa.DataType) -> tuple[pa.Array, np.ndarray]:
    """The values, null where the type can't hold one, and where that is."""
    try:
        return pa.array(values, kind), np.zeros(len(values), bool)
    except (pa.ArrowException, OverflowError):
        fits = [_can_hold(kind, value) for value in values]
        held = [value if fit else None for value, fit in zip(values, fits, strict=True)]
        return pa.array(held, kind), ~np.array(fits, bool)


def _can_hold(kind: pa.DataType, value: Any) -> bool:
    try:
        pa.scalar(value, kind)
    except (pa.ArrowException, OverflowError):
        return False
    return True


def text_of(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Text or binary as text, with replacement characters where it isn't UTF-8, and which values those are; others stay."""
    try:
        return _checked_text(column), np.zeros(len(column), bool)
    except pa.ArrowInvalid:
        plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        given = plain.cast(pa.large_binary()).to_pylist()
        texts = [None if value is None else value.decode(errors="replace") for value in given]
        bad = [now is not None and now.encode() != was for now, was in zip(texts, given, strict=True)]
        return pa.array(texts, pa.string()), np.array(bad, bool)


def _checked_text(column: pa.Array) -> pa.Array:
    """Text and binary as checked text.

    Raises:
        pa.ArrowInvalid: some of it isn't UTF-8.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(column.indices, _checked_text(column.dictionary))
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return column.cast(pa.large_binary()).cast(pa.large_string())
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return column.cast(pa.binary()).cast(pa.string())
    return column


def sql_string(text: str) -> str:
    """Quotes a text for DuckDB."""
    return "'" + text.replace("'", "''") + "'"
