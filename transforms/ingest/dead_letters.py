"""Dead and late messages to the topics for them: as they came, with reason, topic, partition and offset as headers, each once.

Letters and the offsets up to which the topic was read are one transaction, so the group's committed offsets say which release's
letters were sent last, also to a run after a crash; lag tools read them too.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import kafka
from kafka import structs

from data import files, vault
from data import letters as letter_files
from transforms.ingest import decode, kafka_client

_TRANSACTION_MS = 600_000
"""How long sending a window's letters may take; brokers allow 15 minutes unless they are told otherwise."""


def send(
    connection: kafka_client.Connection,
    dead: str | None,
    late: str | None,
    group: str,
    stops: Mapping[str, Mapping[int, int]],
    mark: str,
    letters: files.Name,
    keys: vault.Vault,
) -> int:
    """Sends a release's letters, unless it was done before, and commits what was read; returns how many were sent.

    Args:
        dead, late: the topics for either; None: they are not sent.
        group: the consumer group to commit for.
        stops: by topic and partition, the offset after the last that was read.
        mark: of the release, greater as a text than those of the group's releases before.
        letters: a file of JSON lines as `topics` makes them.
        keys: by which these are encrypted.

    Raises:
        kafka_client.KafkaError: the broker refuses.
    """
    offsets = {
        kafka.TopicPartition(source, number): structs.OffsetAndMetadata(stop, mark, -1)
        for source, parts in stops.items()
        for number, stop in parts.items()
    }
    wanted = [(topic, are_late) for topic, are_late in ((dead, False), (late, True)) if topic is not None]
    if not wanted:
        with kafka_client.consumer(connection, group_id=group) as client:
            client.commit(offsets)
        return 0
    for topic, _ in wanted:
        kafka_client.partitions(connection, topic, "WRITE")
    with kafka_client.producer(connection, transactional_id=group, transaction_timeout_ms=_TRANSACTION_MS) as client:
        # From here on no earlier run can finish a transaction that it left open.
        client.init_transactions()
        if _last_mark(connection, group, list(offsets)) >= mark:
            return 0
        client.begin_transaction()
        sent = sum(kafka_client.send(client, topic, _messages(letters, keys, are_late)) for topic, are_late in wanted)
        client.send_offsets_to_transaction(offsets, group)
        client.commit_transaction()
    return sent


def _last_mark(connection: kafka_client.Connection, group: str, places: Sequence[kafka.TopicPartition]) -> str:
    """The mark of the group's last release; none: the empty text."""
    with kafka_client.consumer(connection, group_id=group) as client:
        committed = [client.committed(place, metadata=True) for place in places]
    return max((found.metadata for found in committed if found is not None), default="")


def _messages(letters: files.Name, keys: vault.Vault, are_late: bool) -> Iterator[dict[str, Any]]:
    found = map(json.loads, letter_files.read(letters, keys))
    return (_message(letter) for letter in found if (letter["reason"] == decode.LATE) == are_late)


def _message(letter: Mapping[str, Any]) -> dict[str, Any]:
    topic, _, partition = letter["file"].rpartition("/")
    headers = {"reason": letter["reason"], "topic": topic, "partition": partition, "offset": str(letter["row"])}
    return {
        "key": _bytes(letter["key"]),
        "value": _bytes(letter["value"]),
        "headers": [(name, text.encode()) for name, text in headers.items()],
    }


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
