"""A release becomes visible once and whole: tables into an attempt, then the ledger names it, then one file does."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa

from data import errors, ledger, store
from transforms.release.grant import TAKEN_OVER

_TABLES_A_PART = 64
"""A matrix comes as slices of 65,536 cells, for which files of their own would be many."""


def write_part(tables: Sequence[pa.Table], name: str, store_path: str, attempt: str) -> str:
    """Writes tables as a part of one into the attempt; returns the file's name there."""
    return store.Store(store_path).write_part(attempt, name, pa.concat_tables(tables))


def commit(
    parts: Iterable[str],
    grants: Iterable[ledger.Grant],
    store_path: str,
    ledger_url: str,
    attempt: str,
    manifest: Mapping[str, Any],
) -> list[str]:
    """Publishes the attempt whose parts are given, and returns the release's id; nothing for a refused release.

    Raises:
        errors.AlreadyReleasedError: another run was granted the release since; this one's tables are deleted unread.
    """
    kept, shown = store.Store(store_path), []
    for grant in grants:
        if kept.has(grant.release_id):  # this step, begun again
            return [grant.release_id]
        kept.finish(attempt, {"release_id": grant.release_id, **manifest, "parts": sorted(parts)})
        if not ledger.Ledger(ledger_url).publish(grant.release_id, grant.fence, attempt):
            kept.discard(attempt)
            raise errors.AlreadyReleasedError(TAKEN_OVER)
        kept.show(grant.release_id, attempt)
        shown.append(grant.release_id)
    return shown


class CommitRelease(beam.PTransform):
    """Writes released tables, then publishes them under the granted release id. In: tables by name; out: the release's id.

    Manifests name the parts that count: a part that a retry left behind is never read.
    """

    def __init__(
        self,
        store_path: str,
        ledger_url: str,
        attempt: str,
        manifest: Mapping[str, Any],
        grants: beam.PCollection[ledger.Grant],
    ):
        super().__init__()
        self._store_path, self._ledger_url, self._attempt = store_path, ledger_url, attempt
        self._manifest, self._grants = manifest, grants

    def expand(self, released: Mapping[str, beam.PCollection[pa.Table]]) -> beam.PCollection[str]:
        written = [
            tables
            | f"Batch_{name}" >> beam.BatchElements(_TABLES_A_PART, _TABLES_A_PART)
            | f"Write_{name}" >> beam.Map(write_part, name, self._store_path, self._attempt).with_output_types(str)
            for name, tables in released.items()
        ]
        return (
            written
            | "Flatten" >> beam.Flatten()
            | "Parts" >> beam.combiners.ToList()
            | "Commit"
            >> beam.FlatMap(
                commit,
                beam.pvalue.AsIter(self._grants),
                self._store_path,
                self._ledger_url,
                self._attempt,
                self._manifest,
            ).with_output_types(str)
        )
