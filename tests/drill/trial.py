"""A synthetic world in a topic with its own times, for drills: the same events in a file and as messages."""

import contextlib
import json
import pathlib
import re
from collections import Counter
from typing import Any

import duckdb
import pyarrow as pa

from data import store, synthetic, tables
from pipelines import config, replay
from runners import kafka
from tests.pipelines import topics
from tests.pipelines.example import published, view

ITEMS, SLACK_SECONDS = 200, 3600
WINDOWS = [
    "--window.size=1d",
    f"--window.slack_seconds={SLACK_SECONDS}",
    "--cooccurrence.max_items=auto",
    "--model.rank=8",
]
UNBOUNDED = ["--counts.max_partitions_contributed=400", "--counts.max_contributions_per_partition=5"]
"""Bounds that nobody reaches: nobody has more than three events of a type on an item."""
EXACT = 1e9
"""An epsilon at which the noise of counts stays far below one with these, too."""

_EVENTS = """
    copy (
        select event_id, privacy_id, item_id, if(event_type = 'view', 'view', 'buy') as event_type, null as value,
            strftime(event_time, '%Y-%m-%dT%H:%M:%S.%fZ') as event_time,
            strftime(arrival_time, '%Y-%m-%dT%H:%M:%S.%fZ') as arrival_time
        from events
    ) to $path
"""
_COUNTS = """
    select epoch_us(time_bucket(interval '1 day', event_time::timestamptz)), item_id, event_type,
        count(distinct privacy_id), count(distinct event_id)
    from read_csv($path, header = true, all_varchar = true) group by all
"""

Counts = dict[tuple[int, str, str], tuple[int, int]]
"""Users and events by window (its start, microseconds), item and event type."""


def flags(days: int) -> list[str]:
    """Of a job over so many days, each a window with its part of the budget."""
    return [*WINDOWS, f"--window.end=2025-01-{days + 1:02}", f"--window.budget_share={0.9 / days}"]


def write_events(directory: pathlib.Path, n: int, days: int) -> pathlib.Path:
    """Writes the first n events of a world, and its items, over those of the job there; returns the events' path."""
    start = synthetic.World().start
    world = synthetic.World(
        users=max(1000, n // 40), items=ITEMS, start=start, end=start.replace(day=1 + days), arrival_delay_seconds=20
    )
    batches, rows = [], 0
    for batch in world.events():
        batches.append(batch.slice(0, n - rows))
        rows += batches[-1].num_rows
        if rows == n:
            break
    else:
        raise ValueError(f"the world has {rows} events, not {n}.")
    with duckdb.connect(config={"threads": 2}) as connection:
        connection.execute("set TimeZone = 'UTC'")
        connection.register("events", pa.Table.from_batches(batches))
        connection.register("items", world.catalogue())
        connection.execute(_EVENTS, {"path": str(directory / "events.csv")})
        connection.execute(
            "copy (select item_id, title, genre[1] as genre from items) to $path", {"path": str(directory / "items.csv")}
        )
    return directory / "events.csv"


def send(running: kafka.Broker, topic: str, path: pathlib.Path, **spoilt: Any) -> Counter[str]:
    """Sends the events in the order of their arrival, which is up to the slack after they happened."""
    given = {"disorder_seconds": SLACK_SECONDS, "repeats": 0.2, "malformed": 0.01, **spoilt}
    return replay.run(replay.Replay([path], topic, as_arrival=True, **given), topics.connection(running))


def end(running: kafka.Broker, topic: str, partitions: int = 3) -> None:
    """Sends a message to each partition by whose arrival every window has closed; nobody counts it."""
    last = topics.message(view("nobody", "i000000", "", "2025-01-30T12:00", "2025-01-30T12:00"))
    topics.send(running, topic, [{**last, "partition": partition} for partition in range(partitions)])


def counted(path: pathlib.Path) -> Counts:
    """What a query over the file says."""
    with duckdb.connect(config={"threads": 2}) as connection:
        connection.execute("set TimeZone = 'UTC'")
        rows = connection.execute(_COUNTS, {"path": str(path)}).fetchall()
    return {(window, item, kind): (users, events) for window, item, kind, users, events in rows}


def released(job: config.Job) -> Counts:
    """What the job's releases say, above zero."""
    kept, found = store.Store(job.job.store), Counts()
    for manifest in published(job):
        counts = kept.read_table(manifest, "item_counts", tables.ITEM_COUNTS)
        starts = counts["window_start"].cast(pa.int64()).to_pylist()
        for start, row in zip(starts, counts.to_pylist(), strict=True):
            if row["users"]:
                key = start, row["item_id"], row["event_type"]
                assert key not in found, f"{key} was released twice"
                found[key] = row["users"], row["events"]
    return found


def letters(running: kafka.Broker, topic: str) -> list[tuple[int, int]]:
    """Partition and offset of each dead letter, by its headers, in order; all are of this topic."""
    headers = [dict(letter.headers) for letter in topics.read(running, f"{topic}.dead")]
    assert {found["topic"] for found in headers} <= {topic.encode()}
    return sorted((int(found["partition"]), int(found["offset"])) for found in headers)


def malformed(running: kafka.Broker, topic: str) -> list[tuple[int, int]]:
    """Partition and offset of each message that is no JSON, in order, by a reader of its own."""
    found = []
    for record in topics.read(running, topic):
        try:
            json.loads(record.value)
        except ValueError:
            found.append((record.partition, record.offset))
    return sorted(found)


def memory(pid: int) -> int:
    """Bytes that a process and those that come from it hold."""
    return sum(memory_of_each(pid).values())


def memory_of_each(pid: int) -> dict[int, int]:
    """Bytes that a process and those that come from it hold, by their numbers."""
    parents, held = {}, {}
    for status in pathlib.Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # it ended
            text = status.read_text()
            if found := re.search(r"PPid:\s+(\d+)(?:.|\n)*VmRSS:\s+(\d+) kB", text):
                parents[int(status.parent.name)], held[int(status.parent.name)] = int(found[1]), 1024 * int(found[2])
    ours, more = {pid}, {pid}
    while more := {child for child, parent in parents.items() if parent in more}:
        ours |= more
    return {each: held[each] for each in ours if each in held}
