"""From a topic to events grouped by user: messages a second of a scheduled job and of a stream, against bare consumers.

    python -m tests.bench.kafka --events 1000000

A broker of its own and two partitions. Ours checks times, decodes, splits by user into files, joins and drops repeats, by Beam;
a stream does so by windows, until the last is closed. The time of the same over a topic without messages is taken off. A bare
consumer is kafka-python's with the same settings, in one thread: poll, decode by the same Format and Decoder, and nothing else.
Each with one process for both partitions, and with one a partition. All take turns, and the best round counts.
confluent-kafka's consumer in the bare one's place is measured where it is installed.
"""

import argparse
import contextlib
import functools
import itertools
import json
import multiprocessing
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, NamedTuple

import apache_beam as beam
import kafka as kafka_python

from pipelines import config, source, stream
from runners import direct, kafka
from tests.drill import trial
from tests.pipelines import topics as jobs
from transforms import bounding
from transforms.ingest import decode, events, formats, kafka_client, topics

try:
    import confluent_kafka
except ImportError:
    confluent_kafka = None

PARTITIONS, N_WINDOWS = 2, 4
SPAWN = multiprocessing.get_context("spawn")
FLAGS = [*trial.flags(N_WINDOWS), f"--kafka.partitions={PARTITIONS}"]


def scheduled(job: config.Job, processes: int) -> None:
    """A scheduled job, over the whole topic as one window."""
    job = job.model_copy(update={"window": job.window.model_copy(update={"size": "all"})})
    found = find(job)
    flags = ["--direct_running_mode=multi_processing", f"--direct_num_workers={processes}"] if processes > 1 else []
    with tempfile.TemporaryDirectory() as directory, beam.Pipeline(options=direct.options(flags)) as root:
        group = bounding.GroupByUser(bounding.buckets_for(found.rows), job.source.event_types, directory)
        _ = found.read(root, group)


def streamed(job: config.Job, processes: int) -> None:
    """A stream, until its last window is closed."""
    job = job.model_copy(update={"runner": job.runner.model_copy(update={"workers": processes})})
    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.closing(stream._closed(job, (0, 0), pathlib.Path(directory), [], [])) as flow,
    ):
        next(number for _, number, _ in flow if number == N_WINDOWS - 1)


def find(job: config.Job) -> source.Source:
    return source.find(job, job.window.end, None)


class Record(NamedTuple):
    """What of kafka-python's records is used."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


def by_kafka_python(connection: kafka_client.Connection, parts: list[topics.Range]) -> Iterator[list[Any]]:
    places = {kafka_python.TopicPartition(part.topic, part.partition): part for part in parts}
    with kafka_client.consumer(connection, **topics.FETCH) as client:
        client.assign(list(places))
        for place, part in places.items():
            client.seek(place, part.start)
        while any(client.position(place) < part.stop for place, part in places.items()):
            yield from client.poll(timeout_ms=topics.POLL_MS, max_records=topics.POLL_ROWS).values()


def by_confluent(connection: kafka_client.Connection, parts: list[topics.Range]) -> Iterator[list[Any]]:
    settings = {
        "bootstrap.servers": connection.bootstrap,
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


def bare(
    connection: kafka_client.Connection,
    read: Callable[..., Iterator[list[Any]]],
    form: formats.Format,
    given: events.Decoding,
    parts: list[topics.Range],
) -> None:
    """One consumer of some partitions."""
    decoder = decode.Decoder(given.rules, given.key, given.opt_outs, given.catalogue_ids, given.fields)
    waiting: list[Any] = []
    counted, total = 0, sum(part.stop - part.start for part in parts)
    for records in read(connection, parts):
        waiting += records
        if len(waiting) >= topics.BATCH_ROWS or counted + len(waiting) == total:
            counted += len(waiting)
            decoder.decode("", topics.rows(waiting, form, False))
            waiting = []
    if counted != total:
        raise ValueError(f"read {counted} messages, not {total}.")


def consumed(job: config.Job, processes: int, read: Callable[..., Iterator[list[Any]]], pool: futures.Executor) -> None:
    """Bare consumers: one of all partitions here, or one of each in a process of its own."""
    found = find(job)
    given = found.reader.decoding
    one = functools.partial(bare, job.kafka.connection, read, source._format(job, given.rules), given)
    if processes == 1:
        one(found.parts)
    else:
        list(pool.map(one, [[part] for part in found.parts]))


def clock(work: Callable[..., None], *arguments: Any) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def measure(directory: pathlib.Path, n_events: int, rounds: int) -> dict[str, Any]:
    """Messages a second by each way, and the ratios to the bare consumer with as many processes."""
    with kafka.Broker(directory / "kafka") as broker, futures.ProcessPoolExecutor(PARTITIONS, SPAWN) as pool:
        found = []
        for name in ("empty", "full"):
            path, topic = jobs.write_job(directory / name, broker)
            file = trial.write_events(directory / name, n_events if name == "full" else 1000, N_WINDOWS)
            found.append(jobs.load(path, *FLAGS))
            if name == "full":
                messages = trial.send(broker, topic, file, malformed=0).total()
            trial.end(broker, topic, PARTITIONS)
        bares = {"kafka-python": by_kafka_python} | ({"confluent-kafka": by_confluent} if confluent_kafka else {})
        ways: dict[str, Callable[..., None]] = {"scheduled": scheduled, "stream": streamed}
        ways |= {name: functools.partial(consumed, read=read, pool=pool) for name, read in bares.items()}
        list(pool.map(time.sleep, [1] * PARTITIONS))  # starts them all
        kinds = list(itertools.product(ways, (1, PARTITIONS)))
        start, best = dict.fromkeys(kinds, float("inf")), dict.fromkeys(kinds, float("inf"))
        for _, kind in itertools.product(range(rounds), kinds):
            for taken, job in zip((start, best), found, strict=True):
                taken[kind] = min(taken[kind], clock(ways[kind[0]], job, kind[1]))
                print(*kind, job.job.store.parent.name, round(taken[kind], 1), file=sys.stderr)
    rates = {kind: messages / (best[kind] - start[kind]) for kind in kinds}
    told: dict[str, Any] = {"messages": messages}
    for name in ways:
        told[name] = {
            f"{n} processes": {
                "startup_seconds": round(start[name, n], 1),
                "messages_per_second": round(rates[name, n]),
                **{f"times_{other}": round(rates[name, n] / rates[other, n], 2) for other in bares if name not in bares},
            }
            for n in (1, PARTITIONS)
        }
    return told


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(measure(pathlib.Path(directory), arguments.events, arguments.rounds), indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
