"""Who is kept from the models: whole users, chosen by what they are called alone, so that they can be asked later on."""

import functools
from collections.abc import Callable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa

from transforms import bounding, codes, spill, threads

Choose = Callable[[pa.FixedSizeBinaryArray], np.ndarray]
"""Pseudonyms in, whether each is held out, bool; a function of one pseudonym at a time."""


def keep(
    bucket: pa.Table | spill.Part, choose: Choose, is_held_out: bool, directory: str | None
) -> Iterator[pa.Table | spill.Part]:
    """Yields a bucket's CONTRIBUTIONS of those who are held out, or of the others; nothing where there is nobody."""
    rows = spill.read(bucket)
    users = codes.values(rows, "privacy_id")
    yield from bounding.keep_users(bucket, rows, users.filter(pa.array(choose(users) == is_held_out)), directory)


class KeepHeldOut(beam.PTransform):
    """Keeps the users who are held out, or leaves them out. In and out: what GroupByUser gives.

    Args:
        choose: see Choose.
        is_held_out: keep them, or the others.
        directory: as GroupByUser has it.
    """

    def __init__(self, choose: Choose, is_held_out: bool, directory: str | None):
        super().__init__()
        self._choose, self._is_held_out, self._directory = choose, is_held_out, directory

    def expand(self, buckets: beam.PCollection[pa.Table | spill.Part]) -> beam.PCollection[pa.Table | spill.Part]:
        kept = functools.partial(keep, is_held_out=self._is_held_out, directory=self._directory)
        return buckets | "Keep" >> beam.ParDo(threads.FlatMapOnThreads(kept), self._choose).with_output_types(
            pa.Table if self._directory is None else spill.Part
        )
