"""The contribution book: who was in which window, the same to whoever asks, once the ledger has the page."""

import dataclasses
import stat
from concurrent import futures

import hypothesis
import hypothesis.strategies as st
import pyarrow as pa
import pytest

from data import book, events, files, ledger, vault

PAGE = ledger.Page("series", 0, 1, 2, 1, None, None)


@pytest.fixture(params=["path", "object store"])
def place(request, tmp_path) -> str:
    """Where a book can be."""
    return str(tmp_path / "book") if request.param == "path" else request.getfixturevalue("bucket")


def ids(*users: int) -> pa.FixedSizeBinaryArray:
    return pa.array([user.to_bytes(16, "little") for user in users], events.PSEUDONYM)


def numbers(users: pa.FixedSizeBinaryArray) -> list[int]:
    return sorted(int.from_bytes(user, "little") for user in users.to_pylist())


def booked(kept: book.Book, page: ledger.Page, users: dict[int, list[int]]) -> ledger.Page:
    """The page with whom it lets in of each shard's users, as the ledger would have it."""
    written = {shard: kept.admit(page, shard, ids(*there)) for shard, there in users.items()}
    return dataclasses.replace(page, digest=kept.finish(page, written))


def after(page: ledger.Page, **changes) -> ledger.Page:
    """The page that follows a booked one."""
    following = {"number": page.number + 1, "before": (page.number, page.digest), "digest": None}
    return dataclasses.replace(page, **{**following, **changes})


def let_in(kept: book.Book, page: ledger.Page, shard: int = 3, among=range(10)) -> list[int]:
    return numbers(kept.admitted(page, shard, ids(*among)))


def lived(kept: book.Book, windows: list[list[int]], page: ledger.Page = PAGE) -> list[list[int]]:
    """Who is let into each window, one page after the other."""
    found = []
    for users in windows:
        now = booked(kept, page, {3: users} if users else {})
        found.append(let_in(kept, now))
        page = after(now)
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
    ("numbers_asked", "limits", "let_in_at"),
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
def test_a_user_who_is_always_there_is_let_in_as_often_as_the_limits_say(tmp_path, numbers_asked, limits, let_in_at):
    kept, found, before = book.Book(tmp_path), [], None
    for number in numbers_asked:
        page = booked(kept, dataclasses.replace(PAGE, number=number, before=before, **limits), {3: [1]})
        found += [number] * len(let_in(kept, page))
        before = (number, page.digest)
    assert found == let_in_at


def test_a_dear_window_keeps_out_whom_a_cheap_one_lets_in(tmp_path):
    kept, found, page = book.Book(tmp_path), [], dataclasses.replace(PAGE, max_windows_contributed=3)
    for units in [2, 2, 1, 1]:
        now = booked(kept, dataclasses.replace(page, units=units), {3: [1]})
        found.append(let_in(kept, now))
        page = after(now)
    assert found == [[1], [], [1], []]
    assert [table.to_pylist() for table in kept.spent("series", *page.before)] == [
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


def test_a_book_lies_below_a_path_or_in_an_object_store(place):
    assert lived(book.Book(place), [[1, 2], [2], [1, 2, 3]]) == [[1, 2], [2], [1, 3]]


@pytest.mark.parametrize(
    ("again", "expected"),
    [([1, 2], [1, 2]), ([1], [1]), ([1, 2, 3], [1, 2]), ([3], [])],
    ids=["the same", "fewer", "more", "others"],
)
def test_whoever_asks_a_booked_page_again_hears_of_nobody_else(tmp_path, again, expected):
    page = booked(book.Book(tmp_path), PAGE, {3: [1, 2]})
    assert let_in(book.Book(tmp_path), page, among=again) == expected


def test_a_page_that_is_not_booked_tells_nothing(tmp_path):
    kept = book.Book(tmp_path)
    booked(kept, PAGE, {3: [1]})
    with pytest.raises(ValueError, match="is not booked"):
        kept.admitted(PAGE, 3, ids(1))


def test_a_step_that_is_done_again_writes_the_same_file_whatever_the_order_of_users(place):
    kept = book.Book(place)
    second = after(booked(kept, PAGE, {3: [5, 1]}))
    digests = {kept.admit(second, 3, ids(*users)) for users in ([1, 2, 3, 4], [4, 3, 2, 1], [3, 1, 4, 2])}
    assert len(digests) == 1
    assert len({kept.finish(second, {3: digest, 4: digest}) for digest in [*digests] * 2}) == 1
    assert kept.admit(second, 3, ids(1, 2, 3)) not in digests


def test_a_shard_that_turns_up_after_its_page_was_booked_lets_nobody_in(tmp_path):
    kept = book.Book(tmp_path)
    page = booked(kept, PAGE, {3: [1]})
    assert let_in(kept, page, shard=4) == []


def test_attempts_that_race_for_a_page_have_each_their_own_and_the_ledger_chooses(tmp_path):
    with futures.ThreadPoolExecutor(8) as pool:
        pages = list(pool.map(lambda user: booked(book.Book(tmp_path), PAGE, {3: [user]}), range(8)))
    assert [let_in(book.Book(tmp_path), page) for page in pages] == [[user] for user in range(8)]
    following = after(pages[5], max_windows_contributed=1)
    assert let_in(book.Book(tmp_path), booked(book.Book(tmp_path), following, {3: [4, 5]})) == [4]


def test_what_a_stale_attempt_writes_is_in_no_later_page(tmp_path):
    kept = book.Book(tmp_path)
    page = booked(kept, PAGE, {3: [1]})
    assert booked(kept, PAGE, {3: [1, 2], 4: [4]}).digest != page.digest
    assert let_in(kept, page) == [1]
    following = booked(kept, after(page), {4: [4]})
    assert [table["units"].to_pylist() for table in kept.spent("series", 1, following.digest)] == [[1], [1]]


def test_a_shard_that_a_window_did_not_touch_keeps_what_it_had(tmp_path):
    kept = book.Book(tmp_path)
    first = booked(kept, dataclasses.replace(PAGE, max_windows_contributed=1), {3: [1]})
    second = booked(kept, after(first), {4: [2]})
    third = booked(kept, after(second), {3: [1, 5], 4: [2]})
    found = [[let_in(kept, page, shard) for shard in (3, 4)] for page in (first, second, third)]
    assert found == [[[1], []], [[], [2]], [[5], []]]


def _delete(path):
    path.unlink()


def _change(path):
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def _empty(path):
    path.write_bytes(b"")


def _older(path):
    """What the file said before."""
    path.write_bytes((path.parent.parent / "older" / path.suffix[1:]).read_bytes())


@pytest.mark.parametrize("damage", [_delete, _change, _empty, _older])
@pytest.mark.parametrize("what", ["*.json", "*.arrow"])
def test_a_book_that_is_not_as_it_was_is_refused(tmp_path, damage, what):
    kept = book.Book(tmp_path)
    booked(kept, PAGE, {3: [1]})
    (tmp_path / "series" / "older").mkdir()
    for path in (tmp_path / "series" / "0").iterdir():
        path.rename(tmp_path / "series" / "older" / path.suffix[1:])
    page = booked(kept, PAGE, {3: [1, 2]})
    [path] = (tmp_path / "series" / "0").glob(what)
    damage(path)
    for ask in (
        lambda: kept.admit(after(page), 3, ids(1)),
        lambda: kept.admitted(page, 3, ids(1)),
        lambda: list(kept.spent("series", 0, page.digest)),
    ):
        with pytest.raises(book.BookError, match="Put the book back"):
            ask()


def test_a_file_that_is_gone_from_an_object_store_is_missed(bucket):
    kept = book.Book(bucket)
    page = booked(kept, PAGE, {3: [1]})
    files.delete_directory(files.join(bucket, "series", "0"))
    with pytest.raises(book.BookError, match="Put the book back"):
        kept.admitted(page, 3, ids(1))


def test_a_book_that_can_not_be_read_is_not_said_to_be_lost(tmp_path):
    kept = book.Book(tmp_path)
    page = booked(kept, PAGE, {3: [1]})
    path = tmp_path / "series" / "0" / f"{page.digest}.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(book.BookError, match=r"can't be read \(.*directory"):
        kept.admitted(page, 3, ids(1))


def test_a_page_that_was_booked_and_is_gone_is_not_finished_again(tmp_path):
    kept = book.Book(tmp_path)
    page = booked(kept, PAGE, {})
    assert kept.finish(page, {}) == page.digest
    kept.delete("series")
    with pytest.raises(book.BookError, match="Put the book back"):
        kept.finish(page, {})


def test_only_the_owner_may_read_it(tmp_path):
    lived(book.Book(tmp_path / "book"), [[1]])
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in (tmp_path / "book").rglob("*")}
    assert modes == {(True, 0o700), (False, 0o600)}


def test_pruning_leaves_what_the_newest_page_needs(place):
    kept, page = book.Book(place), PAGE
    for shard in [3, 4, 4]:
        now = booked(kept, page, {shard: [shard]})
        page = after(now)
    booked(kept, PAGE, {3: [1, 2, 3]})  # never booked by the ledger
    spent = [table.to_pylist() for table in kept.spent("series", *page.before)]
    kept.prune("series", [page.before])
    assert [table.to_pylist() for table in kept.spent("series", *page.before)] == spent
    assert [len(files.names(files.join(place, "series", number))) for number in "012"] == [1, 0, 2]
    kept.delete("series")
    assert files.names(place) == []


def test_pruning_leaves_no_empty_directory(tmp_path):
    kept = book.Book(tmp_path)
    lived(kept, [[1], [1]])
    newest = booked(kept, after(booked(kept, PAGE, {3: [1]})), {3: [1]})
    kept.prune("series", [(1, newest.digest)])
    assert [path.name for path in (tmp_path / "series").iterdir()] == ["1"]
    kept.delete("series")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("unpublished", [[], [1], [0, 2]], ids=["none", "one", "two"])
def test_answers_are_the_same_after_pruning_and_the_rest_is_gone(tmp_path, unpublished):
    """Pages that are yet to be published stay, as their retries ask again."""
    kept, pages, page = book.Book(tmp_path), [], PAGE
    for number in range(4):
        pages.append(booked(kept, page, {number % 2: [number % 2]}))
        page = after(pages[-1])

    def answers() -> list[list[int]]:
        return [let_in(kept, pages[number], number % 2) for number in [*unpublished, 3]]

    seen = answers()
    kept.prune("series", {(number, pages[number].digest) for number in [*unpublished, 3]})
    assert answers() == seen == [[number % 2] for number in [*unpublished, 3]]
    assert {int(path.parent.name) for path in tmp_path.glob("series/*/*.json")} == {*unpublished, 3}
    last = booked(kept, page, {shard: [shard, 9] for shard in (0, 1)})
    assert [let_in(kept, last, shard) for shard in (0, 1)] == [[9], [9]]


def test_pruning_leaves_the_page_that_is_being_written(tmp_path):
    kept = book.Book(tmp_path)
    page = booked(kept, PAGE, {3: [1]})
    written = kept.admit(after(page), 3, ids(1, 2))
    kept.prune("series", [(0, page.digest)])
    following = dataclasses.replace(after(page), digest=kept.finish(after(page), {3: written}))
    assert let_in(kept, following) == [1, 2]


def test_deleting_a_series_leaves_the_others(place):
    kept, other = book.Book(place), dataclasses.replace(PAGE, series_id="other")
    pages = [booked(kept, page, {3: [1]}) for page in (PAGE, other)]
    for _ in range(2):
        kept.delete("series")
    assert {name.partition("/")[0] for name in files.names(place)} == {"other"}
    assert let_in(kept, pages[1]) == [1]


# Encryption

OLD, NEW = vault.Vault((bytes(32),)), vault.Vault((b"n" * 32, bytes(32)))


def contents(place: str) -> dict[str, bytes]:
    return {name: files.read(files.join(place, name)) for name in files.names(place)}


def test_an_encrypted_book_has_the_same_names_and_says_the_same(place):
    """So the ledger knows it under any key."""
    plain, sealed = book.Book(files.join(place, "plain")), book.Book(files.join(place, "sealed"), OLD)
    pages = [booked(each, PAGE, {3: [1, 2]}) for each in (plain, sealed)]
    assert pages[0] == pages[1]
    assert [let_in(each, pages[0]) for each in (plain, sealed)] == [[1, 2], [1, 2]]
    found = contents(files.join(place, "sealed"))
    assert contents(files.join(place, "plain")).keys() == found.keys()
    assert all(content.startswith(vault.MAGIC) for content in found.values())
    assert not any((1).to_bytes(16, "little") in content for content in found.values())


def test_a_book_goes_on_under_a_new_key_and_rotating_frees_it_of_the_old_one(place):
    first = booked(book.Book(place, OLD), PAGE, {3: [1, 2]})
    kept = book.Book(place, NEW)
    second = booked(kept, after(first, max_windows_contributed=1), {3: [1, 4]})
    assert let_in(kept, second) == [4]
    assert kept.rotate("series") == 2
    assert kept.rotate("series") == 0
    alone = book.Book(place, vault.Vault(NEW.keys[:1]))
    assert [let_in(alone, page) for page in (first, second)] == [[1, 2], [4]]
    with pytest.raises(vault.VaultError, match="under a key that is not in"):
        let_in(book.Book(place, OLD), first)


def test_a_crash_while_rotating_leaves_a_book_that_both_keys_read_and_the_next_try_ends_it(tmp_path, monkeypatch):
    page = booked(book.Book(tmp_path, OLD), PAGE, {shard: [shard] for shard in range(4)})
    kept, write, written = book.Book(tmp_path, NEW), files.write, []

    def crash(*given):
        if len(written) == 2:
            raise OSError("the disk is full")
        written.append(write(*given))

    with monkeypatch.context() as full:
        full.setattr(files, "write", crash)
        with pytest.raises(OSError, match="disk is full"):
            kept.rotate("series")
    assert sum(NEW.is_current(content) for content in contents(str(tmp_path)).values()) == 2
    assert [let_in(kept, page, shard) for shard in range(4)] == [[0], [1], [2], [3]]
    assert kept.rotate("series") == 3


@pytest.mark.parametrize(
    "damage", [b"", vault.MAGIC, vault.MAGIC + bytes(40), b"other"], ids=["empty", "cut", "other", "plain"]
)
def test_an_encrypted_book_that_was_changed_is_refused(tmp_path, damage):
    kept = book.Book(tmp_path, vault.Vault((b"k" * 32,)))
    page = booked(kept, PAGE, {3: [1]})
    [shard] = (tmp_path / "series" / "0").glob("*.arrow")
    shard.write_bytes(shard.read_bytes()[:-1] if damage == vault.MAGIC else damage)
    with pytest.raises((book.BookError, vault.VaultError)):
        let_in(kept, page)
