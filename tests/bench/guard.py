"""What the guard's score tells, and how much of it is noise: models of a synthetic world, each held against one before it.

    python -m tests.bench.guard --users 10000

The world is released anew each time (same users and items, other noise) and trained on as the job says, with few dimensions,
or with steps of WARP that are far too large. The candidate, of the newest release, is fitted anew on half of it; the active one
is of the release before, and taken as it is. Beside it two models of one release: both are fitted anew.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile

from data import store, tables
from pipelines import cli, config, registry, release, train

RELEASES = 5
SPOILT = {"as it is": [], "rank 2": ["--model.rank=2"], "learning rate 0.5": ["--model.learning_rate=0.5", "--model.epochs=5"]}


def _relative(found: registry.Figures | None) -> dict[str, float]:
    """Difference and the half of its 95 % interval, in per cent of the active model's score."""
    assert found is not None
    shares = {"difference": found.candidate - found.active, "noise": (found.high - found.low) / 2}
    return {name: round(100 * value / found.active, 2) for name, value in shares.items()}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=1_000)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XDG_STATE_HOME"] = directory
        path = pathlib.Path(directory) / "job.toml"
        for command in (
            ["synth", directory, "--users", str(arguments.users), "--items", str(arguments.items)],
            ["key", str(pathlib.Path(directory) / "pseudonym.key")],
            ["budget", "init", str(path)],
            ["budget", "grant", str(path), "--epsilon", "10", "--why", "a trial"],
        ):
            assert cli.main(command) == 0, command
        active = None
        for _ in range(RELEASES):
            job = config.load(path, [])[0]
            release_id = release.run(job, [], allow_another=True)
            models = {name: train.run(config.load(path, flags)[0], release_id) for name, flags in SPOILT.items()}
            for name, model in models.items():
                line = {"users": arguments.users, "model": name, "items": len(_known(job, release_id))}
                if active is not None:
                    line["against the release before"] = _relative(registry.scored(job, model, active))
                line["against as it is"] = _relative(registry.scored(job, model, models["as it is"]))
                print(json.dumps(line), flush=True)
            active = models["as it is"]


def _known(job: config.Job, release_id: str) -> list[str]:
    kept = store.Store(job.job.store)
    table = kept.read_table(kept.manifest(release_id), "items", tables.ITEMS)
    return table.filter(table["position"].is_valid())["item_id"].to_pylist()


if __name__ == "__main__":
    main(sys.argv[1:])
