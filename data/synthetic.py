"""The synthetic world: seeded users, items and events with planted tastes, for tests, tuning and benchmarks.

Every user picks distinct items without replacement from a Plackett-Luce model (Gumbel top-k: Kool et al. 2019),

    logit(user, item) = popularity(item) + trend(item) * time(user) + taste_strength * <taste(user), taste(item)>,

among the items released by the user's last session. Users come in chunks of `CHUNK_USERS`, each seeded from
(seed, chunk) alone: the first users of a larger world are the users of a smaller one with the same seed and items.
`docs/synthetic-world.md` says how the defaults were fitted.
"""

import collections
import collections.abc
import dataclasses
import datetime
import functools
import pathlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse as sp

from data.events import RAW_EVENTS, TIMESTAMP

CHUNK_USERS = 1_000
"""Users drawn at a time. Part of the world's definition: another value makes another world."""
CHUNKS_PER_FILE = 50
"""50,000 users, about 6 million events, in one Parquet file."""
MIN_ITEMS = 100
MINUTE = 60_000_000
DAY = 24 * 60 * MINUTE
"""Times are int64 microseconds since the epoch."""

NOUNS = {
    "drama": ("Promise", "Letter", "Return", "Silence", "Inheritance", "Winter"),
    "comedy": ("Mix-Up", "Wedding", "Weekend", "Neighbour", "Holiday", "Blunder"),
    "thriller": ("Witness", "Alibi", "Deadline", "Stranger", "Pursuit", "Signal"),
    "action": ("Strike", "Convoy", "Showdown", "Escape", "Rescue", "Ambush"),
    "romance": ("Kiss", "Rendezvous", "Serenade", "Bouquet", "Valentine", "Waltz"),
    "adventure": ("Expedition", "Compass", "Treasure", "Voyage", "Island", "Summit"),
    "crime": ("Heist", "Verdict", "Detective", "Ledger", "Syndicate", "Getaway"),
    "science fiction": ("Orbit", "Android", "Nebula", "Colony", "Starship", "Paradox"),
    "fantasy": ("Dragon", "Kingdom", "Sorcerer", "Amulet", "Prophecy", "Unicorn"),
    "horror": ("Crypt", "Haunting", "Scream", "Cellar", "Curse", "Shadow"),
    "children": ("Puppy", "Treehouse", "Balloon", "Teddy", "Playground", "Kitten"),
    "mystery": ("Riddle", "Locket", "Disappearance", "Cipher", "Manor", "Clue"),
    "animation": ("Robot", "Crayon", "Penguin", "Toyshop", "Rainbow", "Raccoon"),
    "war": ("Regiment", "Frontier", "Armistice", "Trench", "Battalion", "Siege"),
    "musical": ("Encore", "Melody", "Chorus", "Overture", "Cabaret", "Rhapsody"),
    "documentary": ("Glacier", "Archive", "Reef", "Portrait", "Railway", "Harvest"),
}
"""Each genre's nouns, the most common genre first: a title tells its genre. A taste has one dimension a genre."""
ADJECTIVES = (
    "Amber", "Ancient", "Bitter", "Blue", "Borrowed", "Broken", "Crimson", "Crooked", "Distant", "Endless", "Fading",
    "First", "Forgotten", "Frozen", "Gentle", "Golden", "Hidden", "Hollow", "Iron", "Last", "Little", "Lonely", "Lost",
    "Midnight", "Northern", "Painted", "Perfect", "Quiet", "Restless", "Scarlet", "Second", "Secret", "Silver",
    "Sleeping", "Stolen", "Tall", "Unlikely", "Velvet", "Wandering", "Wild",
)  # fmt: skip
MAKERS = ("Alder", "Birch", "Cedar", "Elm", "Hazel", "Juniper", "Larch", "Maple", "Rowan", "Willow")
HOUSES = ("Brothers", "House", "Pictures", "Studio", "Works", "& Daughters", "Collective", "Press")


class _Items(NamedTuple):
    """The planted catalogue; every array has `items` rows."""

    genres: np.ndarray  # bool (items, genres)
    main_genre: np.ndarray  # int (items,)
    maker: np.ndarray  # int (items,), a maker has one main genre
    taste: np.ndarray  # float64 (items, genres), norm sqrt(genres)
    popularity: np.ndarray  # float64 (items,), log odds
    trend: np.ndarray  # float64 (items,), change of the log odds over the world's span
    released: np.ndarray  # int64 (items,), microseconds


class _Users(NamedTuple):
    """One chunk of users and their choices."""

    taste: np.ndarray  # float64 (users, genres), norm 1
    joined: np.ndarray  # int64 (users,): no session before
    stay: np.ndarray  # int64 (users,): the last session starts that many microseconds later
    choices: sp.csr_matrix  # int8 (users, items)


@dataclasses.dataclass(frozen=True)
class World:
    """A world of users who meet items; equal fields make equal worlds. The defaults below `end` are frozen.

    `docs/synthetic-world.md` explains every field.

    Raises:
        ValueError: a field breaks its rule.
    """

    seed: int = 0
    users: int = 100_000
    items: int = 5_000
    start: datetime.datetime = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
    end: datetime.datetime = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    activity_least: int = 5
    activity_median: float = 42.0
    activity_sigma: float = 1.27
    popularity_power: float = 2.4
    popularity_head: float = 0.05
    taste_strength: float = 2.7
    taste_own_share: float = 0.4
    trend_sigma: float = 0.5
    new_item_share: float = 0.25
    stay_days: float = 60.0
    session_items: float = 8.0
    session_gap_minutes: float = 3.0
    repeat_share: float = 0.2
    purchase_share: float = 0.3
    arrival_delay_seconds: float = 2.0

    def __post_init__(self) -> None:
        self._check("seed", self.seed >= 0, "must not be negative")
        self._check("users", self.users > 0, "must be positive")
        self._check("items", self.items >= MIN_ITEMS, f"must be at least {MIN_ITEMS}")
        for name in ("start", "end"):
            self._check(name, getattr(self, name).tzinfo is not None, "must have a time zone")
        self._check("end", self.end - self.start >= datetime.timedelta(days=1), "must be a day or more after start")
        self._check("activity_least", 1 <= self.activity_least <= self.items // 4, "must be in 1 .. items / 4")
        self._check("activity_median", self.activity_median > self.activity_least, "must be above activity_least")
        for name in ("activity_sigma", "popularity_power", "taste_strength", "trend_sigma"):
            self._check(name, 0 <= getattr(self, name) <= 5, "must be in 0 .. 5")
        self._check("popularity_head", 0 < self.popularity_head <= 1, "must be in 0 (excluded) .. 1")
        for name in ("taste_own_share", "repeat_share", "purchase_share"):
            self._check(name, 0 <= getattr(self, name) <= 1, "must be in 0 .. 1")
        self._check("new_item_share", 0 <= self.new_item_share <= 0.5, "must be in 0 .. 0.5")
        for name in ("stay_days", "session_items", "session_gap_minutes", "arrival_delay_seconds"):
            self._check(name, getattr(self, name) > 0, "must be positive")

    def _check(self, field: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"World: {field} {rule}, not {getattr(self, field)}.")

    def catalogue(self) -> pa.Table:
        """Returns one row an item: item_id, title, genre (list, the main one first), maker, price, released (UTC)."""
        items, rng = self._items, self._rng(1)
        genres = np.array(list(NOUNS))
        nouns = np.array(list(NOUNS.values()))
        names = nouns[items.main_genre, rng.integers(nouns.shape[1], size=self.items)]
        titles = np.char.add(np.char.add(rng.choice(ADJECTIVES, self.items), " "), names)
        makers = np.array([f"{name} {house}" for house in HOUSES for name in MAKERS])
        price = np.round(12 * np.exp(rng.normal(0, 0.3, len(makers))[items.maker] + rng.normal(0, 0.4, self.items)), 2)
        owner, genre = items.genres.nonzero()
        genre = genre[np.lexsort((genre != items.main_genre[owner], owner))]
        ends = np.cumsum(np.bincount(owner, minlength=self.items))
        return pa.table(
            {
                "item_id": _ids("i", np.arange(self.items), 6),
                "title": _numbered(titles),
                "genre": pa.ListArray.from_arrays(np.concatenate([[0], ends]).astype(np.int32), genres[genre]),
                "maker": makers[items.maker],
                "price": price,
                "released": pa.array(items.released, TIMESTAMP),
            }
        )

    def interactions(self, chunks: range | None = None) -> sp.csr_matrix:
        """Returns who met what, int8 (users, items) of ones: the distinct pairs of `events`, without drawing events.

        With consecutive `chunks`, returns those chunks' users alone.
        """
        chunks = range(self.chunks) if chunks is None else chunks
        choices = sp.vstack([self._chunk(chunk).choices for chunk in chunks], format="csr")
        return choices[: self.users - chunks.start * CHUNK_USERS]

    def events(self, chunks: range | None = None) -> collections.abc.Iterator[pa.RecordBatch]:
        """Yields one batch (schema `RAW_EVENTS`) for each chunk of users, ordered by user, then event time.

        Every interaction has a view; some have a second view in the same session or later, some a purchase minutes after
        the view, with a rating in 0.5 .. 5 as its value.
        """
        for chunk in range(self.chunks) if chunks is None else chunks:
            yield self._events(chunk)

    @property
    def chunks(self) -> int:
        """The number of chunks of users."""
        return -(-self.users // CHUNK_USERS)

    @property
    def _span(self) -> tuple[int, int]:
        return int(self.start.timestamp()) * 1_000_000, int(self.end.timestamp()) * 1_000_000

    def _rng(self, stream: int, chunk: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, chunk])

    @functools.cached_property
    def _items(self) -> _Items:
        n, rng = self.items, self._rng(0)
        main = rng.choice(len(NOUNS), n, p=_zipf(len(NOUNS)))
        genres = rng.random((n, len(NOUNS))) < _zipf(len(NOUNS)) * 0.8
        genres[np.arange(n), main] = True
        makers = len(MAKERS) * len(HOUSES) // len(NOUNS)
        maker = main * makers + rng.choice(makers, n, p=_zipf(makers))
        shared = _unit(genres + np.eye(len(NOUNS))[main])
        shared += 0.5 * _unit(rng.normal(size=(len(NOUNS) * makers, len(NOUNS))))[maker]
        taste = self._blend(shared, rng) * len(NOUNS) ** 0.5
        start, end = self._span
        released = start - (rng.exponential(5 * 365 * DAY, n)).astype(np.int64)
        new = rng.permutation(n)[: int(n * self.new_item_share)]
        released[new] = rng.integers(start, end, len(new))
        rank = rng.permutation(n)
        # Zipf-Mandelbrot: the head is flat for `popularity_head` of the catalogue, then falls with the power of the rank.
        popularity = -self.popularity_power * np.log((rank / n + self.popularity_head) / (1 + self.popularity_head))
        return _Items(genres, main, maker, taste, popularity, rng.normal(0, self.trend_sigma, n), released)

    def _blend(self, shared: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns rows of norm 1: what is shared through genres, and a share (of the squared norm) of one's own."""
        own = _unit(rng.normal(size=shared.shape))
        return _unit(_unit(shared) * (1 - self.taste_own_share) ** 0.5 + own * self.taste_own_share**0.5)

    def _chunk(self, chunk: int) -> _Users:
        """Draws a whole chunk, also where the world ends inside it: its size changes no user."""
        n, rng, items = CHUNK_USERS, self._rng(2, chunk), self._items
        start, end = self._span
        taste = self._blend(rng.dirichlet(_zipf(len(NOUNS)) * 4, n), rng)
        joined = rng.integers(start, end - DAY // 2, n)
        stay = np.minimum(rng.exponential(self.stay_days * DAY, n), end - DAY // 4 - joined).astype(np.int64)
        extra = np.exp(rng.normal(np.log(self.activity_median - self.activity_least), self.activity_sigma, n))
        activity = np.minimum(self.activity_least + extra, self.items // 4).astype(np.int64)
        when = (joined + stay / 2 - start) / (end - start) - 0.5
        # One product for the whole logit. On a grid of 1/64 it is exact in float32, so BLAS and threads can't change it.
        user_side = _on_grid(np.column_stack([taste, when, np.ones(n)]))
        item_side = _on_grid(np.column_stack([items.taste * self.taste_strength, items.trend, items.popularity]))
        keys = user_side @ item_side.T
        keys -= np.log(rng.standard_exponential(keys.shape, np.float32) + np.float32(1e-8))
        keys[(joined + stay)[:, None] < items.released] = -np.inf
        lowest = np.sort(keys, axis=1)[np.arange(n), self.items - activity]
        return _Users(taste, joined, stay, sp.csr_matrix(keys >= lowest[:, None], dtype=np.int8))

    def _events(self, chunk: int) -> pa.RecordBatch:
        """Draws a whole chunk's events, and returns those of the users inside the world."""
        users, rng, (_, end) = self._chunk(chunk), self._rng(3, chunk), self._span
        user, item = (index.astype(np.int64) for index in users.choices.nonzero())
        sessions, first, last = self._sessions(users, user, item, rng)
        viewed = _between(first, last, rng)
        again = np.flatnonzero(rng.random(len(user)) < self.repeat_share)
        session = np.concatenate([viewed, _between(viewed[again], last[again], rng)])
        views = sessions[session] + self._offsets(session, rng)
        bought = np.flatnonzero(rng.random(len(user)) < self.purchase_share)
        purchases = views[bought] + rng.exponential(5 * MINUTE, len(bought))
        pair = np.concatenate([np.arange(len(user)), again, bought])
        time = np.minimum(np.concatenate([views, purchases]), end - 1).astype(np.int64)
        value = np.concatenate([np.full(len(session), np.nan), self._ratings(users, user[bought], item[bought], rng)])
        delay = 1 + rng.exponential(self.arrival_delay_seconds * 1_000_000, len(pair))
        order = np.lexsort((time, user[pair]))
        order = order[: np.searchsorted(user[pair[order]], self.users - chunk * CHUNK_USERS)]
        # An odd factor permutes the 64-bit integers: unique ids that say nothing about the user.
        serial = (np.uint64(chunk << 32) + np.arange(len(order), dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        columns = [
            pc.binary_join_element_wise("e", pa.array(serial).cast(pa.string()), ""),
            _ids("u", user[pair[order]] + chunk * CHUNK_USERS, 7),
            _ids("i", item[pair[order]], 6),
            pa.array(["view", "purchase"]).take(pa.array((order >= len(session)).astype(np.int8))),
            pa.array(value[order], from_pandas=True),
            pa.array(time[order], TIMESTAMP),
            pa.array((time + delay.astype(np.int64))[order], TIMESTAMP),
            pa.nulls(len(order), RAW_EVENTS.field("context").type),
        ]
        return pa.record_batch(columns, schema=RAW_EVENTS)

    def _sessions(
        self, users: _Users, user: np.ndarray, item: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns all sessions' starts, and for each pair (user, item) the range of sessions that may hold it."""
        (start, end), released = self._span, self._items.released
        counts = np.ceil(np.diff(users.choices.indptr) / self.session_items).astype(np.int64)
        owner, stops = np.repeat(np.arange(len(counts)), counts), np.cumsum(counts)
        share = rng.random(len(owner))
        share[stops - 1] = 1
        # One sortable number for (user, time since the world's start).
        since_joined = (share * users.stay[owner]).astype(np.int64)
        keys = np.sort(owner * (end - start) + users.joined[owner] - start + since_joined)
        earliest = user * (end - start) + np.maximum(released[item] - start, 0)
        return keys - owner * (end - start) + start, np.searchsorted(keys, earliest), stops[user]

    def _offsets(self, session: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns each event's microseconds after its session's start, in random order within the session."""
        order = np.lexsort((rng.random(len(session)), session))
        total = np.cumsum(rng.exponential(self.session_gap_minutes * MINUTE, len(session)))
        opens = np.diff(session[order], prepend=-1) != 0
        offsets = np.empty(len(session))
        offsets[order] = total - np.maximum.accumulate(np.where(opens, total, 0))
        return offsets

    def _ratings(self, users: _Users, user: np.ndarray, item: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns half stars, 0.5 .. 5: the nearer the tastes, the more."""
        liking = np.einsum("pd,pd->p", users.taste[user], self._items.taste[item])
        return np.clip(np.round(2 * (2.5 + 0.6 * liking + rng.normal(0, 0.6, len(user)))) / 2, 0.5, 5)


def write(world: World, directory: pathlib.Path) -> None:
    """Writes `directory`/items.parquet and `directory`/events/part-*.parquet, a row group for each chunk of users.

    Raises:
        FileExistsError: there is an events directory already.
    """
    (directory / "events").mkdir(parents=True)
    pq.write_table(world.catalogue(), directory / "items.parquet")
    for part, first in enumerate(range(0, world.chunks, CHUNKS_PER_FILE)):
        with pq.ParquetWriter(directory / "events" / f"part-{part:05d}.parquet", RAW_EVENTS) as file:
            for batch in world.events(range(first, min(first + CHUNKS_PER_FILE, world.chunks))):
                file.write_batch(batch)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _on_grid(values: np.ndarray) -> np.ndarray:
    return (np.round(values * 64) / 64).astype(np.float32)


def _zipf(n: int) -> np.ndarray:
    """Returns n shares proportional to 1 / rank, shape (n,)."""
    weights = 1 / np.arange(1, n + 1)
    return weights / weights.sum()


def _between(first: np.ndarray, stop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns uniform integers in [first, stop), elementwise."""
    return first + (rng.random(len(first)) * (stop - first)).astype(np.int64)


def _ids(letter: str, numbers: np.ndarray, width: int) -> pa.Array:
    return pc.binary_join_element_wise(letter, pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0"), "")


def _numbered(titles: np.ndarray) -> list[str]:
    """Returns unique titles: the second "Lost Reef" becomes "Lost Reef 2"."""
    seen: collections.Counter[str] = collections.Counter()
    result = []
    for title in titles.tolist():
        seen[title] += 1
        result.append(title if seen[title] == 1 else f"{title} {seen[title]}")
    return result
