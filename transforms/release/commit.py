"""A release becomes visible once and whole: tables into an attempt, then one rename."""

from collections.abc import Iterable, Mapping
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from data import store


def write_part(table: pa.Table, name: str, store_path: str, release_id: str, attempt: str) -> str:
    """Writes a part of a table into the attempt; returns the file's name there."""
    directory = store.Store(store_path).attempt(release_id, attempt) / name
    directory.mkdir(exist_ok=True)
    part = f"{name}/{store.new_id()}.parquet"
    pq.write_table(table, directory.parent / part)
    return part


def commit(
    parts: Iterable[str], grants: Iterable[str], store_path: str, attempt: str, manifest: Mapping[str, Any]
) -> list[str]:
    """Publishes the attempt whose parts are given; nothing for a refused release."""
    listed = sorted(parts)
    return [str(store.Store(store_path).commit(grant, attempt, {**manifest, "parts": listed})) for grant in grants]


class CommitRelease(beam.PTransform):
    """Writes released tables, then publishes them under the granted release id. In: tables by name; out: the release's path.

    Manifests name the parts that count: a part that a retry left behind is never read.
    """

    def __init__(self, store_path: str, attempt: str, manifest: Mapping[str, Any], grants: beam.PCollection[str]):
        super().__init__()
        self._store_path, self._attempt, self._manifest, self._grants = store_path, attempt, manifest, grants

    def expand(self, released: Mapping[str, beam.PCollection[pa.Table]]) -> beam.PCollection[str]:
        release_id = self._manifest["release_id"]
        written = [
            tables
            | f"Write_{name}" >> beam.Map(write_part, name, self._store_path, release_id, self._attempt).with_output_types(str)
            for name, tables in released.items()
        ]
        return (
            written
            | "Flatten" >> beam.Flatten()
            | "Parts" >> beam.combiners.ToList()
            | "Commit"
            >> beam.FlatMap(
                commit, beam.pvalue.AsIter(self._grants), self._store_path, self._attempt, self._manifest
            ).with_output_types(str)
        )
