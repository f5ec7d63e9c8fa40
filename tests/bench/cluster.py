"""A release from files on a Flink cluster: with one, two and four subtasks a step; where a user, or an item, has half of all.

    python -m tests.bench.cluster scale --events 10000000
    python -m tests.bench.cluster skew --events 10000000

The cluster is this machine's (runners.cluster), the job is release.run, each time with a store, a ledger and a data set of its
own; the steps in Python have as many processes as a step has subtasks. Jobs take turns, and the best of each counts. What the
same job takes over a thousand events is the start. Other flags are the job's, such as --runner.buckets=64.

**Shuffle.** `flink`: bytes that subtasks have read which may come from any other, by Flink's own metrics (where a step has a
side input, all that it has read). With `runner.spill`, the default, rows don't go that way: they wait in files that all hosts
share, each written once. `rows` are the files of what was read, for the step that merges; `merged` those that it writes, for
selection, counts and co-occurrence, each of which reads them. With --runner.spill=false all of them go through Flink.

**Model.** T(p) = start + serial + parallel / p (Amdahl 1967). `parallel` is the time in which a step runs whose work subtasks
share, measured with one; the rest is serial, and named by the step that was waited for, each from the end of the one before.
What the start takes is taken off. Merging is among it and grows: each subtask hands on a matrix, counts and scores of its own.
The matrix is added up by slices, each by one subtask: with more subtasks than slices, merging takes p / slices times as long:
the second forecast. Neither knows that users' buckets are dealt out unevenly: see `shared_steps`. What a subtask shuffles is a
p-th of what events take, files included, and what it hands on of its own.
"""

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data import store
from pipelines import config, contract, release
from runners import cluster, flink_rest
from tests.bench import whole

SLOTS, ITEMS, FILE_ROWS = 4, 5000, 250_000
TINY = 1000
FORECAST = (10, 100)
_PASSES_ON = "Partition"
"""A step of Flink's that deals records out: it waits for whoever makes them."""

_MERGES = re.compile(r"(\[\d+\])?Release\w+/(Add(Scores|Counts|SumsOfBuckets)/|\{AddSums, )")
"""The steps that add up what each subtask has found."""

Change = Callable[[pa.Table], pa.Table]


@dataclasses.dataclass(frozen=True)
class Run:
    """A release.

    Attributes:
        seconds: of all of it; `flink`: of its job on the cluster.
        spilled: bytes of the files in which rows waited, as read and as merged.
    """

    seconds: float
    flink: float
    vertices: list[flink_rest.Vertex]
    spilled: dict[str, int]

    @property
    def outside(self) -> float:
        """Seconds in which there was no job on the cluster."""
        return self.seconds - self.flink

    @property
    def shuffled(self) -> int:
        """Bytes that were read from subtasks of every number."""
        return sum(each.read_bytes for each in self.vertices if each.ways - {"Forward"})


def half_of(column: str, value: str) -> Change:
    """Every second event has this value."""

    def change(table: pa.Table) -> pa.Table:
        is_theirs = pa.array(np.arange(table.num_rows) % 2 == 0)
        return table.set_column(table.column_names.index(column), column, pc.if_else(is_theirs, value, table[column]))

    return change


WORLDS: dict[str, Change] = {
    "uniform": lambda table: table,
    "user": half_of("privacy_id", "heavy"),
    "item": half_of("item_id", "0"),
}


def write(directory: pathlib.Path, name: str, events: int) -> None:
    """Writes the events of one of WORLDS, a file for each part that is read at once."""
    folder = directory / name
    folder.mkdir()
    numbers = itertools.count()
    for table in whole.world(events, max(TINY, events // 20), ITEMS):
        for first in range(0, table.num_rows, FILE_ROWS):
            part = WORLDS.get(name, WORLDS["uniform"])(table.slice(first, FILE_ROWS))
            pq.write_table(part, folder / f"{next(numbers):05}.parquet")


def run(directory: pathlib.Path, flink: cluster.Cluster, name: str, parallelism: int, flags: list[str]) -> Run:
    """Releases the events of a folder."""
    with tempfile.TemporaryDirectory(dir=directory) as own:
        given = [
            f"--job.store={own}/store",
            f'--source.paths=["{directory}/{name}/*.parquet"]',
            f"--privacy.ledger=sqlite:///{own}/ledger.sqlite",
            "--runner.kind=flink",
            f"--runner.master={flink.master}",
            f"--runner.parallelism={parallelism}",
            *flags,
        ]
        job = config.load(directory / "job.toml", given)[0]
        contract.init(job)
        spilled = dict.fromkeys(("rows", "merged"), 0)
        spill = store.Store.spill

        @contextlib.contextmanager
        def noting(kept: store.Store) -> Iterator[str]:
            with spill(kept) as place:
                yield place
                for file in pathlib.Path(place).glob("*.arrow"):
                    with pa.memory_map(str(file)) as mapped:
                        kind = "merged" if "events" in pa.ipc.open_file(mapped).schema.names else "rows"
                    spilled[kind] += file.stat().st_size

        start = time.perf_counter()
        with mock.patch.object(store.Store, "spill", noting):
            release.run(job)
        seconds = time.perf_counter() - start
    took, vertices = flink.rest.vertices(flink.rest.jobs()[0].job_id)
    vertices = [dataclasses.replace(each, name=short(each.name)) for each in vertices]
    print(f"{name}, parallelism {parallelism}: {seconds:.1f} s, {took:.1f} s of them on Flink", file=sys.stderr)
    return Run(seconds, took, vertices, spilled)


def parallel(given: Run) -> dict[str, list[int]]:
    """The steps whose work subtasks share, and how many records each has read."""
    found = {}
    for vertex in given.vertices:
        records = [each.records for each in vertex.subtasks]
        # One record is a sum of all, whoever has it.
        if sum(n > 1 for n in records) > 1 and vertex.name != _PASSES_ON and not _MERGES.match(vertex.name):
            found[vertex.name] = records
    return found


def waited(given: Run, shared: set[str]) -> dict[str, float]:
    """Seconds of a job in which none of the shared steps ran, by the step that was waited for."""
    spans = [(each.start, each.end, vertex.name) for vertex in given.vertices for each in vertex.subtasks if each.records]
    alone = sorted(((end, start, name) for start, end, name in spans if name not in shared))
    found: collections.defaultdict[str, float] = collections.defaultdict(float)
    reached = 0.0
    for until, end in (*sorted((start, end) for start, end, name in spans if name in shared), (given.flink, given.flink)):
        for ended, _, name in alone:
            if reached < ended <= until:
                found[name] += ended - reached
                reached = ended
        if reached < until:
            running = (name for ended, start, name in alone if start < until < ended)
            found[next(running, "Flink")] += until - reached
        reached = max(reached, end)
    return found


def short(name: str) -> str:
    """What Beam calls a step of Flink's; of several that are one, always in the same order."""
    found = max(re.findall(r" at (.*?)\)(?= ->|$)", name) or [name], key=len)
    return re.sub(r"\{(.*)\}", lambda several: "{" + ", ".join(sorted(several[1].split(", "))) + "}", found)


def model(full: dict[int, Run], tiny: dict[int, Run], events: int) -> dict[str, Any]:
    """The pieces of the model, and what it says."""
    one, of_one = full[1], tiny[1]
    shared = set(parallel(full[2]))
    serial, of_start = waited(one, shared), waited(of_one, shared)
    serial["outside of Flink"], of_start["outside of Flink"] = one.outside, of_one.outside
    pieces = {name: max(0.0, seconds - of_start[name]) for name, seconds in serial.items()}
    merging = sum(seconds for name, seconds in pieces.items() if _MERGES.match(name))
    alone = sum(pieces.values())
    work = one.seconds - of_one.seconds - alone
    slices = max(sum(each.records for each in vertex.subtasks) for vertex in one.vertices if _MERGES.match(vertex.name))
    a_subtask = full[2].shuffled - one.shuffled
    an_event = sum(one.spilled.values()) + one.shuffled - a_subtask

    def says(p: int) -> dict[str, float]:
        amdahl = of_one.seconds + alone + work / p
        return {
            "seconds": round(amdahl, 1),
            "with_merging": round(amdahl + merging * max(0, p / slices - 1), 1),
            "megabytes_a_subtask": round((an_event / p + a_subtask) / 1e6, 1),
        }

    largest = sorted(pieces, key=lambda name: -pieces[name])[:8]
    return {
        "start": round(of_one.seconds, 1),
        "serial": round(alone, 2),
        "serial_by_step": {name: round(pieces[name], 2) for name in largest},
        "merging": round(merging, 2),
        "slices": slices,
        "parallel": round(work, 1),
        "shuffle_bytes_a_subtask": a_subtask,
        "other_shuffle_bytes_an_event": round(an_event / events, 1),
        "says": {p: says(p) for p in (*sorted(full), *FORECAST)},
        "speed_up_at_most": round((alone + work) / max(alone, 1e-3), 1),
    }


def shares(given: Run) -> dict[str, str]:
    """The longest of the steps that subtasks share: seconds, and records by subtask."""
    found = parallel(given)
    spans = {
        vertex.name: max(each.end for each in vertex.subtasks) - min(each.start for each in vertex.subtasks)
        for vertex in given.vertices
        if vertex.name in found
    }
    longest = sorted(found, key=lambda name: -spans[name])[:6]
    return {name: f"{spans[name]:.1f} s, records {found[name]}" for name in longest}


def told(given: Run, start: float, events: int) -> dict[str, Any]:
    """What is said of a release, whose start is known."""
    net = given.seconds - start
    return {
        "seconds": round(given.seconds, 1),
        "net_seconds": round(net, 1),
        "events_per_second": round(events / net),
        "shuffle_bytes": {"flink": given.shuffled, **given.spilled},
        "bytes_per_event": {name: round(n / events, 2) for name, n in {"flink": given.shuffled, **given.spilled}.items()},
        "shared_steps": shares(given),
    }


def turns(directory: pathlib.Path, kinds: list[tuple[str, int]], rounds: int, flags: list[str]) -> dict[tuple[str, int], Run]:
    """Runs each world at its parallelism, taking turns; returns the fastest run of each."""
    found: dict[tuple[str, int], Run] = {}
    with cluster.Cluster(directory / "flink", slots=SLOTS) as flink:
        for kind in [("tiny", 1), *kinds * rounds]:  # the first job of a cluster loads its classes
            done = run(directory, flink, *kind, flags)
            if kind not in found or done.seconds < found[kind].seconds:
                found[kind] = done
    return found


def scale(directory: pathlib.Path, events: int, rounds: int, flags: list[str], counts: list[int]) -> dict[str, Any]:
    """Releases with so many subtasks a step, and what the model says of more, if 1 and 2 are among them."""
    for name, n in (("tiny", TINY), ("uniform", events)):
        write(directory, name, n)
    found = turns(directory, [(name, p) for p in counts for name in ("tiny", "uniform")], rounds, flags)
    tiny, full = ({p: found[name, p] for p in counts} for name in ("tiny", "uniform"))
    return {
        "events": events,
        "start_seconds": {p: round(tiny[p].seconds, 1) for p in counts},
        "runs": {p: told(full[p], tiny[p].seconds, events) for p in counts},
        "speed_up": {p: round(_net(full, tiny, counts[0]) / _net(full, tiny, p), 2) for p in counts},
        "model": model(full, tiny, events) if {1, 2} <= set(counts) else None,
    }


def _net(full: dict[int, Run], tiny: dict[int, Run], p: int) -> float:
    return full[p].seconds - tiny[p].seconds


def skew(directory: pathlib.Path, events: int, rounds: int, flags: list[str], counts: list[int]) -> dict[str, Any]:
    """Releases of events of which a user, or an item, has half, against such of uniform users."""
    for name, n in (("tiny", TINY), *((name, events) for name in WORLDS)):
        write(directory, name, n)
    parallelism = counts[0]
    found = turns(directory, [(name, parallelism) for name in ("tiny", *WORLDS)], rounds, flags)
    start = found["tiny", parallelism].seconds
    said = {name: told(found[name, parallelism], start, events) for name in WORLDS}
    rates = {name: said[name]["events_per_second"] for name in WORLDS}
    return {
        "events": events,
        "start_seconds": round(start, 1),
        "runs": said,
        "times_uniform": {name: round(rates[name] / rates["uniform"], 2) for name in WORLDS},
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["scale", "skew"])
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--parallelism", type=int, nargs="+", help="default: 1 2 4, and 2 for skew")
    arguments, flags = parser.parse_known_args(argv)
    measure, usual = {"scale": (scale, [1, 2, SLOTS]), "skew": (skew, [2])}[arguments.what]
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(os.environ, {"XDG_STATE_HOME": name}):
        directory = pathlib.Path(name)
        whole.write_job(directory, max(TINY, arguments.events // 20), ITEMS)
        found = measure(directory, arguments.events, arguments.rounds, flags, arguments.parallelism or usual)
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
