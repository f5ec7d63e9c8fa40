"""Streams of whole topics on a Flink cluster: speed and memory, a user who has half of all, and the size of checkpoints.

    python -m tests.bench.cluster_topics topic --messages 50000000 --directory DIR --fill-only
    python -m tests.bench.cluster_topics topic --messages 50000000 --directory DIR --run-only
    python -m tests.bench.cluster_topics skew --messages 2000000
    python -m tests.bench.cluster_topics checkpoint --users 1000000

Broker and cluster are this machine's. The topics are filled first (tests.audit.filling), with JSON messages and times of their
own. How far a stream has read is told by the rows in the files where they wait for their window. Other flags are the job's, as
--runner.workers=2.

**topic**: four windows of a day, 8 partitions; releases are the stream's own process's unless --runner.kind=flink.
**skew**: to closed windows, from 2 partitions, as in tests.bench.kafka; jobs take turns, the best counts, less the start.
**checkpoint**: one open window, 3 events a user, 4 partitions; what each checkpoint takes until all is read and after that, and
the files beside it.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from data import ledger, store
from pipelines import config
from runners import background, cluster, flink_rest, kafka
from tests.bench import kafka as readers
from tests.drill import filling, trial
from tests.pipelines import example, topics
from tests.runners import processes

DAILY = ["--window.size=1d", "--window.end=2025-01-05", "--window.budget_share=0.2", "--model.retrain=1d"]
UNTIL = "2025-01-06"
DAYS, EVENTS_A_USER = 4, 3
SAMPLE_SECONDS = 2.0
MORE_CHECKPOINTS = 3


class Rows:
    """How many rows wait, or have waited, in a stream's files."""

    def __init__(self, job: config.Job):
        self._directory = pathlib.Path(store.Store(job.job.store).operator("stream"))
        self._seen: dict[pathlib.Path, int] = {}

    def count(self) -> int:
        for path in self._directory.glob("*/*.arrow"):
            # One that is still being written has no end yet.
            with contextlib.suppress(pa.ArrowInvalid, FileNotFoundError):
                if path not in self._seen:
                    self._seen[path] = _rows(path)
        return sum(self._seen.values())

    def waiting_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._directory.glob("*/*.arrow"))


def _rows(path: pathlib.Path) -> int:
    with pa.memory_map(str(path)) as mapped:
        file = pa.ipc.open_file(mapped)
        # Those with a number of events have been counted before, as what they were merged of.
        is_merged = "events" in file.schema.names
        return 0 if is_merged else sum(file.get_batch(i).num_rows for i in range(file.num_record_batches))


def memory(stream: int, flink: cluster.Cluster) -> dict[str, int]:
    """Bytes of each kind of process that a stream has."""
    found = {each.name: trial.memory(_number(each)) for each in (flink.job_manager, *flink.task_managers)}
    kinds = dict.fromkeys(("stream", "workers", "job_server"), 0)
    for pid, held in trial.memory_of_each(stream).items():
        is_ours = pid == stream
        kinds["stream" if is_ours else "workers" if processes.is_worker(pid) else "job_server"] += held
    return found | kinds


def _number(process: background.Process) -> int:
    return int((process.directory / f"{process.name}.pid").read_text())


@contextlib.contextmanager
def streaming(path: pathlib.Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A stream in a process of its own; what it says goes into a file beside the job's, and into the error if it fails."""
    said = path.with_name("stream.log")
    with (
        said.open("w") as output,
        subprocess.Popen([sys.executable, "-m", "pipelines.stream", str(path), *words], stderr=output) as process,
    ):
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    if process.returncode:
        raise RuntimeError(said.read_text()[-3000:])


def fill_topic(directory: pathlib.Path, broker: kafka.Broker, messages: int, partitions: int, **how: Any) -> dict[str, Any]:
    """Makes a job and fills its topic; says how many messages there are, and in how many seconds."""
    path, topic = topics.write_job(directory, broker)
    topics.load(path, f"--kafka.partitions={partitions}")
    start = time.monotonic()
    filling.fill_all(topics.connection(broker), topic, partitions, messages // partitions, **how)
    filled = {"messages": messages // partitions * partitions, "fill_seconds": round(time.monotonic() - start)}
    (directory / "filled.json").write_text(json.dumps({**filled, "partitions": partitions}))
    return filled


def fresh(directory: pathlib.Path, *flags: str) -> tuple[pathlib.Path, list[str], config.Job]:
    """The job of a filled topic, its words and itself, with a store and a ledger that nobody has used."""
    own = tempfile.mkdtemp(dir=directory)
    words = [f"--job.store={own}/store", f"--privacy.ledger=sqlite:///{own}/ledger.sqlite", *flags]
    path = directory / "job.toml"
    return path, words, example.load(path, *words)


def through(directory: pathlib.Path, flink: cluster.Cluster, flags: list[str]) -> dict[str, Any]:
    """Streams a filled topic to the release of its last window."""
    filled = json.loads((directory / "filled.json").read_text())
    path, words, job = fresh(directory, f"--runner.master={flink.master}", *DAILY, *flags)
    rows, samples, begun = Rows(job), list[dict[str, float]](), time.monotonic()
    with streaming(path, "--until", UNTIL, *words) as process:
        while process.poll() is None:
            published = [charge["window_start"] for charge in charged(job)]
            sample = {"seconds": time.monotonic() - begun, "read": rows.count(), "released": len(published)}
            samples.append(sample | memory(process.pid, flink))
            time.sleep(SAMPLE_SECONDS)
    return summary(job, filled, samples)


def charged(job: config.Job) -> list[dict[str, Any]]:
    """The ledger's rows of what is published, oldest first."""
    return [charge for charge in example.charges(job) if charge["status"] == ledger.PUBLISHED]


def summary(job: config.Job, filled: dict[str, Any], samples: list[dict[str, float]]) -> dict[str, Any]:
    series = {name: np.array([sample[name] for sample in samples]) for name in samples[0]}
    times, read = series.pop("seconds"), series.pop("read")
    first, last = times[np.argmax(read > 0)], times[np.argmax(series.pop("released"))]
    kept, windows = store.Store(job.job.store), charged(job)
    records = [kept.run_record(charge["attempt"]) for charge in windows]
    starts, lag = [charge["window_start"] for charge in windows], filled["messages"] - read
    minutes = np.interp(np.arange(first, times[-1] + 60, 60), times, read)
    return {
        **filled,
        "start_seconds": round(first),
        "seconds": round(last - first),
        "messages_per_second": round(filled["messages"] / (last - first)),
        "thousand_messages_by_minute": np.round(np.diff(minutes) / 1000).astype(int).tolist(),
        "lag_by_minute": (filled["messages"] - minutes).astype(int).tolist(),
        "lag_in_the_end": int(lag[-1]),
        "counted": sum(record["outcomes"].get("ok", 0) for record in records),
        "repeated": sum(record["repeated"] for record in records),
        "windows": len(starts),
        "released_in_order": starts == sorted(set(starts)),
        "megabytes": {name: _thirds(times, held / 1e6) for name, held in series.items()},
    }


def _thirds(times: np.ndarray, held: np.ndarray) -> dict[str, float]:
    middle, last = (held[(times >= k * times[-1] / 3) & (times <= (k + 1) * times[-1] / 3)].mean() for k in (1, 2))
    return {
        "middle_third": round(float(middle)),
        "last_third": round(float(last)),
        "most": round(float(held.max())),
        "last_times_middle": round(float(last / middle), 3),
    }


def whole_topic(arguments: argparse.Namespace, directory: pathlib.Path, flags: list[str]) -> dict[str, Any]:
    """Fills a topic, streams it, or both."""
    with kafka.Broker(directory / "kafka") as broker:
        if not arguments.run_only:
            found = fill_topic(directory, broker, arguments.messages, arguments.partitions or 8)
            trial.end(broker, topic_of(directory), arguments.partitions or 8)
        if not arguments.fill_only:
            with cluster.Cluster(directory / "flink") as flink:
                found = through(directory, flink, flags)
    return found


def topic_of(directory: pathlib.Path) -> str:
    """The topic of the job in a directory."""
    name = config.load(directory / "job.toml", [])[0].source.topic
    assert name is not None
    return name


def skew(arguments: argparse.Namespace, directory: pathlib.Path, flags: list[str]) -> dict[str, Any]:
    """Streams to closed windows, of uniform users and with one who has half of all; messages a second, the start taken off."""
    partitions, n = arguments.partitions or readers.PARTITIONS, arguments.messages
    kinds = {"tiny": (1000, False), "uniform": (n, False), "user": (n, True)}
    with kafka.Broker(directory / "kafka") as broker, cluster.Cluster(directory / "flink") as flink:
        jobs = {}
        for name, (messages, is_heavy) in kinds.items():
            fill_topic(directory / name, broker, messages, partitions, is_heavy=is_heavy)
            trial.end(broker, topic_of(directory / name), partitions)
            words = (*trial.flags(readers.N_WINDOWS), f"--runner.master={flink.master}", *flags)
            jobs[name] = fresh(directory / name, *words)[2]
        seconds = dict.fromkeys(kinds, float("inf"))
        for name in [*kinds] * arguments.rounds:
            seconds[name] = min(seconds[name], readers.clock(readers.streamed, jobs[name], partitions))
            print(name, round(seconds[name], 1), file=sys.stderr)
    rates = {name: n / (seconds[name] - seconds["tiny"]) for name in ("uniform", "user")}
    return {
        "messages": n,
        "start_seconds": round(seconds["tiny"], 1),
        "messages_per_second": {name: round(rate) for name, rate in rates.items()},
        "times_uniform": round(rates["user"] / rates["uniform"], 2),
    }


def checkpoint(arguments: argparse.Namespace, directory: pathlib.Path, flags: list[str]) -> dict[str, Any]:
    """Reads so many users' events into one window that stays open; what checkpoints of it take."""
    partitions = arguments.partitions or 4
    each = EVENTS_A_USER * arguments.users // partitions
    known = [filling.users_of(number, np.arange(each), arguments.users) for number in range(partitions)]
    users = len(np.unique(np.concatenate(known)))
    with kafka.Broker(directory / "kafka") as broker, cluster.Cluster(directory / "flink") as flink:
        how = {"users": arguments.users, "milliseconds": filling.DAY // 2}
        filled = fill_topic(directory, broker, each * partitions, partitions, **how)
        given = [f"--runner.master={flink.master}", "--runner.checkpoint_seconds=10", *DAILY, *flags]
        path, words, job = fresh(directory, *given)
        rows, begun = Rows(job), time.monotonic()
        found: dict[str | None, dict[str, Any]] = {}
        with streaming(path, *words) as process:
            while sum(one["read"] == filled["messages"] for one in found.values()) < MORE_CHECKPOINTS:
                if process.poll() is not None:
                    break
                time.sleep(0.5)
                last = _last_checkpoint(flink.rest)
                if last.last_path not in (None, *found):
                    # Before it is looked at: some of it may have been read since.
                    found[last.last_path] = {
                        "at_seconds": round(time.monotonic() - begun),
                        "read": rows.count(),
                        "bytes": last.last_bytes,
                        "seconds": last.last_duration.total_seconds(),
                    }
            failed, waiting = _last_checkpoint(flink.rest).failed, rows.waiting_bytes()
    largest = max(one["bytes"] for one in found.values())
    return {
        **filled,
        "users": users,
        "checkpoints": list(found.values()),
        "failed": failed,
        "bytes_per_user": round(largest / users, 3),
        "waiting_bytes": waiting,
        "waiting_bytes_per_user": round(waiting / users, 1),
    }


def _last_checkpoint(rest: flink_rest.Flink) -> flink_rest.Checkpoints:
    """Of the job that is there, if it is."""
    try:
        return rest.checkpoints(rest.jobs()[0].job_id)
    except (flink_rest.FlinkError, IndexError):
        return flink_rest.Checkpoints(0, 0)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["topic", "skew", "checkpoint"])
    parser.add_argument("--messages", type=int, help="default: 50,000,000, and 2,000,000 for skew")
    parser.add_argument("--users", type=int, default=1_000_000, help="of a checkpoint's window")
    parser.add_argument("--partitions", type=int, help="default: 8, 2 for skew, 4 for checkpoint")
    parser.add_argument("--rounds", type=int, default=2, help="of skew")
    parser.add_argument("--directory", type=pathlib.Path, help="of the broker; default: a new one, deleted at the end")
    parser.add_argument("--fill-only", action="store_true", help="topic: only fill it")
    parser.add_argument("--run-only", action="store_true", help="topic: it is filled already")
    arguments, flags = parser.parse_known_args(argv)
    arguments.messages = arguments.messages or (50_000_000 if arguments.what == "topic" else 2_000_000)
    measure = {"topic": whole_topic, "skew": skew, "checkpoint": checkpoint}[arguments.what]
    with tempfile.TemporaryDirectory() as scratch:
        directory = arguments.directory or pathlib.Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        os.environ["XDG_STATE_HOME"] = scratch
        print(json.dumps(measure(arguments, directory.absolute(), flags), indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
