"""What one privacy id can change: repeats dropped, events merged, partitions bounded.

Every function here looks at one privacy id at a time: whether and how a user counts never depends on anybody else. The
choice of what to keep is a keyed hash of the user's own data, so every retry, runner and block sees the same rows.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from data import events
from transforms import coders

CONTRIBUTIONS = pa.schema(
    [
        pa.field("privacy_id", events.PSEUDONYM, nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("event_type", pa.string(), nullable=False),
        # how many events
        pa.field("events", pa.int64(), nullable=False),
        # the largest weight of any of them
        pa.field("weight", pa.float64(), nullable=False),
    ]
)
"""One row for each (privacy_id, item_id, event_type) of a user bucket."""

BUCKET_EVENTS = pa.schema(
    [events.EVENTS.field(name) for name in ("event_id", "privacy_id", "item_id", "event_type")]
    + [pa.field("weight", pa.float64(), nullable=False)]
)
"""What travels to a user's bucket: of ingest's events, the fields that counting needs."""

beam.coders.registry.register_coder(pa.Table, coders.TableCoder)

_REPETITIVE = ("item_id", "event_type")
"""Columns with few distinct values, which travel as a dictionary."""


def split_by_bucket(batch: pa.Table, buckets: int) -> Iterator[tuple[int, pa.Table]]:
    """Yields (bucket, rows), all rows of one privacy id in one bucket."""
    batch = batch.select(BUCKET_EVENTS.names).combine_chunks()
    for name in _REPETITIVE:
        batch = batch.set_column(batch.column_names.index(name), name, batch[name].dictionary_encode())
    bucket = (_user_hash(batch["privacy_id"].combine_chunks()) % np.uint64(buckets)).astype(np.int64)
    batch = batch.take(pa.array(np.argsort(bucket, kind="stable")))
    sizes = np.bincount(bucket, minlength=buckets)
    starts = np.cumsum(sizes) - sizes
    for key in np.flatnonzero(sizes):
        yield int(key), batch.slice(int(starts[key]), int(sizes[key]))


def drop_repeats(batch: pa.Table) -> pa.Table:
    """Keeps one row of each (privacy_id, event_id): the first in order of its other columns. No event_id: no repeat."""
    codes = pc.fill_null(batch["event_id"].combine_chunks().dictionary_encode().indices, -1).to_numpy()
    repeated = (codes >= 0) & (np.bincount(codes + 1)[codes + 1] > 1) if len(codes) else np.zeros(0, bool)
    if not repeated.any():
        return batch
    # Of two users the same event_id is no repeat; only where one occurs twice at all is it worth sorting.
    named = batch.filter(pa.array(repeated))
    order = ["privacy_id", "event_id", "item_id", "event_type", "weight"]
    named = named.sort_by([(name, "ascending") for name in order])
    ids, event_ids = (named[name].combine_chunks().dictionary_encode().indices for name in order[:2])
    first = np.r_[True, (np.diff(ids) != 0) | (np.diff(event_ids) != 0)]
    return pa.concat_tables([named.filter(pa.array(first)), batch.filter(pa.array(~repeated))])


def contributions(batch: pa.Table) -> pa.Table:
    """Merges a user's events on the same item and type into one row of CONTRIBUTIONS."""
    keys = ["privacy_id", "item_id", "event_type"]
    merged = batch.group_by(keys, use_threads=False).aggregate([([], "count_all"), ("weight", "max")])
    return merged.select([*keys, "count_all", "weight_max"]).rename_columns(CONTRIBUTIONS.names).cast(CONTRIBUTIONS)


def bucket_contributions(bucket: tuple[int, Iterable[pa.Table]]) -> pa.Table:
    """Joins a bucket's batches into its CONTRIBUTIONS."""
    return contributions(drop_repeats(pa.concat_tables(batch.cast(BUCKET_EVENTS) for batch in bucket[1])))


def within(rows: pa.Table, column: str, allowed: pa.Array) -> pa.Table:
    """Keeps the rows whose `column` is among `allowed` (public, or released before)."""
    return rows.filter(pc.is_in(rows[column], value_set=allowed))


def bound_partitions(rows: pa.Table, partition: Iterable[str], max_partitions_contributed: int, key: bytes) -> pa.Table:
    """Keeps each privacy id's rows in `max_partitions_contributed` partitions, those with the smallest keyed hash.

    Args:
        rows: with at most one row for each privacy id and partition.
        partition: the columns that name a partition.
        max_partitions_contributed: L0.
        key: of the release (fixed over retries and engines; need not be secret).
    """
    codes = rows["privacy_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    crowded = np.bincount(codes)[codes] > max_partitions_contributed if len(codes) else np.zeros(0, bool)
    if not crowded.any():
        return rows
    index = np.flatnonzero(crowded)
    chosen, codes = rows.take(pa.array(index)), codes[index]
    hashed = _user_hash(chosen["privacy_id"].combine_chunks())
    for column in partition:
        hashed = _mix(hashed ^ _hash_strings(chosen[column], key))
    order = np.lexsort((hashed, codes))
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    kept = ~crowded
    kept[index[order[rank < max_partitions_contributed]]] = True
    return rows.filter(pa.array(kept))


def cap_events(rows: pa.Table, max_contributions_per_partition: int) -> pa.Table:
    """Counts at most `max_contributions_per_partition` (Linf) events in each row."""
    capped = pc.min_element_wise(rows["events"], max_contributions_per_partition)
    return rows.set_column(rows.column_names.index("events"), "events", capped)


def _user_hash(privacy_ids: pa.FixedSizeBinaryArray) -> np.ndarray:
    """The first 8 of each pseudonym's 16 bytes, uint64."""
    words = np.frombuffer(privacy_ids.buffers()[1], "<u8")
    return words[2 * privacy_ids.offset :][: 2 * len(privacy_ids) : 2]


def _hash_strings(column: pa.ChunkedArray, key: bytes) -> np.ndarray:
    """Keyed BLAKE2b of each distinct string, uint64, one a row."""
    encoded = column.combine_chunks().dictionary_encode()
    hashes = [
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "little")
        for text in encoded.dictionary.to_pylist()
    ]
    return np.array(hashes, np.uint64)[encoded.indices.to_numpy()]


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every input bit changes half of the output bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


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
    rows = within(rows, "item_id", items)
    merged = rows.group_by(["privacy_id", "item_id"], use_threads=False).aggregate([("weight", "max")])
    users = merged["privacy_id"].combine_chunks().dictionary_encode()
    columns = pc.index_in(merged["item_id"], value_set=items).combine_chunks()
    weights = sp.csr_matrix(
        (merged["weight_max"].to_numpy(), (users.indices.to_numpy(), columns.to_numpy())),
        shape=(len(users.dictionary), len(items)),
    )
    return UserRows(users.dictionary, weights)


class GroupByUser(beam.PTransform):
    """Shuffles by user bucket. In: tables of BUCKET_EVENTS; out: one table of CONTRIBUTIONS a non-empty bucket."""

    def __init__(self, buckets: int):
        if buckets < 1:
            raise ValueError(f"GroupByUser: buckets must be at least 1, not {buckets}.")
        super().__init__()
        self.buckets = buckets

    def expand(self, batches: beam.PCollection[pa.Table]) -> beam.PCollection[pa.Table]:
        return (
            batches
            | "SplitByBucket" >> beam.FlatMap(split_by_bucket, self.buckets).with_output_types(tuple[int, pa.Table])
            | "GroupByBucket" >> beam.GroupByKey()
            | "DropRepeatsAndMerge" >> beam.Map(bucket_contributions).with_output_types(pa.Table)
        )
