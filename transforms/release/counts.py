"""Users and events by item and event type, through PipelineDP's engine."""

import dataclasses
import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import pipeline_dp
import pyarrow as pa
from pipeline_dp import report_generator
from scipy import stats

from data import tables
from transforms import bounding
from transforms.privacy import accountant, budget

_Z95 = float(stats.norm.ppf(0.975))

Row = tuple[bytes, tuple[str, str]]
"""(privacy_id, partition_key); the partition key is (item_id, event_type)."""


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
    rows = bounding.bound_partitions(rows, ["item_id", "event_type"], params.max_partitions_contributed, key)
    return bounding.cap_events(rows, params.max_contributions_per_partition)


def explode(rows: pa.Table) -> Iterator[Row]:
    """Yields a Row for each event: PipelineDP counts Python tuples."""
    columns = (rows[name].to_pylist() for name in bounding.CONTRIBUTIONS.names[:4])
    for privacy_id, item_id, event_type, events in zip(*columns, strict=True):
        for _ in range(events):
            yield privacy_id, (item_id, event_type)


def count_table(counted: Iterable[tuple[tuple[str, str], Any]], params: CountParams) -> pa.Table:
    """Joins PipelineDP's noisy metrics into a table of data.tables.ITEM_COUNTS, with 95 % intervals from the noise."""
    rows = [(*partition, metrics.privacy_id_count, metrics.count) for partition, metrics in sorted(counted)]
    users_margin, events_margin = _Z95 * params.users.noise_sd, _Z95 * params.events.noise_sd
    columns = {
        "window_start": [params.window_start] * len(rows),
        "window_end": [params.window_end] * len(rows),
        "item_id": [row[0] for row in rows],
        "event_type": [row[1] for row in rows],
        "users": [round(row[2]) for row in rows],
        "events": [round(row[3]) for row in rows],
        "users_low": [row[2] - users_margin for row in rows],
        "users_high": [row[2] + users_margin for row in rows],
        "events_low": [row[3] - events_margin for row in rows],
        "events_high": [row[3] + events_margin for row in rows],
    }
    return pa.table(columns, tables.ITEM_COUNTS)


class ReleaseCounts(beam.PTransform):
    """Releases noisy numbers of users and events for every released item and configured event type.

    Unit of protection: one privacy id with everything it did, added or removed. Mechanisms: two Gaussians (PipelineDP's
    PRIVACY_ID_COUNT and COUNT), L2 sensitivities sqrt(L0) and sqrt(L0) * Linf. The partitions are public or released before:
    where no items were released (a refused budget), nothing is counted.

    In: tables of CONTRIBUTIONS, one a bucket. Out: one table of data.tables.ITEM_COUNTS. `report` explains it.
    """

    def __init__(self, params: CountParams, items: beam.PCollection[pa.Table], key: bytes):
        super().__init__()
        self._params, self._items, self._key = params, items, key
        self.report = report_generator.ExplainComputationReport()

    def expand(self, buckets: beam.PCollection[pa.Table]) -> beam.PCollection[pa.Table]:
        params, key = self._params, self._key
        planned = {"Count": params.events.noise_multiplier, "PrivacyIdCount": params.users.noise_multiplier}
        accounting = accountant.PlannedAccountant(params.total, planned)
        engine = pipeline_dp.DPEngine(accounting, pipeline_dp.BeamBackend())
        partitions = self._items | "Partitions" >> beam.FlatMap(_partitions, params.event_types).with_output_types(
            tuple[str, str]
        )
        rows = buckets | "BoundedEvents" >> beam.FlatMap(
            lambda rows, items: (row for table in items for row in explode(bounded_rows(rows, params, table, key))),
            beam.pvalue.AsIter(self._items),
        ).with_output_types(Row)
        # rows: (privacy_id, partition_key)
        counted = engine.aggregate(
            rows,
            pipeline_dp.AggregateParams(
                metrics=[pipeline_dp.Metrics.COUNT, pipeline_dp.Metrics.PRIVACY_ID_COUNT],
                noise_kind=pipeline_dp.NoiseKind.GAUSSIAN,
                max_partitions_contributed=params.max_partitions_contributed,
                max_contributions_per_partition=params.max_contributions_per_partition,
                public_partitions_already_filtered=True,
            ),
            pipeline_dp.DataExtractors(
                privacy_id_extractor=lambda row: row[0],
                partition_extractor=lambda row: row[1],
                value_extractor=lambda row: 0,
            ),
            public_partitions=partitions,
            out_explain_computation_report=self.report,
        )
        accounting.compute_budgets()
        # counted: (partition_key, metrics)
        return (
            counted
            | "ToList" >> beam.combiners.ToList()
            | "CountTable" >> beam.Map(count_table, params).with_output_types(pa.Table)
        )


def _partitions(items: pa.Table, event_types: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((item_id, event_type) for item_id in items["item_id"].to_pylist() for event_type in event_types)
