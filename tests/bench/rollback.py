"""Going back and forth between two models while other processes ask: queries a second, failures, seconds of a rollback.

    python -m tests.bench.rollback

A synthetic world is released, trained on twice and published twice. Processes that ask keep their connections until
`current.duckdb` leads elsewhere, one opens the database anew for each query (tests/data/readers.py). What is answered must be
of the one or of the other version, whole.
"""

import argparse
import collections
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

from pipelines import cli, config, publish, registry
from tests.data import readers

ROLLBACKS = 100


def _world(directory: pathlib.Path) -> config.Job:
    """A job with two models, each in a version of its own."""
    job = str(directory / "job.toml")
    for command in (
        ["synth", str(directory), "--users", "5000", "--items", "1000"],
        ["key", str(directory / "pseudonym.key")],
        ["budget", "init", job],
        ["run", job],
        ["train", job, "--model.epochs=0"],
        ["publish", job, "--publish.promote=always"],
    ):
        assert cli.main(command) == 0, command
    return config.load(directory / "job.toml", [])[0]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keeping", type=int, default=3, help="processes that keep their connections")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XDG_STATE_HOME"] = directory
        job = _world(pathlib.Path(directory) / "world")
        store, taken, versions = pathlib.Path(job.job.store), [], []
        for model in (2, 1):
            publish.show(job, registry.rollback(job, model)[0])
            versions.append(readers.answers(store))

        def back_and_forth() -> None:
            for _ in range(ROLLBACKS):
                start = time.perf_counter()
                publish.show(job, registry.rollback(job, None)[0])
                taken.append(time.perf_counter() - start)

        told, seconds = readers.asked_while(store, back_and_forth, keeping=arguments.keeping)
    by_answer = sum(told.values(), collections.Counter[str]())
    wrong = {answer: times for answer, times in by_answer.items() if answer not in set.union(*versions)}
    figures = {
        "rollbacks": ROLLBACKS,
        "seconds": round(seconds, 1),
        "queries": {name: counts.total() for name, counts in told.items()},
        "queries_per_second": round(by_answer.total() / seconds),
        "of_each_version": [sum(by_answer[answer] for answer in of) for of in versions],
        "failures_or_mixed": wrong,
        "rollback_ms_median": round(statistics.median(taken) * 1e3, 1),
        "rollback_ms_max": round(max(taken) * 1e3, 1),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(figures))
    assert not wrong


if __name__ == "__main__":
    main(sys.argv[1:])
