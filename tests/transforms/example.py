"""Small data for the tests of transforms: contributions written as text."""

import hashlib
import pathlib
import tempfile
import uuid
from collections.abc import Callable

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from data import tables
from runners import direct
from transforms import bounding


def pseudonym(user: str) -> bytes:
    """A privacy id of 16 bytes for a name."""
    return hashlib.blake2b(user.encode(), digest_size=16).digest()


def contributions(*rows: tuple) -> pa.Table:
    """CONTRIBUTIONS from (user, item, type, events, weight); the last three may be left out: view, 1, 1.0."""
    users = list(dict.fromkeys(row[0] for row in rows))
    together = sorted(rows, key=lambda row: (users.index(row[0]), row[1]))
    full = [(pseudonym(row[0]), *row[1:], *("view", 1, 1.0)[len(row) - 2 :]) for row in together]
    return encoded(full, bounding.CONTRIBUTIONS)


def encoded(rows: list[tuple], schema: pa.Schema) -> pa.Table:
    """A table whose columns are dictionaries where the schema says so."""
    columns = []
    for field, values in zip(schema, zip(*rows, strict=True) if rows else [[]] * len(schema), strict=True):
        is_dictionary = pa.types.is_dictionary(field.type)
        plain = pa.array(values, field.type.value_type if is_dictionary else field.type)
        columns.append(plain.dictionary_encode() if is_dictionary else plain)
    return pa.table(columns, schema=schema)


def ids(*items: str) -> pa.Array:
    """Item ids."""
    return pa.array(items, pa.string())


def items(*names: str, kept: bool = True) -> pa.Table:
    """ITEMS in order of position; `kept`: all are in the co-occurrence matrix, or none."""
    positions = list(range(len(names))) if kept else [None] * len(names)
    return pa.table([list(names), [1.0] * len(names), positions], schema=tables.ITEMS)


def run(build: Callable[[beam.Pipeline], beam.PCollection[pa.Table]]) -> list[pa.Table]:
    """Runs the pipeline that `build` wires and returns the tables of its PCollection."""
    with tempfile.TemporaryDirectory() as directory:
        with beam.Pipeline(options=direct.options([])) as pipeline:
            _ = build(pipeline) | "Keep" >> beam.Map(
                lambda table: pq.write_table(table, pathlib.Path(directory) / f"{uuid.uuid4()}.parquet")
            )
        return [pq.read_table(path) for path in pathlib.Path(directory).iterdir()]
