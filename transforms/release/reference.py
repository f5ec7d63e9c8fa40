"""The same releases through PipelineDP's own engine: the measure for ours.

Counts take a Python tuple an event (COUNT and PRIVACY_ID_COUNT), co-occurrence a dense vector a user (VECTOR_SUM): right for
small data and some hundred items.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pipeline_dp
import pyarrow as pa
from pipeline_dp import aggregate_params, report_generator

from data import tables
from transforms import bounding, spill
from transforms.privacy import accountant, budget
from transforms.release import cooccurrence, counts

Row = tuple[bytes, tuple[str, str]]
"""(privacy_id, partition_key) of one event; the partition key is (item_id, event_type)."""

MAX_ITEMS = 300
_PARTITION = "all"
_NOBODY = b""
"""A reserved privacy id with a zero vector: the partition is released whether anybody is in it or not."""


def explode(rows: pa.Table) -> Iterator[Row]:
    """Yields a Row for each event: PipelineDP counts Python tuples."""
    columns = (rows[name].to_pylist() for name in bounding.CONTRIBUTIONS.names[:4])
    for privacy_id, item_id, event_type, events in zip(*columns, strict=True):
        for _ in range(events):
            yield privacy_id, (item_id, event_type)


def metrics_table(counted: Iterable[tuple[tuple[str, str], Any]], params: counts.CountParams) -> pa.Table:
    """Joins PipelineDP's noisy metrics into a table of data.tables.ITEM_COUNTS."""
    rows = list(counted)
    partitions = {name: [partition[i] for partition, _ in rows] for i, name in enumerate(("item_id", "event_type"))}
    users, events = [metrics.privacy_id_count for _, metrics in rows], [metrics.count for _, metrics in rows]
    return counts.count_table(pa.table(partitions), users, events, params)


class ReleaseReferenceCounts(beam.PTransform):
    """Releases noisy numbers of users and events with PipelineDP's own bounding and noise.

    Unit of protection, mechanisms, input and output are those of ReleaseCounts. PipelineDP bounds rows that are bounded
    already, and so drops none.
    """

    def __init__(self, params: counts.CountParams, items: beam.PCollection[pa.Table], key: bytes):
        super().__init__()
        self._params, self._items, self._key = params, items, key
        self._report = report_generator.ExplainComputationReport()

    def report(self) -> str:
        """What is planned, and PipelineDP's own explanation, which is there once the transform is applied."""
        return f"{counts.ReleaseCounts(self._params, self._items, self._key).report()}\nPipelineDP says:\n{self._report.text()}"

    def expand(self, buckets: beam.PCollection[pa.Table | spill.Part]) -> beam.PCollection[pa.Table]:
        params, key = self._params, self._key
        planned = {"Count": params.events.noise_multiplier, "PrivacyIdCount": params.users.noise_multiplier}
        accounting = accountant.PlannedAccountant(params.total, planned)
        engine = pipeline_dp.DPEngine(accounting, pipeline_dp.BeamBackend())
        partitions = self._items | "Partitions" >> beam.FlatMap(_partitions, params.event_types).with_output_types(
            tuple[str, str]
        )
        rows = buckets | "BoundedEvents" >> beam.FlatMap(
            lambda rows, items: (
                row for table in items for row in explode(counts.bounded_rows(spill.read(rows), params, table, key))
            ),
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
            out_explain_computation_report=self._report,
        )
        accounting.compute_budgets()
        # counted: (partition_key, metrics)
        return (
            counted
            | "ToList" >> beam.combiners.ToList()
            | "CountTable"
            >> beam.FlatMap(
                lambda counted, items: [metrics_table(counted, params) for _ in items], beam.pvalue.AsIter(self._items)
            ).with_output_types(pa.Table)
        )


def _partitions(items: pa.Table, event_types: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((item_id, event_type) for item_id in items["item_id"].to_pylist() for event_type in event_types)


def vector_size(n_items: int) -> int:
    """Cells of the upper triangle with its diagonal."""
    return n_items * (n_items + 1) // 2


def user_vectors(rows: pa.Table, items: pa.Table, n_items: int) -> Iterator[tuple[bytes, np.ndarray]]:
    """Yields (privacy_id, vector) for each user of a bucket: (diagonal, sqrt(2) * upper triangle) of the outer product.

    The rows are those of the exact engine, as floats; `n_items` pads to the fixed vector size.
    """
    users = bounding.user_rows(rows, cooccurrence.kept_items(items))
    quantised = cooccurrence.quantise_rows(users.weights)
    dense = np.zeros((quantised.shape[0], n_items))
    dense[:, : quantised.shape[1]] = quantised.toarray() * 2.0**-cooccurrence.ROW_BITS
    upper = np.triu_indices(n_items, 1)
    for privacy_id, row in zip(users.privacy_ids.to_pylist(), dense, strict=True):
        yield privacy_id, np.r_[row * row, math.sqrt(2) * row[upper[0]] * row[upper[1]]]


def pair_table(vector: np.ndarray, items: pa.Table, n_items: int) -> pa.Table:
    """Turns a noisy vector back into a table of data.tables.ITEM_PAIRS, the padding left out."""
    matrix = np.diag(vector[:n_items])
    matrix[np.triu_indices(n_items, 1)] = vector[n_items:] / math.sqrt(2)
    row, col = np.triu_indices(len(cooccurrence.kept_items(items)))
    return pa.table([row.astype(np.int32), col.astype(np.int32), matrix[row, col]], schema=tables.ITEM_PAIRS)


class ReleaseReferenceCooccurrence(beam.PTransform):
    """Releases the noisy co-occurrence of the kept items with PipelineDP's own bounding and noise.

    Unit of protection, mechanism, input and output are those of ReleaseCooccurrence.
    """

    def __init__(self, mechanism: budget.Mechanism, items: beam.PCollection[pa.Table], total: budget.Budget, max_items: int):
        if not 1 <= max_items <= MAX_ITEMS:
            raise ValueError(
                f"ReleaseReferenceCooccurrence: max_items must be in 1..{MAX_ITEMS}, not {max_items}: each user is a dense "
                "vector. The exact engine takes more."
            )
        super().__init__()
        self._mechanism, self._items, self._total, self._max_items = mechanism, items, total, max_items
        self._report = report_generator.ExplainComputationReport()

    def report(self) -> str:
        """What is planned, and PipelineDP's own explanation, which is there once the transform is applied."""
        planned = cooccurrence.ReleaseCooccurrence(self._mechanism, self._items).report()
        return f"{planned}\nPipelineDP says:\n{self._report.text()}"

    def expand(self, buckets: beam.PCollection[pa.Table | spill.Part]) -> beam.PCollection[pa.Table]:
        n_items = self._max_items
        accounting = accountant.PlannedAccountant(self._total, {"VectorSum": self._mechanism.noise_multiplier})
        engine = pipeline_dp.DPEngine(accounting, pipeline_dp.BeamBackend())
        users = buckets | "UserVectors" >> beam.FlatMap(
            lambda rows, items: (user for table in items for user in user_vectors(spill.read(rows), table, n_items)),
            beam.pvalue.AsIter(self._items),
        ).with_output_types(tuple[bytes, np.ndarray])
        nobody = self._items | "Nobody" >> beam.Map(lambda _: (_NOBODY, np.zeros(vector_size(n_items)))).with_output_types(
            tuple[bytes, np.ndarray]
        )
        # users: (privacy_id, value)
        summed = engine.aggregate(
            (users, nobody) | "WithNobody" >> beam.Flatten(),
            pipeline_dp.AggregateParams(
                metrics=[pipeline_dp.Metrics.VECTOR_SUM],
                noise_kind=pipeline_dp.NoiseKind.GAUSSIAN,
                max_partitions_contributed=1,
                max_contributions_per_partition=1,
                vector_norm_kind=aggregate_params.NormKind.L2,
                vector_max_norm=1.0,
                vector_size=vector_size(n_items),
                # The one partition is public and never empty. Named as public, PipelineDP 0.3.1 would add an empty
                # accumulator to it, which VECTOR_SUM can't take.
                public_partitions_already_filtered=True,
            ),
            pipeline_dp.DataExtractors(
                privacy_id_extractor=lambda user: user[0],
                partition_extractor=lambda user: _PARTITION,
                value_extractor=lambda user: user[1],
            ),
            out_explain_computation_report=self._report,
        )
        accounting.compute_budgets()
        # summed: (partition_key, metrics)
        return summed | "PairTable" >> beam.FlatMap(
            lambda partition, items: [pair_table(partition[1].vector_sum, table, n_items) for table in items],
            beam.pvalue.AsIter(self._items),
        ).with_output_types(pa.Table)
