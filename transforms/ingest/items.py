"""The public item table by a compacted topic: the newest statement of each item holds.

A message's key is the item id, as text or as JSON {"item_id": ...}, or under the name that the table's own column has. Its
value is the item's row, or a change of it (transforms.ingest.changes). Without a value, or with a deleted row, there is no such
item.
"""

from typing import Any

from transforms.ingest import changes, kafka_client, topics


def rows(connection: kafka_client.Connection, topic: str, id_column: str) -> list[dict[str, Any]]:
    """Reads the topic to its end; returns the rows that are there now, in the order of their ids, which stand in `id_column`.

    Raises:
        kafka_client.KafkaError: it can't be read, a message names no item, or an item's newest one isn't a row of it.
    """
    newest = topics.newest((record, _item(record, id_column), record) for record in topics.messages(connection, topic))
    found = ((item, _row(record, item, id_column)) for item, record in sorted(newest.items()))
    return [{**row, id_column: item} for item, row in found if row is not None]


def _item(record: Any, id_column: str) -> str:
    """The item that a message is about."""
    key = record.key or b""
    try:
        # Other JSON than an object is text: an id may well be a number.
        given = changes.content(key) if key.startswith(b"{") else key.decode()
        if isinstance(given, dict) and len(given) == 1:
            given = given.get(id_column, given.get("item_id"))
        item = _text(given)
        item.encode()
    except ValueError as error:
        raise _bad(record, "it names no item: its key must be the item id") from error
    return item


def _row(record: Any, item: str, id_column: str) -> dict[str, Any] | None:
    try:
        row = changes.row(record.value)
        if row is not None and row.get(id_column) is not None and _text(row[id_column]) != item:
            raise ValueError("its row is another item's than its key")
    except ValueError as error:
        raise _bad(record, str(error)) from error
    return row


def _text(given: Any) -> str:
    """An id as data.catalogue has it.

    Raises:
        ValueError: it is none.
    """
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if not isinstance(given, str | int) or isinstance(given, bool) or given == "":
        raise ValueError("an item id is text or a whole number")
    return str(given)


def _bad(record: Any, why: str) -> kafka_client.KafkaError:
    return kafka_client.KafkaError(
        f"kafka: the message at offset {record.offset} of {record.topic}/{record.partition}, the catalogue's topic, can't be "
        f"used: {why}. Nothing is released before that is mended: send the right one under its key, or delete it."
    )
