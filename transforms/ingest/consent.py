"""Who has opted out, by a compacted topic: the newest statement of each privacy id holds.

A message's key is the privacy id, as text or as JSON {"privacy_id": ...}; its value is {"opted_out": true or false}, alone or
as the `after` of a change-data-capture envelope (before, after, op), each maybe in Debezium's {"schema", "payload"}. Without a
value, or with a deleted row, there is no opt-out. A statement that can't be understood counts as one.
"""

import json
import logging
from collections.abc import Collection, Iterator

from transforms.ingest import changes, kafka_client, topics

log = logging.getLogger(__name__)


def opted_out(connection: kafka_client.Connection, topic: str) -> set[str]:
    """Reads the topic to its end; returns the ids whose newest statement, by the broker's time, is an opt-out.

    Raises:
        kafka_client.KafkaError: it can't be read, or a statement names nobody.
    """
    not_understood = 0

    def statements() -> Iterator[topics.Statement[bool]]:
        nonlocal not_understood
        for record in topics.messages(connection, topic):
            privacy_id, statement = _id(record.key), _statement(record.value)
            if privacy_id is None:
                raise kafka_client.KafkaError(
                    f"kafka: the message at offset {record.offset} of {topic}/{record.partition} opts somebody in or out and "
                    "names nobody: its key must be the privacy id. Nothing is counted before that is mended (send the right "
                    "one, and delete that one)."
                )
            not_understood += statement is None
            yield record, privacy_id, statement is not False

    newest = topics.newest(statements())
    if not_understood:
        log.warning("%d message(s) of %s are not understood and count as opt-outs", not_understood, topic)
    return {id_ for id_, is_out in newest.items() if is_out}


def opt_out(connection: kafka_client.Connection, topic: str, privacy_ids: Collection[str]) -> int:
    """States that these ids have opted out, unless the topic says so; returns of how many it didn't.

    Raises:
        kafka_client.KafkaError: it can't be read, or not be written to.
    """
    new = sorted(set(privacy_ids) - opted_out(connection, topic))
    if new:
        kafka_client.partitions(connection, topic, "WRITE")
        with kafka_client.producer(connection) as client:
            stated = json.dumps({"opted_out": True}).encode()
            kafka_client.send(client, topic, ({"key": _key(id_), "value": stated} for id_ in new))
    return len(new)


def _key(privacy_id: str) -> bytes:
    """A message's key for an id: the id, or where that would be read as JSON of another, JSON."""
    text = privacy_id.encode()
    return text if _id(text) == privacy_id else json.dumps({"privacy_id": privacy_id}).encode()


def _id(key: bytes | None) -> str | None:
    """The privacy id that a key stands for."""
    try:
        text = (key or b"").decode()
    except UnicodeDecodeError:
        return None
    try:
        given = changes.content(text.encode())
    except changes.ChangeError:
        given = None
    if isinstance(given, dict) and set(given) == {"privacy_id"} and not isinstance(given["privacy_id"], dict | list):
        return None if given["privacy_id"] is None else str(given["privacy_id"]) or None
    return text or None


def _statement(value: bytes | None) -> bool | None:
    """Whether a value opts out; None: it can't be told."""
    try:
        row = changes.row(value)
    except changes.ChangeError:
        return None
    if row is None:
        return False
    stated = row.get("opted_out")
    return stated if isinstance(stated, bool) else None
