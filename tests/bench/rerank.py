"""Seconds to re-rank 1,000 lists of 20 out of 200 on one core, beside a plain loop over lists.

taskset -c 0 env OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m tests.bench.rerank
"""

import json
import time
from typing import Any

import numpy as np

from models import rerank
from tests.models import rerank_plain

LISTS, CANDIDATES, K, ITEMS = 1_000, 200, 20, 20_000
PLAIN_LISTS = 50
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


if __name__ == "__main__":
    for length in (64, 128):
        print(json.dumps({"dimension": length, **measure(length)}))
