"""Lives of a data set: releases that are reserved, admitted, drawn and published, crash, sleep and are overtaken.

No Beam: the steps are the product's own functions, in the order in which a pipeline takes them. Nor is any noise drawn: what is
kept is whose data went into which release, the published ones and all others.
"""

import contextlib
import dataclasses
import datetime as dt
import functools
import pathlib
from collections.abc import Collection, Iterator

import dp_accounting
import pyarrow as pa
from dp_accounting import pld

from data import book, errors, events, ledger
from tests.bench import ledger as bench
from transforms import bounding
from transforms.privacy import filter as privacy_filter
from transforms.release import admission

TOTAL_EPSILON, TOTAL_DELTA, SELECTION_DELTA = 2.0, 1e-6, 1e-7
CONTRACT = dataclasses.replace(
    bench.CONTRACT,
    period="day",
    total_epsilon=TOTAL_EPSILON,
    total_delta=TOTAL_DELTA,
    selection_delta=SELECTION_DELTA,
    capacity=privacy_filter.capacity("gaussian", TOTAL_EPSILON, TOTAL_DELTA - SELECTION_DELTA),
)
START, HOURS, DAY = dt.datetime(2025, 1, 6, tzinfo=dt.UTC), dt.timedelta(hours=4), 6
WINDOWS, USERS = 2 * DAY, 5
STEPS = ["asked", "reserved", "half admitted", "admitted", "finished", "booked", "drawn"]
"""Where an attempt may stop: before the ledger is asked, with the first shard in the book, with noise that nobody sees, ..."""


@dataclasses.dataclass(frozen=True)
class Job:
    """Releases that each take `share` of the contract, or a series that lets a user into `most` of its windows of a day."""

    share: float
    most: int = 0
    separation: int = 1
    source: str = CONTRACT.source

    @property
    def noise_multipliers(self) -> tuple[float, float]:
        return tuple((part * self.share * CONTRACT.capacity) ** -0.5 for part in (0.3, 0.7))

    @property
    def cost(self) -> float:
        return privacy_filter.total_cost("gaussian", self.noise_multipliers)

    @property
    def delta(self) -> float:
        return self.share * SELECTION_DELTA

    def series(self, window: int) -> ledger.Series | None:
        if not self.most:
            return None
        first = START + window // DAY * DAY * HOURS
        return ledger.Series(first, HOURS, DAY, self.most, self.separation, self.cost, self.delta)


JOBS = {
    # Both series and one more release take 0.99 of the contract.
    "few": Job(0.45 / 2, most=2),
    "apart": Job(0.36 / 3, most=3, separation=2),
    "alone": Job(0.18),
    "greedy": Job(1.01),
    "stranger": Job(0.01, source="0" * 64),
}
_ALONE = [range(DAY), range(DAY // 2, DAY + DAY // 2), range(DAY, 2 * DAY)]
"""What releases that are of no series read: a day, half of either, the other day."""


@dataclasses.dataclass(frozen=True)
class Release:
    """A release that a job asks for; `number` counts those of the job."""

    job: str
    number: int

    @property
    def windows(self) -> range:
        return range(self.number, self.number + 1) if JOBS[self.job].most else _ALONE[self.number % len(_ALONE)]


class World:
    """A data set of USERS users, of whom each is in the windows that `active` says, and the jobs on it.

    Attributes:
        drawn: by release id, the job and whose data of which windows the noise was drawn for, published or not.
        published: releases, once for each time that the ledger named an attempt.
        ends: how attempts ended.
    """

    def __init__(self, directory: pathlib.Path, active: Collection[Collection[int]]):
        self._url, self._book = f"sqlite:///{directory}/ledger.sqlite", str(directory / "book")
        self.ledger = ledger.Ledger(self._url)
        if self.ledger.contract(CONTRACT.data_set) is None:
            self.ledger.init(CONTRACT)
        self._active = [set(windows) for windows in active]
        self._asleep: list[Iterator[str]] = []
        self._attempts = 0
        self.drawn: dict[str, tuple[str, set[tuple[int, int]]]] = {}
        self.published: list[Release] = []
        self.ends: list[str] = []

    def step(
        self, job: str, until: str = "", skips: int = 0, changes: Collection[int] = (), wakes: int | None = None
    ) -> None:
        """A run of a job, then of one that had stopped.

        Args:
            until: where the run stops; "": it doesn't.
            skips: how many windows it leaves out.
            changes: users whose events in the window turn up before the run, or are deleted.
            wakes: which of the runs that stopped goes on to its end.
        """
        number = 1 + max((each.number for each in self.published if each.job == job), default=-1) + skips
        if JOBS[job].most and number >= WINDOWS:
            return
        release = Release(job, number)
        for user in changes:
            self._active[user] ^= {release.windows[0]}
        attempt = self._attempt(release)
        if self._go_on(attempt, until):
            self._asleep.append(attempt)
        if wakes is not None and self._asleep:
            self._go_on(self._asleep.pop(wakes % len(self._asleep)), "")

    def _go_on(self, attempt: Iterator[str], until: str) -> bool:
        """Whether it stopped on its way."""
        try:
            if until in attempt:
                return True
            self.ends.append("published" if self._attempts else "")
        except (ledger.BudgetRefusedError, errors.AlreadyReleasedError) as error:
            self.ends.append(type(error).__name__)
        return False

    def _attempt(self, release: Release) -> Iterator[str]:
        """Yields each of STEPS when it is done."""
        self._attempts += 1
        request = self._request(release)
        yield "asked"
        grant = self.ledger.reserve(request)
        if grant.status == ledger.PUBLISHED:
            raise errors.AlreadyReleasedError
        yield "reserved"
        users = {user for user in range(USERS) if self._active[user] & set(release.windows)}
        if request.series is not None:
            admitted: set[int] = set()
            for shard in self._shards(users):
                for rows in admission.admit(shard, [grant], self._book, None):
                    admitted |= {int.from_bytes(user[8:], "little") for user in rows["privacy_id"].to_pylist()}
                yield "half admitted"
            users = admitted
            yield "admitted"
            book.Book(self._book).finish(grant.page)
            yield "finished"
            [grant] = admission.finish_page(0, [grant], self._book, self._url)
            yield "booked"
        windows = {(user, window) for user in users for window in (set(release.windows) & self._active[user])}
        self.drawn.setdefault(grant.release_id, (release.job, set()))[1].update(windows)
        yield "drawn"
        if not self.ledger.publish(grant.release_id, grant.fence, request.attempt):
            raise errors.AlreadyReleasedError
        self.published.append(release)

    def _request(self, release: Release) -> ledger.Request:
        job, windows = JOBS[release.job], release.windows
        content = {"job": release.job, "number": release.number}
        if not job.most:
            # As the digest of a file: with other events it is another release.
            content["events"] = [sorted(active & set(windows)) for active in self._active]
        return dataclasses.replace(
            bench.REQUEST,
            source=job.source,
            period=CONTRACT.period,
            content=content,
            window_start=START + windows.start * HOURS,
            window_end=START + windows.stop * HOURS,
            cost=job.cost,
            delta=job.delta,
            attempt=f"attempt {self._attempts}",
            job=release.job,
            series=job.series(release.number),
        )

    @staticmethod
    def _shards(users: Collection[int]) -> Iterator[pa.Table]:
        """The users' rows, in two shards."""
        for shard in (0, 1):
            ids = [shard.to_bytes(8, "little") + user.to_bytes(8, "little") for user in users if user % 2 == shard]
            if ids:
                yield pa.table({"privacy_id": pa.array(ids, events.PSEUDONYM).dictionary_encode()})

    def went_into(self, user: int, day: int) -> list[tuple[str, list[int]]]:
        """The releases that a user's data of a day went into: each one's job, and the windows of that data."""
        found = []
        for job, there in self.drawn.values():
            if windows := sorted(window for who, window in there if who == user and window // DAY == day):
                found.append((job, windows))
        return found

    def epsilon(self, user: int, day: int) -> float:
        """What a user lost of a day, at the contract's delta."""
        jobs = sorted(job for job, _ in self.went_into(user, day))
        return _epsilon(tuple(jobs))


@functools.cache
def _epsilon(jobs: tuple[str, ...]) -> float:
    """By dp_accounting, which knows neither ledger nor book."""
    accountant = pld.PLDAccountant(value_discretization_interval=1e-3)
    for job in jobs:
        for noise_multiplier in JOBS[job].noise_multipliers:
            accountant.compose(dp_accounting.GaussianDpEvent(noise_multiplier))
    # What selection may show of one user adds up beside the noise.
    return accountant.get_epsilon(TOTAL_DELTA - sum(JOBS[job].delta for job in jobs)) if jobs else 0.0
