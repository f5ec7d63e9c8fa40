"""What re-ranking costs and does, by method and trade-off, on the models of one `sottovoce evaluate`.

    python -m tests.bench.diversity JOB.toml [--section.key value ...]

Prints a Markdown table: each figure's mean, and how it differs from that of the lists as the model ranks them.
"""

import dataclasses
import pathlib
import sys
from typing import Any
from unittest import mock

import numpy as np

from models import evaluation, ranking, rerank
from pipelines import config, evaluate

TRADE_OFFS = (0.1, 0.2, 0.3, 0.4, 0.5)
METHODS: tuple[rerank.Method, ...] = ("mmr", "dpp")
K = 20


@dataclasses.dataclass
class Asked:
    """What `evaluate.run` asks of re-ranking and of the lists, as it goes."""

    score: ranking.Scores | None = None
    items: rerank.Items | None = None
    asked: Any = None
    vectors: Any = None

    def reranked(self, score: ranking.Scores, histories: Any, items: rerank.Items, k: int, settings: Any) -> np.ndarray:
        self.score, self.items = score, items
        return ranking.rank(score, histories, k)

    def audit(self, lists: Any, items: rerank.Items, asked: Any) -> tuple[dict, dict]:
        self.asked = asked
        return {}, {}

    def metrics(self, lists: Any, asked: Any, vectors: Any) -> dict:
        self.vectors = vectors
        return {}


def figures(lists: np.ndarray, asked: Asked) -> list[float]:
    item_users = np.bincount(asked.asked.train.indices, minlength=asked.asked.train.shape[1])
    found = rerank.audit(lists, asked.items._replace(is_tail=~evaluation.slices(item_users)["head"]))
    ndcg = evaluation.ndcg_at_k(lists, asked.asked.hidden).mean()
    diversity = evaluation.intra_list_diversity(lists, asked.vectors).mean()
    return [ndcg, diversity, found.diversity, found.tail_share, found.gini, evaluation.coverage(lists, len(item_users))]


def measure(path: pathlib.Path, flags: list[str]) -> None:
    job = config.load(path, [*flags, "--diversity.method", "mmr"])[0]
    asked = Asked()
    with mock.patch.multiple(evaluate, _reranked=asked.reranked, _audit=asked.audit, _metrics=asked.metrics):
        evaluate.run(job, k=K)
    candidates, scores = ranking.rank_with_scores(asked.score, asked.asked.history, job.diversity.candidates)
    before = figures(candidates[:, :K], asked)
    print("| method | trade-off | NDCG@20 | intra-list diversity | the same, as re-ranked by | long tail | Gini | coverage |")
    print("|---|---|---|---|---|---|---|---|")
    print(f"| none | | {' | '.join(f'{figure:.3f}' for figure in before)} |")
    for method in METHODS:
        for trade_off in TRADE_OFFS:
            settings = dataclasses.replace(job.diversity.settings, method=method, trade_off=trade_off)
            after = figures(rerank.rerank(candidates, scores, asked.items, K, settings), asked)
            cells = [f"{new:.3f} ({new / old - 1:+.1%})" for old, new in zip(before, after, strict=True)]
            print(f"| {method} | {trade_off} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    measure(pathlib.Path(sys.argv[1]), sys.argv[2:])
