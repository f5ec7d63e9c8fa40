"""The public item table: a file or rows of items with their features in, one checked Arrow table out.

The catalogue is public by declaration: whoever names it says that it depends on no user. Its item ids are
then the public partitions of every release, and its features may go into models and into the database as they are.
"""

import dataclasses
import json
import pathlib
import re
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from data import errors

FeatureKind = Literal["categorical", "multi", "text", "number"]

KINDS: tuple[FeatureKind, ...] = typing.get_args(FeatureKind)
ARROW_TYPES: Mapping[FeatureKind, pa.DataType] = {
    "categorical": pa.string(),
    "multi": pa.list_(pa.string()),
    "text": pa.string(),
    "number": pa.float64(),
}
RESERVED = ("item_id", "score", "kept", "position")
"""Columns that the database's `items` table has of its own (as `title`, which a feature may share)."""

_EXAMPLES = 5


class CatalogueError(errors.BadInputError):
    """The catalogue can't be used; the message names the file, the key or column, what was given and the rule."""


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Public items. `table`: item_id (unique, not null), title (null: unknown), then each feature in `kinds` order.

    A feature that is named title shares the title's column.
    """

    table: pa.Table
    kinds: Mapping[str, FeatureKind]

    @property
    def item_ids(self) -> list[str]:
        """The item ids, in the file's order."""
        return typing.cast(list[str], self.table["item_id"].to_pylist())

    def only(self, features: Collection[str]) -> "Catalogue":
        """Returns the same items with those of their features alone.

        Raises:
            KeyError: the catalogue has no such feature.
        """
        kinds = {name: self.kinds[name] for name in features}
        names = ["item_id", "title", *(name for name in kinds if name != "title")]
        return Catalogue(self.table.select(names), kinds)


def load(
    path: str | pathlib.Path,
    columns: Mapping[str, str] | None = None,
    features: Sequence[str] = (),
    kinds: Mapping[str, FeatureKind] | None = None,
    multi_separator: str = "|",
) -> Catalogue:
    """Reads a Parquet, CSV or JSONL file of items.

    Args:
        path: the file; its suffix (.parquet, .csv, .jsonl) says how to read it.
        columns: our names = the file's, for item_id and title; default: the same names. A title is optional.
        features: columns, in the order wanted; the title's column may be one of them.
        kinds: of the features; left out, lists are multi, numbers number, everything else categorical.
        multi_separator: splits the text of features that are declared multi.

    Raises:
        CatalogueError: the file or one of the settings breaks a rule; says which and how to mend it.
    """
    path = pathlib.Path(path)
    return _checked(_Source(str(path), _read(path), path.suffix), columns or {}, features, kinds or {}, multi_separator)


def of_rows(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str] | None = None,
    features: Sequence[str] = (),
    kinds: Mapping[str, FeatureKind] | None = None,
    multi_separator: str = "|",
) -> Catalogue:
    """As `load` of a JSONL file of these rows; errors show nothing of what is in them.

    Args:
        name: of what they come from.
    """
    if not rows:
        raise _error(name, "topic", "there are no items in it", "send at least one, or leave [catalogue] out")
    try:
        table = _table(rows)
    except ValueError as error:
        raise _error(name, "topic", str(error), "give each column values of one kind") from error
    return _checked(_Source(name, table, None), columns or {}, features, kinds or {}, multi_separator)


def _checked(
    source: "_Source",
    columns: Mapping[str, str],
    features: Sequence[str],
    kinds: Mapping[str, FeatureKind],
    multi_separator: str,
) -> Catalogue:
    if unknown := sorted(set(columns) - {"item_id", "title"}):
        raise source.error("columns", f"{unknown[0]!r} is not a column of ours", "map item_id and title, nothing else")
    title = columns.get("title", "title")
    _check_features(source, title, features, kinds)
    if not multi_separator:
        raise source.error("multi_separator", "it is empty", 'give the text between two values, such as "|"')

    found: dict[str, FeatureKind] = {}
    arrays = {"item_id": _item_ids(source, columns.get("item_id", "item_id"))}
    if "title" in columns or title in source.table.column_names:
        arrays["title"] = _text(source, "columns.title", title)
    else:
        arrays["title"] = pa.nulls(source.table.num_rows, pa.string())
    for name in features:
        found[name] = kinds[name] if name in kinds else _infer(source, name)
        values = _feature(source, name, found[name], multi_separator)
        arrays.setdefault(name, values)  # a feature named title is the title's column already
    fields = [pa.field(name, array.type, nullable=name != "item_id") for name, array in arrays.items()]
    return Catalogue(pa.Table.from_arrays(list(arrays.values()), schema=pa.schema(fields)), found)


@dataclasses.dataclass(frozen=True)
class _Source:
    """A catalogue as read, where from, and how to complain about it; `suffix`: of its file, None: it is no file."""

    name: str
    table: pa.Table
    suffix: str | None

    def error(self, key: str, given: str, rule: str) -> CatalogueError:
        return _error(self.name, key, given, rule)

    def why(self, error: Exception) -> str:
        """Arrow's reason, which shows a value."""
        return "" if self.suffix is None else f" ({error})"

    def column(self, key: str, name: str) -> pa.Array:
        """The column's values as one plain array."""
        there = self.table.column_names
        if name not in there:
            raise self.error(key, f"there is no column {name!r}", f"name one of {', '.join(there)}")
        if there.count(name) > 1:
            raise self.error(key, f"there are {there.count(name)} columns {name!r}", "keep one of them")
        values = self.table[name].combine_chunks()
        if pa.types.is_dictionary(values.type):
            return values.cast(values.type.value_type)
        return values


def _error(name: str, key: str, given: str, rule: str) -> CatalogueError:
    return CatalogueError(f"Catalogue {name}: [catalogue] {key}: {given}; {rule}.")


def _read(path: pathlib.Path) -> pa.Table:
    def error(given: str, rule: str) -> CatalogueError:
        return _error(str(path), "path", given, rule)

    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix not in readers:
        raise error(f"can't tell how to read {path.suffix!r}", f"name a file that ends in {', '.join(readers)}")
    if not path.is_file():
        raise error("there is no such file", "give the path of the item table, or leave [catalogue] out")
    if path.stat().st_size == 0:
        raise error("the file is empty", "give at least one item, or leave [catalogue] out")
    try:
        table = readers[path.suffix](path)
    except (pa.ArrowException, ValueError) as e:
        # Without the row that Arrow quotes: it may be another file than was meant, of events.
        why = re.sub(r"(Expected \d+ columns, got \d+): .*", r"\1", str(e), flags=re.DOTALL)
        raise error(f"not readable as {path.suffix} ({why})", "write the file anew, as UTF-8") from e
    if table.num_rows == 0:
        raise error("the file has no rows", "give at least one item, or leave [catalogue] out")
    return table


def _read_parquet(path: pathlib.Path) -> pa.Table:
    return pq.ParquetFile(path).read()


def _read_csv(path: pathlib.Path) -> pa.Table:
    # All as text: guessing types would turn the id 00123 into 123.
    with pyarrow.csv.open_csv(path) as reader:
        names = reader.schema.names
    return pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
        ),
    )


def _read_jsonl(path: pathlib.Path) -> pa.Table:
    # Not pyarrow.json: it reads text that looks like a date as a time.
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not a JSON object")
            rows.append(row)
    return _table(rows)


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise ValueError(f"the values of {name!r} are of several kinds, or too large, or no text") from error
    return pa.table(columns)


def _check_features(source: _Source, title: str, features: Sequence[str], kinds: Mapping[str, FeatureKind]) -> None:
    # DuckDB's column names ignore case.
    folded = [name.casefold() for name in features]
    for name in features:
        source.column("features", name)
        if name.casefold() in RESERVED or (name.casefold() == "title" and name != title):
            raise source.error("features", f"{name!r} is a name of the items table", "rename the column")
        if folded.count(name.casefold()) > 1:
            raise source.error("features", f"{name!r} is there twice (case aside)", "name each feature once")
    for name, kind in kinds.items():
        if name not in features:
            raise source.error("kinds", f"{name!r} is not among the features", "add it to features or take it out here")
        if kind not in KINDS:
            raise source.error(f"kinds.{name}", f"{kind!r} is no kind of feature", f"use one of {', '.join(KINDS)}")


def _as_text(values: pa.Array) -> pa.Array:
    """As transforms/ingest writes ids: integers and whole floats in decimal, text untouched.

    Raises:
        pa.ArrowException: a float that is not whole, or a type that has no text.
    """
    if pa.types.is_floating(values.type):
        values = values.cast(pa.int64())
    return values.cast(pa.string())


def _item_ids(source: _Source, name: str) -> pa.Array:
    key = "columns.item_id"
    values = source.column(key, name)
    if pa.types.is_boolean(values.type) or pa.types.is_temporal(values.type):
        raise source.error(key, f"{name!r} holds {values.type}", "item ids are text or whole numbers")
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
    try:
        ids = _as_text(values)
    except pa.ArrowException as e:
        raise source.error(key, f"{name!r} is {values.type}{source.why(e)}", "item ids are text or whole numbers") from e
    empty = pc.sum(pc.or_kleene(pc.is_null(ids), pc.equal(ids, ""))).as_py()
    if empty:
        raise source.error(key, f"{name!r} is empty in {empty} of {len(ids)} rows", "give every item an id")
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(repeated):
        some = _examples(repeated.to_pylist())
        raise source.error(key, f"{len(repeated)} ids are there more than once: {some}", "keep one row per item")
    return ids


def _examples(values: Iterable[object]) -> str:
    listed = list(values)
    return ", ".join(map(str, listed[:_EXAMPLES])) + (", ..." if len(listed) > _EXAMPLES else "")


def _text(source: _Source, key: str, name: str) -> pa.Array:
    values = source.column(key, name)
    try:
        # A float is a whole number or, as a feature, whatever it is; bool becomes true or false, a date its ISO form.
        return values.cast(pa.string()) if not pa.types.is_floating(values.type) else _float_text(values)
    except pa.ArrowException as e:
        raise source.error(key, f"{name!r} holds {values.type}, which is no text", "give text or numbers") from e


def _float_text(values: pa.Array) -> pa.Array:
    try:
        return _as_text(values)
    except pa.ArrowException:
        return values.cast(pa.string())


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _infer(source: _Source, name: str) -> FeatureKind:
    values = source.column("features", name)
    if _is_list(values.type):
        return "multi"
    if _is_number(values.type) or (source.suffix == ".csv" and _parses_as_number(values)):
        return "number"
    if _is_text(values.type) or pa.types.is_boolean(values.type) or pa.types.is_null(values.type):
        return "categorical"
    rule = f'declare it, kinds = {{ {name} = "categorical" }}'
    raise source.error("features", f"{name!r} holds {values.type}, whose kind can't be guessed", rule)


def _parses_as_number(values: pa.Array) -> bool:
    if values.null_count == len(values):
        return False
    try:
        values.cast(pa.float64())
    except pa.ArrowException:
        return False
    return True


def _feature(source: _Source, name: str, kind: FeatureKind, separator: str) -> pa.Array:
    if kind == "number":
        return _number(source, name)
    if kind == "multi":
        return _multi(source, name, separator)
    values = source.column("features", name)
    if _is_list(values.type):
        rule = f'lists are multi: kinds = {{ {name} = "multi" }}'
        raise source.error(f"kinds.{name}", f"{name!r} holds lists, not one {kind} value", rule)
    return _text(source, f"kinds.{name}", name)


def _number(source: _Source, name: str) -> pa.Array:
    values = source.column("features", name)
    key = f"kinds.{name}"
    try:
        numbers = values.cast(pa.float64())
    except pa.ArrowException as e:
        rule = f'mend it or declare kinds = {{ {name} = "categorical" }}'
        raise source.error(key, f"{name!r} is not numeric{source.why(e)}", rule) from e
    bad = pc.sum(pc.invert(pc.is_finite(numbers))).as_py()
    if bad:
        raise source.error(key, f"{name!r} is not finite in {bad} rows", "leave unknown numbers empty")
    return numbers


def _multi(source: _Source, name: str, separator: str) -> pa.Array:
    values = source.column("features", name)
    if not _is_list(values.type):
        values = pc.split_pattern(_text(source, f"kinds.{name}", name), separator)
    try:
        lists = values.cast(pa.list_(pa.string())).to_pylist()
    except pa.ArrowException as e:
        rule = "give lists of text, or text with a separator"
        raise source.error(f"kinds.{name}", f"{name!r} holds {values.type}", rule) from e
    # An empty text has no values; a null or empty part of a list says nothing.
    return pa.array([None if row is None else [v for v in row if v] for row in lists], pa.list_(pa.string()))
