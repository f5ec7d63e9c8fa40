"""Who may be in a window: the contribution book's answer, written down before any noise is drawn."""

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa

from data import book, errors, ledger
from transforms import bounding, codes, spill, threads
from transforms.release.grant import TAKEN_OVER


class Admitted(NamedTuple):
    """CONTRIBUTIONS of those who are let in, a table a bucket or where it lies; and grants that the book is ready for."""

    users: beam.PCollection[pa.Table | spill.Part]
    grants: beam.PCollection[ledger.Grant]


def admit(
    bucket: pa.Table | spill.Part, grants: Iterable[ledger.Grant], book_path: str, directory: str | None
) -> Iterator[pa.Table | spill.Part]:
    """Yields a bucket's CONTRIBUTIONS without the users whom the book keeps out; nothing where nobody is left."""
    for grant in grants:
        page = _page(grant)
        rows = spill.read(bucket)
        users = codes.values(rows, "privacy_id")
        let_in = book.Book(book_path).admit(page, bounding.bucket_of(users, book.SHARDS), users)
        kept = bounding.within(rows, "privacy_id", let_in)
        if kept.num_rows == rows.num_rows:
            yield bucket
        elif kept.num_rows:
            yield from [kept] if directory is None else spill.write(directory, [kept])


def finish_page(_: int, grants: Iterable[ledger.Grant], book_path: str, ledger_url: str) -> Iterator[ledger.Grant]:
    """Yields the grants whose page is whole, once the ledger knows it.

    Raises:
        errors.AlreadyReleasedError: another run was granted the release since.
    """
    for grant in grants:
        digest = book.Book(book_path).finish(_page(grant))
        if not ledger.Ledger(ledger_url).book(grant.release_id, grant.fence, digest):
            raise errors.AlreadyReleasedError(TAKEN_OVER)
        yield grant


def _page(grant: ledger.Grant) -> ledger.Page:
    if grant.page is None:
        raise ValueError("AdmitUsers: the grant is for a release that is not of a series.")
    return grant.page


class AdmitUsers(beam.PTransform):
    """Lets users into a window by the contribution book. In: what GroupByUser gives, of book.SHARDS buckets; out: Admitted.

    Noise must wait for `Admitted.grants`: they come when all who are let in are written down.
    """

    def __init__(self, book_path: str, ledger_url: str, grants: beam.PCollection[ledger.Grant], directory: str | None):
        super().__init__()
        self._book_path, self._ledger_url, self._grants, self._directory = book_path, ledger_url, grants, directory

    def expand(self, buckets: beam.PCollection[pa.Table | spill.Part]) -> Admitted:
        let_in = functools.partial(admit, book_path=self._book_path, directory=self._directory)
        users = buckets | "Admit" >> beam.ParDo(
            threads.FlatMapOnThreads(let_in), beam.pvalue.AsList(self._grants)
        ).with_output_types(pa.Table if self._directory is None else spill.Part)
        grants = (
            users
            | "AllAdmitted" >> beam.combiners.Count.Globally()
            | "FinishPage"
            >> beam.FlatMap(finish_page, beam.pvalue.AsIter(self._grants), self._book_path, self._ledger_url).with_output_types(
                ledger.Grant
            )
            | "Fix" >> beam.Reshuffle()
        )
        return Admitted(users, grants)
