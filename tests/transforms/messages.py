"""Messages for the tests of formats: one kind of event in each, and what strangers may send instead."""

import datetime as dt
import io
import json
import pathlib
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import fastavro
import pyarrow as pa
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

from transforms.ingest import datum as avro_datum
from transforms.ingest import decode, formats, protobuf, sources

KEY = bytes(range(32))
START, END = (dt.datetime(2025, month, 1, tzinfo=dt.UTC) for month in (1, 7))
COLUMNS = ["id", "user", "item.id", "type", "value", "time"]
"""In JSON "item.id" is a member with a dot in its name, elsewhere a member of `item`."""

ITEM = {"type": "record", "name": "Item", "fields": [{"name": "id", "type": "string"}, {"name": "shop", "type": "long"}]}
TIME = {"type": "long", "logicalType": "timestamp-millis"}
EVENT = {
    "type": "record",
    "name": "Event",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "user", "type": "string"},
        {"name": "item", "type": ITEM},
        {"name": "type", "type": {"type": "enum", "name": "Type", "symbols": ["view", "purchase"]}},
        {"name": "value", "type": ["null", "double"], "default": None},
        {"name": "time", "type": TIME},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "page", "type": "string"},
    ],
}

FIELD = descriptor_pb2.FieldDescriptorProto
EVENT_PROTO = [
    ("id", FIELD.TYPE_STRING),
    ("user", FIELD.TYPE_STRING),
    ("item", ".shop.Item"),
    ("type", ".shop.Type"),
    ("value", FIELD.TYPE_DOUBLE, "optional"),
    ("time", ".google.protobuf.Timestamp"),
    ("tags", FIELD.TYPE_STRING, "repeated"),
    ("page", FIELD.TYPE_STRING),
]
ITEM_PROTO = [("id", FIELD.TYPE_STRING), ("shop", FIELD.TYPE_INT64)]


def datum(record: dict, schema: Any = EVENT) -> bytes:
    """As another implementation of Avro writes it."""
    file = io.BytesIO()
    fastavro.schemaless_writer(file, fastavro.parse_schema(schema), record)
    return file.getvalue()


def descriptors(messages: dict[str, list[tuple]], imports: bool = True, syntax: str = "proto3") -> bytes:
    """What protoc writes of a file with these messages, and an enum Type; fields are (name, type[, "optional"...])."""
    file = descriptor_pb2.FileDescriptorProto(name="shop.proto", package="shop", syntax=syntax)
    file.dependency.append("google/protobuf/timestamp.proto")
    kind = file.enum_type.add(name="Type")
    for number, name in enumerate(["unknown", "view", "purchase"]):
        kind.value.add(name=name, number=number)
    for message, fields in messages.items():
        made = file.message_type.add(name=message)
        for number, (name, type_, *label) in enumerate(fields, 1):
            field = made.field.add(name=name, number=number, label=FIELD.LABEL_OPTIONAL)
            if isinstance(type_, str):
                field.type_name, field.type = type_, FIELD.TYPE_ENUM if type_ == ".shop.Type" else FIELD.TYPE_MESSAGE
            else:
                field.type = type_
            if label and label[0] != "optional":
                field.label = {"repeated": FIELD.LABEL_REPEATED, "required": FIELD.LABEL_REQUIRED}[label[0]]
            elif label:
                field.proto3_optional, field.oneof_index = True, len(made.oneof_decl)
                made.oneof_decl.add(name=f"_{name}")
    known = descriptor_pb2.FileDescriptorProto.FromString(timestamp_pb2.DESCRIPTOR.serialized_pb)
    return descriptor_pb2.FileDescriptorSet(file=[known, file] if imports else [file]).SerializeToString()


def message_class(given: bytes, name: str) -> Any:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(given).file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


SHOP = descriptors({"Item": ITEM_PROTO, "Event": EVENT_PROTO})
EventMessage = message_class(SHOP, "shop.Event")


def event(rng: random.Random) -> dict[str, Any]:
    """An event as Avro's record, some 158 bytes in each format; all but one in four have no value."""
    return {
        "id": f"{rng.getrandbits(64):016x}",
        "user": f"user-{rng.randrange(10**6):06d}",
        "item": {"id": f"item-{rng.randrange(10**4):04d}", "shop": rng.randrange(100)},
        "type": rng.choice(["view", "purchase"]),
        "value": rng.choice([None, None, None, 2.5]),
        "time": int(START.timestamp() * 1000) + rng.randrange(150 * 24 * 3600 * 1000),
        "tags": ["spring", "sale"][: rng.randrange(3)],
        "page": "/shop/garden/" + "x" * rng.randrange(60),
    }


def columns_of(given: dict[str, Any]) -> list[Any]:
    """What COLUMNS of an event are, as JSON has them: text, time in milliseconds."""
    value = None if given["value"] is None else str(given["value"])
    return [given["id"], given["user"], given["item"]["id"], given["type"], value, str(given["time"])]


def as_json(given: dict[str, Any]) -> bytes:
    plain = {"id": given["id"], "user": given["user"], "item.id": given["item"]["id"], "type": given["type"]}
    return json.dumps({**plain, "value": given["value"], "time": given["time"], "page": given["page"]}).encode()


def as_protobuf(given: dict[str, Any]) -> bytes:
    made = EventMessage(id=given["id"], user=given["user"], type=given["type"], tags=given["tags"], page=given["page"])
    made.item.id, made.item.shop = given["item"]["id"], given["item"]["shop"]
    made.time.seconds, made.time.nanos = given["time"] // 1000, given["time"] % 1000 * 1_000_000
    if given["value"] is not None:
        made.value = given["value"]
    return made.SerializeToString()


ENCODE: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "json": as_json,
    "avro": datum,
    "wire": lambda given: b"\0\0\0\0\7" + datum(given),
    "protobuf": as_protobuf,
}


def write(path: pathlib.Path, schema: Any) -> str:
    path.write_bytes(schema if isinstance(schema, bytes) else json.dumps(schema).encode())
    return str(path)


def make_format(kind: str, directory: pathlib.Path, columns: Sequence[str] = COLUMNS) -> formats.Format:
    """Decodes what ENCODE[kind] writes."""
    if kind == "json":
        return formats.of("json", columns)
    if kind == "protobuf":
        return formats.of("protobuf", columns, write(directory / "shop.desc", SHOP), message="shop.Event")
    file = write(directory / "event.avsc", EVENT)
    return formats.of("avro", columns, file, schemas={"7": file} if kind == "wire" else None)


def rules() -> decode.EventRules:
    """Of COLUMNS; Avro's and Protobuf's times are times, whatever the unit."""
    names = dict(zip(["event_id", "privacy_id", "item_id", "event_type", "value", "event_time"], COLUMNS, strict=True))
    return decode.EventRules(names, {"view": 1.0, "purchase": 2.0}, START, END, END, time_unit="ms")


def with_rows(table: pa.Table) -> pa.Table:
    """As `decode.Decoder` takes it."""
    return table.append_column(sources.ROW, pa.array(range(table.num_rows), pa.int64()))


def binary(values: Sequence[bytes | None]) -> pa.BinaryArray:
    return pa.array(values, pa.binary())


def varint(number: int, zigzag: bool = True) -> bytes:
    """As Avro writes a long; without zigzag, as Protobuf writes a length."""
    number = number << 1 if zigzag else number
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


JSON_NOISE = [
    b"",
    b" ",
    b"{",
    b"}",
    b"[]",
    b"null",
    b"{}{}",
    b'{"user":',
    b'{"user":{"a":[1,{}]}}',
    b'{"time":1e999}',
    b'{"time":-0}',
    b'{"user":"\\ud800"}',
    b'{"user":"\\u0000"}',
    b'{"user":"a","user":"b"}',
    b'{"value":' + b"9" * 400 + b"}",
    b"\xef\xbb\xbf{}",
    b"[" * 3000,
    b'{"user":' * 500 + b"1" + b"}" * 500,
    b'{"user":"\xff\xfe"}',
    b'{"value":NaN,"time":Infinity}',
    b'{"time":true}',
]


HUGE_SHARE = 0.0005
"""Of strangers' messages, with some 200 KB each."""


def stranger(rng: random.Random, good: Sequence[bytes]) -> bytes:
    """What isn't a message, or may not be: a good one bent, cut, doubled or mixed with another; noise; lengths beyond it."""
    one, other = bytearray(rng.choice(good)), rng.choice(good)
    at = rng.randrange(len(one))
    way = rng.randrange(10)
    if way < 2:
        for _ in range(rng.choice([1, 1, 1, 2, 8])):
            one[rng.randrange(len(one))] ^= 1 << rng.randrange(8)
    elif way == 2:
        del one[at:]
    elif way == 3:
        one[at:at] = rng.randbytes(rng.randrange(1, 20))
    elif way == 4:
        one[at:] = other[rng.randrange(len(other)) :]
    elif way == 5:
        one[at : at + 1] = varint(rng.getrandbits(rng.randrange(1, 64)), rng.random() < 0.5)
    elif way == 6:
        one += other
    elif way == 7:
        one = bytearray(rng.choice(JSON_NOISE))
    elif way == 8:
        one[at : at + 8] = rng.choice(
            [b"\x7f" * 8, b"\xff" * 8, b"\x80" * 20 + b"\1", b"\0" * 8, b"\xc0\xaf", b"\xff" * 9 + b"\1"]
        )
    else:
        one = bytearray(rng.randbytes(rng.choice([0, 1, 5, 40, 200])))
    if rng.random() < HUGE_SHARE:
        one = bytearray(
            rng.choice([bytes(one) * 1000, b"[" * 200_000, b'{"user":' * 50_000, b"\x02" * 200_000, b"\x13" * 200_000])
        )
    return bytes(one)


class Fuzzed(NamedTuple):
    """How many messages were decoded, how many of them have a problem, and what became of each in the end."""

    rows: int
    problems: int
    outcomes: dict[str, int]


def fuzz(form: formats.Format, encode: Callable[[dict[str, Any]], bytes], count: int, seed: int) -> Fuzzed:
    """Decodes strangers' messages in batches of 20,000 with a good one in ten, through the decoder of events too.

    Asserts that every row stays where it was, and is an event, dropped or dead with a reason of ours.
    """
    rng = random.Random(seed)
    decoder = decode.Decoder(rules(), KEY)
    good = [encode(event(rng)) for _ in range(1000)]
    expected = form.decode(binary(good))
    problems, outcomes = 0, []
    for first in range(0, count, 20_000):
        size = min(20_000, count - first)
        values = [good[i // 10 % 1000] if i % 10 == 0 else stranger(rng, good) for i in range(size)]
        table = form.decode(binary(values))
        assert table.num_rows == size
        places = list(range(0, size, 10))
        assert table.take(places).equals(expected.take([i // 10 % 1000 for i in places]))
        decoded = decoder.decode("topic", with_rows(table))
        assert sum(decoded.outcomes.values()) == size
        assert decoded.outcomes.keys() <= KNOWN, decoded.outcomes.keys() - KNOWN
        problems += size - table[formats.PROBLEM].null_count
        outcomes.append(decoded.outcomes)
    total = decode.add_outcomes(outcomes)
    return Fuzzed(sum(total.values()), problems, total)


KNOWN = {
    decode.OK,
    *decode.DROPPED,
    formats.NO_VALUE,
    formats.NOT_JSON,
    formats.NOT_TEXT,
    formats.NOT_WIRE,
    formats.OTHER_SCHEMA,
    formats.OUT_OF_RANGE,
    avro_datum.CUT_OFF,
    avro_datum.LEFT_OVER,
    avro_datum.NOT_OF_SCHEMA,
    avro_datum.OTHER_TYPE,
    avro_datum.TOO_DEEP,
    protobuf.NOT_OF_TYPE,
    *(f"{name} is missing" for name in ("privacy_id", "item_id", "event_time")),
    "event_time is not a time",
    "event_time is in the future",
    "event_type is not in source.event_types",
    "value is not a number",
    "value is not finite or beyond 1e9",
}
"""All that may become of a message."""
