"""Fills topics fast: events of one shape, a batch of ten thousand at a time, as bytes that the broker keeps as they are.

A message a call is 30,000 a second and process. Here all messages have one length, so that a batch is a matrix of bytes, and a
request of kafka-python's has its bytes ready.
"""

import functools
import multiprocessing
import os
from concurrent import futures
from typing import Any

import kafka.errors
import numpy as np
from kafka.protocol.producer import ProduceRequest
from kafka.record import default_records, util

from transforms.ingest import kafka_client

BATCH = 10_000
USERS = 100_003
ITEMS = b"abcd"
FIRST, DAY = 1_735_689_600_000, 86_400_000
"""2025-01-01T00:00, and a day, in milliseconds."""
HEAVY = 9_999_999
"""The number of the user who has half of all, where one has."""

_MAGIC, _LZ4, _NOBODY = 2, 3, -1
_VALUE = (
    b'{"event_id": "000-000000000", "privacy_id": "u0000000", "item_id": "a", "event_type": "view", '
    b'"event_time": "2025-01-01T00:00:00.000"}'
)


def fill(
    connection: kafka_client.Connection,
    topic: str,
    partition: int,
    n: int,
    milliseconds: int = 4 * DAY,
    users: int = USERS,
    is_heavy: bool = False,
) -> None:
    """Sends so many events to a partition, in the order of their times, which are their arrivals too.

    Args:
        milliseconds: from 2025 on, over which they are spread.
        users: who have them in turn.
        is_heavy: HEAVY has every second one of them.
    """
    with kafka_client.admin(connection, request_timeout_ms=60_000) as client:
        for first in range(0, n, BATCH):
            number = np.arange(first, min(first + BATCH, n))
            user = users_of(partition, number, users)
            if is_heavy:
                user[::2] = HEAVY
            _send(client, topic, partition, batch(partition, number, user, FIRST + milliseconds * number // n))


def users_of(partition: int, number: np.ndarray, users: int = USERS) -> np.ndarray:
    """The numbers of the users who have a partition's events of these numbers."""
    return (7919 * number + partition) % users


def fill_all(connection: kafka_client.Connection, topic: str, partitions: int, n: int, **how: Any) -> None:
    """Fills each partition with so many, in as many processes as the machine can run at once; `how`: as `fill`."""
    with futures.ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        list(pool.map(functools.partial(fill, connection, topic, n=n, **how), range(partitions)))


def batch(partition: int, number: np.ndarray, user: np.ndarray, time_: np.ndarray) -> bytes:
    """Events as a record batch of Kafka's (version 2, lz4): views, by their numbers, of these users at these milliseconds."""
    value = np.tile(np.frombuffer(_VALUE, np.uint8), (len(number), 1))
    item = np.frombuffer(ITEMS, np.uint8)[number % len(ITEMS)]
    times = np.datetime_as_string(time_.astype("datetime64[ms]")).astype("S23").view(np.uint8)
    for mark, part in (
        (b"000-", _digits(np.full(len(number), partition), 3)),
        (b"000000000", _digits(number, 9)),
        (b'0000000"', _digits(user, 7)),
        (b'a"', item.reshape(-1, 1)),
        (b"2025", times.reshape(len(number), -1)),
    ):
        at = _VALUE.rindex(mark)
        value[:, at : at + part.shape[1]] = part
    offsets = np.arange(len(number))
    fields = [
        np.zeros((len(number), 1), np.uint8),  # attributes
        _varint(time_ - time_[0], 5),
        _varint(offsets, 3),
        _varint(np.full(len(number), -1), 1),  # no key
        _varint(np.full(len(number), len(_VALUE)), 2),
        value,
        _varint(np.zeros(len(number), int), 1),  # no headers
    ]
    size = sum(field.shape[1] for field in fields)
    records = np.hstack([_varint(np.full(len(number), size), 2), *fields])
    return _with_header(default_records.lz4_encode(records.tobytes()), len(number), int(time_[0]), int(time_[-1]))


def _with_header(body: bytes, n: int, first: int, last: int) -> bytes:
    layout = default_records.DefaultRecordBase
    size = layout.HEADER_STRUCT.size + len(body) - layout.AFTER_LEN_OFFSET
    given = (_LZ4, n - 1, first, last, _NOBODY, _NOBODY, _NOBODY, n)
    without = layout.HEADER_STRUCT.pack(0, size, 0, _MAGIC, 0, *given)
    crc = util.calc_crc32c(without[layout.ATTRIBUTES_OFFSET :] + body)
    return layout.HEADER_STRUCT.pack(0, size, 0, _MAGIC, crc, *given) + body


def _digits(figures: np.ndarray, n: int) -> np.ndarray:
    return (figures[:, None] // 10 ** np.arange(n - 1, -1, -1) % 10 + ord("0")).astype(np.uint8)


def _varint(figures: np.ndarray, n: int) -> np.ndarray:
    """Numbers in n bytes each, more than they may need: Kafka reads them all the same."""
    zigzag = (figures << 1) ^ (figures >> 63)
    found = (zigzag[:, None] >> (7 * np.arange(n)) & 0x7F).astype(np.uint8)
    found[:, :-1] |= 0x80
    return found


def _send(client: Any, topic: str, partition: int, records: bytes) -> None:
    """Sends a batch and waits until the broker has it."""
    data = ProduceRequest.TopicProduceData
    part = data.PartitionProduceData(index=partition, records=records)
    request = ProduceRequest(
        transactional_id=None,
        acks=-1,
        timeout_ms=30_000,
        topic_data=[data(name=topic, partition_data=[part])],
        min_version=3,
        max_version=9,
    )
    [response] = client._manager.run(client._manager.send, request).responses
    [answer] = response.partition_responses
    if answer.error_code:
        raise kafka.errors.for_code(answer.error_code)(f"{topic}/{partition}")
