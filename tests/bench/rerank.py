"""Seconds to re-rank 1,000 lists of 20 out of 200 on one core, beside a plain loop over lists that takes each step from its
definition; and of the macro `recommend_diverse` over 20,000 items: `python -m tests.bench.rerank`.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow as pa

from data import database, tables
from models import rerank
from tests.data import test_database
from tests.models import rerank_plain

LISTS, CANDIDATES, K, ITEMS = 1_000, 200, 20, 20_000
DIMENSIONS = (64, 128)
PLAIN_LISTS = 10
"""The plain loops are slow: measured on so many, and scaled."""


def seconds(work: Any, *arguments: Any) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def measure(dimension: int) -> dict[str, dict[str, float]]:
    """Best of three of ours, one run of the plain loop; by method."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(ITEMS, dimension)).astype(np.float32)
    candidates = np.stack([rng.choice(ITEMS, CANDIDATES, replace=False) for _ in range(LISTS)])
    scores = -np.sort(-rng.normal(size=candidates.shape), axis=1)
    found = {}
    for ours, plain in ((rerank.mmr, rerank_plain.mmr), (rerank.dpp, rerank_plain.dpp)):
        best = min(seconds(ours, candidates, scores, vectors, K, 0.5) for _ in range(3))
        slow = seconds(plain, candidates[:PLAIN_LISTS], scores[:PLAIN_LISTS], vectors, K, 0.5) * LISTS / PLAIN_LISTS
        found[ours.__name__] = {"seconds": round(best, 3), "plain_seconds": round(slow, 1), "ratio": round(slow / best, 1)}
    return found


def macro(directory: pathlib.Path, dimension: int = 128) -> float:
    """Median of nine calls of `recommend_diverse`, k = 20, from a history of three."""
    vectors = np.random.default_rng(0).normal(size=(ITEMS, dimension)).astype(np.float32)
    ids = [f"i{number}" for number in range(ITEMS)]
    lists = pa.array(list(vectors), pa.list_(pa.float32()))
    embeddings = pa.table([ids, lists, lists, pa.array(np.zeros(ITEMS, np.float32))], schema=tables.EMBEDDINGS)
    nothing = tables.FEATURE_EMBEDDINGS.empty_table()
    database.publish(directory, test_database.make_contents(embeddings=embeddings, feature_embeddings=nothing), 1)
    with database.connect(directory) as connection:
        query = "FROM recommend_diverse(['i1', 'i2', 'i3'], 20, 0.3)"
        return statistics.median(seconds(lambda: connection.execute(query).fetchall()) for _ in range(9))


def on_one_core() -> dict[str, dict[str, dict[str, float]]]:
    """By dimension what `measure` finds, in a process of its own that has one core and one thread."""
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    command = [sys.executable, "-m", "tests.bench.rerank", "--here"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return json.loads(said)


if __name__ == "__main__":
    if sys.argv[1:] == ["--here"]:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(json.dumps({str(dimension): measure(dimension) for dimension in DIMENSIONS}))
    else:
        print(json.dumps(on_one_core(), indent=2))
        with tempfile.TemporaryDirectory() as directory:
            print(f"recommend_diverse: {1000 * macro(pathlib.Path(directory)):.0f} ms")
