"""What a stream that makes checkpoints began with, and whether the next one may go on from them.

STORE/operator/stream/RUN/began.json says it; Flink's checkpoints lie beside it, and so do the files that they point to.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data import store
from pipelines import config, contract
from runners import flink
from transforms.ingest import events, pseudonym

_LAYOUT = 1
"""Another number whenever code can't go on with what the code before has written: files that wait, or their meaning."""


class Began(NamedTuple):
    """What a stream began with.

    Attributes:
        at: when it began to read.
        ended: windows that end by then are not in it.
        rules: by what was read and grouped; a text for each name that `changed` may tell.
        left_out: the pseudonyms, in hex digits, of whoever it has dropped events of.
    """

    at: dt.datetime
    ended: dt.datetime
    rules: dict[str, str]
    left_out: list[str]


def began(job: config.Job, at: dt.datetime, ended: dt.datetime, decoding: events.Decoding, spread: Sequence[Any]) -> Began:
    """Returns what a stream of a job begins with.

    Args:
        at, ended: as Began has them.
        decoding: by which it reads.
        spread: over how much it is spread: partitions, processes, buckets.
    """
    opted_out, items = decoding.opt_outs, decoding.catalogue_ids
    left_out = [] if opted_out is None else pseudonym.pseudonymise(opted_out, decoding.key).to_pylist()
    files = [job.source.schema_file, *job.source.schemas.values()]
    rules = {
        "this version's way of keeping state": _LAYOUT,
        "[source]": job.source.model_dump(mode="json", exclude={"kind", "paths", "max_malformed_share"}),
        "a schema": [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files if path is not None],
        "[window] or [trending]": [str(part.window.windows) for part in job.parts]
        + [str(time_) for time_ in (job.window.end, job.window.slack, job.settling)],
        "[kafka]": None if job.kafka is None else [job.kafka.bootstrap, job.kafka.allow_create_time, decoding.keeps_late],
        "privacy.key_file": contract.key_fingerprint(decoding.key),
        "[catalogue]": None if items is None else sorted(items.to_pylist()),
        "[runner], or the topic's partitions": [job.runner.parallelism, job.runner.environment, *spread],
    }
    return Began(at, ended, {name: _digest(rule) for name, rule in rules.items()}, sorted(each.hex() for each in left_out))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def changed(before: Began, now: Began) -> str | None:
    """Says why a stream that would begin with `now` can't go on from one that began with `before`; None: it can."""
    for name, rule in now.rules.items():
        if before.rules.get(name) != rule:
            return f"{name}: not as it was"
    if not set(before.left_out) <= set(now.left_out):
        return "somebody has opted in again"
    return None


def write(directory: Path, given: Began) -> None:
    """Writes down what the stream in a directory begins with."""
    store.write_json(directory / "began.json", {**given._asdict(), "at": str(given.at), "ended": str(given.ended)})


def find(directory: Path) -> tuple[Path, Began] | None:
    """Returns, of the streams in a directory, the last to begin of those that have a checkpoint, and what it began with."""
    there = [file.parent for file in directory.glob("*/began.json") if flink.last_checkpoint(checkpoints(file.parent))]
    newest = max(there, key=lambda path: (path / "began.json").stat().st_mtime, default=None)
    if newest is None:
        return None
    found = json.loads((newest / "began.json").read_text())
    at, ended = (dt.datetime.fromisoformat(found[name]) for name in ("at", "ended"))
    return newest, Began(at, ended, found["rules"], found["left_out"])


def checkpoints(directory: Path) -> Path:
    """Where Flink keeps what is its own of the stream in a directory."""
    return directory / "flink"
