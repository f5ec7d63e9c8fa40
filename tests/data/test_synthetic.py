import datetime
import pathlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from data.events import RAW_EVENTS
from data.synthetic import CHUNK_USERS, World, write

MINUTE = 60_000_000


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=7, users=1_200)


@pytest.fixture(scope="module")
def events(world: World) -> pa.Table:
    return pa.Table.from_batches(world.events())


@pytest.fixture(scope="module")
def interactions(world: World) -> sp.csr_matrix:
    return world.interactions()


def numbers(ids: pa.ChunkedArray) -> np.ndarray:
    """The n of "u000n" and "i000n"."""
    return np.array([int(text[1:]) for text in ids.to_pylist()])


def times(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.int64()).to_numpy()


def gini(counts: np.ndarray) -> float:
    counts = np.sort(counts)
    ranks = 2 * np.arange(1, len(counts) + 1) - len(counts) - 1
    return ranks @ counts / (len(counts) * counts.sum())


def test_equal_seeds_make_equal_worlds(world: World, events: pa.Table, interactions: sp.csr_matrix) -> None:
    again = World(seed=7, users=1_200)
    assert again.catalogue().equals(world.catalogue())
    assert (again.interactions() != interactions).nnz == 0
    assert next(again.events()).equals(events.slice(0, len(next(again.events()))).to_batches()[0])


def test_another_seed_makes_another_world(world: World) -> None:
    a, b = World(seed=1, users=50), World(seed=2, users=50)
    assert (a.interactions() != b.interactions()).nnz > 0
    assert not a.catalogue().equals(b.catalogue())


def test_a_smaller_world_is_the_start_of_a_larger_one(events: pa.Table, interactions: sp.csr_matrix) -> None:
    small = World(seed=7, users=1_100)
    batches = list(small.events())
    assert (small.interactions() != interactions[:1_100]).nnz == 0
    assert pa.Table.from_batches(batches).equals(events.slice(0, sum(len(batch) for batch in batches)))


def test_chunks_are_parts_of_the_whole(world: World, interactions: sp.csr_matrix) -> None:
    assert (world.interactions(range(1, 2)) != interactions[CHUNK_USERS:]).nnz == 0


def test_events_have_the_schema_and_unique_ids(world: World, events: pa.Table) -> None:
    assert all(batch.schema.equals(RAW_EVENTS, check_metadata=True) for batch in world.events(range(1)))
    events.validate(full=True)
    assert len(events["event_id"].unique()) == len(events)
    assert events["privacy_id"][0].as_py() == "u0000000"
    assert sum(events[name].null_count for name in ("event_id", "privacy_id", "item_id", "arrival_time")) == 0


def test_times_lie_in_the_span_after_the_release_and_before_the_arrival(world: World, events: pa.Table) -> None:
    time = times(events["event_time"])
    assert time.min() >= world.start.timestamp() * 1e6
    assert time.max() < world.end.timestamp() * 1e6
    assert (times(events["arrival_time"]) >= time).all()
    released = times(pa.chunked_array([world.catalogue()["released"].combine_chunks()]))
    assert (time >= released[numbers(events["item_id"])]).all()


def test_interactions_are_the_distinct_pairs_of_the_events(events: pa.Table, interactions: sp.csr_matrix) -> None:
    pairs = np.unique(np.column_stack([numbers(events["privacy_id"]), numbers(events["item_id"])]), axis=0)
    assert interactions.dtype == np.int8
    assert interactions.data.max() == 1
    np.testing.assert_array_equal(pairs, np.column_stack(interactions.nonzero()))


def test_only_purchases_have_ratings_and_each_follows_a_view(events: pa.Table) -> None:
    first_view: dict[tuple[str, str], datetime.datetime] = {}
    for row in events.slice(0, 5_000).to_pylist():
        pair = row["privacy_id"], row["item_id"]
        if row["event_type"] == "view":
            assert row["value"] is None
            first_view.setdefault(pair, row["event_time"])
        else:
            assert row["value"] in np.arange(0.5, 5.5, 0.5)
            assert first_view[pair] <= row["event_time"]


def test_events_come_in_sessions(events: pa.Table) -> None:
    gaps = np.diff(times(events["event_time"]))[np.diff(numbers(events["privacy_id"])) == 0]
    assert (gaps >= 0).all()
    assert (gaps < 30 * MINUTE).mean() > 0.85
    assert (gaps > 12 * 60 * MINUTE).mean() > 0.03  # and yet users come back


def test_planted_tastes_show_in_the_genres(world: World, interactions: sp.csr_matrix) -> None:
    """Two items of one user share their main genre more often than two items met by different users."""
    main = np.array([genres[0] for genres in world.catalogue()["genre"].to_pylist()])
    by_genre = interactions @ (main[:, None] == np.unique(main)).astype(np.int64)
    share = by_genre / by_genre.sum(1, keepdims=True)
    chance = (by_genre.sum(0) / by_genre.sum()) ** 2
    assert (share**2).sum(1).mean() > 1.4 * chance.sum()


def test_new_items_change_what_is_popular(world: World, interactions: sp.csr_matrix) -> None:
    old = times(pa.chunked_array([world.catalogue()["released"].combine_chunks()])) < world.start.timestamp() * 1e6
    assert old.mean() == pytest.approx(1 - world.new_item_share, abs=0.001)
    assert interactions[:, old].sum(0).mean() > 1.2 * interactions[:, ~old].sum(0).mean()


def test_frozen_statistics_stay_put() -> None:
    """The bands hold the values of seeds 0 to 4 at 1,000 users; docs/synthetic-world.md has the fit."""
    matrix = World(seed=0, users=1_000).interactions()
    activity = np.diff(matrix.indptr)
    counts = np.bincount(matrix.indices)
    assert 0.66 < gini(counts[counts > 0]) < 0.71
    assert 75 < activity.mean() < 95
    assert 37 < np.median(activity) < 46
    assert activity.min() >= World.activity_least


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("seed", -1, "must not be negative"),
        ("users", 0, "must be positive"),
        ("items", 99, "must be at least 100"),
        ("start", datetime.datetime(2025, 1, 1), "must have a time zone"),
        ("end", datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC), "must be a day or more after start"),
        ("activity_least", 0, "must be in 1 .. items / 4"),
        ("activity_median", 5.0, "must be above activity_least"),
        ("popularity_head", 0.0, "must be in 0"),
        ("taste_strength", -1.0, "must be in 0 .. 5"),
        ("purchase_share", 1.5, "must be in 0 .. 1"),
        ("new_item_share", 0.9, "must be in 0 .. 0.5"),
        ("stay_days", 0.0, "must be positive"),
    ],
)
def test_bad_parameters_are_refused(field: str, value: object, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"World: {field} {rule}.*, not {re.escape(str(value))}"):
        World(**{field: value})  # type: ignore[arg-type]


def test_a_small_catalogue_works() -> None:
    matrix = World(users=20, items=100).interactions()
    assert matrix.shape == (20, 100)
    assert np.diff(matrix.indptr).max() <= 25


def test_write_makes_files_that_read_back_as_the_same_events(tmp_path: pathlib.Path) -> None:
    world = World(users=CHUNK_USERS + 10, items=100)
    write(world, tmp_path)
    read = pq.read_table(tmp_path / "events", schema=RAW_EVENTS)
    assert read.equals(pa.Table.from_batches(world.events()))
    assert pq.read_table(tmp_path / "items.parquet").equals(world.catalogue())
    with pytest.raises(FileExistsError):
        write(world, tmp_path)
