"""Rows that wait on disk for the next step: the runner shuffles where they are, not the rows.

The DirectRunner keeps what it shuffles in memory, several times over. A file is written once, and mapped where it is needed.
"""

import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa


class Part(NamedTuple):
    """Where a table lies: which record batch, from 0, of which Arrow IPC file."""

    path: str
    batch: int


def write(directory: str, tables: Iterable[pa.Table]) -> list[Part]:
    """Writes tables of one schema, none empty and of one chunk each, into a new file that only the owner may read.

    Dictionaries are written once: the tables must share them.
    """
    path = Path(directory) / f"{uuid.uuid4().hex}.arrow"
    given = list(tables)
    if given:
        path.touch(mode=0o600)
        with pa.ipc.new_file(str(path), given[0].schema) as writer:
            for table in given:
                writer.write_table(table)
    return [Part(str(path), batch) for batch in range(len(given))]


def read(part: pa.Table | Part) -> pa.Table:
    """Maps a table into memory, without a copy; gives back one that never left it."""
    if isinstance(part, pa.Table):
        return part
    with pa.memory_map(part.path) as file:
        return pa.Table.from_batches([pa.ipc.open_file(file).get_batch(part.batch)])
