"""Small jobs whose events come from a topic of a real broker."""

import csv
import datetime as dt
import json
import pathlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines import config
from pipelines import kafka as job_topics
from runners import kafka
from tests.pipelines import example
from transforms.ingest import kafka_client, topics

_SOURCE = """
kind = "kafka"
topic = "{topic}"
columns = {{ event_id = "event_id", event_type = "event_type", value = "value" }}
event_types = {{ view = 1.0, buy = 2.0 }}
max_malformed_share = 1.0
[kafka]
bootstrap = "{bootstrap}"
consent = "{topic}.consent"
dead_letters = "{topic}.dead"
late = "{topic}.late"
recommendations = "{topic}.recommendations"
settle_seconds = 0
allow_create_time = {allow_create_time}
"""


def connection(running: kafka.Broker, user: str = kafka.ADMIN) -> kafka_client.Connection:
    if not running.secure:
        return kafka_client.Connection(running.bootstrap)
    return kafka_client.Connection(running.bootstrap, "sasl_ssl", running.ca_file, user, running.password_file(user))


def login(given: kafka_client.Connection) -> list[str]:
    """The connection as flags."""
    settings = {name: getattr(given, name) for name in ("security", "ca_file", "username", "password_file")}
    return [f"--kafka.{name}={value}" for name, value in settings.items() if value is not None]


def write_job(
    directory: pathlib.Path, running: kafka.Broker, create_time: bool = True, **options: Any
) -> tuple[pathlib.Path, str]:
    """Writes a job over a topic that nobody else has; returns the job file's path and the topic. No topic is made."""
    path, topic = example.write_job(directory, [], **options), f"events-{uuid.uuid4().hex}"
    before, _, rest = path.read_text().partition("[source]")
    _, _, after = rest.partition("max_malformed_share = 0.5")
    source = _SOURCE.format(topic=topic, bootstrap=running.bootstrap, allow_create_time=str(create_time).lower())
    path.write_text(f"{before}[source]{source}{after}")
    return path, topic


def move_items(path: pathlib.Path, topic: str) -> str:
    """Makes a topic the catalogue of a job that `write_job` wrote; returns its name. No topic is made."""
    text = path.read_text()
    path.write_text(text.replace(f'path = "{path.parent}/items.csv"', f'topic = "{topic}.items"'))
    return f"{topic}.items"


def item(item_id: str, genre: str | None = "fruit") -> dict[str, Any]:
    """An item's row as a message for `send`; without a genre it is no more."""
    row = {"item_id": item_id, "title": item_id.upper(), "genre": genre}
    return {"key": item_id.encode(), "value": None if genre is None else json.dumps(row).encode()}


def load(path: pathlib.Path, *flags: str) -> config.Job:
    """As example.load, and makes the job's topics."""
    job = example.load(path, *flags)
    job_topics.init(job)
    return job


def message(line: str) -> dict[str, Any]:
    """An event's CSV line, as `example.view` makes it, as a message for `send`: its arrival is its timestamp."""
    [values] = csv.reader([line])
    given = {name: value for name, value in zip(example.HEADER.split(","), values, strict=True) if value}
    arrival = given.pop("arrival_time", None)
    timestamp = None if arrival is None else milliseconds(arrival)
    return {"value": json.dumps(given).encode(), "timestamp_ms": timestamp}


def milliseconds(time: str) -> int:
    return int(1000 * dt.datetime.fromisoformat(time).replace(tzinfo=dt.UTC).timestamp())


def send(running: kafka.Broker, topic: str, messages: Iterable[Mapping[str, Any]], **more: Any) -> None:
    with kafka_client.producer(connection(running), **more) as producer:
        kafka_client.send(producer, topic, messages)


def admin(running: kafka.Broker) -> Any:
    """A client of the broker for its topics."""
    return kafka_client.admin(connection(running))


def read(running: kafka.Broker, topic: str) -> Sequence[Any]:
    """All records of a topic."""
    return list(topics.messages(connection(running), topic))
