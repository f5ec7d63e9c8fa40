"""Who may be in a window: the contribution book's answer, written down before any row of theirs is used.

Users are written down first, and read back from the page that the ledger has then. So a step that a runner does again, an
attempt that wakes up when another has taken the release over, and one after a crash use the same users' rows, or nobody's.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa

from data import book, errors, ledger
from transforms import bounding, codes, spill, threads
from transforms.release.grant import TAKEN_OVER


class Admitted(NamedTuple):
    """CONTRIBUTIONS of those who are let in, a table a bucket or where it lies; and grants whose page is booked."""

    users: beam.PCollection[pa.Table | spill.Part]
    grants: beam.PCollection[ledger.Grant]


def admit(bucket: pa.Table | spill.Part, grants: Iterable[ledger.Grant], kept: book.Book) -> Iterator[tuple[int, str]]:
    """Writes down whom of a bucket's users the book lets in; yields shard and digest. Nothing if the page was booked before."""
    for grant in grants:
        page = _page(grant)
        if page.digest is None:
            users = codes.values(spill.read(bucket), "privacy_id")
            shard = bounding.bucket_of(users, book.SHARDS)
            yield shard, kept.admit(page, shard, users)


def finish_page(
    written: Sequence[tuple[int, str]], grants: Iterable[ledger.Grant], kept: book.Book, ledger_url: str
) -> Iterator[ledger.Grant]:
    """Yields the grants with their page, once the ledger has it.

    Args:
        written: what `admit` yields of all buckets.

    Raises:
        errors.AlreadyReleasedError: another run was granted the release since.
    """
    if len(dict(written)) < len(written):
        raise ValueError("AdmitUsers: a shard's users are in several buckets.")
    for grant in grants:
        page = _page(grant)
        digest = kept.finish(page, dict(written))
        if not ledger.Ledger(ledger_url).book(grant.release_id, grant.fence, digest):
            raise errors.AlreadyReleasedError(TAKEN_OVER)
        yield dataclasses.replace(grant, page=dataclasses.replace(page, digest=digest))


def keep(
    bucket: pa.Table | spill.Part, booked: Iterable[ledger.Grant], kept: book.Book, directory: str | None
) -> Iterator[pa.Table | spill.Part]:
    """Yields a bucket's CONTRIBUTIONS without the users whom the booked page keeps out; nothing where nobody is left."""
    for grant in booked:
        rows = spill.read(bucket)
        users = codes.values(rows, "privacy_id")
        let_in = kept.admitted(_page(grant), bounding.bucket_of(users, book.SHARDS), users)
        yield from bounding.keep_users(bucket, rows, let_in, directory)


def _page(grant: ledger.Grant) -> ledger.Page:
    if grant.page is None:
        raise ValueError("AdmitUsers: the grant is for a release that is not of a series.")
    return grant.page


class AdmitUsers(beam.PTransform):
    """Lets users into a window by the contribution book. In: what GroupByUser gives, of book.SHARDS buckets; out: Admitted.

    They, and `Admitted.grants`, for which noise must wait, come when all who are let in are written down.
    """

    def __init__(self, kept: book.Book, ledger_url: str, grants: beam.PCollection[ledger.Grant], directory: str | None):
        super().__init__()
        self._book, self._ledger_url, self._grants, self._directory = kept, ledger_url, grants, directory

    def expand(self, buckets: beam.PCollection[pa.Table | spill.Part]) -> Admitted:
        write_down = functools.partial(admit, kept=self._book)
        let_in = functools.partial(keep, kept=self._book, directory=self._directory)
        grants = (
            buckets
            | "Admit"
            >> beam.ParDo(threads.FlatMapOnThreads(write_down), beam.pvalue.AsList(self._grants)).with_output_types(
                tuple[int, str]
            )
            | "AllAdmitted" >> beam.combiners.ToList()
            | "FinishPage"
            >> beam.FlatMap(finish_page, beam.pvalue.AsIter(self._grants), self._book, self._ledger_url).with_output_types(
                ledger.Grant
            )
            | "Fix" >> beam.Reshuffle()
        )
        users = buckets | "Keep" >> beam.ParDo(threads.FlatMapOnThreads(let_in), beam.pvalue.AsList(grants)).with_output_types(
            pa.Table if self._directory is None else spill.Part
        )
        return Admitted(users, grants)
