"""Who has opted out, by a compacted topic: the newest statement of each privacy id holds.

A message's key is the privacy id, as text or as JSON {"privacy_id": ...}; its value is {"opted_out": true or false}, alone or
as the `after` of a change-data-capture envelope (before, after, op), each maybe in Debezium's {"schema", "payload"}. Without a
value, or with a deleted row, there is no opt-out. A statement that can't be understood counts as one.
"""

import json
import logging
from typing import Any

from transforms.ingest import kafka_client, topics

_OPTED_OUT = "opted_out"

log = logging.getLogger(__name__)


def opted_out(connection: kafka_client.Connection, topic: str) -> set[str]:
    """Reads the topic to its end; returns the ids whose newest statement, by the broker's time, is an opt-out.

    Raises:
        kafka_client.KafkaError: it can't be read, or a statement names nobody.
    """
    newest: dict[str, tuple[tuple[int, int], bool]] = {}
    not_understood = 0
    for record in topics.messages(connection, topic):
        privacy_id, statement = _id(record.key), _statement(record.value)
        if privacy_id is None:
            raise kafka_client.KafkaError(
                f"kafka: the message at offset {record.offset} of {topic}/{record.partition} opts somebody in or out and names "
                "nobody: its key must be the privacy id. Nothing is counted before that is mended (send the right one, and "
                "delete that one)."
            )
        not_understood += statement is None
        when = (record.timestamp, record.offset)
        if privacy_id not in newest or newest[privacy_id][0] <= when:
            newest[privacy_id] = (when, statement is not False)
    if not_understood:
        log.warning("%d message(s) of %s are not understood and count as opt-outs", not_understood, topic)
    return {id_ for id_, (_, is_out) in newest.items() if is_out}


def _id(key: bytes | None) -> str | None:
    """The privacy id that a key stands for."""
    try:
        text = (key or b"").decode()
    except UnicodeDecodeError:
        return None
    given = _payload(_json(text))
    if isinstance(given, dict) and set(given) == {"privacy_id"} and not isinstance(given["privacy_id"], dict | list):
        return None if given["privacy_id"] is None else str(given["privacy_id"]) or None
    return text or None


def _statement(value: bytes | None) -> bool | None:
    """Whether a value opts out; None: it can't be told."""
    if value is None:
        return False
    given = _payload(_json(value.decode(errors="replace")))
    if isinstance(given, dict) and "op" in given:
        given = given.get("after")
        if given is None:
            return False
    stated = given.get(_OPTED_OUT) if isinstance(given, dict) else None
    return stated if isinstance(stated, bool) else None


def _payload(given: Any) -> Any:
    return given["payload"] if isinstance(given, dict) and set(given) == {"schema", "payload"} else given


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
