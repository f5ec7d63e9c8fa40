"""The whole job, from a Parquet file to the published DuckDB, in a process of its own: seconds of each stage and peak memory.

    python -m tests.bench.whole --events 20000000 --users 1000000 --items 5000

A stage ends with the last line that it logs; the runner takes the buckets' steps one after the other, so they are one stage.
"""

import argparse
import datetime as dt
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transforms.ingest import pseudonym

START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
DAYS = 31

JOB = """
[job]
name = "bench"
data_set = "bench"
store = "{directory}/store"
[source]
kind = "parquet"
paths = ["{directory}/events.parquet"]
columns = {{ event_id = "event_id", event_type = "event_type" }}
event_types = {{ view = 1.0, buy = 2.0 }}
[catalogue]
path = "{directory}/items.parquet"
[privacy]
total_epsilon = 1.0
total_delta = 1e-7
expected_users = {users}
key_file = "{directory}/pseudonym.key"
ledger = "sqlite:///{directory}/ledger.sqlite"
[window]
start = 2025-01-01
end = 2025-02-01
"""

STAGES = (
    ("start", r"releasing "),
    ("read and decode", r"read rows "),
    ("buckets, selection, counts and matrix", r"rows by outcome "),
    ("train", r"trained model "),
)
"""Each with the lines that it logs, in order; what follows the last is publishing."""


def write(directory: pathlib.Path, events: int, users: int, items: int) -> None:
    """Writes the world, its key and the job file."""
    write_job(directory, users, items)
    writer = None
    for table in world(events, users, items):
        writer = writer or pq.ParquetWriter(directory / "events.parquet", table.schema)
        writer.write_table(table, row_group_size=250_000)
    if writer:
        writer.close()


def write_job(directory: pathlib.Path, users: int, items: int) -> None:
    """Writes a catalogue, a key and the job file."""
    titles = pa.array([f"item {i}" for i in range(items)])
    pq.write_table(pa.table({"item_id": [str(i) for i in range(items)], "title": titles}), directory / "items.parquet")
    pseudonym.write_key(directory / "pseudonym.key")
    (directory / "job.toml").write_text(JOB.format(directory=directory, users=users))


def world(events: int, users: int, items: int) -> Iterator[pa.Table]:
    """Yields events of uniform users on Zipf items, a million at a time."""
    rng = np.random.default_rng(0)
    shares = np.cumsum(1 / np.arange(1, items + 1) ** 0.8)
    for first in range(0, events, 1_000_000):
        size = min(1_000_000, events - first)
        times = int(START.timestamp() * 1e6) + rng.integers(0, DAYS * 86_400_000_000, size)
        yield pa.table(
            {
                "event_id": pa.array(np.arange(first, first + size)).cast(pa.string()),
                "privacy_id": pa.array(rng.integers(0, users, size)).cast(pa.string()),
                "item_id": pa.array(np.searchsorted(shares / shares[-1], rng.random(size))).cast(pa.string()),
                "event_type": pa.array(np.array(["view", "buy"], object)[(rng.random(size) < 0.2).astype(int)]),
                "event_time": pa.array(times).cast(pa.timestamp("us", "UTC")),
            }
        )


def run(directory: pathlib.Path) -> dict[str, float]:
    """Runs the job; returns seconds by stage, in all, and gigabytes at the peak."""
    job, environment = str(directory / "job.toml"), {**os.environ, "XDG_STATE_HOME": str(directory)}
    subprocess.run([sys.executable, "-m", "pipelines.cli", "budget", "init", job], check=True, env=environment)
    start = time.perf_counter()
    command = [sys.executable, "-m", "pipelines.cli", "run", job]
    ends: dict[str, float] = {}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr
        for line in process.stderr:
            for stage, pattern in STAGES:
                if re.search(pattern, line):
                    ends[stage] = time.perf_counter() - start
    assert process.returncode == 0
    total = time.perf_counter() - start
    marks = [0.0, *(ends[stage] for stage, _ in STAGES), total]
    names = [*(stage for stage, _ in STAGES), "publish"]
    seconds = {name: round(after - before, 1) for name, before, after in zip(names, marks[:-1], marks[1:], strict=True)}
    # Of the largest child until now, in kB.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return {**seconds, "total": round(total, 1), "peak_gb": round(peak, 1)}


def measure(directory: pathlib.Path, events: int = 20_000_000, users: int = 1_000_000, items: int = 5000) -> dict[str, float]:
    """Writes the data and runs the job on them."""
    write(directory, events, users, items)
    return run(directory)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=5000)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(measure(pathlib.Path(directory), arguments.events, arguments.users, arguments.items)))


if __name__ == "__main__":
    main(sys.argv[1:])
