"""Users and events by item and event type: exact sums by columns, then PipelineDP's Gaussian mechanism on each."""

import dataclasses
import datetime as dt
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
from pipeline_dp import dp_computations

from data import tables
from transforms import bounding, spill, threads
from transforms.privacy import budget, noise

EXACT_COUNTS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("event_type", pa.string(), nullable=False),
        pa.field("users", pa.int64(), nullable=False),
        pa.field("events", pa.int64(), nullable=False),
    ]
)
"""The private side of data.tables.ITEM_COUNTS."""

_PARTITION = ["item_id", "event_type"]


@dataclasses.dataclass(frozen=True)
class CountParams:
    """How counts are bounded and protected.

    Attributes:
        total: the whole release's budget.
        users, events: the mechanisms; their L2 sensitivities are sqrt(L0) and sqrt(L0) * Linf.
        max_partitions_contributed: L0 over (item_id, event_type).
        max_contributions_per_partition: Linf, events of a user in a partition.
        event_types: public; with the released items they are the partitions.
        window_start, window_end: of the release.
    """

    total: budget.Budget
    users: budget.Mechanism
    events: budget.Mechanism
    max_partitions_contributed: int
    max_contributions_per_partition: int
    event_types: Sequence[str]
    window_start: dt.datetime
    window_end: dt.datetime


def bounded_rows(rows: pa.Table, params: CountParams, items: pa.Table, key: bytes) -> pa.Table:
    """CONTRIBUTIONS on released items, each user bounded to L0 partitions and Linf events in each."""
    rows = bounding.within(rows, "item_id", items["item_id"].combine_chunks())
    rows = bounding.bound_partitions(rows, _PARTITION, params.max_partitions_contributed, key)
    return bounding.cap_events(rows, params.max_contributions_per_partition)


def exact_counts(rows: pa.Table) -> pa.Table:
    """Counts a bucket's bounded CONTRIBUTIONS: a table of EXACT_COUNTS, the partitions that somebody is in."""
    items, types = (rows[name].combine_chunks() for name in _PARTITION)
    partition = items.indices.to_numpy() * np.int64(len(types.dictionary)) + types.indices.to_numpy()
    users = np.bincount(partition)
    # Sums of integers below 2^53, which doubles hold.
    events = np.bincount(partition, rows["events"].to_numpy()).astype(np.int64)
    found = np.flatnonzero(users)
    item, event_type = np.divmod(found, max(1, len(types.dictionary)))
    names = [items.dictionary.take(pa.array(item)), types.dictionary.take(pa.array(event_type))]
    return pa.table([*names, users[found], events[found]], EXACT_COUNTS)


def empty_counts(items: pa.Table, event_types: Sequence[str]) -> pa.Table:
    """A zero for every partition: each is released whether anybody is in it or not."""
    item_ids = items["item_id"].to_pylist()
    zeros = np.zeros(len(item_ids) * len(event_types), np.int64)
    columns = [np.repeat(np.array(item_ids, object), len(event_types)), list(event_types) * len(item_ids), zeros, zeros]
    return pa.table([pa.array(column) for column in columns], EXACT_COUNTS)


def add_counts(parts: Iterable[pa.Table]) -> pa.Table:
    """Adds up tables of EXACT_COUNTS."""
    joined = pa.concat_tables([EXACT_COUNTS.empty_table(), *parts])
    added = joined.group_by(_PARTITION, use_threads=False).aggregate([("users", "sum"), ("events", "sum")])
    return added.rename_columns(EXACT_COUNTS.names).cast(EXACT_COUNTS)


def gaussian(mechanism: budget.Mechanism) -> dp_computations.GaussianMechanism:
    """PipelineDP's mechanism with the planned noise: Google's secure sampler, rounded against floating-point attacks."""
    return dp_computations.GaussianMechanism.create_from_std_deviation(mechanism.noise_multiplier, mechanism.l2_sensitivity)


def release_counts(exact: pa.Table, items: pa.Table, params: CountParams) -> pa.Table:
    """Adds noise to every partition of the released items: a table of data.tables.ITEM_COUNTS."""
    counted = add_counts([exact, empty_counts(items, params.event_types)])
    users, events = gaussian(params.users), gaussian(params.events)
    noisy_users = [users.add_noise(count) for count in counted["users"].to_pylist()]
    noisy_events = [events.add_noise(count) for count in counted["events"].to_pylist()]
    return count_table(counted.select(_PARTITION), noisy_users, noisy_events, params)


def count_table(partitions: pa.Table, users: Sequence[float], events: Sequence[float], params: CountParams) -> pa.Table:
    """Joins noisy counts into a table of data.tables.ITEM_COUNTS, with 95 % intervals from the noise, in order of partition."""
    n = partitions.num_rows
    columns = {
        "window_start": pa.array([params.window_start] * n, tables.ITEM_COUNTS.field("window_start").type),
        "window_end": pa.array([params.window_end] * n, tables.ITEM_COUNTS.field("window_start").type),
        "item_id": partitions["item_id"],
        "event_type": partitions["event_type"],
    }
    for name, values, mechanism in (("users", users, params.users), ("events", events, params.events)):
        noisy, margin = np.rint(np.array(values, np.float64)), noise.Z95 * mechanism.noise_sd
        columns |= {name: noisy.astype(np.int64), f"{name}_low": noisy - margin, f"{name}_high": noisy + margin}
    table = pa.table(columns).select(tables.ITEM_COUNTS.names).cast(tables.ITEM_COUNTS)
    return table.sort_by([(name, "ascending") for name in _PARTITION])


class ReleaseCounts(beam.PTransform):
    """Releases noisy numbers of users and events for every released item and configured event type.

    Unit of protection: one privacy id with everything it did, added or removed. Mechanisms: two Gaussians, L2 sensitivities
    sqrt(L0) and sqrt(L0) * Linf. The partitions are public or released before: where no items were released (a refused
    budget), nothing is counted.

    In: CONTRIBUTIONS, one table a bucket, or where it lies. Out: one table of data.tables.ITEM_COUNTS for each table of items.
    """

    def __init__(self, params: CountParams, items: beam.PCollection[pa.Table], key: bytes):
        super().__init__()
        self._params, self._items, self._key = params, items, key

    def report(self) -> str:
        """Says how the numbers are made."""
        params = self._params
        return (
            f"Each user is bounded to {params.max_partitions_contributed} partitions (item, event type), chosen by a keyed "
            f"hash, and {params.max_contributions_per_partition} events in each.\n"
            f"users: {gaussian(params.users).describe()}\n"
            f"events: {gaussian(params.events).describe()}"
        )

    def expand(self, buckets: beam.PCollection[pa.Table | spill.Part]) -> beam.PCollection[pa.Table]:
        params, key = self._params, self._key

        def bound_and_count(rows: pa.Table | spill.Part, items: list[pa.Table]) -> Iterator[pa.Table]:
            return (exact_counts(bounded_rows(spill.read(rows), params, table, key)) for table in items)

        return (
            buckets
            | "BoundAndCount"
            >> beam.ParDo(threads.FlatMapOnThreads(bound_and_count), beam.pvalue.AsList(self._items)).with_output_types(
                pa.Table
            )
            | "AddCounts" >> beam.CombineGlobally(add_counts)
            | "AddNoise"
            >> beam.FlatMap(
                lambda exact, items: [release_counts(exact, table, params) for table in items],
                beam.pvalue.AsIter(self._items),
            ).with_output_types(pa.Table)
        )
