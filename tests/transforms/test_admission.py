"""Admission: whoever is out of units is left out, and no noise before the ledger knows who is in."""

import dataclasses
import datetime as dt
import pathlib
import tempfile
import typing

import apache_beam as beam
import pyarrow as pa
import pytest

from data import book, errors, files, ledger
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

    @property
    def book(self) -> book.Book:
        """The book there."""
        return book.Book(self.book_path)

    def pages(self) -> list[str | None]:
        """The digests that the ledger knows."""
        return [page["digest"] for each in ledger.Ledger(self.ledger_url).series("shop") for page in each["pages"]]

    def users(self) -> list[bytes]:
        """Whom the book has by the newest page."""
        [series] = ledger.Ledger(self.ledger_url).series("shop")
        newest = series["pages"][-1]
        tables = self.book.spent(series["series_id"], newest["number"], newest["digest"])
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
            admitted = grouped | admission.AdmitUsers(place.book, place.ledger_url, given, place.directory)
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


def test_a_retry_after_a_crash_before_the_page_was_booked_lets_in_whoever_is_there_now(place):
    """Of the first attempt's answer nothing was used."""
    first = granted(place, 0)
    written = list(admission.admit(contributions(("ann", "a")), [first], place.book))
    place.book.finish(first.page, dict(written))
    again = granted(place, 0, attempt="second")
    assert run(place, [again], ["bob", *CROWD]) == (rows_of("bob", *CROWD), [(again.release_id, booked("bob", *CROWD))])


def test_a_retry_after_the_page_was_booked_has_the_same_users(place):
    run(place, [granted(place, 0)], ["ann", "bob"])
    again = granted(place, 0, attempt="second")
    assert run(place, [again], ["ann", "bob", *CROWD]) == (rows_of("ann", "bob"), [(again.release_id, booked("ann", "bob"))])


# Without Beam


def finished(place: Place, grant: ledger.Grant, *buckets: pa.Table | spill.Part) -> list[ledger.Grant]:
    """The grant, once the page with these buckets' users is booked."""
    written = [pair for bucket in buckets for pair in admission.admit(bucket, [grant], place.book)]
    return list(admission.finish_page(written, [grant], place.book, place.ledger_url))


@with_and_without_files
def test_a_bucket_whose_users_are_all_let_in_stays_where_it_is(place, tmp_path, has_files):
    place = spilling(place, tmp_path, has_files)
    rows = contributions(("ann", "a"), ("ann", "b"))
    bucket = spill.write(place.directory, [rows])[0] if has_files else rows
    [kept] = admission.keep(bucket, finished(place, granted(place, 0), bucket), place.book, place.directory)
    assert kept is bucket


def test_rows_that_come_when_a_step_is_done_again_are_used_of_booked_users_alone(place):
    """As when a source has changed since the step was done first."""
    first, grant = contributions(("ann", "a")), granted(place, 0)
    bookings = finished(place, grant, first)
    assert list(admission.admit(contributions(("bob", "a")), [grant], place.book)) != []
    assert list(admission.keep(contributions(("bob", "a")), bookings, place.book, None)) == []
    assert list(admission.keep(first, bookings, place.book, None)) == [first]


def test_an_attempt_that_wakes_up_late_changes_nothing(place):
    stale, rows = granted(place, 0), contributions(("ann", "a"))
    grant = granted(place, 0, attempt="second")
    bookings = finished(place, grant, rows)
    with pytest.raises(errors.AlreadyReleasedError):
        finished(place, stale, contributions(("ann", "a"), ("ann", "b")), contributions(("bob", "a")))
    assert place.users() == booked("ann")
    assert list(admission.keep(rows, bookings, place.book, None)) == [rows]


def test_a_booked_page_is_written_no_more(place):
    rows = contributions(("ann", "a"))
    finished(place, granted(place, 0), rows)
    again = granted(place, 0, attempt="second")
    assert list(admission.admit(contributions(("bob", "a")), [again], place.book)) == []
    [booking] = finished(place, again, contributions(("bob", "a")))
    assert booking == again
    assert place.users() == booked("ann")


def test_buckets_that_share_a_shard_are_refused(place):
    rows = contributions(("ann", "a"))
    with pytest.raises(ValueError, match="a shard's users are in several buckets"):
        finished(place, granted(place, 0), rows, rows)


@pytest.mark.parametrize("step", ["admit", "finish_page", "keep"])
def test_a_grant_outside_any_series_admits_nobody(place, step):
    grant, rows = dataclasses.replace(granted(place, 0), page=None), contributions(("ann", "a"))
    steps = {
        "admit": lambda: admission.admit(rows, [grant], place.book),
        "finish_page": lambda: admission.finish_page([], [grant], place.book, place.ledger_url),
        "keep": lambda: admission.keep(rows, [grant], place.book, None),
    }
    with pytest.raises(ValueError, match="the grant is for a release that is not of a series"):
        list(steps[step]())
    assert place.pages() == [None]


def test_a_book_in_an_object_store_lets_users_in(place, bucket):
    place = place._replace(book_path=files.join(bucket, "book"), directory=files.join(bucket, "spill"))
    parts = spill.write(place.directory, [contributions(("ann", "a"))])
    [booking] = finished(place, granted(place, 0), *parts)
    assert list(admission.keep(parts[0], [booking], place.book, place.directory)) == parts
    assert place.users() == booked("ann")
