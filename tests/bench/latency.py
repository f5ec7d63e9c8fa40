"""From the end of a window, slack included, by the broker's clock, to its counts in current.duckdb: seconds, of a stream.

    python -m tests.bench.latency --minutes 5

A broker of its own, with three partitions, gets 1,000 events a second from a process of its own; another opens the current
database anew whenever there is another, and says when it first saw a window. One model is trained, on the first window, which
is reported apart (model.retrain = "1d").
"""

import argparse
import datetime as dt
import json
import multiprocessing
import multiprocessing.synchronize
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from data import database, errors
from pipelines import publish, release, stream
from runners import kafka
from tests.drill import trial
from tests.pipelines import topics
from tests.pipelines.example import view
from transforms.ingest import kafka_client
from transforms.ingest import stream as windows

USERS, RATE, START_SECONDS = 10_000, 1000, 40
SIZE_SECONDS, SLACK_SECONDS = 10, 1

Event = multiprocessing.synchronize.Event
Seen = list[tuple[str, float]]
"""Windows' starts, and the time at which something was done with them."""


def produce(bootstrap: str, topic: str, is_over: Event) -> None:
    """Sends events as they happen, until it is told to stop."""
    chosen, sent, start = random.Random(0), 0, time.monotonic()
    with kafka_client.producer(kafka_client.Connection(bootstrap), linger_ms=5) as producer:
        while not is_over.is_set():
            now = dt.datetime.now(dt.UTC).isoformat()[:-6]
            for number in range(sent, int(RATE * (time.monotonic() - start))):
                item = f"i{int(trial.ITEMS * chosen.random() ** 2):06}"
                event = view(f"u{chosen.randrange(USERS)}", item, f"e{number}", now, kind=chosen.choice(["view", "buy"]))
                producer.send(topic, **topics.message(event))
                sent += 1
            time.sleep(0.02)


def watch(store: pathlib.Path, is_over: Event, seen: Any) -> None:
    """Opens each new version, until it is told to stop; puts the windows whose counts it saw, and when."""
    current, last = store / database.CURRENT, None
    while not is_over.is_set():
        time.sleep(0.02)
        version = current.readlink() if current.is_symlink() else None
        if version == last:
            continue
        try:
            with database.connect(store) as connection:
                [(window, users)] = connection.sql("select max(window_start)::varchar, sum(users) from item_counts").fetchall()
        except errors.NothingThereError:
            continue
        now = time.time()
        if users > 0:
            seen.put((window, now))
        last = version


def note(owner: Any, name: str, given: Seen, what: Callable[..., str | None]) -> None:
    """Has a function of the stream's own process note when it ended."""
    function = getattr(owner, name)

    def noting(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        if (window := what(result, *arguments)) is not None:
            given.append((window, time.time()))
        return result

    setattr(owner, name, noting)


def measure(directory: pathlib.Path, minutes: float) -> dict[str, Any]:
    """Seconds after each window's end and slack at which it was closed, released, published, and seen."""
    with kafka.Broker(directory / "kafka") as broker:
        path, topic = topics.write_job(directory, broker, create_time=False)
        trial.write_events(directory, 1000, 1)  # for its catalogue
        start = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=START_SECONDS)
        n_windows = int(60 * minutes / SIZE_SECONDS)
        end = start + n_windows * dt.timedelta(seconds=SIZE_SECONDS)
        job = topics.load(
            path,
            f"--window.size={SIZE_SECONDS}s",
            f"--window.slack_seconds={SLACK_SECONDS}",
            f"--window.start={start.isoformat()}",
            f"--window.end={end.isoformat()}",
            f"--window.budget_share={0.9 / n_windows}",
            "--kafka.settle_seconds=5",
            "--cooccurrence.max_items=auto",
            "--model.retrain=1d",
        )
        context = multiprocessing.get_context("spawn")
        is_over, seen = context.Event(), context.Queue()
        helpers = [
            context.Process(target=produce, args=(broker.bootstrap, topic, is_over)),
            context.Process(target=watch, args=(job.job.store, is_over, seen)),
        ]
        for helper in helpers:
            helper.start()
        steps: dict[str, Seen] = {"closed": [], "released": [], "published": []}
        of = (start + number * dt.timedelta(seconds=SIZE_SECONDS) for number in range(n_windows))
        note(windows, "find_closed", steps["closed"], lambda found, *_: found and next(of).isoformat())
        note(release, "run_window", steps["released"], lambda _, part, number, *rest: part.window.bounds(number)[0].isoformat())
        note(publish, "run", steps["published"], lambda *_: steps["released"][-1][0])
        stream.run(job, until=end + job.window.slack + job.settling)
        time.sleep(1)
        is_over.set()
        steps["seen"] = []
        while not seen.empty():
            steps["seen"].append(seen.get())
        for helper in helpers:
            helper.join()
    return summary(steps, n_windows)


def summary(steps: dict[str, Seen], n_windows: int) -> dict[str, Any]:
    after: dict[str, dict[dt.datetime, float]] = {
        step: {
            (time_ := dt.datetime.fromisoformat(window)): at - time_.timestamp() - SIZE_SECONDS - SLACK_SECONDS
            for window, at in reversed(found)  # the first counts
        }
        for step, found in steps.items()
    }
    first = min(after["seen"])
    told: dict[str, Any] = {
        "windows": n_windows,
        "windows_seen": len(after["seen"]),
        "first_window": round(after["seen"][first], 2),
    }
    for step, found in after.items():
        taken = [seconds for window, seconds in found.items() if window != first]
        told[step] = {
            "p50": round(float(np.percentile(taken, 50)), 2),
            "p99": round(float(np.percentile(taken, 99)), 2),
            "max": round(max(taken), 2),
        }
    return told


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(measure(pathlib.Path(directory), arguments.minutes), indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
