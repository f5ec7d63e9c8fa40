"""Avro datums into rows of mapped fields: written by one schema, resolved to another, and checked byte for byte.

fastavro parses the schemas and could read the datums too, but not strangers': it takes a branch of -1 for the last one, misses
that a skipped field is cut off, counts an array of 2^60 nulls to its end, and dies of a type that holds itself 20,000 deep.
This reads a few types, skips the rest, and is faster at it (docs/performance.md).
"""

import decimal
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import fastavro
import pyarrow as pa

from transforms.ingest import datum

Path = tuple[str, ...]

_NUMBERS = ("int", "long", "float", "double")
_TEXTS = ("string", "bytes", "fixed", "enum")
_MICROSECONDS = {
    "timestamp-millis": (1000, 1),
    "timestamp-micros": (1, 1),
    "timestamp-nanos": (1, 1000),
    "local-timestamp-millis": (1000, 1),
    "local-timestamp-micros": (1, 1),
    "local-timestamp-nanos": (1, 1000),
}
"""How many of a microsecond's parts a step of the logical type is: times the first, by the second."""
_LONGEST_DECIMAL = 32
"""Bytes; Arrow's decimals have no more."""


class _MismatchError(ValueError):
    """A value that one schema writes isn't one that the other reads."""


class Schema(NamedTuple):
    """A parsed schema, and the named types in it by their full names."""

    root: Any
    types: Mapping[str, Any]


class Column(NamedTuple):
    """What a mapped field becomes: a type of Arrow's, and the reader's own type, null left out (several: as text)."""

    type: pa.DataType
    choices: list[Any]


def parse(text: str) -> Schema:
    """Parses a schema in JSON.

    Raises:
        ValueError: it isn't one of a record.
    """
    types: dict[str, Any] = {}
    try:
        root = fastavro.parse_schema(json.loads(text), types)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, fastavro.schema.SchemaParseException) as error:
        raise ValueError(f"isn't an Avro schema ({type(error).__name__}: {error})") from error
    schema = Schema(root, types)
    if not isinstance(root, dict) or root["type"] != "record":
        raise ValueError("must be the schema of a record")
    return schema


class Reader:
    """Reads datums of one writer's schema as rows of the reader's fields, `item.id` being field id of record item.

    Attributes:
        types: of the columns, Arrow's; text as binary, not yet checked to be UTF-8.

    Raises:
        ValueError: the schemas don't go together, or a column is no single value.
    """

    def __init__(self, reader: Schema, writer: Schema, columns: Sequence[str]):
        self._reader, self._writer = reader, writer
        paths = {tuple(column.split(".")): slot for slot, column in enumerate(columns)}
        self._columns = {path: _column(reader, path) for path in paths}
        self.types = [self._columns[path].type for path in paths]
        self._skips: dict[str, datum.Step] = {}
        try:
            self._step = self._steps(writer.root, reader.root, paths, ())
        except _MismatchError as error:
            raise ValueError(str(error)) from error

    def read(self, data: bytes) -> datum.Row:
        """Decodes one datum.

        Raises:
            datum.MalformedError: it isn't one of the writer's schema, to the last byte.
        """
        return datum.read(self._step, data, len(self.types))

    def _steps(self, written: Any, read: Any, wanted: Mapping[Path, int], above: Path) -> datum.Step:
        """Over a value of type `written` that is read as `read`, of which `wanted` go into their slots."""
        if not wanted:
            return self._skip(written)
        written = _named(self._writer, written)
        if isinstance(written, list):
            return datum.one_of(self._branches(written, read, wanted, above))
        if _kind(written) == "null":
            return datum.nothing
        if () in wanted:
            return datum.take(_reading(written, self._columns[above], ".".join(above)), wanted[()])
        return self._record(written, _record_of(self._reader, read), wanted, above)

    def _branches(self, written: Any, read: Any, wanted: Mapping[Path, int], above: Path) -> list[datum.Step]:
        """Some may be of no use as long as no datum has them, but not all that are more than null."""
        steps: list[datum.Step] = []
        mismatches = []
        for branch in written:
            try:
                steps.append(self._steps(branch, read, wanted, above))
            except _MismatchError as error:
                steps.append(datum.refuse)
                mismatches.append(error)
        if mismatches and all(step in (datum.refuse, datum.nothing) for step in steps):
            raise mismatches[0]
        return steps

    def _record(self, written: Any, read: Any, wanted: Mapping[Path, int], above: Path) -> datum.Step:
        place = ".".join(above) or "the whole"
        if _kind(written) != "record" or not _same_name(written, read):
            raise _MismatchError(f"{place} is no record {read['name']} or of an alias of it, as in schema_file")
        given = {field["name"] for field in written["fields"]}
        found: dict[str, tuple[Any, dict[Path, int]]] = {}
        steps: list[datum.Step] = []
        for field in read["fields"]:
            inner = {path[1:]: slot for path, slot in wanted.items() if path[0] == field["name"]}
            name = next((name for name in (field["name"], *field.get("aliases", [])) if name in given), None)
            if inner and name:
                found[name] = field, inner
            elif inner:
                steps += [self._default(field, (*above, field["name"]), path, slot) for path, slot in inner.items()]
        for field in written["fields"]:
            ours, inner = found.get(field["name"], (None, {}))
            below = (*above, ours["name"]) if ours else above
            steps.append(self._steps(field["type"], ours and ours["type"], inner, below))
        return datum.all_of(steps)

    def _default(self, field: Any, above: Path, path: Path, slot: int) -> datum.Step:
        """Of a field that the writer doesn't know."""
        if "default" not in field:
            raise _MismatchError(f"the field {'.'.join(above)!r} of schema_file isn't there and has no default")
        value = field["default"]
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        column = self._columns[above + path]
        if value is not None:
            value = _of_default(value, column)
        return datum.put(value, slot)

    def _skip(self, written: Any) -> datum.Step:
        if isinstance(written, list):
            return datum.one_of([self._skip(branch) for branch in written])
        name = written if isinstance(written, str) else written.get("name")
        if name not in self._writer.types:
            return self._skip_type(written)
        if name not in self._skips:
            self._skips[name] = datum.nothing  # a type may hold itself
            self._skips[name] = self._skip_type(self._writer.types[name])
        return datum.of_name(self._skips, name)

    def _skip_type(self, written: Any) -> datum.Step:
        kind = _kind(written)
        if kind == "record":
            return datum.all_of([self._skip(field["type"]) for field in written["fields"]])
        if kind == "array":
            return datum.blocks_of(self._skip(written["items"]))
        if kind == "map":
            return datum.blocks_of(datum.all_of([datum.skip_bytes, self._skip(written["values"])]))
        return {"null": datum.nothing, "string": datum.skip_bytes, "bytes": datum.skip_bytes}.get(kind) or datum.drop(
            _plain(written)
        )


def _kind(schema: Any) -> str:
    kind = schema["type"] if isinstance(schema, dict) else schema
    return "record" if kind == "error" else kind


def _named(schema: Schema, given: Any) -> Any:
    return schema.types.get(given, given) if isinstance(given, str) else given


def _choices(schema: Schema, read: Any) -> list[Any]:
    """The types of a value, null left out."""
    read = _named(schema, read)
    branches = read if isinstance(read, list) else [read]
    return [branch for branch in (_named(schema, branch) for branch in branches) if _kind(branch) != "null"]


def _record_of(schema: Schema, read: Any) -> Any:
    """The one record that a value of this type can be, or None."""
    choices = _choices(schema, read)
    return choices[0] if len(choices) == 1 and _kind(choices[0]) == "record" else None


def _same_name(written: Any, read: Any) -> bool:
    name = written["name"].rpartition(".")[2]
    return name == read["name"].rpartition(".")[2] or bool({name, written["name"]} & set(read.get("aliases", [])))


def _column(reader: Schema, path: Path) -> Column:
    """What the reader's field at this path becomes."""
    read = reader.root
    for depth, name in enumerate(path):
        record = _record_of(reader, read)
        if record is None:
            raise ValueError(f"{'.'.join(path[:depth])!r} is no record, so it has no member {name!r}")
        fields = {field["name"]: field["type"] for field in record["fields"]}
        if name not in fields:
            raise ValueError(f"there is no field {'.'.join(path[: depth + 1])!r}")
        read = fields[name]
    choices = _choices(reader, read)
    kinds = {_kind(choice) for choice in choices}
    if len(choices) > 1 and any(isinstance(choice, dict) and "logicalType" in choice for choice in choices):
        kinds = {"union"}
    if not kinds or not kinds <= {*_NUMBERS, *_TEXTS, "boolean"}:
        hint = " Name one of its members." if kinds == {"record"} else ""
        raise ValueError(f"{'.'.join(path)!r} is of type {' or '.join(sorted(kinds or {'null'}))}, no single value.{hint}")
    return Column(_arrow_type(choices[0]) if len(choices) == 1 else pa.binary(), choices)


def _logical(schema: Any) -> str | None:
    """The logical type, if it is one that this reads; others count as what they are made of."""
    name = schema.get("logicalType") if isinstance(schema, dict) else None
    base = {"date": "int", "decimal": "bytes", **dict.fromkeys(_MICROSECONDS, "long")}
    kind = "bytes" if _kind(schema) == "fixed" else _kind(schema)
    return name if name in base and base[name] == kind else None


def _arrow_type(read: Any) -> pa.DataType:
    logical = _logical(read)
    if logical == "decimal":
        if not 1 <= read.get("precision", 0) <= 76:
            raise ValueError(f"a decimal's precision must be in 1..76, not {read.get('precision')}")
        return (pa.decimal128 if read["precision"] <= 38 else pa.decimal256)(read["precision"], read.get("scale", 0))
    if logical == "date":
        return pa.date32()
    if logical:
        return pa.timestamp("us", None if logical.startswith("local") else "UTC")
    kind = _kind(read)
    return {"int": pa.int64(), "long": pa.int64(), "boolean": pa.bool_()}.get(
        kind, pa.float64() if kind in _NUMBERS else pa.binary()
    )


def _reading(written: Any, column: Column, name: str) -> datum.Read:
    """Reads a value that is written so as one of the column's.

    Raises:
        _MismatchError: it can't be one.
    """
    kind, read = _kind(written), column.choices[0]
    if kind not in {*_NUMBERS, *_TEXTS, "boolean"} or not _fits(kind, column):
        wanted = " or ".join(_kind(choice) for choice in column.choices)
        raise _MismatchError(f"the field {name!r} is of type {kind} there, and {wanted} in schema_file")
    plain = _plain(written)
    if kind == "enum" and _kind(read) == "enum":
        plain = datum.enum([_symbol(symbol, read) for symbol in written["symbols"]])
    convert = _conversion(written, column)
    return datum.converted(plain, convert) if convert else plain


def _fits(kind: str, column: Column) -> bool:
    kinds = {_kind(choice) for choice in column.choices}
    if kind == "boolean" or "boolean" in kinds:
        return kind in kinds
    if kind in _TEXTS:
        return bool(kinds & set(_TEXTS))
    return bool(kinds & set(_NUMBERS)) and (kind in ("int", "long") or bool(kinds & {"float", "double"}))


def _symbol(symbol: str, read: Any) -> bytes | None:
    """What the reader's enum makes of a writer's symbol; None: nothing."""
    known: str | None = symbol if symbol in read["symbols"] else read.get("default")
    return known.encode() if known else None


def _conversion(written: Any, column: Column) -> Callable[[Any], Any] | None:
    """What makes the column's value of one that is written so; None: it is one."""
    if len(column.choices) > 1:
        return None if _kind(written) in _TEXTS else _text
    [read] = column.choices
    logical = _logical(written) or _logical(read)
    if pa.types.is_decimal(column.type):
        scale = (written if _logical(written) == "decimal" else read).get("scale", 0)
        return lambda value: _decimal(value, scale)
    if pa.types.is_timestamp(column.type) and logical in _MICROSECONDS:
        times, by = _MICROSECONDS[logical]
        return None if times == by == 1 else lambda value: value * times // by
    return float if pa.types.is_floating(column.type) and _kind(written) in ("int", "long") else None


def _text(value: Any) -> bytes:
    return (str(value).lower() if isinstance(value, bool) else str(value)).encode()


def _decimal(value: bytes, scale: int) -> decimal.Decimal:
    if len(value) > _LONGEST_DECIMAL:
        raise datum.MalformedError(datum.NOT_OF_SCHEMA)
    number = int.from_bytes(value, "big", signed=True)
    return decimal.Decimal((int(number < 0), tuple(map(int, str(abs(number)))), -scale))


def _of_default(value: Any, column: Column) -> Any:
    """A default, as JSON has it, as the column's value: bytes are text there, a character for each."""
    if isinstance(value, str):
        value = value.encode("latin-1" if _kind(column.choices[0]) in ("bytes", "fixed") else "utf-8")
    elif len(column.choices) > 1:
        return _text(value)
    convert = _conversion(column.choices[0], column)
    return convert(value) if convert else value


def _plain(written: Any) -> datum.Read:
    """Reads a value of one of the simple types."""
    kind = _kind(written)
    if kind == "enum":
        return datum.enum([symbol.encode() for symbol in written["symbols"]])
    if kind == "fixed":
        return datum.fixed(written["size"])
    return datum.SIMPLE[kind]
