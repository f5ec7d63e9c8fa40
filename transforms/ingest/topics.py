"""Messages of a Kafka topic into events: each partition a range of offsets, read to a fixed end.

Arrival is the broker's time of append (LogAppendTime), which no user can choose: it alone decides which messages a window's
range holds. Offsets are ours; no consumer group is joined.
"""

import base64
import dataclasses
import datetime as dt
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import apache_beam as beam
import kafka
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io import restriction_trackers

from data import events as schema
from transforms.ingest import events, faults, formats, kafka_client, sources

ARRIVAL, KEY = "__arrival", "__key"
"""Columns beside a message's own: when the broker appended it, and its key as text."""

_KEY_BYTES, _VALUE_BYTES = "__key_bytes", "__value_bytes"

CLOCK_STEP = dt.timedelta(seconds=60)
"""How far a broker's clock may be set back without a message being missed: ranges end so much later than they must."""

_SAY_SECONDS = 10.0
_LOG_APPEND_TIME = 1

BATCH_ROWS = 1 << 17
BATCH_BYTES = 64 << 20
"""About how much is decoded at once."""
POLL_ROWS = 20_000
POLL_MS = 200

FETCH = {
    "isolation_level": "read_committed",
    "fetch_max_bytes": 64 << 20,
    "max_partition_fetch_bytes": 8 << 20,
}
"""kafka-python's settings for reading fast in bounded memory."""

T = TypeVar("T")
Statement = tuple[Any, str, T]
"""A record, whom or what it is about, and what it says."""

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Range:
    """Messages of a partition, at offsets [start, stop), that arrived by `until`.

    Attributes:
        new_since: of those that arrived by then, the dead letters are an earlier window's; None: there is no earlier one.
    """

    topic: str
    partition: int
    start: int
    stop: int
    until: dt.datetime
    new_since: dt.datetime | None = None

    @property
    def path(self) -> str:
        """What dead letters and the log call it."""
        return f"{self.topic}/{self.partition}"


def ranges(
    connection: kafka_client.Connection,
    topic: str,
    since: dt.datetime,
    until: dt.datetime,
    new_since: dt.datetime | None,
    allow_create_time: bool = False,
) -> list[Range]:
    """Finds what arrived in [since, until], in each partition that the topic has now.

    Args:
        allow_create_time: times of messages are their producers': then the whole topic is read, for trials.

    Raises:
        kafka_client.KafkaError: the topic can't be read, or its times aren't the broker's.
    """
    offsets = kafka_client.topic_offsets(connection, topic)
    places = {number: kafka.TopicPartition(topic, number) for number in offsets}
    found = []
    with kafka_client.consumer(connection, **FETCH) as client:
        starts, stops = (
            client.offsets_for_times(
                {place: milliseconds(at) for place in places.values()}, timeout_ms=kafka_client.TIMEOUT_SECONDS * 1000
            )
            for at in (since, until + CLOCK_STEP)
        )
    for number, (first, end) in sorted(offsets.items()):
        start, stop = (found_at.offset if found_at else end for found_at in (starts[places[number]], stops[places[number]]))
        if allow_create_time:
            start, stop = first, end
        if stop < start:
            raise _not_the_brokers(topic)
        if 0 < first == start and not allow_create_time:
            log.warning(
                "%s/%d begins at offset %d: what came before was deleted, and may have been of this window; the topic's "
                "retention is too short for it",
                topic,
                number,
                first,
            )
        found.append(Range(topic, number, start, stop, until, new_since))
    return found


def digests(found: Sequence[Range]) -> dict[str, str]:
    """What a release of whole topics is of, as sources.digests has it of files: the offsets."""
    return {part.path: f"{part.start}-{part.stop}" for part in found}


def messages(connection: kafka_client.Connection, topic: str) -> Iterator[Any]:
    """Yields kafka-python's records of a whole topic, up to its end now.

    Raises:
        kafka_client.KafkaError: it can't be read.
    """
    for number, (first, end) in kafka_client.topic_offsets(connection, topic).items():
        with kafka_client.consumer(connection, **FETCH) as client:
            for records, _ in _polls(client, kafka.TopicPartition(topic, number), first, end):
                yield from (record for record in records if record.offset < end)


def newest(statements: Iterable[Statement[T]]) -> dict[str, T]:
    """What the newest of each one's statements says, by the broker's time."""
    found: dict[str, tuple[tuple[int, int], T]] = {}
    for record, about, said in statements:
        when = (record.timestamp, record.offset)
        if about not in found or found[about][0] <= when:
            found[about] = (when, said)
    return {about: said for about, (_, said) in found.items()}


def _polls(client: kafka.KafkaConsumer, place: kafka.TopicPartition, start: int, stop: int) -> Iterator[tuple[list[Any], int]]:
    """Yields records and the offset that comes after them, until that is `stop` or more.

    Waits for a broker that is away, and says so.
    """
    client.assign([place])
    client.seek(place, start)
    position, heard = start, time.monotonic()
    while position < stop:
        records = client.poll(timeout_ms=POLL_MS, max_records=POLL_ROWS).get(place, [])
        reached = client.position(place)
        if reached is not None and reached > position:
            # Past the last record where transactions left their marks.
            position, heard = reached, time.monotonic()
            yield records, position
        elif time.monotonic() - heard > _SAY_SECONDS:
            log.warning("%s/%d: nothing new at offset %d of %d; waiting for the broker", *place, position, stop)
            heard = time.monotonic()


def batches(
    client: kafka.KafkaConsumer, part: Range, claim: Any, form: formats.Format, has_key: bool, allow_create_time: bool
) -> Iterator[pa.Table]:
    """Yields a range's messages, as `rows` makes them.

    Args:
        claim: is told each offset up to which messages are about to be yielded; no more are read when it says no.

    Raises:
        kafka_client.KafkaError: the messages' times aren't the broker's.
    """
    place = kafka.TopicPartition(part.topic, part.partition)
    waiting: list[Any] = []
    n_bytes = 0
    for records, position in _polls(client, place, part.start, part.stop):
        waiting += records
        n_bytes += sum(max(record.serialized_value_size, 0) for record in records)
        if len(waiting) >= BATCH_ROWS or n_bytes >= BATCH_BYTES or position >= part.stop:
            if not claim(min(position, part.stop) - 1):
                return
            check_times(part.topic, waiting, allow_create_time)
            arrived_by = milliseconds(part.until)
            wanted = [record for record in waiting if record.offset < part.stop and record.timestamp <= arrived_by]
            if wanted:
                yield rows(wanted, form, has_key)
            waiting, n_bytes = [], 0


def check_times(topic: str, records: Iterable[Any], allow_create_time: bool) -> None:
    """Checks whose times the records have.

    Raises:
        kafka_client.KafkaError: their producers', and that isn't allowed.
    """
    if not allow_create_time and any(record.timestamp_type != _LOG_APPEND_TIME for record in records):
        raise _not_the_brokers(topic)


def rows(records: Sequence[Any], form: formats.Format, has_key: bool) -> pa.Table:
    """Makes rows of kafka-python's records: what the format gives, ARRIVAL, sources.ROW (the offset), KEY if it is mapped.

    Raises:
        faults.RowsError: a fault of ours.
    """
    with faults.without_rows(f"{records[0].topic}/{records[0].partition}"):
        return _rows(records, form, has_key)


def _rows(records: Sequence[Any], form: formats.Format, has_key: bool) -> pa.Table:
    arrived = np.array([record.timestamp for record in records], np.int64)
    offsets = np.array([record.offset for record in records], np.int64)
    keys = pa.array([record.key for record in records], pa.binary())
    values = pa.array([record.value for record in records], pa.binary())
    table = form.decode(values)
    if has_key:
        texts, is_bad = formats.text_of(keys)
        problem = pc.if_else(pa.array(is_bad), formats.NOT_TEXT, table[formats.PROBLEM])
        table = table.set_column(table.column_names.index(formats.PROBLEM), formats.PROBLEM, problem)
        table = table.append_column(KEY, texts)
    return (
        table.append_column(sources.ROW, pa.array(offsets))
        .append_column(ARRIVAL, pa.array(1000 * arrived).cast(schema.TIMESTAMP))
        .append_column(_KEY_BYTES, keys)
        .append_column(_VALUE_BYTES, values)
    )


def letters(batch: pa.Table, dead: pa.Table, new_since: dt.datetime | None = None) -> Iterator[str]:
    """Yields dead letters as JSON lines, with the messages as they came.

    Args:
        batch: as `rows` makes it.
        dead: letters of it.
        new_since: leaves out what arrived by then.
    """
    place = np.searchsorted(batch[sources.ROW].to_numpy(), dead["row"].to_numpy())
    messages = batch.select([ARRIVAL, _KEY_BYTES, _VALUE_BYTES]).take(pa.array(place)).to_pylist()
    for letter, message in zip(dead.to_pylist(), messages, strict=True):
        if new_since is None or message[ARRIVAL] > new_since:
            yield json.dumps({**letter, "key": _base64(message[_KEY_BYTES]), "value": _base64(message[_VALUE_BYTES])})


def _base64(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


class Tracker(restriction_trackers.OffsetRestrictionTracker):
    """Offsets of one partition: read by one worker, in order, and not split further."""

    def try_split(self, fraction_of_remainder: float) -> Any:
        return super().try_split(fraction_of_remainder) if not fraction_of_remainder else None


class ReadAndDecodeTopic(events.DecodeBatches, beam.RestrictionProvider):
    """Reads a Range and decodes it, in one fused step: no raw privacy id is ever shuffled.

    Args:
        connection: to the broker.
        form: of the messages' values.
        decoding: what decode.Decoder takes, with ARRIVAL, and maybe KEY, among its rules' columns.
    """

    def __init__(
        self, connection: kafka_client.Connection, form: formats.Format, decoding: events.Decoding, allow_create_time: bool
    ):
        super().__init__(decoding)
        self._connection, self._form, self._allow_create_time = connection, form, allow_create_time

    def initial_restriction(self, element: Range) -> restriction_trackers.OffsetRange:
        return restriction_trackers.OffsetRange(element.start, element.stop)

    def create_tracker(self, restriction: restriction_trackers.OffsetRange) -> Tracker:
        return Tracker(restriction)

    def restriction_size(self, element: Range, restriction: restriction_trackers.OffsetRange) -> int:
        return restriction.size()

    def process(
        self,
        element: Range,
        tracker: Any = beam.DoFn.RestrictionParam(),  # noqa: B008  Beam's way
    ) -> Iterator[
        pa.Table
        | beam.pvalue.TaggedOutput[Literal["dead_letters"], str]
        | beam.pvalue.TaggedOutput[Literal["outcomes"], dict[str, int]]
    ]:
        restriction = tracker.current_restriction()
        part = dataclasses.replace(element, start=restriction.start, stop=restriction.stop)
        has_key = KEY in self.decoding.rules.source_columns
        with kafka_client.consumer(self._connection, **FETCH) as client:
            given = batches(client, part, tracker.try_claim, self._form, has_key, self._allow_create_time)
            for batch, decoded in self.decoded(part.path, given):
                yield from self.outputs(decoded, letters(batch, decoded.dead_letters, part.new_since))
                log.info("read %d messages of %s", batch.num_rows, part.path)


def milliseconds(time: dt.datetime) -> int:
    """Since the epoch, as Kafka has times."""
    return (time - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(milliseconds=1)


def time_of(milliseconds_: int) -> dt.datetime:
    """The other way."""
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=milliseconds_)


def _not_the_brokers(topic: str) -> kafka_client.KafkaError:
    return kafka_client.KafkaError(
        f"kafka: the messages of {topic!r} have their producers' times: a user could choose which window others' events are "
        "read in. Set the topic's message.timestamp.type = LogAppendTime (`sottovoce kafka init` does), or for a trial "
        "kafka.allow_create_time = true."
    )
