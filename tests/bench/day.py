"""A day of the synthetic world through a stream, in an hour or less: memory, lag, and whether each window comes, in order.

    python -m tests.bench.day --users 200000 --speed 24 --checkpoint-seconds 10

The day is the middle one of a world's three, so that it has as many users from its beginning to its end. It is replayed into a
topic with its own times (CreateTime), out of order, with repeats and malformed messages; a stream in a process of its own
releases its windows. The memory is that of the stream, its Flink included, every few seconds; with checkpoints, the size of the
last one is looked at too.
"""

import argparse
import datetime as dt
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, NamedTuple

import kafka as kafka_python
import numpy as np
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from data import synthetic
from pipelines import config, replay, upgrade
from runners import flink, kafka
from tests.drill import trial
from tests.pipelines import topics
from tests.pipelines.example import charges
from transforms.ingest import kafka_client

DAY = dt.timedelta(days=1)
START = synthetic.World().start + DAY
PARTITIONS, SLACK_SECONDS = 3, 60
SAMPLE_SECONDS = 5.0


def write_day(directory: pathlib.Path, users: int) -> tuple[pathlib.Path, int]:
    """Writes the events of the day, and the items; returns the events' path and how many there are."""
    start = synthetic.World().start
    world = synthetic.World(users=users, items=trial.ITEMS, start=start, end=start + 3 * DAY)
    path, rows = directory / "day.parquet", 0
    with pq.ParquetWriter(path, synthetic.RAW_EVENTS) as file:
        for batch in world.events():
            times = batch["event_time"]
            part = batch.filter(pc.and_(pc.greater_equal(times, START), pc.less(times, START + DAY)))
            file.write_batch(part)
            rows += part.num_rows
    items = world.catalogue()
    items = items.set_column(items.column_names.index("genre"), "genre", pc.list_element(items["genre"], 0))
    pyarrow.csv.write_csv(items.select(["item_id", "title", "genre"]), directory / "items.csv")
    return path, rows


class Sample(NamedTuple):
    """Of a moment, in seconds: bytes of memory and of the last checkpoint (0: there is none), and messages behind."""

    time: float
    memory: int
    checkpoint: int
    lag: int


def checkpoint_size(job: config.Job) -> int:
    """Bytes of the newest checkpoint that is complete; what it shares with others doesn't count: heaps share nothing."""
    there = [flink.last_checkpoint(upgrade.checkpoints(run)) for run in (job.job.store / "operator" / "stream").glob("*/")]
    try:
        return sum(file.stat().st_size for path in there if path for file in path.iterdir())
    except FileNotFoundError:  # a newer one has taken its place
        return checkpoint_size(job)


def lag(job: config.Job) -> int:
    """Messages of the topic that the group hasn't committed."""
    ends = kafka_client.topic_offsets(job.kafka.connection, job.source.topic)
    with kafka_client.consumer(job.kafka.connection, group_id=f"sottovoce-{job.job.name}") as client:
        done = {number: client.committed(kafka_python.TopicPartition(job.source.topic, number)) or 0 for number in ends}
    return sum(end - done[number] for number, (_, end) in ends.items())


def flags(window: dt.timedelta, checkpoint_seconds: float | None) -> list[str]:
    return [
        *([] if checkpoint_seconds is None else [f"--runner.checkpoint_seconds={checkpoint_seconds}"]),
        f"--window.size={window.seconds}s",
        f"--window.slack_seconds={SLACK_SECONDS}",
        f"--window.start={START.isoformat()}",
        f"--window.end={(START + DAY).isoformat()}",
        f"--window.budget_share={0.9 * (window / DAY)}",
        "--cooccurrence.max_items=auto",
        "--model.retrain=1d",
        '--source.columns={ event_id = "event_id", event_type = "event_type" }',
        "--source.event_types={ view = 1.0, purchase = 2.0 }",
    ]


def measure(directory: pathlib.Path, users: int, speed: float, window: dt.timedelta, given: list[str]) -> dict[str, Any]:
    with kafka.Broker(directory / "kafka") as broker:
        path, topic = topics.write_job(directory, broker)
        day, rows = write_day(directory, users)
        job = topics.load(path, *given)
        command = [
            sys.executable,
            "-m",
            "pipelines.stream",
            str(path),
            "--until",
            (START + 2 * DAY).isoformat(),
            *given,
        ]
        samples: list[Sample] = []
        sent: list[Any] = []

        def send() -> None:
            spoilt = {"disorder_seconds": SLACK_SECONDS, "repeats": 0.05, "malformed": 0.001}
            played = replay.Replay([day], topic, speed=speed, as_arrival=True, **spoilt)
            sent.append(replay.run(played, topics.connection(broker)))
            trial.end(broker, topic, PARTITIONS)

        with (directory / "stream.log").open("w") as said, subprocess.Popen(command, stderr=said) as process:
            sending = threading.Thread(target=send)
            begun = time.monotonic()
            sending.start()
            while process.poll() is None:
                samples.append(Sample(time.monotonic() - begun, trial.memory(process.pid), checkpoint_size(job), lag(job)))
                time.sleep(SAMPLE_SECONDS)
            sending.join()
        if process.returncode:
            raise RuntimeError((directory / "stream.log").read_text()[-3000:])
        return summary(job, rows, sent[0].total(), samples, lag(job))


def by_third(times: np.ndarray, values: np.ndarray) -> list[list[float]]:
    """Mean and maximum in each third of the time."""
    thirds = [values[(times >= k * times[-1] / 3) & (times < (k + 1) * times[-1] / 3)] for k in range(3)]
    return [[round(float(np.mean(third)), 1), round(float(np.max(third)), 1)] for third in thirds]


def summary(job: config.Job, rows: int, messages: int, samples: list[Sample], last_lag: int) -> dict[str, Any]:
    starts = [charge["window_start"] for charge in charges(job)]
    expected = [start.isoformat() for start, _ in map(job.window.bounds, range(job.window.closed_count(START + 2 * DAY)))]
    times, held, checkpoints, behind = map(np.array, zip(*samples, strict=True))
    memory = by_third(times, held / 1e6)
    return {
        "events": rows,
        "messages": messages,
        "seconds": round(float(times[-1])),
        "windows": len(expected),
        "released_in_order": starts == expected,
        "megabytes_by_third": memory,
        "last_third_times_middle": round(memory[2][0] / memory[1][0], 3),
        "checkpoint_kilobytes_by_third": by_third(times, checkpoints / 1e3),
        "most_lag": int(behind.max()),
        "lag_in_the_end": last_lag,
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200_000, help="of the world of three days")
    parser.add_argument("--speed", type=float, default=24, help="seconds of the day in one")
    parser.add_argument("--minutes", type=float, default=10, help="of a window")
    parser.add_argument("--checkpoint-seconds", type=float, help="between a stream's checkpoints; without: it makes none")
    arguments = parser.parse_args(argv)
    window = dt.timedelta(minutes=arguments.minutes)
    given = flags(window, arguments.checkpoint_seconds)
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(measure(pathlib.Path(directory), arguments.users, arguments.speed, window, given), indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
