"""The whole promise, user by user: whatever jobs, windows, refusals and crashes come, what is published of a user's data
composes to no more than the contract, by an accountant that knows neither ledger nor book."""

import dataclasses
import datetime as dt
import itertools
import pathlib

import hypothesis
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from data import book, events, ledger
from tests.bench import ledger as bench
from tests.data import composed
from transforms.privacy import filter as privacy_filter

EPSILON, DELTA = 2.0, 1e-6
CAPACITY = privacy_filter.capacity("gaussian", EPSILON, DELTA)
START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
WINDOWS, USERS, SHARDS = 8, 4, 2
SERIES = {
    # Of the capacity, one has 40 %, the other 36 %; a release of its own takes 15 %.
    "few": ledger.Series(START, DAY, WINDOWS, 2, 1, 0.4 * CAPACITY / 2, 0.0),
    # Its windows slide, two days a day apart.
    "apart": ledger.Series(START, 2 * DAY, WINDOWS, 3, 2, 0.36 * CAPACITY / 3, 0.0, DAY),
}
ALONE = 0.15 * CAPACITY

STEP = st.fixed_dictionaries(
    {
        "job": st.sampled_from(["few", "few", "apart", "apart", "alone"]),
        "crash": st.sampled_from([None, None, None, "reserved", "half admitted", "admitted", "finished", "booked", "drawn"]),
        "late": st.sets(st.integers(0, USERS - 1), max_size=2),
    }
)
ACTIVE = st.lists(st.sets(st.integers(0, WINDOWS - 1)), min_size=USERS, max_size=USERS)


class World:
    """Jobs on one data set. `seen` has the noise multipliers of what was published of each user's data."""

    def __init__(self, directory: pathlib.Path, active: list[set[int]]):
        self.ledger = ledger.Ledger(f"sqlite:///{directory}/ledger.sqlite")
        self.ledger.init(dataclasses.replace(bench.CONTRACT, capacity=CAPACITY))
        self.book = book.Book(directory / "book")
        self.active = active
        self.next = dict.fromkeys((*SERIES, "alone"), 0)
        self.seen: list[list[float]] = [[] for _ in range(USERS)]
        self.windows: dict[str, list[list[int]]] = {job: [[] for _ in range(USERS)] for job in SERIES}
        self.refused = self.attempts = 0

    def step(self, job: str, crash: str | None, late: set[int]) -> None:
        """One run of a job: its next window, or one more release of the whole month."""
        number, series = self.next[job], SERIES.get(job)
        if series and number == WINDOWS:
            return
        self.attempts += 1
        start, size = (START + number * series.step, series.size) if series else (START, 30 * DAY)
        request = dataclasses.replace(
            bench.REQUEST,
            content={"job": job, "number": number},
            job=job,
            window_start=start,
            window_end=start + size,
            cost=series.unit_cost if series else ALONE,
            series=series,
            attempt=f"attempt {self.attempts}",
        )
        try:
            grant = self.ledger.reserve(request)
        except ledger.BudgetRefusedError:
            self.refused += 1
            return
        if crash == "reserved":
            return
        users = set(range(USERS))
        if series:
            # Whoever turned up since the last attempt is there now, and stays.
            for user in late:
                self.active[user].add(number)
            there = self._there(number)
            written = self._written(grant.page, dict(list(there.items())[:1]) if crash == "half admitted" else there)
            if crash in ("half admitted", "admitted"):
                return
            digest = self.book.finish(grant.page, written)
            if crash == "finished":
                return
            assert self.ledger.book(grant.release_id, grant.fence, digest)
            users = self._admitted(dataclasses.replace(grant.page, digest=digest), there)
        if crash in ("booked", "drawn"):
            return
        assert self.ledger.publish(grant.release_id, grant.fence, request.attempt)
        self.next[job] += 1
        for user in users:
            self.seen[user].append(request.cost**-0.5)
            if series:
                self.windows[job][user].append(number)

    def _there(self, number: int) -> dict[int, pa.FixedSizeBinaryArray]:
        """Who has events in a window, by shard."""
        found = {}
        for shard in range(SHARDS):
            there = [user for user in range(shard, USERS, SHARDS) if number in self.active[user]]
            if there:
                found[shard] = pa.array([user.to_bytes(16, "little") for user in there], events.PSEUDONYM)
        return found

    def _written(self, page: ledger.Page, there: dict[int, pa.FixedSizeBinaryArray]) -> dict[int, str]:
        if page.digest is not None:
            return {}
        return {shard: self.book.admit(page, shard, ids) for shard, ids in there.items()}

    def _admitted(self, page: ledger.Page, there: dict[int, pa.FixedSizeBinaryArray]) -> set[int]:
        let_in = [user for shard, ids in there.items() for user in self.book.admitted(page, shard, ids).to_pylist()]
        return {int.from_bytes(user, "little") for user in let_in}


@hypothesis.settings(max_examples=40)
@hypothesis.given(ACTIVE, st.lists(STEP, min_size=5, max_size=40))
def test_whatever_happens_each_user_stays_within_the_contract(tmp_path_factory, active, steps):
    world = World(tmp_path_factory.mktemp("world"), active)
    for step in steps:
        world.step(**step)
    world.ledger.verify()
    for job, series in SERIES.items():
        for numbers in world.windows[job]:
            assert len(numbers) <= series.max_windows_contributed
            assert all(later - earlier >= series.min_separation for earlier, later in itertools.pairwise(numbers))
    for noise_multipliers in {tuple(seen) for seen in world.seen if seen}:
        # The accountant rounds losses up.
        assert composed.epsilon(list(noise_multipliers), DELTA) <= EPSILON * (1 + 1e-3)


EVERYTHING = [{"job": job, "crash": None, "late": set()} for job in ("few", "apart", "alone") for _ in range(WINDOWS)]


@pytest.mark.parametrize("has_book", [True, False])
def test_a_user_who_is_always_there_spends_the_budget_and_without_the_book_more(tmp_path, monkeypatch, has_book):
    if not has_book:
        monkeypatch.setattr(book.Book, "admitted", lambda self, page, shard, privacy_ids: privacy_ids)
    world = World(tmp_path, [set(range(WINDOWS)) for _ in range(USERS)])
    for step in EVERYTHING:
        world.step(**step)
    assert world.refused > 0
    spent = composed.epsilon(world.seen[0], DELTA)
    assert 0.9 * EPSILON < spent <= EPSILON * (1 + 1e-3) if has_book else spent > 1.5 * EPSILON
