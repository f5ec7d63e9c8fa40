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


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    st.lists(st.lists(st.integers(0, 5), unique=True), max_size=8), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3)
)
def test_each_user_is_let_in_by_its_own_past_alone(tmp_path_factory, windows, units, most, separation):
    page = dataclasses.replace(PAGE, units=units, max_windows_contributed=most, min_separation=separation)
    kept = book.Book(tmp_path_factory.mktemp("book"))
    assert lived(kept, windows, page) == expected(windows, page)


@pytest.mark.parametrize(
    ("numbers_asked", "limits", "let_in"),
    [
        ([0, 1, 2, 3], {"max_windows_contributed": 1}, [0]),
        ([0, 1, 2, 3], {"max_windows_contributed": 3}, [0, 1, 2]),
        ([0, 1, 2, 3, 4], {"max_windows_contributed": 9, "min_separation": 2}, [0, 2, 4]),
        ([0, 1, 2, 3, 4], {"max_windows_contributed": 9, "min_separation": 4}, [0, 4]),
        # Windows that were never released count too: it is their place in the calendar that keeps users apart.
        ([0, 2, 3, 5, 9], {"max_windows_contributed": 9, "min_separation": 3}, [0, 3, 9]),
        ([0, 1, 2], {"max_windows_contributed": 3, "units": 2}, [0]),
        ([0, 1, 2], {"max_windows_contributed": 4, "units": 2}, [0, 1]),
        ([0, 1], {"max_windows_contributed": 1, "units": 2}, []),
    ],
    ids=["one", "three", "every other", "every fourth", "with gaps", "half a window left", "two units each", "too dear"],
)
def test_a_user_who_is_always_there_is_let_in_as_often_as_the_limits_say(tmp_path, numbers_asked, limits, let_in):
    kept, found, before = book.Book(tmp_path), [], None
    for number in numbers_asked:
        page = dataclasses.replace(PAGE, number=number, before=before, **limits)
        found += [number] * len(kept.admit(page, 3, ids(1)))
        before = (number, kept.finish(page))
    assert found == let_in


def test_a_dear_window_keeps_out_whom_a_cheap_one_lets_in(tmp_path):
    kept, found, before = book.Book(tmp_path), [], None
    for number, units in enumerate([2, 2, 1, 1]):
        page = dataclasses.replace(PAGE, number=number, units=units, max_windows_contributed=3, before=before)
        found.append(numbers(kept.admit(page, 3, ids(1))))
        before = (number, kept.finish(page))
    assert found == [[1], [], [1], []]
    assert [table.to_pylist() for table in kept.spent("series", *before)] == [
        [{"privacy_id": ids(1)[0].as_py(), "units": 3, "last": 2}]
    ]


@hypothesis.settings(max_examples=20)
@hypothesis.given(
    st.lists(st.lists(st.integers(0, 5), unique=True), max_size=4), st.sets(st.integers(0, 7), min_size=1), st.integers(1, 3)
)
def test_users_together_are_let_in_as_each_would_be_alone(tmp_path_factory, past, asked, separation):
    """Alone: in a world in which nobody else was ever there."""
    page = dataclasses.replace(PAGE, min_separation=separation)

    def last(only: set[int]) -> list[int]:
        windows = [[user for user in users if user in only] for users in past]
        return lived(book.Book(tmp_path_factory.mktemp("book")), [*windows, sorted(asked & only)], page)[-1]

    assert last(set(range(8))) == sorted(user for each in asked for user in last({each}))


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


def test_an_attempt_that_was_overtaken_takes_the_others_answer(tmp_path, monkeypatch):
    """Between its look for the shard's file and its own writing of it, another attempt wrote one."""
    kept, spend = book.Book(tmp_path), book._spend

    def overtaken(*given):
        monkeypatch.setattr(book, "_spend", spend)
        assert numbers(book.Book(tmp_path).admit(PAGE, 3, ids(1, 2))) == [1, 2]
        return spend(*given)

    monkeypatch.setattr(book, "_spend", overtaken)
    assert numbers(kept.admit(PAGE, 3, ids(2, 3))) == [1, 2]
    assert [path.name for path in (tmp_path / "series" / "0").iterdir()] == ["3.arrow"]


def test_what_a_stale_attempt_writes_after_the_page_was_booked_is_in_no_later_page(tmp_path):
    kept = book.Book(tmp_path)
    kept.admit(PAGE, 3, ids(1))
    digest = kept.finish(PAGE)
    assert numbers(kept.admit(PAGE, 4, ids(2))) == [2]
    assert kept.finish(PAGE) != digest
    following = dataclasses.replace(PAGE, number=1, before=(0, digest))
    assert numbers(kept.admit(following, 4, ids(2))) == [2]
    spent = [table["units"].to_pylist() for table in kept.spent("series", 1, kept.finish(following))]
    assert spent == [[1], [1]]


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


def test_an_older_copy_of_a_shard_is_no_shard(tmp_path):
    kept = book.Book(tmp_path)
    kept.admit(PAGE, 3, ids(1))
    second = dataclasses.replace(PAGE, number=1, before=(0, kept.finish(PAGE)))
    kept.admit(second, 3, ids(1))
    third = dataclasses.replace(PAGE, number=2, before=(1, kept.finish(second)))
    older, newest = (tmp_path / "series" / number / "3.arrow" for number in "01")
    newest.write_bytes(older.read_bytes())
    with pytest.raises(book.BookError, match="Put the book back"):
        kept.admit(third, 3, ids(1))


@pytest.mark.parametrize("damage", [_delete, _change, _empty])
@pytest.mark.parametrize("what", ["*.json", "*.arrow"])
def test_a_retry_of_a_booked_page_that_is_not_as_it_was_is_refused(tmp_path, damage, what):
    kept = book.Book(tmp_path)
    kept.admit(PAGE, 3, ids(1))
    digest = kept.finish(PAGE)
    [path] = (tmp_path / "series" / "0").glob(what)
    damage(path)
    with pytest.raises(book.BookError, match="Put the book back"):
        kept.admit(dataclasses.replace(PAGE, digest=digest), 3, ids(1))
    with pytest.raises(book.BookError, match="Put the book back"):
        list(kept.spent("series", 0, digest))


def test_a_page_that_was_booked_and_is_gone_is_not_finished_again(tmp_path):
    kept = book.Book(tmp_path)
    page = dataclasses.replace(PAGE, digest=kept.finish(PAGE))
    assert kept.finish(page) == page.digest
    kept.delete("series")
    with pytest.raises(book.BookError, match="Put the book back"):
        kept.finish(page)


@pytest.mark.parametrize("damage", [_change, _empty])
def test_a_damaged_shard_of_a_page_that_was_not_booked_is_refused(tmp_path, damage):
    kept = book.Book(tmp_path)
    kept.admit(PAGE, 3, ids(1))
    damage(tmp_path / "series" / "0" / "3.arrow")
    with pytest.raises(book.BookError, match="Put the book back"):
        kept.admit(PAGE, 3, ids(1))


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


@pytest.mark.parametrize("unpublished", [[], [1], [0, 2]], ids=["none", "one", "two"])
def test_answers_are_the_same_after_pruning_and_the_rest_is_gone(tmp_path, unpublished):
    """Pages that are yet to be published stay, as their retries ask again."""
    kept, pages, before = book.Book(tmp_path), [], None
    for number in range(4):
        page = dataclasses.replace(PAGE, number=number, before=before)
        kept.admit(page, number % 2, ids(number % 2))
        before = (number, kept.finish(page))
        pages.append(dataclasses.replace(page, digest=before[1]))
    following = dataclasses.replace(PAGE, number=4, before=before)

    def answers() -> list[list[int]]:
        return [numbers(kept.admit(pages[number], number % 2, ids(7))) for number in [*unpublished, 3]]

    seen = answers()
    kept.prune("series", {(number, pages[number].digest) for number in [*unpublished, 3]})
    assert answers() == seen == [[number % 2] for number in [*unpublished, 3]]
    assert {int(path.parent.name) for path in tmp_path.glob("series/*/*.json")} == {*unpublished, 3}
    assert [numbers(kept.admit(following, shard, ids(shard, 9))) for shard in (0, 1)] == [[9], [9]]


def test_pruning_leaves_the_page_that_is_being_written(tmp_path):
    kept = book.Book(tmp_path)
    kept.admit(PAGE, 3, ids(1))
    digest = kept.finish(PAGE)
    following = dataclasses.replace(PAGE, number=1, before=(0, digest))
    kept.admit(following, 3, ids(1, 2))
    kept.prune("series", [(0, digest)])
    assert numbers(kept.admit(following, 3, ids(5))) == [1, 2]


def test_deleting_a_series_leaves_the_others(tmp_path):
    kept, other = book.Book(tmp_path), dataclasses.replace(PAGE, series_id="other")
    for page in (PAGE, other):
        kept.admit(page, 3, ids(1))
    for _ in range(2):
        kept.delete("series")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert numbers(kept.admit(other, 3, ids(2))) == [1]
