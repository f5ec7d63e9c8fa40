"""From a topic to events grouped by user, as a scheduled job reads: messages a second, against a bare consumer that decodes.

    python -m tests.bench.kafka --events 1000000

A broker of its own and two partitions. Ours checks times, decodes, splits by user into files, joins and drops repeats, by Beam;
the time of the same over a topic without messages is taken off. The bare consumer is kafka-python's with the same settings, in
one thread: poll, decode by the same Format and Decoder, and nothing else. Both take turns, and the best round counts.
confluent-kafka's consumer in the bare one's place is measured where it is installed.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import kafka as kafka_python

from pipelines import config, source
from runners import direct, kafka
from tests.audit import trial
from tests.pipelines import topics as jobs
from transforms import bounding
from transforms.ingest import decode, kafka_client, topics

try:
    import confluent_kafka
except ImportError:
    confluent_kafka = None

PARTITIONS, ROUNDS = 2, 3
FLAGS = ["--window.end=2025-01-05", f"--window.slack_seconds={trial.SLACK_SECONDS}", f"--kafka.partitions={PARTITIONS}"]


def ours(job: config.Job) -> None:
    found = find(job)
    with tempfile.TemporaryDirectory() as directory, beam.Pipeline(options=direct.options([])) as root:
        group = bounding.GroupByUser(bounding.buckets_for(found.rows), job.source.event_types, directory)
        _ = found.read(root, group)


def find(job: config.Job) -> source.Source:
    return source.find(job, job.window.end, None)


class Record(NamedTuple):
    """What of kafka-python's records is used."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


def by_kafka_python(job: config.Job, parts: list[topics.Range]) -> Iterator[list[Any]]:
    places = {kafka_python.TopicPartition(part.topic, part.partition): part for part in parts}
    with kafka_client.consumer(job.kafka.connection, **topics.FETCH) as client:
        client.assign(list(places))
        for place, part in places.items():
            client.seek(place, part.start)
        while any(client.position(place) < part.stop for place, part in places.items()):
            yield from client.poll(timeout_ms=topics.POLL_MS, max_records=topics.POLL_ROWS).values()


def by_confluent(job: config.Job, parts: list[topics.Range]) -> Iterator[list[Any]]:
    settings = {
        "bootstrap.servers": job.kafka.bootstrap,
        "group.id": "bench",
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        "fetch.max.bytes": topics.FETCH["fetch_max_bytes"],
        "max.partition.fetch.bytes": topics.FETCH["max_partition_fetch_bytes"],
    }
    client, left = confluent_kafka.Consumer(settings), sum(part.stop - part.start for part in parts)
    client.assign([confluent_kafka.TopicPartition(part.topic, part.partition, part.start) for part in parts])
    while left:
        messages = client.consume(topics.POLL_ROWS, topics.POLL_MS / 1000)
        left -= len(messages)
        yield [Record(each.offset(), each.timestamp()[1], each.key(), each.value()) for each in messages]
    client.close()


def bare(job: config.Job, read: Callable[..., Iterator[list[Any]]]) -> None:
    found = find(job)
    given, form = found.reader.decoding, source._format(job, found.reader.decoding.rules)
    decoder = decode.Decoder(given.rules, given.key, given.opt_outs, given.catalogue_ids, given.fields)
    waiting: list[Any] = []
    counted = 0
    for records in read(job, found.parts):
        waiting += records
        if len(waiting) >= topics.BATCH_ROWS or counted + len(waiting) == found.rows:
            counted += len(waiting)
            decoder.decode("", topics.rows(waiting, form, False))
            waiting = []
    if counted != found.rows:
        raise ValueError(f"read {counted} messages, not {found.rows}.")


def clock(work: Callable[..., None], *arguments: Any) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def measure(directory: pathlib.Path, events: int) -> dict[str, Any]:
    """Messages a second by each way, and the ratios to the bare consumer."""
    with kafka.Broker(directory / "kafka") as broker:
        found = []
        for name in ("empty", "full"):
            path, topic = jobs.write_job(directory / name, broker)
            file = trial.write_events(directory / name, events if name == "full" else 1000, 4)
            found.append(jobs.load(path, *FLAGS))
            if name == "full":
                messages = trial.send(broker, topic, file, malformed=0).total()
        empty, full = found
        ways = {"kafka-python": by_kafka_python} | ({"confluent-kafka": by_confluent} if confluent_kafka else {})
        start = min(clock(ours, empty) for _ in range(ROUNDS))
        best = dict.fromkeys(["ours", *ways], float("inf"))
        for _ in range(ROUNDS):
            best["ours"] = min(best["ours"], clock(ours, full) - start)
            for name, read in ways.items():
                best[name] = min(best[name], clock(bare, full, read))
    rates = {name: round(messages / seconds) for name, seconds in best.items()}
    ratios = {f"times_{name.replace('-', '_')}": round(rates["ours"] / rates[name], 2) for name in ways}
    return {"messages": messages, "startup_seconds": round(start, 1), "messages_per_second": rates, **ratios}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(measure(pathlib.Path(directory), arguments.events), indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
