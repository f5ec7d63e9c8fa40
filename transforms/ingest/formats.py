"""Messages into rows of a source's own columns, row for row: JSON here; Avro and Protobuf by their schemas.

A message that can't be decoded stays a row, with its problem, and never takes its neighbours along.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import errors

Kind = Literal["json", "avro", "protobuf"]

PROBLEM = "__problem"
RAW = "__raw"
"""Columns beside the source's own: why the message couldn't be decoded, its text where it has one."""

NO_VALUE = "the message has no value"
NOT_TEXT = "not UTF-8"


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
    raise SchemaError(f"source.format = {kind!r} isn't there yet.")


def _refuse_settings(kind: Kind, **given: Any) -> None:
    needless = [name for name, value in given.items() if value is not None]
    if needless:
        raise SchemaError(f"source.format = {kind!r} takes no {' and no '.join(needless)}.")


class Json:
    """A JSON object a message. Takes scalar members as text; an absent, null or nested member is null.

    A column is a member's name, taken literally: `item.id` has a dot in its name. Of a repeated name the first counts.
    """

    def __init__(self, columns: Sequence[str]):
        self._columns = list(columns)
        self._connection: duckdb.DuckDBPyConnection | None = None

    def __reduce__(self) -> tuple[type["Json"], tuple[list[str]]]:
        return Json, (self._columns,)

    def decode(self, values: pa.BinaryArray) -> pa.Table:
        raw, bad = text_of(values)
        problem = pc.if_else(pa.array(bad), NOT_TEXT, pa.scalar(None, pa.string()))
        messages = pa.table({PROBLEM: pc.if_else(pc.is_null(values), NO_VALUE, problem), RAW: raw})
        if self._connection is None:
            self._connection = duckdb.connect(config={"threads": 1})
        self._connection.register("messages", messages)
        # DuckDB keeps the order of a single table that is only projected.
        table = self._connection.sql(self._query()).to_arrow_table()
        self._connection.unregister("messages")
        return table.rename_columns([*self._columns, PROBLEM, RAW])

    def _query(self) -> str:
        members = []
        for column in self._columns:
            # A JSON pointer (RFC 6901) takes every name literally.
            pointer = sql_string("/" + column.replace("~", "~0").replace("/", "~1"))
            members.append(
                f"case when json_type(message, {pointer}) not in ('OBJECT', 'ARRAY', 'NULL') "
                f"then json_extract_string(message, {pointer}) end, "
            )
        return f"""
            select {"".join(members)}coalesce({PROBLEM}, case when message is null then 'not a JSON object' end), {RAW}
            from (
                select *, case when json_valid({RAW}) and json_type({RAW}) = 'OBJECT' then {RAW} end as message
                from messages
            )
        """


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
