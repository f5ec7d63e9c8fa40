"""The contribution book: what each privacy id has spent in a series of windows, so that nobody is in too many of them.

    BOOK/SERIES/NUMBER/DIGEST.arrow   a shard's users, with what each has spent once window NUMBER had let them in
    BOOK/SERIES/NUMBER/DIGEST.json    a page: each shard's newest file, by number and digest

A file is named by the SHA-256 of what is in it, so that BOOK may be an object store: to write one again changes nothing, and
attempts at a window don't disturb each other. Which files count, the ledger (data.ledger) says: it takes one page a window,
from the attempt that was granted it last, and only then does that one read who is in, and draw noise. Nobody acts on what an
attempt wrote that was overtaken, or died before: `prune` deletes it. A book that was lost, cut or put back from a copy doesn't
have the digests that the ledger has, and is refused. It is the operator's, and holds pseudonyms.

Where there is a key (data.vault) files are encrypted. Digests are of what was encrypted: whichever key a file is under, the
ledger knows it.
"""

import hashlib
import itertools
import json
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import errors, events, files, ledger, vault

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

_PLAIN = vault.Vault()


class BookError(errors.BadInputError):
    """The book is not as the ledger knows it."""


class Book:
    """A contribution book below a path, or a URL, that all workers share.

    Args:
        keys: by which its files are encrypted.
    """

    def __init__(self, path: files.Name, keys: vault.Vault = _PLAIN):
        self._path, self._keys = path, keys

    def admit(self, page: ledger.Page, shard: int, privacy_ids: pa.FixedSizeBinaryArray) -> str:
        """Writes down whom of a shard's users a page that is yet to be booked lets in; returns the file's digest, for `finish`.

        Whether a user is let in depends on what that user spent before, and on nobody else. The same users again make the same
        file, in whatever order they come.

        Args:
            privacy_ids: the shard's users with events in the window, each once.

        Raises:
            BookError: the page before isn't there as it was.
        """
        return self._write(page, "arrow", _bytes(_spend(self._spent_before(page, shard), page, privacy_ids)))

    def finish(self, page: ledger.Page, written: Mapping[int, str]) -> str:
        """Makes a page of the one before and of what was written; returns its digest, for the ledger. A booked one stays.

        Args:
            written: by shard, the digest that `admit` gave.

        Raises:
            BookError: the page before, or this one, isn't there as it was.
        """
        if page.digest is not None:
            self._files(page.series_id, page.number, page.digest)
            return page.digest
        newest = {} if page.before is None else self._files(page.series_id, *page.before)
        newest |= {str(shard): (page.number, digest) for shard, digest in written.items()}
        return self._write(page, "json", json.dumps(newest, sort_keys=True).encode())

    def admitted(self, page: ledger.Page, shard: int, privacy_ids: pa.FixedSizeBinaryArray) -> pa.FixedSizeBinaryArray:
        """Returns whom of a shard's users a booked page let in: the same whoever asks, and however often.

        Raises:
            BookError: the page isn't there as it was.
        """
        if page.digest is None:
            raise ValueError(f"Book: page {page.number} is not booked: whom it lets in is yet to be decided.")
        number, digest = self._newest(page.series_id, page.number, page.digest, shard)
        if number != page.number:
            return privacy_ids[:0]
        spent = self._shard(page.series_id, page.number, digest)
        let_in = spent.filter(pc.equal(spent["last"], page.number))["privacy_id"].combine_chunks()
        return privacy_ids.filter(pc.is_in(privacy_ids, value_set=let_in))

    def prune(self, series_id: str, pages: Collection[tuple[int, str]]) -> None:
        """Deletes what neither these pages (number and digest) nor any later one needs."""
        kept = {f"{number}/{digest}.json" for number, digest in pages}
        for page in pages:
            kept |= {f"{number}/{digest}.arrow" for number, digest in self._files(series_id, *page).values()}
        newest = max((number for number, _ in pages), default=-1)
        folder = files.join(self._path, series_id)
        old = [name for name in files.names(folder) if int(name.partition("/")[0]) <= newest]
        for number, names in itertools.groupby(old, lambda name: name.partition("/")[0]):
            there = set(names)
            if there & kept:
                files.delete(*(files.join(folder, unneeded) for unneeded in there - kept))
            else:
                files.delete_directory(files.join(folder, number))

    def delete(self, series_id: str) -> None:
        """Deletes all of a series."""
        files.delete_directory(files.join(self._path, series_id))

    def rotate(self, series_id: str) -> int:
        """Encrypts all of a series anew that is not under the first key; returns how many files. A crash leaves each whole.

        Raises:
            BookError: a file is not what its name says.
            vault.VaultError: it is under none of the keys.
        """
        folder, count = files.join(self._path, series_id), 0
        for name in files.names(folder):
            number, _, file = name.partition("/")
            digest, _, kind = file.partition(".")
            place = files.join(folder, name)
            if not self._keys.is_current(files.read(place)):
                files.write(place, self._keys.seal(self._read(series_id, int(number), digest, kind)), 0o600)
                count += 1
        return count

    def spent(self, series_id: str, number: int, digest: str) -> Iterator[pa.Table]:
        """Yields what users have spent by a page: tables of SPENT.

        Raises:
            BookError: it isn't there as it was.
        """
        for written, expected in self._files(series_id, number, digest).values():
            yield self._shard(series_id, written, expected)

    def _spent_before(self, page: ledger.Page, shard: int) -> pa.Table:
        if page.before is None:
            return SPENT.empty_table()
        number, digest = self._newest(page.series_id, *page.before, shard)
        return SPENT.empty_table() if number is None else self._shard(page.series_id, number, digest)

    def _newest(self, series_id: str, number: int, digest: str, shard: int) -> tuple[int | None, str]:
        """Of a page: which page wrote the shard's newest file (None: none did), and that file's digest."""
        return self._files(series_id, number, digest).get(str(shard), (None, ""))

    def _files(self, series_id: str, number: int, digest: str) -> dict[str, tuple[int, str]]:
        """By shard, the page that wrote its newest file, and that file's digest."""
        return json.loads(self._read(series_id, number, digest, "json"))

    def _shard(self, series_id: str, number: int, digest: str) -> pa.Table:
        with pa.ipc.open_file(self._read(series_id, number, digest, "arrow")) as file:
            return file.read_all()

    def _read(self, series_id: str, number: int, digest: str, kind: str) -> bytes:
        name = files.join(self._path, series_id, str(number), f"{digest}.{kind}")
        try:
            content = self._keys.unseal(files.read(name), name)
        except (FileNotFoundError, vault.DamagedError) as error:
            raise _lost(name) from error
        except OSError as error:
            raise BookError(f"privacy.book: {name} can't be read ({error}).") from error
        if _digest(content) != digest:
            raise _lost(name)
        return content

    def _write(self, page: ledger.Page, kind: str, content: bytes) -> str:
        """Writes a page's file for its owner alone; returns its digest."""
        folder = files.join(self._path, page.series_id)
        for private in (folder, files.join(folder, str(page.number))):
            files.make_private(private)
        digest = _digest(content)
        files.write(files.join(folder, str(page.number), f"{digest}.{kind}"), self._keys.seal(content), 0o600)
        return digest


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
    new = new.take(pc.sort_indices(new))
    added = pa.table([new, np.full(len(new), page.units, np.int32), np.full(len(new), page.number, np.int32)], SPENT)
    return pa.concat_tables([pa.table([before["privacy_id"], units, last], SPENT), added])


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _lost(name: str) -> BookError:
    return BookError(
        f"privacy.book: {name} is missing or not what the ledger knows: who was in which window can't be told any more. Put "
        "the book back as it was, or close the period (`sottovoce budget close`)."
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
