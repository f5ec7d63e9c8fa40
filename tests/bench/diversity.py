"""What re-ranking costs and does, by method and trade-off: `sottovoce evaluate` once for each, and a row of each.

    python -m tests.bench.diversity JOB.toml [--section.key value ...]

Each row is of a model of its own, whose noise is fresh, before and after re-ranking it.
"""

import pathlib
import sys

from models.evaluation import Interval
from pipelines import config, evaluate

TRADE_OFFS = (0.1, 0.2, 0.3, 0.5)


def row(path: pathlib.Path, flags: list[str], method: str, trade_off: float) -> str:
    """A line of a Markdown table: each figure before and after, and the change."""
    job = config.load(path, [*flags, "--diversity.method", method, "--diversity.trade_off", f"{trade_off}"])[0]
    found = evaluate.run(job)
    before, after = found.audit["gini"]
    cells = [method, f"{trade_off}"]
    for figures in (
        found.metrics["ndcg"],
        found.metrics["intra_list_diversity"],
        found.audit["diversity"],
        found.audit["tail_share"],
        found.audit["gini"],
        found.metrics["coverage"],
    ):
        old, new = (each.mean if isinstance(each, Interval) else each for each in (figures[before], figures[after]))
        cells.append(f"{old:.3f} -> {new:.3f} ({new / old - 1:+.1%})")
    return f"| {' | '.join(cells)} |"


def main(argv: list[str]) -> None:
    path, *flags = argv
    print("| method | trade-off | NDCG@20 | intra-list diversity | the same, as re-ranked by | long tail | Gini | coverage |")
    print("|---|---|---|---|---|---|---|---|")
    for method in ("mmr", "dpp"):
        for trade_off in TRADE_OFFS:
            print(row(pathlib.Path(path), flags, method, trade_off), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
