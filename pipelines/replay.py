"""Files of events into a Kafka topic, as if they happened now: out of order, repeated and spoilt as asked."""

import contextlib
import dataclasses
import logging
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import kafka
import numpy as np
import pyarrow as pa

from data import errors
from transforms.ingest import formats, kafka_client

EVENT, REPEAT, MALFORMED = "event", "repeat", "malformed"

_READERS = {
    ".parquet": "read_parquet({})",
    ".csv": "read_csv({}, header = true, all_varchar = true)",
    ".jsonl": "read_json_objects({}, format = 'newline_delimited')",
    ".ndjson": "read_json_objects({}, format = 'newline_delimited')",
}
_BATCH_ROWS = 10_000
"""Messages between two waits for the broker: kafka-python's own buffer has no bound."""
_TICK_SECONDS = 0.01
"""Messages closer together than this are sent together."""
_DELIVERY_SECONDS = 60
"""How long the broker may be away in the middle."""

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Replay:
    """What to send, and how. The same values give the same messages in the same order.

    Attributes:
        files: Parquet, CSV or JSON lines, all of a kind. A JSON line is sent as it is, another row as an object of its columns.
        topic: to send to.
        time_column: when each event happened.
        key: the column that is the message's key, and so says its partition; None: any partition, and no key.
        speed: seconds of the events' time in one second; 0: as fast as can be.
        disorder_seconds: an event arrives up to so much later than it happened; messages are sent in the order of arrival.
        repeats: share of the events that are sent again, with a delay of their own, to any partition.
        malformed: messages that are no JSON, as a share of the events: beside them.
        seed: of the delays and choices.
        as_arrival: whether the simulated arrival is the message's timestamp; else it is the time of sending.
        create: partitions of a new topic, if there is none; 0: the topic must be there.
    """

    files: Sequence[Path]
    topic: str
    time_column: str = "event_time"
    key: str | None = None
    speed: float = 0
    disorder_seconds: float = 0
    repeats: float = 0
    malformed: float = 0
    seed: int = 0
    as_arrival: bool = False
    create: int = 0

    def __post_init__(self) -> None:
        for name, most in (
            ("speed", math.inf),
            ("disorder_seconds", 1e9),
            ("repeats", 1),
            ("malformed", 1),
            ("create", 10_000),
        ):
            value = getattr(self, name)
            if not 0 <= value <= most or math.isinf(value):
                raise errors.BadRequestError(f"replay: {name} must be in 0..{most:g}, not {value}.")
        suffixes = {_suffix(file) for file in self.files}
        if len(suffixes) != 1 or not suffixes <= _READERS.keys():
            raise errors.BadRequestError(f"replay: files must all be of one kind among {', '.join(_READERS)}.")


def run(replay: Replay, connection: kafka_client.Connection) -> Counter[str]:
    """Sends the messages, waits until the broker has them all, and returns how many of each kind there were.

    Raises:
        kafka_client.KafkaError: the broker or the topic can't be used.
        errors.BadInputError: a file can't be read, or a row has no time.
    """
    with _ordered(replay, 1):
        pass  # the files are there and have the columns
    if replay.create:
        _create(replay, connection)
    partitions = kafka_client.partitions(connection, replay.topic, "WRITE")
    if replay.as_arrival and kafka_client.timestamp_type(connection, replay.topic) != "CreateTime":
        raise kafka_client.KafkaError(
            f"kafka: topic {replay.topic!r} has LogAppendTime: the broker stamps its messages. Send to one with CreateTime, or "
            "without --as-arrival."
        )
    sent: Counter[str] = Counter()
    start = time.monotonic()
    settings = {"linger_ms": 20, "batch_size": 256 << 10, "delivery_timeout_ms": _DELIVERY_SECONDS * 1000}
    with kafka_client.producer(connection, **settings) as producer:
        try:
            for batch in _paced(messages(replay, len(partitions)), replay.speed):
                _send(producer, replay, batch)
                sent.update(batch["kind"].to_pylist())
        finally:  # an interrupted one says how far it came: what the broker is known to have
            log.info(
                "%s: %d events sent, %d of them again, and %d malformed messages; %.0f messages a second",
                replay.topic,
                *(sent[kind] for kind in (EVENT, REPEAT, MALFORMED)),
                sent.total() / (time.monotonic() - start),
            )
    return sent


def _create(replay: Replay, connection: kafka_client.Connection) -> None:
    kind = "CreateTime" if replay.as_arrival else "LogAppendTime"
    try:
        kafka_client.create_topic(connection, replay.topic, replay.create, {"message.timestamp.type": kind})
    except kafka_client.TopicExistsError:
        return
    log.info("made topic %s with %d partitions and %s", replay.topic, replay.create, kind)


def messages(replay: Replay, partitions: int) -> Iterator[pa.RecordBatch]:
    """Yields the messages in the order of their simulated arrival.

    Columns: kind, message (binary), key (binary or null), partition (null: by the key), arrival (microseconds since the epoch).

    Raises:
        errors.BadInputError: a file can't be read, or a row has no time.
    """
    with _ordered(replay, partitions) as ordered:
        for batch in ordered.to_arrow_reader(_BATCH_ROWS):
            if batch["arrival"].null_count:
                row = batch.filter(batch["arrival"].is_null())["row"][0]
                raise errors.BadInputError(
                    f"replay: row {row} has no time in {replay.time_column!r}: it must be a timestamp or ISO 8601 text. "
                    "Nothing was sent."
                )
            yield _spoil(batch, replay.seed)


@contextlib.contextmanager
def _ordered(replay: Replay, partitions: int) -> Iterator[duckdb.DuckDBPyRelation]:
    """The messages, not yet read. What DuckDB raises in the body is raised as a BadInputError."""
    with tempfile.TemporaryDirectory() as directory, duckdb.connect() as connection:
        # What is more than that is sorted on disk.
        connection.execute(
            f"set memory_limit = '1GB'; set temp_directory = {formats.sql_string(directory)}; set TimeZone = 'UTC'"
        )
        try:
            yield connection.sql(_query(connection, replay, partitions))
        except duckdb.Error as error:
            # Its first line: what follows may quote the file.
            reason = str(error).splitlines()[0]
            raise errors.BadInputError(f"replay: {', '.join(map(str, replay.files))} can't be read: {reason}") from error


def _query(connection: duckdb.DuckDBPyConnection, replay: Replay, partitions: int) -> str:
    """One pass over the files and a sort; whatever is drawn is a hash of seed, row and purpose."""
    source = _READERS[_suffix(replay.files[0])].format(f"[{', '.join(formats.sql_string(str(file)) for file in replay.files)}]")
    is_json = _suffix(replay.files[0]) in (".jsonl", ".ndjson")
    text = _json_member if is_json else _name
    message = "json" if is_json else _json_object(connection.sql(f"select * from {source} limit 0"))
    key = f"{text(replay.key)}::varchar" if replay.key else "null::varchar"

    def drawn(purpose: str) -> str:
        return f"hash(row, kind, {replay.seed}, '{purpose}')"

    def share(purpose: str) -> str:
        return f"{drawn(purpose)} / 18446744073709551616.0"

    return f"""
        with events as (
            select row_number() over () as row, {message}::varchar as message, {key} as key,
                try_cast({text(replay.time_column)}::varchar as timestamptz) as time
            from {source}
        ), chosen as (
            select * from events, (values ('{EVENT}'), ('{REPEAT}'), ('{MALFORMED}')) kinds (kind)
            where kind = '{EVENT}'
                or {share("choice")} < case kind when '{REPEAT}' then {replay.repeats} else {replay.malformed} end
        )
        select row, kind, encode(message) as message,
            case when kind <> '{MALFORMED}' then encode(key) end as key,
            case when key is null or kind <> '{EVENT}' then ({drawn("partition")} % {partitions})::int end as partition,
            epoch_us(time) + floor({share("delay")} * {replay.disorder_seconds * 1e6})::bigint as arrival
        from chosen order by arrival nulls first, row, kind
    """


def _json_object(columns: duckdb.DuckDBPyRelation) -> str:
    """A row as a JSON object. Whole floats lose their '.0', as ids read from such columns do; no number is no value."""
    members = []
    for name, kind in zip(columns.columns, columns.types, strict=True):
        value = _name(name)
        if str(kind) in ("FLOAT", "DOUBLE"):
            whole = f"{value} = floor({value}) and abs({value}) < 1e15"
            value = (
                f"case when isnan({value}) then null when {whole} then to_json({value}::bigint) "
                f"when isinf({value}) then to_json({value}::varchar) else to_json({value}) end"
            )
        members.append(f"{formats.sql_string(name)}, {value}")
    return f"json_object({', '.join(members)})"


def _json_member(name: str) -> str:
    return f"json_extract_string(json, {formats.pointer(name)})"


def _spoil(batch: pa.RecordBatch, seed: int) -> pa.RecordBatch:
    """Makes the malformed messages malformed: a JSON object that ends too early, or bytes that are no text."""
    chosen = np.flatnonzero(batch["kind"].to_numpy(zero_copy_only=False) == MALFORMED)
    if not len(chosen):
        return batch
    texts = batch["message"].to_pylist()
    for i in chosen:
        draw = np.random.default_rng([seed, batch["row"][int(i)].as_py()])
        if draw.random() < 0.5:
            texts[i] = texts[i][: int(draw.integers(1, len(texts[i])))]
        else:
            texts[i] = b"\xff" + draw.bytes(int(draw.integers(100)))
    return batch.set_column(batch.schema.get_field_index("message"), "message", pa.array(texts, pa.binary()))


def _paced(batches: Iterator[pa.RecordBatch], speed: float) -> Iterator[pa.RecordBatch]:
    """Yields the messages when their time has come: the first at once, the others as much later as their arrival at `speed`."""
    if not speed:
        yield from batches
        return
    start, first = time.monotonic(), None
    for batch in batches:
        arrival = batch["arrival"].to_numpy()
        first = arrival[0] if first is None else first
        due = (arrival - first) / (1e6 * speed)
        sent = 0
        while sent < len(due):
            now = time.monotonic() - start
            end = int(np.searchsorted(due, now, "right"))
            if end > sent:
                yield batch.slice(sent, end - sent)
                sent = end
            else:
                time.sleep(max(due[sent] - now, _TICK_SECONDS))


def _send(producer: kafka.KafkaProducer, replay: Replay, batch: pa.RecordBatch) -> None:
    """Sends the messages and waits until the broker has them."""
    columns = [batch[name].to_pylist() for name in ("message", "key", "partition")]
    stamps = (batch["arrival"].to_numpy() // 1000).tolist() if replay.as_arrival else [None] * batch.num_rows
    given = zip(*columns, stamps, strict=True)
    kafka_client.send(
        producer,
        replay.topic,
        (dict(zip(("value", "key", "partition", "timestamp_ms"), values, strict=True)) for values in given),
    )


def _suffix(file: Path) -> str:
    return (file.with_suffix("") if file.suffix == ".gz" else file).suffix


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


if __name__ == "__main__":
    from pipelines import cli

    cli.main_of("replay")
