"""The contribution book: what each privacy id has spent in a series of windows, so that nobody is in too many of them.

    BOOK/SERIES/NUMBER/SHARD.arrow    a shard's users, with what each has spent once window NUMBER had let them in
    BOOK/SERIES/NUMBER/DIGEST.json    a page: each shard's newest file, and its digest

A shard's file is written once and never changed: whoever comes later, another attempt or a retry, gets the same answer. The
ledger (data.ledger) keeps each page's digest, so a book that was lost, cut or put back from a copy is refused. It is the
operator's, and holds pseudonyms.
"""

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import errors, events, files, ledger, store

SHARDS = 64
"""Parts of the users, by their pseudonyms' hash."""

SPENT = pa.schema(
    [
        pa.field("privacy_id", events.PSEUDONYM, nullable=False),
        pa.field("units", pa.int32(), nullable=False),
        # the number of the last window that let the user in
        pa.field("last", pa.int32(), nullable=False),
    ]
)
"""One row a user."""


class BookError(errors.BadInputError):
    """The book is not as the ledger knows it."""


class Book:
    """A contribution book in a directory that all workers share."""

    def __init__(self, path: files.Name):
        self._path = Path(path)

    def admit(self, page: ledger.Page, shard: int, privacy_ids: pa.FixedSizeBinaryArray) -> pa.FixedSizeBinaryArray:
        """Lets a shard's users into the page's window and writes it down; returns those who are in.

        Whether a user is let in depends on what that user spent before, and on nobody else. Asked again, for the same users
        or others, the answer is the first one.

        Args:
            privacy_ids: the shard's users with events in the window, each once.

        Raises:
            BookError: the page before, or this one, isn't there as it was.
        """
        file = self._file(page.series_id, page.number, shard)
        if page.digest is not None:
            number, digest = self._newest(page.series_id, page.number, page.digest, shard)
            if number != page.number:
                return privacy_ids[:0]
            spent = _read(file, digest)
        elif file.exists():
            spent = _read(file)
        else:
            spent = _spend(self._spent_before(page, shard), page, privacy_ids)
            if not store.create(file, _bytes(spent)):
                spent = _read(file)
        return spent.filter(pc.equal(spent["last"], page.number))["privacy_id"].combine_chunks()

    def finish(self, page: ledger.Page) -> str:
        """Makes a page of all that was let in, and of the page before; returns its digest, for the ledger.

        Raises:
            BookError: the page before, or this one, isn't there as it was.
        """
        if page.digest is not None:
            self._files(page.series_id, page.number, page.digest)
            return page.digest
        folder = self._path / page.series_id / str(page.number)
        files = {} if page.before is None else self._files(page.series_id, *page.before)
        files |= {path.stem: (page.number, _digest(path.read_bytes())) for path in folder.glob("*.arrow")}
        text = json.dumps(files, sort_keys=True).encode()
        store.create(folder / f"{_digest(text)}.json", text)
        return _digest(text)

    def prune(self, series_id: str, pages: Collection[tuple[int, str]]) -> None:
        """Deletes what neither these pages (number and digest) nor any later one needs."""
        kept = {self._page(series_id, *page) for page in pages}
        for page in pages:
            kept |= {self._file(series_id, number, int(shard)) for shard, (number, _) in self._files(series_id, *page).items()}
        newest = max((number for number, _ in pages), default=-1)
        for folder in (self._path / series_id).glob("*"):
            if int(folder.name) <= newest:
                for path in set(folder.iterdir()) - kept:
                    path.unlink()
                if not any(folder.iterdir()):
                    folder.rmdir()

    def delete(self, series_id: str) -> None:
        """Deletes all of a series."""
        shutil.rmtree(self._path / series_id, ignore_errors=True)

    def spent(self, series_id: str, number: int, digest: str) -> Iterator[pa.Table]:
        """Yields what users have spent by a page: tables of SPENT.

        Raises:
            BookError: it isn't there as it was.
        """
        for shard, (written, expected) in self._files(series_id, number, digest).items():
            yield _read(self._file(series_id, written, int(shard)), expected)

    def _spent_before(self, page: ledger.Page, shard: int) -> pa.Table:
        if page.before is None:
            return SPENT.empty_table()
        number, digest = self._newest(page.series_id, *page.before, shard)
        return SPENT.empty_table() if number is None else _read(self._file(page.series_id, number, shard), digest)

    def _newest(self, series_id: str, number: int, digest: str, shard: int) -> tuple[int | None, str]:
        """Of a page: which page wrote the shard's newest file (None: none did), and that file's digest."""
        return self._files(series_id, number, digest).get(str(shard), (None, ""))

    def _files(self, series_id: str, number: int, digest: str) -> dict[str, tuple[int, str]]:
        """By shard, the page that wrote its newest file, and that file's digest."""
        return json.loads(_read_bytes(self._page(series_id, number, digest), digest))

    def _page(self, series_id: str, number: int, digest: str) -> Path:
        return self._path / series_id / str(number) / f"{digest}.json"

    def _file(self, series_id: str, number: int, shard: int) -> Path:
        return self._path / series_id / str(number) / f"{shard}.arrow"


def _spend(before: pa.Table, page: ledger.Page, privacy_ids: pa.FixedSizeBinaryArray) -> pa.Table:
    """Lets in whoever has units left and was in none of the last `min_separation` - 1 windows."""
    place = pc.index_in(privacy_ids, value_set=before["privacy_id"].combine_chunks())
    is_known, place = place.is_valid().to_numpy(zero_copy_only=False), pc.fill_null(place, 0).to_numpy()
    units, last = before["units"].to_numpy().copy(), before["last"].to_numpy().copy()
    known = place[is_known]
    has_room = units[known] + page.units <= page.max_windows_contributed
    let_in = known[has_room & (page.number - last[known] >= page.min_separation)]
    units[let_in] += page.units
    last[let_in] = page.number
    new = privacy_ids.filter(pa.array(~is_known & (page.units <= page.max_windows_contributed)))
    added = pa.table([new, np.full(len(new), page.units, np.int32), np.full(len(new), page.number, np.int32)], SPENT)
    return pa.concat_tables([pa.table([before["privacy_id"], units, last], SPENT), added])


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _read(path: Path, digest: str | None = None) -> pa.Table:
    try:
        with pa.ipc.open_file(_read_bytes(path, digest)) as file:
            return file.read_all()
    except pa.ArrowInvalid as error:
        raise _lost(path) from error


def _read_bytes(path: Path, digest: str | None) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _lost(path) from error
    if digest is not None and _digest(content) != digest:
        raise _lost(path)
    return content


def _lost(path: Path) -> BookError:
    return BookError(
        f"privacy.book: {path} is missing or not what the ledger knows: who was in which window can't be told any more. Put "
        "the book back as it was, or close the period (`sottovoce budget close`)."
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
