"""What one privacy id can change: repeats dropped, events merged, partitions bounded.

Every function here looks at one privacy id at a time: whether and how a user counts never depends on anybody else. The
choice of what to keep is a keyed hash of the user's own data, so every retry, runner and block sees the same rows.

Users, items and event types are numbers here, places in their columns' dictionaries: all of it is sorting numbers.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from data import events, hashing
from transforms import coders, codes, spill, threads
from transforms.privacy import keyed_hash

BUCKET_EVENTS = pa.schema([events.EVENTS.field(name) for name in ("event_id", "privacy_id", "item_id", "event_type", "value")])
"""What travels to a user's bucket: of ingest's events, the fields that counting may need. event_id and value may be absent."""

_REPETITIVE = ("item_id", "event_type")
_PLACES = ("privacy_id", *_REPETITIVE)

CONTRIBUTIONS = pa.schema(
    [
        pa.field("privacy_id", pa.dictionary(pa.int32(), events.PSEUDONYM), nullable=False),
        *(events.EVENTS.field(name) for name in _REPETITIVE),
        # how many events
        pa.field("events", pa.int64(), nullable=False),
        # the largest weight of any of them
        pa.field("weight", pa.float64(), nullable=False),
    ]
)
"""One row for each (privacy_id, item_id, event_type) of a user bucket. A user's rows stand together, and among them those on an
item. No dictionary has a value twice."""

_REPEATED = b"repeated"
"""In the metadata of a bucket's CONTRIBUTIONS: how many events were dropped as repeats. Nothing that is released has it."""

MAX_BUCKETS = 1 << 16
_LEAST_BUCKETS = 16
_BUCKET_ROWS = 1 << 19
"""A bucket that is joined and sorted in the processor's cache, or not far from it."""

beam.coders.registry.register_coder(pa.Table, coders.TableCoder)


def buckets_for(rows: int) -> int:
    """How many buckets do for so many events: what is released is the same with any number."""
    return min(max(_LEAST_BUCKETS, -(-rows // _BUCKET_ROWS)), MAX_BUCKETS)


def split_by_bucket(batch: pa.Table, buckets: int) -> Iterator[tuple[int, pa.Table]]:
    """Yields (bucket, rows), all rows of one privacy id in one bucket. Columns without any value are left out.

    Each part takes only its own rows and values along.
    """
    for bucket, part in _slices(batch, buckets):
        for name in _REPETITIVE:
            part = part.set_column(part.column_names.index(name), name, codes.compact(part[name].combine_chunks()))
        yield bucket, part


def spill_by_bucket(batch: pa.Table, buckets: int, directory: str) -> Iterator[tuple[int, spill.Part]]:
    """As `split_by_bucket`, but the rows go into a file of `directory`, and where they lie is yielded."""
    split = list(_slices(batch, buckets))
    parts = spill.write(directory, (part for _, part in split))
    return zip((bucket for bucket, _ in split), parts, strict=True)


def _slices(batch: pa.Table, buckets: int) -> Iterator[tuple[int, pa.Table]]:
    """Yields (bucket, rows) as slices of one table, with the dictionaries of all its rows."""
    names = [name for name in BUCKET_EVENTS.names if name in batch.column_names and batch[name].null_count < batch.num_rows]
    columns = {name: batch[name].combine_chunks() for name in names}
    if not columns:
        return
    bucket = _buckets(columns["privacy_id"], buckets)
    order = np.argsort(bucket, kind="stable")
    for name in _REPETITIVE:
        # What dead and dropped rows had goes no further.
        columns[name] = codes.compact(columns[name])
    pseudonyms = _take_pseudonyms(columns.pop("privacy_id"), order)
    others = {name: column.take(pa.array(order)) for name, column in columns.items()}
    ordered = pa.table({"privacy_id": pseudonyms, **others}).select(names)
    first = np.r_[0, np.cumsum(np.bincount(bucket, minlength=buckets))]
    for key in np.flatnonzero(np.diff(first)):
        yield int(key), ordered.slice(first[key], first[key + 1] - first[key])


def _take_pseudonyms(pseudonyms: pa.FixedSizeBinaryArray, order: np.ndarray) -> pa.FixedSizeBinaryArray:
    """As Arrow's own take, which is four times slower."""
    whole = np.frombuffer(pseudonyms.buffers()[1], "V16")[pseudonyms.offset :]
    return pa.FixedSizeBinaryArray.from_buffers(events.PSEUDONYM, len(order), [None, pa.py_buffer(whole[order].view(np.uint8))])


def join(batches: Iterable[pa.Table]) -> pa.Table:
    """Joins a bucket's batches into one table of BUCKET_EVENTS, but each of _PLACES a dictionary without any value twice."""
    parts = [BUCKET_EVENTS.empty_table(), *batches]
    joined = pa.concat_tables([part.drop_columns(list(_REPETITIVE)) for part in parts], promote_options="default")
    joined = joined.set_column(
        joined.column_names.index("privacy_id"), "privacy_id", joined["privacy_id"].combine_chunks().dictionary_encode()
    )
    for name in _REPETITIVE:
        joined = joined.append_column(name, codes.unify([part[name].combine_chunks() for part in parts]))
    return joined.select(BUCKET_EVENTS.names)


def drop_repeats(batch: pa.Table) -> pa.Table:
    """Keeps one row of each (privacy_id, event_id): the first in order of its other columns. No event_id: no repeat.

    Args:
        batch: as `join` makes it.
    """
    named = batch["event_id"].is_valid().to_numpy()
    event_ids = pc.fill_null(batch["event_id"], 0).to_numpy()
    names = hashing.mix(event_ids ^ hashing.mix(codes.codes(batch, "privacy_id").astype(np.uint64)))
    sorted_names = np.sort(names[named])
    twice = sorted_names[1:][sorted_names[1:] == sorted_names[:-1]]
    if not len(twice):
        return batch
    suspects = np.flatnonzero(named & np.isin(names, twice))
    rows = batch.take(pa.array(suspects))
    rows = rows.set_column(1, "privacy_id", pa.array(codes.codes(rows, "privacy_id")))
    for name in _REPETITIVE:
        rows = rows.set_column(rows.column_names.index(name), name, pc.cast(rows[name], pa.string()))
    order = pc.sort_indices(rows, [(name, "ascending") for name in ("privacy_id", *rows.column_names)]).to_numpy()
    user, event_id = (rows[name].to_numpy()[order] for name in ("privacy_id", "event_id"))
    is_repeat = np.r_[False, (user[1:] == user[:-1]) & (event_id[1:] == event_id[:-1])]
    kept = np.ones(batch.num_rows, bool)
    kept[suspects[order[is_repeat]]] = False
    return batch.filter(pa.array(kept))


def merge(batch: pa.Table, event_types: Mapping[str, float]) -> pa.Table:
    """Merges a user's events on the same item and type into one row of CONTRIBUTIONS.

    Args:
        batch: as `join` makes it.
        event_types: the weight of each; an event's own is multiplied by its value, where it has one.
    """
    bits = [max(1, len(codes.values(batch, name)) - 1).bit_length() for name in _PLACES]
    if sum(bits) > 64:
        raise ValueError(f"merge: {batch.num_rows} events are too many for one bucket. Raise runner.buckets.")
    user, item, event_type = (codes.codes(batch, name).astype(np.uint64) for name in _PLACES)
    keys = (user << np.uint64(bits[1] + bits[2])) | (item << np.uint64(bits[2])) | event_type
    if batch["value"].null_count == batch.num_rows:
        keys.sort()
        starts = _starts(keys)
        values = np.ones(len(starts))
    else:
        order = np.argsort(keys)
        keys = keys[order]
        starts = _starts(keys)
        values = np.maximum.reduceat(pc.fill_null(batch["value"], 1.0).to_numpy()[order], starts)
    merged = keys[starts]
    places = [merged >> np.uint64(bits[1] + bits[2]), merged >> np.uint64(bits[2]), merged]
    columns = []
    for name, place, width in zip(_PLACES, places, bits, strict=True):
        code = (place & np.uint64((1 << width) - 1)).astype(np.int32)
        columns.append(pa.DictionaryArray.from_arrays(pa.array(code), codes.values(batch, name)))
    weights = np.array([event_types[name] for name in codes.values(batch, "event_type").to_pylist()], float)
    weight = weights[columns[2].indices.to_numpy()] * values
    return pa.table([*columns, np.diff(starts, append=len(keys)), weight], CONTRIBUTIONS)


def contributions(batches: Iterable[pa.Table], event_types: Mapping[str, float]) -> pa.Table:
    """A bucket's batches as CONTRIBUTIONS."""
    joined = join(batches)
    kept = drop_repeats(joined)
    return merge(kept, event_types).replace_schema_metadata({_REPEATED: str(joined.num_rows - kept.num_rows)})


def repeated(bucket: pa.Table) -> int:
    """How many events of a bucket were dropped as repeats: the operator's. 0 where rows were taken out of the bucket since."""
    return int((bucket.schema.metadata or {}).get(_REPEATED, 0))


def within(rows: pa.Table, column: str, allowed: pa.Array) -> pa.Table:
    """Keeps the rows whose `column` is among `allowed` (public, or released before)."""
    is_allowed = pc.is_in(codes.values(rows, column), value_set=allowed).to_numpy(zero_copy_only=False)
    return rows if is_allowed.all() else rows.filter(pa.array(is_allowed[codes.codes(rows, column)]))


def without(rows: pa.Table, column: str, left_out: pa.Array) -> pa.Table:
    """Leaves out the rows whose `column` is among `left_out`."""
    is_out = pc.is_in(codes.values(rows, column), value_set=left_out).to_numpy(zero_copy_only=False)
    return rows.filter(pa.array(~is_out[codes.codes(rows, column)])) if is_out.any() else rows


def keep_users(
    bucket: pa.Table | spill.Part, rows: pa.Table, users: pa.Array, directory: str | None
) -> Iterator[pa.Table | spill.Part]:
    """Yields a bucket without all others than these users; nothing where nobody is left.

    Args:
        bucket: CONTRIBUTIONS, or where they lie.
        rows: what it holds.
        users: their privacy ids.
        directory: where rows wait for the next step; None: with the runner.
    """
    kept = within(rows, "privacy_id", users)
    if kept.num_rows == rows.num_rows:
        yield bucket
    elif kept.num_rows:
        yield from [kept] if directory is None else spill.write(directory, [kept])


def bound_partitions(rows: pa.Table, partition: Iterable[str], max_partitions_contributed: int, key: bytes) -> pa.Table:
    """Keeps each privacy id's rows in `max_partitions_contributed` partitions, those with the smallest keyed hash.

    Args:
        rows: with at most one row for each privacy id and partition, a user's rows together.
        partition: the columns that name a partition.
        max_partitions_contributed: L0.
        key: of the release (fixed over retries and engines; need not be secret), 32 bytes.
    """
    user = codes.codes(rows, "privacy_id")
    starts = _starts(user)
    sizes = np.diff(starts, append=len(user))
    is_crowded = sizes > max_partitions_contributed
    if not is_crowded.any():
        return rows
    crowded = np.repeat(is_crowded, sizes)
    index, sizes = np.flatnonzero(crowded), sizes[is_crowded]
    hashed = user_hash(codes.values(rows, "privacy_id"))[user[index]]
    for column in partition:
        hashes = keyed_hash.keyed_hash(codes.values(rows, column), key)[:, 0]
        hashed = hashing.mix(hashed ^ hashes[codes.codes(rows, column)[index]])
    kept = ~crowded
    kept[index] = _smallest(hashed, sizes, max_partitions_contributed)
    return rows.filter(pa.array(kept))


def cap_events(rows: pa.Table, max_contributions_per_partition: int) -> pa.Table:
    """Counts at most `max_contributions_per_partition` (Linf) events in each row."""
    capped = pc.min_element_wise(rows["events"], max_contributions_per_partition)
    return rows.set_column(rows.column_names.index("events"), "events", capped)


def merge_event_types(rows: pa.Table) -> pa.Table:
    """CONTRIBUTIONS to one row for each (privacy_id, item_id), with the largest weight."""
    user, item = codes.codes(rows, "privacy_id"), codes.codes(rows, "item_id")
    starts = np.flatnonzero(np.r_[True, (user[1:] != user[:-1]) | (item[1:] != item[:-1])][: len(user)])
    weight = rows["weight"].to_numpy()
    heaviest = np.maximum.reduceat(weight, starts) if len(starts) else weight
    return rows.select(["privacy_id", "item_id"]).take(pa.array(starts)).append_column("weight", [heaviest])


class UserRows(NamedTuple):
    """Users with weights on some items: `privacy_ids` (n_users,) and `weights` csr (n_users, n_items), row for row."""

    privacy_ids: pa.FixedSizeBinaryArray
    weights: sp.csr_matrix


def user_rows(rows: pa.Table, items: pa.Array) -> UserRows:
    """The weights of CONTRIBUTIONS as a matrix: a user's largest weight on an item.

    Args:
        rows: contributions; those on other items are left out.
        items: the columns, in order.
    """
    merged = merge_event_types(within(rows, "item_id", items))
    user = codes.codes(merged, "privacy_id")
    starts = _starts(user)
    columns = pc.fill_null(pc.index_in(codes.values(merged, "item_id"), value_set=items), 0).to_numpy()
    weights = sp.csr_matrix(
        (merged["weight"].to_numpy(), columns[codes.codes(merged, "item_id")], np.r_[starts, len(user)]),
        shape=(len(starts), len(items)),
    )
    return UserRows(codes.values(merged, "privacy_id").take(pa.array(user[starts])), weights)


def items_of_users(rows: pa.Table) -> Iterator[tuple[int, pa.StringArray]]:
    """Yields each user of CONTRIBUTIONS, by the hash of `user_hash`, with its items, each once and in order of their names.

    So what is made of it can hang on that user's own data alone, to the last bit.
    """
    merged = merge_event_types(rows)
    user, items = codes.codes(merged, "privacy_id"), merged["item_id"].combine_chunks()
    starts, hashes = _starts(user), user_hash(codes.values(merged, "privacy_id"))
    for start, end in itertools.pairwise([*starts.tolist(), len(user)]):
        yield int(hashes[user[start]]), items.dictionary.take(items.indices[start:end]).sort()


def _starts(ordered: np.ndarray) -> np.ndarray:
    """Where the runs of equal values start."""
    return np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)])


def _smallest(hashed: np.ndarray, sizes: np.ndarray, limit: int) -> np.ndarray:
    """Which hashes are among the `limit` smallest of their group, bool; groups follow one another, all larger than that."""
    group, starts = np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes), np.cumsum(sizes) - sizes
    if not len(sizes) >> 24:
        # In one go, by the hash's upper 40 bits, unless two of a group agree in them.
        both = (group << np.uint64(40)) | (hashed >> np.uint64(24))
        ordered = np.sort(both)
        if not (ordered[1:] == ordered[:-1]).any():
            return both <= np.repeat(ordered[starts + limit - 1], sizes)
    order = np.lexsort((hashed, group))
    kept = np.zeros(len(hashed), bool)
    kept[order[np.arange(len(order)) - np.repeat(starts, sizes) < limit]] = True
    return kept


def bucket_of(privacy_ids: pa.FixedSizeBinaryArray, buckets: int) -> int:
    """The bucket, of so many, that all these pseudonyms are in."""
    return int(_buckets(privacy_ids[:1], buckets)[0])


def _buckets(privacy_ids: pa.FixedSizeBinaryArray, buckets: int) -> np.ndarray:
    # Numbers of 16 bits are sorted by counting.
    return (user_hash(privacy_ids) % np.uint64(buckets)).astype(np.uint16)


def user_hash(privacy_ids: pa.FixedSizeBinaryArray) -> np.ndarray:
    """The first 8 of each pseudonym's 16 bytes, uint64."""
    words = np.frombuffer(privacy_ids.buffers()[1], "<u8")
    return words[2 * privacy_ids.offset :][: 2 * len(privacy_ids) : 2]


def merge_bucket(
    bucket: tuple[int, Iterable[pa.Table | spill.Part]], event_types: Mapping[str, float], directory: str | None
) -> list[pa.Table] | list[spill.Part]:
    """A grouped bucket as CONTRIBUTIONS, or where they lie."""
    merged = contributions(map(spill.read, bucket[1]), event_types)
    return [merged] if directory is None else spill.write(directory, [merged])


class GroupByUser(beam.PTransform):
    """Shuffles by user bucket. In: tables of BUCKET_EVENTS, not empty; out: CONTRIBUTIONS, one table a non-empty bucket.

    Args:
        buckets: from 1 to 65,536.
        event_types: the weight of each.
        directory: where rows wait for the next step, on a disk that all workers share: the tables that go on are then where
            `spill.read` finds them. None: the runner holds them itself.
    """

    def __init__(self, buckets: int, event_types: Mapping[str, float], directory: str | None = None):
        if not 1 <= buckets <= MAX_BUCKETS:
            raise ValueError(f"GroupByUser: buckets must be in 1..{MAX_BUCKETS}, not {buckets}.")
        super().__init__()
        self.buckets, self.event_types, self.directory = buckets, event_types, directory

    def expand(self, batches: beam.PCollection[pa.Table]) -> beam.PCollection[pa.Table | spill.Part]:
        return batches | "Split" >> self.split() | "Merge" >> self.merge()

    def split(self) -> beam.PTransform:
        """The first half of it: out come rows, or where they lie, by bucket."""
        split: Callable[[pa.Table, int], Iterable[tuple[int, Any]]] = split_by_bucket
        if self.directory is not None:
            split = functools.partial(spill_by_bucket, directory=self.directory)
        pair: Any = tuple[int, self._part]  # type: ignore[name-defined]
        return "SplitByBucket" >> beam.ParDo(threads.FlatMapOnThreads(split), self.buckets).with_output_types(pair)

    def merge(self) -> beam.PTransform:
        """The second half."""
        merge = functools.partial(merge_bucket, directory=self.directory)
        return "GroupByBucket" >> beam.GroupByKey() | "DropRepeatsAndMerge" >> beam.ParDo(
            threads.FlatMapOnThreads(merge), self.event_types
        ).with_output_types(self._part)

    @property
    def _part(self) -> type[Any]:
        return pa.Table if self.directory is None else spill.Part
