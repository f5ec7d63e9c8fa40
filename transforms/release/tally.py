"""Exact figures for the operator that are known once users are grouped. They go to the run record and nowhere else."""

import json
from collections.abc import Iterable, Iterator

import apache_beam as beam
import pyarrow as pa

from data import ledger, store
from transforms import bounding, spill
from transforms.ingest import decode


def repeated(bucket: pa.Table | spill.Part) -> int:
    """How many events of a bucket were dropped as repeats."""
    return bounding.repeated(spill.read(bucket))


def is_dead(letter: str) -> bool:
    """Says whether a letter, as a JSON line, is of a malformed row, not of one that came late."""
    return bool(json.loads(letter)["reason"] != decode.LATE)


def note(repeats: int, letters: int, grants: Iterable[ledger.Grant], store_path: str, attempt: str) -> Iterator[ledger.Grant]:
    """Writes down how many events were repeats, and how many dead letters there are; yields the grants after that."""
    for grant in grants:
        store.Store(store_path).add_to_run_record(attempt, {"repeated": repeats, "dead_letters": letters})
        yield grant


class NoteCounts(beam.PTransform):
    """Counts for the run record. In: what GroupByUser gives; out: the grants, once the record has the counts.

    What is refused has no grants, and its record no such counts.
    """

    def __init__(
        self, dead_letters: beam.PCollection[str], grants: beam.PCollection[ledger.Grant], store_path: str, attempt: str
    ):
        super().__init__()
        self._dead_letters, self._grants = dead_letters, grants
        self._store_path, self._attempt = store_path, attempt

    def expand(self, buckets: beam.PCollection[pa.Table | spill.Part]) -> beam.PCollection[ledger.Grant]:
        letters = self._dead_letters | "WithoutLate" >> beam.Filter(is_dead) | "CountLetters" >> beam.combiners.Count.Globally()
        return (
            buckets
            | "CountRepeats" >> beam.Map(repeated).with_output_types(int)
            | "AddUp" >> beam.CombineGlobally(sum)
            | "Note"
            >> beam.FlatMap(
                note,
                beam.pvalue.AsSingleton(letters),
                beam.pvalue.AsIter(self._grants),
                self._store_path,
                self._attempt,
            ).with_output_types(ledger.Grant)
            | "Fix" >> beam.Reshuffle()
        )
