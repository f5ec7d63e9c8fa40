"""The contribution book: who was in which window, written once, and the same to whoever asks again."""

import dataclasses
import stat
from concurrent import futures

import hypothesis
import hypothesis.strategies as st
import pyarrow as pa
import pytest

from data import book, events, ledger

PAGE = ledger.Page("series", 0, 1, 2, 1, None, None)


def ids(*users: int) -> pa.FixedSizeBinaryArray:
    return pa.array([user.to_bytes(16, "little") for user in users], events.PSEUDONYM)


def numbers(users: pa.FixedSizeBinaryArray) -> list[int]:
    return sorted(int.from_bytes(user, "little") for user in users.to_pylist())


def lived(kept: book.Book, windows: list[list[int]], page: ledger.Page = PAGE, shard: int = 3) -> list[list[int]]:
    """Who is let into each window, one page after the other."""
    found, before = [], None
    for number, users in enumerate(windows):
        now = dataclasses.replace(page, number=number, before=before)
        found.append(numbers(kept.admit(now, shard, ids(*users))) if users else [])
        before = (number, kept.finish(now))
    return found


def expected(windows: list[list[int]], page: ledger.Page) -> list[list[int]]:
    """The rule, user by user."""
    was_in: dict[int, list[int]] = {}
    for number, users in enumerate(windows):
        for user in users:
            past = was_in.setdefault(user, [])
            has_room = (len(past) + 1) * page.units <= page.max_windows_contributed
            if has_room and (not past or number - past[-1] >= page.min_separation):
                past.append(number)
    return [sorted(user for user, past in was_in.items() if number in past) for number in range(len(windows))]


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    st.lists(st.lists(st.integers(0, 5), unique=True), max_size=8), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3)
)
def test_each_user_is_let_in_by_its_own_past_alone(tmp_path_factory, windows, units, most, separation):
    page = dataclasses.replace(PAGE, units=units, max_windows_contributed=most, min_separation=separation)
    kept = book.Book(tmp_path_factory.mktemp("book"))
    assert lived(kept, windows, page) == expected(windows, page)


@pytest.mark.parametrize("again", [[1, 2], [1], [1, 2, 3], [3]], ids=["the same", "fewer", "more", "others"])
@pytest.mark.parametrize("is_booked", [False, True])
def test_asked_again_the_answer_is_the_first_one(tmp_path, again, is_booked):
    book.Book(tmp_path).admit(PAGE, 3, ids(1, 2))
    page = dataclasses.replace(PAGE, digest=book.Book(tmp_path).finish(PAGE)) if is_booked else PAGE
    assert numbers(book.Book(tmp_path).admit(page, 3, ids(*again))) == [1, 2]


def test_a_shard_that_turns_up_after_its_page_was_booked_lets_nobody_in(tmp_path):
    kept = book.Book(tmp_path)
    kept.admit(PAGE, 3, ids(1))
    page = dataclasses.replace(PAGE, digest=kept.finish(PAGE))
    assert numbers(kept.admit(page, 4, ids(2))) == []


def test_attempts_that_race_for_a_page_agree(tmp_path):
    with futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda user: numbers(book.Book(tmp_path).admit(PAGE, 3, ids(user))), range(8)))
    assert all(answer == answers[0] for answer in answers)
    assert len(answers[0]) == 1


def test_a_shard_that_a_window_did_not_touch_keeps_what_it_had(tmp_path):
    kept = book.Book(tmp_path)
    first = dataclasses.replace(PAGE, max_windows_contributed=1)
    assert numbers(kept.admit(first, 3, ids(1))) == [1]
    second = dataclasses.replace(first, number=1, before=(0, kept.finish(first)))
    assert numbers(kept.admit(second, 4, ids(2))) == [2]
    third = dataclasses.replace(first, number=2, before=(1, kept.finish(second)))
    assert [numbers(kept.admit(third, shard, ids(user))) for shard, user in ((3, 1), (4, 2), (3, 5))] == [[], [], []]


def _delete(path):
    path.unlink()


def _change(path):
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def _empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_delete, _change, _empty])
@pytest.mark.parametrize("what", ["*.json", "*.arrow"])
def test_a_book_that_is_not_as_it_was_is_refused(tmp_path, damage, what):
    kept = book.Book(tmp_path)
    kept.admit(PAGE, 3, ids(1))
    digest = kept.finish(PAGE)
    [path] = (tmp_path / "series" / "0").glob(what)
    damage(path)
    with pytest.raises(book.BookError, match="Put the book back"):
        kept.admit(dataclasses.replace(PAGE, number=1, before=(0, digest)), 3, ids(1))


def test_an_older_copy_of_a_page_is_no_page(tmp_path):
    kept = book.Book(tmp_path)
    lived(kept, [[1], [2]])
    newest = kept.finish(dataclasses.replace(PAGE, number=1, digest=None, before=None))
    [older] = (tmp_path / "series" / "0").glob("*.json")
    (tmp_path / "series" / "1" / f"{newest}.json").write_bytes(older.read_bytes())
    with pytest.raises(book.BookError):
        kept.admit(dataclasses.replace(PAGE, number=2, before=(1, newest)), 3, ids(1))


def test_only_the_owner_may_read_it(tmp_path):
    lived(book.Book(tmp_path / "book"), [[1]])
    modes = {path.is_dir(): stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "book").rglob("*")}
    assert modes == {True: 0o700, False: 0o600}


def test_pruning_leaves_what_the_newest_page_needs(tmp_path):
    kept, pages, before = book.Book(tmp_path), [], None
    for number, shard in enumerate([3, 4, 4, 4]):
        page = dataclasses.replace(PAGE, number=number, before=before)
        kept.admit(page, shard, ids(shard))
        before = (number, kept.finish(page))
        pages.append(before)
    spent = [table.to_pylist() for table in kept.spent("series", *pages[-1])]
    kept.prune("series", [pages[-1]])
    assert [table.to_pylist() for table in kept.spent("series", *pages[-1])] == spent
    assert sorted(path.name for path in (tmp_path / "series").iterdir()) == ["0", "3"]
    kept.delete("series")
    assert list(tmp_path.iterdir()) == []
