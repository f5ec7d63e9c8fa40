"""Admission: whoever is out of units is left out, and no noise before the ledger knows who is in."""

import dataclasses
import datetime as dt
import pathlib
import tempfile
import typing

import apache_beam as beam
import pyarrow as pa
import pytest

from data import book, errors, events, ledger
from runners import direct
from tests.bench.ledger import CONTRACT, REQUEST
from tests.transforms.example import contributions, encoded, pseudonym
from transforms import bounding, spill
from transforms.release import admission

DAY = dt.timedelta(days=1)
SERIES = ledger.Series(REQUEST.window_start, DAY, 31, 1, 1, 0.5, 0.0)
WEIGHTS = {"view": 1.0}
CROWD = [f"u{i}" for i in range(200)]
with_and_without_files = pytest.mark.parametrize("has_files", [False, True], ids=["in memory", "in files"])


class Place(typing.NamedTuple):
    """Where a test's ledger and book are."""

    ledger_url: str
    book_path: str
    directory: str | None

    def pages(self) -> list[str | None]:
        """The digests that the ledger knows."""
        return [page["digest"] for each in ledger.Ledger(self.ledger_url).series("shop") for page in each["pages"]]

    def users(self) -> list[bytes]:
        """Whom the book has by the newest page."""
        [series] = ledger.Ledger(self.ledger_url).series("shop")
        newest = series["pages"][-1]
        tables = book.Book(self.book_path).spent(series["series_id"], newest["number"], newest["digest"])
        return sorted(user for table in tables for user in table["privacy_id"].to_pylist())


@pytest.fixture
def place(tmp_path) -> Place:
    found = Place(f"sqlite:///{tmp_path / 'ledger.db'}", str(tmp_path / "book"), None)
    ledger.Ledger(found.ledger_url).init(CONTRACT)
    return found


def spilling(place: Place, tmp_path: pathlib.Path, has_files: bool) -> Place:
    (tmp_path / "spill").mkdir()
    return place._replace(directory=str(tmp_path / "spill") if has_files else None)


def granted(place: Place, number: int, attempt: str = "first") -> ledger.Grant:
    """The ledger's leave for a window of SERIES."""
    span = {"window_start": SERIES.start + number * DAY, "window_end": SERIES.start + (number + 1) * DAY}
    content = {"window": number}
    request = dataclasses.replace(REQUEST, content=content, attempt=attempt, series=SERIES, **span)
    return ledger.Ledger(place.ledger_url).reserve(request)


class Outcome(typing.NamedTuple):
    """What came of a run: the rows let in, and for each grant its release and whom the book had when it came."""

    rows: list[tuple[str, ...]]
    grants: list[tuple[str, list[bytes]]]


def run(place: Place, grants: list[ledger.Grant], users: list[str]) -> Outcome:
    """Runs AdmitUsers on events of users, each on items a and b."""
    did = [(None, pseudonym(user), item, "view", None) for user in users for item in "ab"]
    with tempfile.TemporaryDirectory() as directory:
        rows, noted = pathlib.Path(directory) / "rows", pathlib.Path(directory) / "grants"

        def keep(bucket: pa.Table | spill.Part) -> None:
            with rows.open("a") as file:
                for row in spill.read(bucket).to_pylist():
                    print(row["privacy_id"].hex(), row["item_id"], row["events"], file=file)

        def note(grant: ledger.Grant) -> None:
            with noted.open("a") as file:
                print(grant.release_id, *(user.hex() for user in place.users()), file=file)

        with beam.Pipeline(options=direct.options([])) as pipeline:
            given = pipeline | "Grants" >> beam.Create(grants)
            batches = pipeline | "Events" >> beam.Create([encoded(did, bounding.BUCKET_EVENTS)] if did else [])
            grouped = batches | bounding.GroupByUser(book.SHARDS, WEIGHTS, place.directory)
            admitted = grouped | admission.AdmitUsers(place.book_path, place.ledger_url, given, place.directory)
            _ = admitted.users | "Keep" >> beam.Map(keep)
            _ = admitted.grants | "Note" >> beam.Map(note)
        found = [[line.split() for line in path.read_text().splitlines()] if path.exists() else [] for path in (rows, noted)]
    return Outcome(sorted(map(tuple, found[0])), [(line[0], [bytes.fromhex(user) for user in line[1:]]) for line in found[1]])


def rows_of(*users: str) -> list[tuple]:
    return sorted((pseudonym(user).hex(), item, "1") for user in users for item in "ab")


def booked(*users: str) -> list[bytes]:
    return sorted(map(pseudonym, users))


@with_and_without_files
def test_users_who_are_out_of_units_are_left_out_and_the_others_keep_their_rows(place, tmp_path, has_files):
    place = spilling(place, tmp_path, has_files)
    assert run(place, [granted(place, 0)], ["ann", "bob"]).rows == rows_of("ann", "bob")
    # So many that some are in a bucket with ann or bob.
    assert run(place, [granted(place, 1)], ["ann", "bob", *CROWD]).rows == rows_of(*CROWD)
    assert run(place, [granted(place, 2)], ["ann", *CROWD]).rows == []
    assert place.users() == booked("ann", "bob", *CROWD)


@with_and_without_files
def test_grants_come_when_the_ledger_knows_a_page_that_has_everybody(place, tmp_path, has_files):
    grant = granted(place, 0)
    outcome = run(spilling(place, tmp_path, has_files), [grant], CROWD)
    assert outcome.grants == [(grant.release_id, booked(*CROWD))]


def test_a_window_without_anybody_has_a_page_too(place):
    grant = granted(place, 0)
    assert run(place, [grant], []) == ([], [(grant.release_id, [])])
    assert place.pages() != [None]


def test_without_a_grant_nobody_is_let_in_and_nothing_is_written(place):
    assert run(place, [], ["ann", "bob"]) == ([], [])
    assert not pathlib.Path(place.book_path).exists()
    assert place.pages() == []


def test_a_run_that_lost_the_release_gets_no_leave_and_books_nothing(place):
    stale = granted(place, 0)
    granted(place, 0, attempt="second")
    with pytest.raises(errors.AlreadyReleasedError, match="another run has taken this release over"):
        run(place, [stale], ["ann"])
    assert place.pages() == [None]


def test_a_retry_after_a_crash_lets_in_whom_the_book_has_and_nobody_else_of_their_shards(place):
    """The first attempt died when it had written ann's shard; whoever shares that shard and came later is not in."""
    shard = {user: bounding.bucket_of(pa.array([pseudonym(user)], events.PSEUDONYM), book.SHARDS) for user in ["ann", *CROWD]}
    list(admission.admit(contributions(("ann", "a")), [granted(place, 0)], place.book_path, None))
    others = [user for user in CROWD if shard[user] != shard["ann"]]
    assert len(others) < len(CROWD)
    again = granted(place, 0, attempt="second")
    assert run(place, [again], ["ann", *CROWD]) == (rows_of("ann", *others), [(again.release_id, booked("ann", *others))])


def test_a_retry_after_the_page_was_booked_has_the_same_users(place):
    run(place, [granted(place, 0)], ["ann", "bob"])
    again = granted(place, 0, attempt="second")
    assert run(place, [again], ["ann", "bob", *CROWD]) == (rows_of("ann", "bob"), [(again.release_id, booked("ann", "bob"))])


# Without Beam


@with_and_without_files
def test_a_bucket_whose_users_are_all_let_in_stays_where_it_is(place, tmp_path, has_files):
    place = spilling(place, tmp_path, has_files)
    rows = contributions(("ann", "a"), ("ann", "b"))
    bucket = spill.write(place.directory, [rows])[0] if has_files else rows
    [kept] = admission.admit(bucket, [granted(place, 0)], place.book_path, place.directory)
    assert kept is bucket


@pytest.mark.parametrize("step", [admission.admit, admission.finish_page])
def test_a_grant_outside_any_series_admits_nobody(place, step):
    grant = dataclasses.replace(granted(place, 0), page=None)
    given = contributions(("ann", "a")) if step is admission.admit else 1
    with pytest.raises(ValueError, match="the grant is for a release that is not of a series"):
        list(step(given, [grant], place.book_path, place.ledger_url))
    assert place.pages() == [None]
