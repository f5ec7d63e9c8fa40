"""The topics of a job, made as it needs them; and a Kafka broker on this machine, for trials."""

import dataclasses
import datetime as dt
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from data import errors, state
from pipelines import config, sections
from runners import background
from runners import kafka as local
from transforms.ingest import kafka_client

PORT = 9092
"""Where a new broker listens if nothing else is said."""

_RETENTION = "retention.ms"

log = logging.getLogger(__name__)


def default_directory() -> Path:
    """Returns the broker's directory: in the user's state directory, beside the ledger."""
    return state.directory() / "kafka"


def up(directory: Path, port: int | None, secure: bool) -> list[str]:
    """Starts the broker in the background if it isn't running; returns the lines of a job file that reach it.

    Args:
        port: None: that of the broker that was here before, or else PORT.

    Raises:
        errors.BadInputError: it can't be started.
    """
    try:
        broker = local.Broker(directory, secure=secure)
        if broker.is_running():
            broker.wait()
            log.info("Kafka is running already at %s, in %s", broker.bootstrap, broker.directory)
        else:
            broker.port = port or broker.port or PORT
            broker.start()
            log.info("Kafka %s is up at %s, in %s", local.VERSION, broker.bootstrap, broker.directory)
    except (background.BackgroundError, OSError) as error:
        raise errors.BadInputError(f"kafka: {error}") from error
    settings = {"bootstrap": broker.bootstrap}
    if broker.secure:
        settings |= {
            "security": "sasl_ssl",
            "ca_file": str(broker.ca_file),
            "username": local.ADMIN,
            "password_file": str(broker.password_file()),
        }
    # A JSON string is a TOML string.
    return [f"{name} = {json.dumps(value)}" for name, value in settings.items()]


def down(directory: Path) -> None:
    """Stops the broker, if it is running; its data stay.

    Raises:
        errors.BadInputError: it can't be stopped.
    """
    try:
        was_running = local.Broker(directory).stop()
    except (background.BackgroundError, OSError) as error:
        raise errors.BadInputError(f"kafka: {error}") from error
    log.info("Kafka is down; its data stay in %s" if was_running else "no Kafka is running in %s", directory)


@dataclasses.dataclass(frozen=True)
class Topic:
    """A topic as a job needs it.

    Attributes:
        settings: by the broker's names; `retention.ms` is the least that does.
    """

    name: str
    role: str
    partitions: int
    settings: Mapping[str, str]


def init(job: config.Job) -> None:
    """Makes the job's topics; those that are there are compared with what the job needs.

    Raises:
        kafka_client.KafkaError: the broker refuses.
        config.JobFileError: the job has no topics, or one that is there doesn't do.
    """
    kafka = job.kafka
    if kafka is None:
        raise config.JobFileError('source.kind: is not "kafka", so the job has no topics.')
    if kafka.retention_time < (needed := needed_retention(job)):
        log.warning(
            "kafka.retention = %r is shorter than the %s from an event's arrival to the reading of its window: events would be "
            "deleted before they are counted",
            kafka.retention,
            needed,
        )
    wrong: list[str] = []
    for topic in topics(job, kafka):
        there = kafka_client.topic_settings(kafka.connection, topic.name)
        if there is not None:
            wrong += _differences(topic, there)
        else:
            kafka_client.create_topic(kafka.connection, topic.name, topic.partitions, topic.settings)
            log.info("made topic %s (%s): %d partition(s), %s", topic.name, topic.role, topic.partitions, dict(topic.settings))
    if wrong:
        raise config.JobFileError("\n  ".join(["topics that are there don't do:", *wrong]))


def topics(job: config.Job, kafka: sections.KafkaSection) -> Iterator[Topic]:
    """Yields the topics that the job names."""
    times = {"message.timestamp.type": "CreateTime" if kafka.allow_create_time else "LogAppendTime"}
    # By producers' times, events of long ago would be deleted at once.
    retention = -1 if kafka.allow_create_time else kafka.retention_time // dt.timedelta(milliseconds=1)
    kept = {_RETENTION: str(retention)}
    compacted = {"cleanup.policy": "compact"}
    for name, role, partitions, settings in (
        (job.source.topic, "events", kafka.partitions, {**times, **kept}),
        (kafka.dead_letters, "dead letters", 1, kept),
        (kafka.late, "late messages", 1, kept),
        (kafka.consent, "consent", 1, {**times, **compacted}),
        (None if job.catalogue is None else job.catalogue.topic, "catalogue", 1, {**times, **compacted}),
        (kafka.recommendations, "recommendations", 1, compacted),
    ):
        if name is not None:
            yield Topic(name, role, partitions, settings)


def needed_retention(job: config.Job) -> dt.timedelta:
    """From the arrival of a window's first event, at most `max_skew_seconds` early, to when the window may be read."""
    return dt.timedelta(seconds=job.source.max_skew_seconds) + job.window.duration + job.window.slack + job.settling


def _differences(topic: Topic, there: Mapping[str, str]) -> Iterator[str]:
    for name, value in topic.settings.items():
        is_fine = _lasts(there[name], value) if name == _RETENTION else value in there[name].split(",")
        if not is_fine:
            yield f"{topic.name} ({topic.role}) has {name} = {there[name]}, not {value}: change it with Kafka's own tools."


def _lasts(there: str, least: str) -> bool:
    return int(there) == -1 or int(there) >= int(least)


if __name__ == "__main__":
    from pipelines import cli

    cli.main_of("kafka")
