"""Rows that wait on disk for the next step: the runner shuffles where they are, not the rows.

The DirectRunner keeps what it shuffles in memory, several times over. A file is written once, and mapped where it is needed; in
an object store, read.
"""

import contextlib
import io
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from data import files


class Part(NamedTuple):
    """Where a table lies: which record batch, from 0, of which Arrow IPC file."""

    path: str
    batch: int


def write(directory: str, tables: Iterable[pa.Table]) -> list[Part]:
    """Writes tables of one schema, none empty and of one chunk each, into a new file that only the owner may read.

    Dictionaries are written once: the tables must share them.
    """
    name = files.join(directory, f"{uuid.uuid4().hex}.arrow")
    given = list(tables)
    if given:
        with _create(name) as file, pa.ipc.new_file(file, given[0].schema) as writer:
            for table in given:
                writer.write_table(table)
    return [Part(name, batch) for batch in range(len(given))]


def read(part: pa.Table | Part) -> pa.Table:
    """Maps a table into memory, without a copy; gives back one that never left it."""
    if isinstance(part, pa.Table):
        return part
    with _open(part.path) as file:
        return pa.Table.from_batches([pa.ipc.open_file(file).get_batch(part.batch)])


@contextlib.contextmanager
def _create(name: str) -> Iterator[Any]:
    if files.is_url(name):
        with files.create(name) as file:
            yield file
    else:
        # Not by `files`: rows that only this run reads needn't outlast a power cut.
        Path(name).touch(mode=0o600)
        yield name


def _open(name: str) -> pa.NativeFile:
    if not files.is_url(name):
        return pa.memory_map(name)
    opened = files.open_file(name)
    # Beam's buffer for S3 would take in 16 MB at each place that is looked at: more than most buckets have.
    return pa.PythonFile(opened.detach() if isinstance(opened, io.BufferedReader) else opened, "r")
