"""Counts, from a Parquet file to the released table: ours against plain PipelineDP, events a second, in one run.

    python -m tests.bench.counts --events 5000000 --sample 200000

Both read the same kind of file, on the DirectRunner, one process; the time of an empty pipeline is taken off both. Ours
validates and pseudonymises each event, drops repeats and bounds by keyed hash; plain PipelineDP reads the file's rows as Python
tuples and does its own bounding.
"""

import argparse
import datetime as dt
import json
import math
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Callable

import apache_beam as beam
import numpy as np
import pipeline_dp
import pyarrow as pa
import pyarrow.parquet as pq

from data import tables
from runners import direct
from transforms import bounding, coders
from transforms.ingest import decode, events, sources
from transforms.privacy import budget
from transforms.release import counts

L0, LINF, ITEMS = 20, 2, 2000
START, END = dt.datetime(2025, 1, 1, tzinfo=dt.UTC), dt.datetime(2025, 2, 1, tzinfo=dt.UTC)


def write_events(path: pathlib.Path, n: int) -> None:
    """Writes n events of n / 50 users on 2,000 items, Zipf, a million at a time."""
    rng = np.random.default_rng(0)
    span = int((END - START).total_seconds() * 1e6)
    writer = None
    for first in range(0, n, 1_000_000):
        size = min(1_000_000, n - first)
        times = int(START.timestamp() * 1e6) + rng.integers(0, span, size)
        columns = {
            "event_id": pa.array(np.arange(first, first + size)).cast(pa.string()),
            "privacy_id": pa.array(rng.integers(0, max(1, n // 50), size)).cast(pa.string()),
            "item_id": pa.array(rng.zipf(1.2, size) % ITEMS).cast(pa.string()),
            "event_type": pa.array(np.array(["view", "buy"], object)[(rng.random(size) < 0.2).astype(int)]),
            "event_time": pa.array(times).cast(pa.timestamp("us", "UTC")),
        }
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=250_000)
    if writer:
        writer.close()


def params() -> counts.CountParams:
    users = budget.Mechanism(budget.COUNTS_USERS, 5.0, math.sqrt(L0))
    per_event = budget.Mechanism(budget.COUNTS_EVENTS, 5.0, math.sqrt(L0) * LINF)
    return counts.CountParams(budget.Budget(1.0, 1e-6), users, per_event, L0, LINF, ["buy", "view"], START, END)


def ours(path: pathlib.Path, directory: str, pipeline: beam.Pipeline) -> None:
    names = ["event_id", "privacy_id", "item_id", "event_type", "event_time"]
    rules = decode.EventRules({name: name for name in names}, {"view": 1.0, "buy": 1.0}, START, END, dt.datetime.now(dt.UTC))
    catalogue = pa.array(map(str, range(ITEMS)), pa.string())
    items = pa.table([catalogue, np.ones(ITEMS), pa.nulls(ITEMS, pa.int32())], schema=tables.ITEMS)
    fragments = sources.find_fragments("parquet", [str(path)], names)
    ingested = pipeline | events.IngestEvents(
        fragments, events.ReadAndDecode(events.Decoding(rules, bytes(32), None, catalogue, names[:-1]))
    )
    known = pipeline | "Items" >> beam.Create([items])
    group = bounding.GroupByUser(bounding.buckets_for(sum(part.rows for part in fragments)), rules.event_types, directory)
    _ = ingested.events | group | counts.ReleaseCounts(params(), known, bytes(32))


def plain(path: pathlib.Path, pipeline: beam.Pipeline) -> None:
    accountant = pipeline_dp.NaiveBudgetAccountant(1.0, 1e-6)
    rows = pipeline | beam.io.ReadFromParquet(str(path))
    _ = pipeline_dp.DPEngine(accountant, pipeline_dp.BeamBackend()).aggregate(
        rows,
        pipeline_dp.AggregateParams(
            metrics=[pipeline_dp.Metrics.COUNT, pipeline_dp.Metrics.PRIVACY_ID_COUNT],
            noise_kind=pipeline_dp.NoiseKind.GAUSSIAN,
            max_partitions_contributed=L0,
            max_contributions_per_partition=LINF,
        ),
        pipeline_dp.DataExtractors(
            privacy_id_extractor=lambda row: row["privacy_id"],
            partition_extractor=lambda row: (row["item_id"], row["event_type"]),
            value_extractor=lambda row: 0,
        ),
        public_partitions=[(str(i), kind) for i in range(ITEMS) for kind in ("view", "buy")],
    )
    accountant.compute_budgets()


def shuffle_bytes(path: pathlib.Path) -> float:
    """Bytes an event takes from ingest to bounding, of the first million."""
    names = ["event_id", "privacy_id", "item_id", "event_type", "event_time"]
    rules = decode.EventRules({name: name for name in names}, {"view": 1.0, "buy": 1.0}, START, END, dt.datetime.now(dt.UTC))
    fragment = sources.find_fragments("parquet", [str(path)], names)[0]
    batch = decode.Decoder(rules, bytes(32)).decode(str(path), next(sources.read(fragment, names))).events
    encoded = [coders.TableCoder().encode(part) for _, part in bounding.split_by_bucket(batch, 16)]
    return sum(map(len, encoded)) / batch.num_rows


def seconds(build: Callable[[beam.Pipeline], None]) -> float:
    start = time.perf_counter()
    with beam.Pipeline(options=direct.options([])) as pipeline:
        build(pipeline)
    return time.perf_counter() - start


def seconds_of_ours(path: pathlib.Path) -> float:
    """With the files in which events wait, as a job has them."""
    with tempfile.TemporaryDirectory() as directory:
        return seconds(lambda pipeline: ours(path, directory, pipeline))


def against_plain(directory: pathlib.Path, n_events: int, sample: int) -> dict[str, float]:
    """Both in one run, events a second, and what an event takes through the shuffle."""
    seconds(lambda pipeline: None)  # imports and caches
    empty = seconds(lambda pipeline: pipeline | beam.Create([0]) and None)
    path = directory / "events.parquet"
    write_events(path, sample)
    slow = sample / (seconds(lambda pipeline: plain(path, pipeline)) - empty)
    write_events(path, n_events)
    fast = n_events / (min(seconds_of_ours(path) for _ in range(3)) - empty)
    return {
        "plain_events_per_second": round(slow),
        "events_per_second": round(fast),
        "ratio": round(fast / slow, 1),
        "empty_pipeline_seconds": round(empty, 3),
        "shuffle_bytes_per_event": round(shuffle_bytes(path), 1),
    }


def peak_bytes() -> int:
    """Of this process since it started; getrusage would also count the one that started it."""
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    return int(peak) * 1024


def alone(path: pathlib.Path) -> dict[str, float]:
    """Ours on a file: seconds without start-up, and bytes at the peak above those of an empty pipeline."""
    seconds(lambda pipeline: None)
    empty = seconds(lambda pipeline: pipeline | beam.Create([0]) and None)
    before = peak_bytes()
    taken = seconds_of_ours(path) - empty
    return {"seconds": taken, "bytes": peak_bytes() - before}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--sample", type=int, default=200_000, help="events for plain PipelineDP")
    parser.add_argument("--file", type=pathlib.Path, help="only ours, on this file")
    arguments = parser.parse_args(argv)
    if arguments.file:
        print(json.dumps(alone(arguments.file)))
        return
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(against_plain(pathlib.Path(directory), arguments.events, arguments.sample)))


if __name__ == "__main__":
    main(sys.argv[1:])
