"""Every row of docs/performance.md's table, in one run: `make bench`. Prints a table and writes JSON.

    python -m tests.bench.all --out build/bench.json

Each figure is a ratio of two things measured here, one after the other.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import scipy.sparse as sp

from tests.bench import counts, formats, rerank, whole
from transforms.privacy import noise
from transforms.release import cooccurrence

GROWTH = (5_000_000, 20_000_000, 50_000_000)


def clock(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ours(path: pathlib.Path) -> dict[str, float]:
    """Counts in a process of its own, start-up taken off: seconds, and the peak of its memory above an empty pipeline's."""
    command = [sys.executable, "-m", "tests.bench.counts", "--file", str(path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(said.splitlines()[-1])


def count_without_privacy(path: pathlib.Path) -> None:
    """DuckDB over the same columns, two threads."""
    query = (
        f"select item_id, event_type, count(distinct privacy_id), count(*) from '{path}' "
        f"where event_time >= '{counts.START}' and event_time < '{counts.END}' group by all"
    )
    with duckdb.connect(config={"threads": 2}) as connection:
        connection.sql(query).fetchall()


def growth(directory: pathlib.Path) -> dict[str, Any]:
    """Seconds and bytes an event from 5 to 50 million events, and DuckDB's non-private count(distinct) on 20 million."""
    measured: dict[str, Any] = {}
    for events in GROWTH:
        path = directory / "events.parquet"
        counts.write_events(path, events)
        best = min((ours(path) for _ in range(2)), key=lambda run: run["seconds"])
        measured[f"{events // 1_000_000}M"] = {
            "seconds": round(best["seconds"], 2),
            "bytes_per_event": round(best["bytes"] / events, 1),
        }
        if events == GROWTH[1]:
            plain = min(clock(lambda path=path: count_without_privacy(path)) for _ in range(2))
            measured["duckdb_20M_seconds"] = round(plain, 2)
            measured["times_duckdb"] = round(best["seconds"] / plain, 1)
    first, last = (measured[f"{events // 1_000_000}M"]["seconds"] / events for events in (GROWTH[0], GROWTH[-1]))
    measured["growth"] = round(last / first, 2)
    return measured


def pairs(users: int = 1_000_000, items: int = 4000, each: int = 20) -> dict[str, float]:
    """Our scaled, exact, noisy sums of outer products against SciPy's float X.T @ X alone; 16 buckets, Zipf items."""
    rng = np.random.default_rng(0)
    shares = np.cumsum(1 / np.arange(1, items + 1) ** 0.8)
    column = np.searchsorted(shares / shares[-1], rng.random(users * each))
    x = sp.csr_matrix((np.ones(users * each), (np.repeat(np.arange(users), each), column)), shape=(users, items))
    x.sum_duplicates()
    x.data[:] = 1.0

    def release() -> None:
        adding = cooccurrence.AddSums()
        sums: dict[cooccurrence.Block, np.ndarray | None] = {}
        for bucket in range(16):
            rows = cooccurrence.quantise_rows(x[bucket * users // 16 : (bucket + 1) * users // 16]).tocsc()  # as partial_sums
            for block in cooccurrence.blocks(items):
                sums[block] = adding.add_input(sums.get(block), cooccurrence.exact_sums(rows, *block[:2]))
        for each_block in sums.items():
            cooccurrence.release_block(each_block, 20.0)

    plain, private = clock(lambda: x.T @ x), clock(release)
    return {
        "pairs": x.nnz,
        "scipy_seconds": round(plain, 2),
        "seconds": round(private, 2),
        "times_scipy": round(private / plain, 2),
    }


def draw_blocks(blocks: int, size: int) -> None:
    for _ in range(blocks):
        noise.draw("chacha", size, 20.0, 36)


def draws(blocks: int = 5, size: int = 4_000_000, sample: int = 200_000) -> dict[str, float]:
    """Millions of draws a second on one core, in blocks as large as a release's."""
    fast = blocks * size / clock(lambda: draw_blocks(blocks, size)) / 1e6
    slow = sample / clock(lambda: noise.draw("pipelinedp", sample, 20.0, 36)) / 1e6
    return {"million_draws_per_second": round(fast, 1), "pipelinedp": round(slow, 2), "ratio": round(fast / slow, 1)}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/bench.json"))
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        measured = {
            "noise": draws(),
            "formats": formats.measure(),
            "rerank": rerank.on_one_core(),
            "cooccurrence": pairs(),
            "counts": counts.against_plain(pathlib.Path(directory), 5_000_000, 200_000),
            "growth": growth(pathlib.Path(directory)),
            "whole_job": whole.measure(pathlib.Path(directory)),
        }
    goals = [
        ("counts, 5M events: times plain PipelineDP", measured["counts"]["ratio"], ">= 100"),
        ("counts, 20M events: times DuckDB's time", measured["growth"]["times_duckdb"], "<= 6"),
        ("co-occurrence: times SciPy's time", measured["cooccurrence"]["times_scipy"], "<= 3"),
        ("noise, million draws/s a core", measured["noise"]["million_draws_per_second"], ">= 20"),
        ("growth 5M to 50M, time an event", measured["growth"]["growth"], "<= 1.1"),
        ("bytes of memory an event at 50M", measured["growth"]["50M"]["bytes_per_event"], "<= 48"),
        ("bytes an event through the shuffle", measured["counts"]["shuffle_bytes_per_event"], ""),
        ("JSON messages: times json.loads's rate", measured["formats"]["json_times_loads"], ""),
        ("Avro messages: times fastavro's rate", measured["formats"]["avro_times_fastavro"], ""),
        *(
            (f"1,000 lists of 20 of 200, {method}, d = 128, s", measured["rerank"]["128"][method]["seconds"], "< 1")
            for method in ("mmr", "dpp")
        ),
        ("whole job, 20M events, 5,000 items: seconds", measured["whole_job"]["total"], ""),
    ]
    for work, value, goal in goals:
        print(f"{work:45} {value:>8} {goal:>8}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(measured, indent=2) + "\n")
    assert all(math.isfinite(value) for _, value, _ in goals)


if __name__ == "__main__":
    main(sys.argv[1:])
