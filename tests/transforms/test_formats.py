import datetime as dt
import decimal
import pickle
import random
import threading

import fastavro.utils
import hypothesis
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from tests.transforms import messages
from tests.transforms.messages import COLUMNS, ITEM, TIME, binary, columns_of, datum, varint, write
from transforms.ingest import datum as avro_datum
from transforms.ingest import decode, formats, protobuf, sources

KINDS = list(messages.ENCODE)
UTC_TIME = dt.datetime(2025, 3, 1, 12, tzinfo=dt.UTC)
STRING = messages.FIELD.TYPE_STRING


@pytest.fixture
def make(tmp_path):
    return lambda kind: messages.make_format(kind, tmp_path)


def rows(table: pa.Table, *names: str) -> list[tuple]:
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def problems(form: formats.Format, *values: bytes | None) -> list[str | None]:
    return form.decode(binary(values))[formats.PROBLEM].to_pylist()


@pytest.mark.parametrize("kind", KINDS)
def test_good_messages_become_rows_in_their_order(make, kind):
    rng = random.Random(1)
    events = [messages.event(rng) for _ in range(300)]
    form = make(kind)
    values = binary([messages.ENCODE[kind](event) for event in events])
    table = form.decode(values)
    assert table.column_names == [*COLUMNS, formats.PROBLEM, formats.RAW]
    assert table[formats.PROBLEM].null_count == 300
    assert rows(table, "id", "user", "item.id", "type") == [tuple(columns_of(event)[:4]) for event in events]
    as_text = table.set_column(4, "value", table["value"].cast(pa.string()))
    assert as_text["value"].to_pylist() == [columns_of(event)[4] for event in events]
    times = (
        table["time"] if kind == "json" else table["time"].cast(pa.timestamp("ms", "UTC")).cast(pa.int64()).cast(pa.string())
    )
    assert times.to_pylist() == [columns_of(event)[5] for event in events]
    raw = [value.as_py().decode() if kind == "json" else None for value in values]
    assert table[formats.RAW].to_pylist() == raw
    assert pickle.loads(pickle.dumps(form)).decode(values).equals(table)


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_takes_what_a_format_gives(make, kind):
    rng = random.Random(2)
    values = [messages.ENCODE[kind](messages.event(rng)) for _ in range(50)]
    table = messages.with_rows(make(kind).decode(binary([*values, None])))
    decoded = decode.Decoder(messages.rules(), messages.KEY).decode("topic", table)
    assert decoded.outcomes == {"ok": 50, formats.NO_VALUE: 1}
    assert decoded.dead_letters["row"].to_pylist() == [50]
    assert decoded.events["event_time"].type == pa.timestamp("us", "UTC")


@pytest.mark.parametrize("kind", KINDS)
def test_no_messages_are_no_rows(make, kind):
    form = make(kind)
    assert form.decode(binary([])).schema.equals(form.decode(binary([None])).schema)
    assert form.decode(binary([])).num_rows == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_of_a_batch_is_decoded_as_itself(make, kind):
    rng = random.Random(3)
    values = [messages.ENCODE[kind](messages.event(rng)) for _ in range(4)]
    form = make(kind)
    assert form.decode(binary([*values, None])[1:3]).equals(form.decode(binary(values[1:3])))


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.settings(max_examples=40)
@hypothesis.given(
    bad=st.lists(
        st.tuples(st.integers(0, 30), st.one_of(st.binary(max_size=300), st.text(max_size=50).map(str.encode), st.none())),
        max_size=8,
    ),
    seed=st.integers(0, 2**32),
)
def test_a_bad_message_changes_no_neighbour(tmp_path_factory, kind, bad, seed):
    rng = random.Random(seed)
    good = [messages.ENCODE[kind](messages.event(rng)) for _ in range(30)]
    bent = [(rng.randrange(31), messages.stranger(rng, good)) for _ in range(4)]
    form = messages.make_format(kind, tmp_path_factory.mktemp("schemas"))
    mixed: list[tuple[bool, bytes | None]] = [(True, value) for value in good]
    for place, value in sorted([*bad, *bent], key=lambda each: -each[0]):
        mixed.insert(place, (False, value))
    table = form.decode(binary([value for _, value in mixed]))
    assert table.filter(pa.array([is_good for is_good, _ in mixed])).equals(form.decode(binary(good)))
    for i in [i for i, (is_good, _) in enumerate(mixed) if not is_good]:
        assert table.slice(i, 1).equals(form.decode(binary([mixed[i][1]])))  # as it is alone


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_thousand_messages_of_strangers_are_rows_or_have_a_problem(make, kind):
    assert messages.fuzz(make(kind), messages.ENCODE[kind], 20_000, seed=4).rows == 20_000


# JSON


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        pytest.param('{"a":"x","a.b":1}', ("x", "1", None), id="a name with a dot is a name"),
        pytest.param('{"a":"x","a":"y"}', ("x", None, None), id="of a repeated name the first counts"),
        pytest.param('{"a":{"b":1}}', (None, None, None), id="a nested member is null, and no path leads to it"),
        pytest.param(
            '{"a":123456789012345678901234567890}', ("123456789012345678901234567890", None, None), id="a long number"
        ),
        pytest.param('{"a":1e999}', ("1e999", None, None), id="a huge number"),
        pytest.param('{"a":17850.0,"a.b":1.50}', ("17850.0", "1.5", None), id="a fraction without the zeros at its end"),
        pytest.param('{"a":"{x}","a.b":"["}', ("{x}", "[", None), id="text that looks nested"),
        pytest.param('{"a":"x\\u0000y"}', ("x\0y", None, None), id="a NUL that is written as an escape"),
        pytest.param('{"a":"\\ud83d\\ude00"}', ("😀", None, None), id="a pair of surrogates"),
        pytest.param(' \n{"a":1}\r\n', ("1", None, None), id="white space around it"),
        pytest.param('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", (None, None, None), id="100,000 levels"),
        pytest.param('{"a":"' + "x" * 5_000_000 + '"}', ("x" * 5_000_000, None, None), id="5 MB"),
        *(
            pytest.param(message, (None, None, formats.NOT_JSON), id=name)
            for name, message in {
                "empty": "",
                "blank": "  ",
                "two objects": '{"a":1}{"a":2}',
                "two lines": '{"a":1}\n{"a":2}',
                "an array": '[{"a":1}]',
                "a scalar": '"x"',
                "null": "null",
                "cut off": '{"a":"x',
                "100,000 open brackets": "[" * 100_000,
                "100,000 open objects": '{"a":' * 100_000,
                "a lone surrogate": '{"a":"\\ud800"}',
                "a bare NUL": '{"a":"x\0y"}',
                "a NUL after it": '{"a":1}\0{"a":2}',
                "a byte order mark": '\ufeff{"a":1}',
                "a comment": '{"a":1}//',
            }.items()
        ),
    ],
)
def test_json(message, expected):
    found = formats.of("json", ["a", "a.b"]).decode(binary([b'{"a":"before"}', message.encode(), b'{"a":"after"}']))
    assert rows(found, "a", "a.b", formats.PROBLEM) == [("before", None, None), expected, ("after", None, None)]
    assert found[formats.RAW][1].as_py() == message


def test_json_of_bytes_that_are_no_text_keeps_its_raw_text():
    table = formats.of("json", ["a"]).decode(binary([b'{"a":"\xff"}', b"\xff\xfe", b'{"a":"\xc3\xa9"}']))
    assert rows(table, "a", formats.PROBLEM, formats.RAW) == [
        ("\ufffd", formats.NOT_TEXT, '{"a":"\ufffd"}'),
        (None, formats.NOT_TEXT, "\ufffd\ufffd"),
        ("é", None, '{"a":"é"}'),
    ]


def test_json_evolves_by_names_alone():
    form = formats.of("json", ["user", "item"])
    table = form.decode(binary([b'{"user":1,"item":"x"}', b'{"item":"x","new":[1],"user":"1"}', b'{"user":1}']))
    assert rows(table, "user", "item", formats.PROBLEM) == [("1", "x", None), ("1", "x", None), ("1", None, None)]


def test_json_lines_and_messages_are_decoded_alike(tmp_path):
    lines = [line for line in messages.JSON_NOISE if line.strip() and not line.startswith(b"\xef\xbb\xbf")]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    [fragment] = sources.find_fragments("jsonl", [str(path)], ["user", "time"])
    of_file = pa.concat_tables(sources.read(fragment, ["user", "time"])).drop_columns([sources.ROW])
    assert formats.of("json", ["user", "time"]).decode(binary(lines)).equals(of_file)


# Avro


def record(*fields: dict, **more) -> dict:
    return {"type": "record", "name": "R", "fields": list(fields), **more}


def field(name: str, type_, **more) -> dict:
    return {"name": name, "type": type_, **more}


def read_avro(tmp_path, reader: dict, columns: list[str], *data: bytes, writer: dict | None = None) -> list[tuple]:
    """The columns' values and the problem of each datum."""
    ours = write(tmp_path / "reader.avsc", reader)
    schemas = {"258": write(tmp_path / "writer.avsc", writer)} if writer else None
    form = formats.of("avro", columns, ours, schemas)
    head = b"\0\0\0\1\2" if writer else b""
    return rows(form.decode(binary([head + each for each in data])), *columns, formats.PROBLEM)


DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}
COLOUR = {"type": "enum", "name": "Colour", "symbols": ["red", "blue"]}


@pytest.mark.parametrize(
    ("type_", "given", "expected"),
    [
        pytest.param("string", "é", "é", id="string"),
        pytest.param({"type": "string", "avro.java.string": "String"}, "x", "x", id="string as Java writes it"),
        pytest.param("bytes", b"ab", "ab", id="bytes are text"),
        pytest.param({"type": "fixed", "name": "F", "size": 3}, b"abc", "abc", id="fixed is text"),
        pytest.param({"type": "string", "logicalType": "uuid"}, "x-1", "x-1", id="uuid is text"),
        pytest.param(COLOUR, "blue", "blue", id="an enum is its symbol"),
        pytest.param("int", -7, -7, id="int"),
        pytest.param("long", -(2**63), -(2**63), id="the least long"),
        pytest.param("long", 2**63 - 1, 2**63 - 1, id="the greatest long"),
        pytest.param("float", 1.5, 1.5, id="float"),
        pytest.param("double", 0.1, 0.1, id="double"),
        pytest.param("boolean", True, True, id="boolean"),
        pytest.param(["null", "string"], None, None, id="null of a union"),
        pytest.param(["string", "null"], "x", "x", id="a value of a union"),
        pytest.param(["null", "long", "string", "double", "boolean"], 12, "12", id="of several types a number is text"),
        pytest.param(["null", "long", "string", "double", "boolean"], "x", "x", id="of several types text is text"),
        pytest.param(["null", "long", "string", "double", "boolean"], True, "true", id="of several types true is text"),
        pytest.param(TIME, UTC_TIME, UTC_TIME, id="timestamp-millis"),
        pytest.param({"type": "long", "logicalType": "timestamp-micros"}, UTC_TIME, UTC_TIME, id="timestamp-micros"),
        pytest.param(
            {"type": "long", "logicalType": "timestamp-nanos"}, 1_999, dt.datetime(1970, 1, 1, 0, 0, 0, 1, dt.UTC), id="ns"
        ),
        pytest.param(["null", TIME], UTC_TIME, UTC_TIME, id="a timestamp or null"),
        pytest.param(
            {"type": "long", "logicalType": "local-timestamp-millis"},
            UTC_TIME.replace(tzinfo=None),
            UTC_TIME.replace(tzinfo=None),
            id="a local timestamp has no zone",
        ),
        pytest.param({"type": "int", "logicalType": "date"}, dt.date(2025, 3, 1), dt.date(2025, 3, 1), id="date"),
        pytest.param(DECIMAL, decimal.Decimal("-12.34"), decimal.Decimal("-12.34"), id="decimal"),
        pytest.param(
            {"type": "fixed", "name": "D", "size": 20, "logicalType": "decimal", "precision": 40, "scale": 1},
            decimal.Decimal("1" * 39 + ".5"),
            decimal.Decimal("1" * 39 + ".5"),
            id="a decimal of 40 digits",
        ),
        pytest.param(
            {"type": "int", "logicalType": "time-millis"}, dt.time(0, 0, 1), 1000, id="another logical type is its base"
        ),
    ],
)
def test_avro_types(tmp_path, type_, given, expected):
    schema = record(field("before", "long"), field("a", type_), field("after", "string"))
    data = datum({"before": 300, "a": given, "after": "z"}, schema)
    assert read_avro(tmp_path, schema, ["before", "a", "after"], data) == [(300, expected, "z", None)]


def test_avro_members_of_nested_records(tmp_path):
    inner = record(field("id", ["null", "string"]), field("n", "int"), name="Inner")
    schema = record(
        field("a", ["null", inner]), field("b", "Inner"), field("c", ["null", record(field("i", "Inner"), name="C")])
    )
    data = [
        {"a": {"id": "x", "n": 1}, "b": {"id": None, "n": 2}, "c": {"i": {"id": "y", "n": 3}}},
        {"a": None, "b": {"id": "z", "n": 4}, "c": None},
    ]
    found = read_avro(tmp_path, schema, ["a.id", "b.n", "b.id", "c.i.id"], *(datum(each, schema) for each in data))
    assert found == [("x", 2, None, "y", None), (None, 4, "z", None, None)]


RICH = record(
    field(
        "skipped", {"type": "array", "items": {"type": "map", "values": ["null", "string", {"type": "array", "items": "long"}]}}
    ),
    field("a", "string"),
    field("more", record(field("f", "float"), field("d", "double"), field("b", "boolean"), field("e", COLOUR), name="More")),
    field("again", ["null", "Colour", "More", {"type": "fixed", "name": "F", "size": 5}]),
    field("nulls", {"type": "array", "items": "null"}),
    field("n", ["null", "long", "int"]),
    field("colours", {"type": "map", "values": "Colour"}),
    field("last", "bytes"),
)


def test_avro_is_what_fastavro_reads(tmp_path):
    made = list(fastavro.utils.generate_many(RICH, 300))
    data = [datum(each, RICH) for each in made]
    for each in made:
        each["last"] = each["last"].hex()
    found = read_avro(tmp_path, RICH, ["a", "more.d", "more.e", "n"], *data)
    expected = [
        (each["a"], each["more"]["d"], each["more"]["e"], None if each["n"] is None else str(each["n"])) for each in made
    ]
    assert found == [(*each, None) for each in expected]
    cut = read_avro(tmp_path, RICH, ["a"], *(each[:-1] for each in data if each[-1:] != b"\0"))
    assert {problem for _, problem in cut} == {avro_datum.CUT_OFF}


def test_avro_blocks_with_their_sizes_are_skipped(tmp_path):
    schema = record(field("l", {"type": "array", "items": "long"}), field("a", "long"))
    blocks = varint(-3 & (2**64 - 1), False)  # not a valid way to write -3
    sized = b"\x05\x06\x02\x04\x06\x00\x0a"  # -3 items in 3 bytes, no more items, 5
    wrong = b"\x05\x08\x02\x04\x06\x00\x0a"  # in 4 bytes
    negative = b"\x05\x05\x02\x04\x06\x00\x0a"
    found = read_avro(tmp_path, schema, ["a"], sized, wrong, negative, blocks)
    assert found[0] == (5, None)
    assert [problem for _, problem in found[1:]] == [avro_datum.NOT_OF_SCHEMA] * 2 + [avro_datum.CUT_OFF]


@pytest.mark.parametrize(
    ("writer", "given", "reader", "expected"),
    [
        pytest.param(field("a", "int"), 7, field("a", "long"), 7, id="int to long"),
        pytest.param(field("a", "int"), 7, field("a", "float"), 7.0, id="int to float"),
        pytest.param(field("a", "long"), 2**53 + 1, field("a", "double"), float(2**53), id="long to double"),
        pytest.param(field("a", "float"), 1.5, field("a", "double"), 1.5, id="float to double"),
        pytest.param(field("a", "string"), "é", field("a", "bytes"), "é", id="string to bytes"),
        pytest.param(field("a", "bytes"), b"ab", field("a", "string"), "ab", id="bytes to string"),
        pytest.param(field("a", "string"), "x", field("a", ["null", "string"]), "x", id="now it may be null"),
        pytest.param(field("a", ["null", "string"]), "x", field("a", "string"), "x", id="it might be null"),
        pytest.param(field("a", ["null", "string"]), None, field("a", "string"), None, id="a null stays null"),
        pytest.param(field("a", ["int", "string"]), "x", field("a", "string"), "x", id="a union that became one type"),
        pytest.param(field("b", "long"), 7, field("a", "long", aliases=["b"]), 7, id="renamed, with an alias"),
        pytest.param(field("b", "long"), 7, field("a", "string", default="none"), "none", id="added, with a default"),
        pytest.param(field("b", "long"), 7, field("a", ["null", "string"], default=None), None, id="added, null by default"),
        pytest.param(field("b", "long"), 7, field("a", "double", default=3), 3.0, id="added, a number by default"),
        pytest.param(field("b", "long"), 7, field("a", "bytes", default="\u0061"), "a", id="added, bytes by default"),
        pytest.param(
            field("b", "long"),
            7,
            field("a", TIME, default=1000),
            dt.datetime(1970, 1, 1, 0, 0, 1, 0, dt.UTC),
            id="added, a time",
        ),
        pytest.param(
            field("b", "long"), 7, field("a", DECIMAL, default="\u0001\u0000"), decimal.Decimal("2.56"), id="added, a decimal"
        ),
        pytest.param(
            field("a", {"type": "long", "logicalType": "timestamp-micros"}),
            UTC_TIME,
            field("a", TIME),
            UTC_TIME,
            id="finer times",
        ),
        pytest.param(
            field("a", {**DECIMAL, "scale": 1}),
            decimal.Decimal("1.5"),
            field("a", DECIMAL),
            decimal.Decimal("1.50"),
            id="scale",
        ),
        pytest.param(
            field("a", {**COLOUR, "symbols": ["red", "green"]}),
            "green",
            field("a", {**COLOUR, "default": "red"}),
            "red",
            id="an enum's new symbol",
        ),
    ],
)
def test_avro_evolves(tmp_path, writer, given, reader, expected):
    """Fields before and after are removed and swapped by the way."""
    theirs = record(field("gone", {"type": "array", "items": "string"}), field("y", "string"), writer, field("x", "int"))
    ours = record(field("x", "long"), reader, field("unmapped", "string"), field("y", "string"))
    data = datum({"gone": ["a", "b"], "y": "why", writer["name"]: given, "x": 5}, theirs)
    assert read_avro(tmp_path, ours, ["x", "a", "y"], data, writer=theirs) == [(5, expected, "why", None)]


def test_avro_nested_records_evolve(tmp_path):
    old = record(field("ident", "string"), name="OldItem")
    new = record(field("id", "string", aliases=["ident"]), field("shop", "long", default=1), name="Item", aliases=["OldItem"])
    theirs, ours = record(field("item", ["null", old])), record(field("item", ["null", new]))
    data = [datum({"item": {"ident": "x"}}, theirs), datum({"item": None}, theirs)]
    assert read_avro(tmp_path, ours, ["item.id", "item.shop"], *data, writer=theirs) == [("x", 1, None), (None, None, None)]
    added = read_avro(tmp_path, record(field("b", new, default={"id": "none"}), name="R"), ["b.id"], data[1], writer=theirs)
    assert added == [("none", None)]


@pytest.mark.parametrize(
    ("writer", "given"),
    [
        pytest.param(["int", "string"], 7, id="a branch of a union"),
        pytest.param({**COLOUR, "symbols": ["red", "green"]}, "green", id="a symbol without a default"),
        pytest.param(["string", record(name="Other")], {}, id="a record where a text was"),
    ],
)
def test_avro_that_the_readers_schema_cannot_take_has_a_problem(tmp_path, writer, given):
    reader = record(field("a", COLOUR if isinstance(writer, dict) else "string"))
    theirs = record(field("a", writer))
    [(value, problem)] = read_avro(tmp_path, reader, ["a"], datum({"a": given}, theirs), writer=theirs)
    assert (value, problem) == (None, avro_datum.OTHER_TYPE)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        pytest.param(b"", avro_datum.CUT_OFF, id="nothing"),
        pytest.param(b"\x06ab", avro_datum.CUT_OFF, id="cut off in a text"),
        pytest.param(b"\x02a\x02", avro_datum.CUT_OFF, id="cut off in a double"),
        pytest.param(b"\x02a\x00\x02\x80", avro_datum.CUT_OFF, id="cut off in a length"),
        pytest.param(b"\x02a\x00\x02\x08ab", avro_datum.CUT_OFF, id="cut off in a skipped text"),
        pytest.param(b"\x02a\x00\x00!", avro_datum.LEFT_OVER, id="a byte left over"),
        pytest.param(b"\x03a\x00\x00", avro_datum.NOT_OF_SCHEMA, id="a negative length"),
        pytest.param(varint(2**60) + b"a", avro_datum.CUT_OFF, id="a length of 2^60"),
        pytest.param(b"\x02a\x04\x00", avro_datum.NOT_OF_SCHEMA, id="a branch too far"),
        pytest.param(b"\x02a\x01\x00", avro_datum.NOT_OF_SCHEMA, id="a negative branch"),
        pytest.param(b"\x02a\x00" + varint(2**60), avro_datum.CUT_OFF, id="an array of 2^60 texts"),
        pytest.param(b"\x02a\x00" + b"\xff" * 9 + b"\x01", avro_datum.CUT_OFF, id="a block of -2^63"),
        pytest.param(b"\xff" * 10 + b"\x01", avro_datum.NOT_OF_SCHEMA, id="a number of 71 bits"),
        pytest.param(b"\xff" * 9 + b"\x02", avro_datum.NOT_OF_SCHEMA, id="a number of 65 bits"),
        pytest.param(b"\xff" * 1_000_000, avro_datum.NOT_OF_SCHEMA, id="a number without end"),
        pytest.param(b"\x04\xff\xfe\x00\x00", formats.NOT_TEXT, id="not UTF-8"),
    ],
)
def test_malformed_avro_has_a_problem(tmp_path, data, problem):
    texts = {"type": "array", "items": "string"}
    schema = record(field("a", "string"), field("b", ["null", "double"]), field("c", texts))
    good = datum({"a": "x", "b": None, "c": ["y", "z"]}, schema)
    found = read_avro(tmp_path, schema, ["a", "b"], good, data, good)
    assert found[0] == found[2] == ("x", None, None)
    assert found[1][-1] == problem


def test_an_array_of_nulls_takes_no_time_however_long(tmp_path):
    schema = record(field("l", {"type": "array", "items": ["null"][0]}), field("a", "long"))
    assert read_avro(tmp_path, schema, ["a"], varint(2**60) + b"\x00\x02") == [(1, None)]


def test_a_type_that_holds_itself_cannot_bring_the_process_down(tmp_path):
    schema = record(field("a", "long"), field("next", ["null", "R"]))
    found = []
    data = [datum({"a": 1, "next": {"a": 2, "next": None}}, schema), b"\x02\x02" * 500_000]
    thread = threading.Thread(target=lambda: found.extend(read_avro(tmp_path, schema, ["a"], *data, data[0])))
    thread.start()
    thread.join()
    assert found == [(1, None), (None, avro_datum.TOO_DEEP), (1, None)]


def test_values_beyond_arrows_types_have_a_problem(tmp_path):
    schema = record(field("t", TIME), field("d", DECIMAL), field("e", {"type": "int", "logicalType": "date"}))
    long_number = varint(40) + b"\x7f" * 40
    data = [
        varint(2**62) + b"\x02\x01\x00",
        b"\x00\x0e" + b"\x7f" * 7 + b"\x00",
        b"\x00\x02\x01" + varint(2**40),
        b"\x00" + long_number + b"\x00",
    ]
    found = read_avro(tmp_path, schema, ["t", "d", "e"], *data)
    assert [row[-1] for row in found] == [formats.OUT_OF_RANGE] * 3 + [avro_datum.NOT_OF_SCHEMA]
    assert found[0][:3] == (None, decimal.Decimal("0.01"), dt.date(1970, 1, 1))


def test_confluents_wire_format_names_the_writers_schema(tmp_path):
    old, new = record(field("a", "int")), record(field("b", "string"), field("a", "long"))
    paths = {"1": write(tmp_path / "1.avsc", old), str(2**32 - 1): write(tmp_path / "2.avsc", new)}
    form = formats.of("avro", ["a"], write(tmp_path / "r.avsc", record(field("a", "long"))), paths)
    values = [
        b"\0\0\0\0\1\x08",
        b"\0\xff\xff\xff\xff\x02b\x0a",
        b"\0\0\0\0\2\x08",
        b"\1\0\0\0\1\x08",
        b"\0\0\0\0",
        b"",
        b"\0\0\0\0\1",
    ]
    assert rows(form.decode(binary(values)), "a", formats.PROBLEM) == [
        (4, None),
        (5, None),
        (None, formats.OTHER_SCHEMA),
        (None, formats.NOT_WIRE),
        (None, formats.NOT_WIRE),
        (None, formats.NOT_WIRE),
        (None, avro_datum.CUT_OFF),
    ]


@pytest.mark.parametrize(
    ("reader", "columns", "writer", "message"),
    [
        pytest.param(b"{", ["a"], None, "isn't an Avro schema", id="no JSON"),
        pytest.param(b"\xff", ["a"], None, "utf-8", id="no text"),
        pytest.param({"type": "recrd", "name": "R"}, ["a"], None, "isn't an Avro schema", id="no such type"),
        pytest.param(record(field("a", "Unknown")), ["a"], None, "isn't an Avro schema .*Unknown", id="an unknown type"),
        pytest.param("string", ["a"], None, "must be the schema of a record", id="no record"),
        pytest.param(record(field("b", "int")), ["a"], None, "there is no field 'a'", id="no such field"),
        pytest.param(record(field("a", "int")), ["a.b"], None, "'a' is no record", id="no member"),
        pytest.param(
            record(field("a", ITEM)), ["a"], None, "'a' is of type record, no single value. Name one of its", id="a record"
        ),
        pytest.param(
            record(field("a", {"type": "map", "values": "int"})), ["a"], None, "type map, no single value", id="a map"
        ),
        pytest.param(record(field("a", "null")), ["a"], None, "type null, no single value", id="null"),
        pytest.param(record(field("a", ["string", TIME])), ["a"], None, "type union, no single value", id="text or time"),
        pytest.param(record(field("a", {**DECIMAL, "precision": 77})), ["a"], None, "precision must be in 1..76", id="digits"),
        pytest.param(
            record(field("a", "int")), ["a"], record(field("b", "int")), "'a' of schema_file isn't there", id="missing"
        ),
        pytest.param(
            record(field("a", "long")), ["a"], record(field("a", "string")), "'a' is of type string there, and long", id="text"
        ),
        pytest.param(
            record(field("a", "long")), ["a"], record(field("a", "double")), "'a' is of type double there", id="narrowed"
        ),
        pytest.param(
            record(field("a", "long")), ["a"], record(field("a", ["null", "string"])), "'a' is of type string", id="no branch"
        ),
        pytest.param(
            record(field("a", "long")), ["a"], record(field("a", "long"), name="Q"), "the whole is no record R", id="name"
        ),
        pytest.param(
            record(field("a", ITEM)), ["a.id"], record(field("a", "int")), "a is no record Item", id="no record any more"
        ),
    ],
)
def test_avro_schemas_that_do_not_do_are_refused(tmp_path, reader, columns, writer, message):
    with pytest.raises(formats.SchemaError, match=message) as told:
        formats.of(
            "avro",
            columns,
            write(tmp_path / "reader.avsc", reader),
            {"7": write(tmp_path / "writer.avsc", writer)} if writer else None,
        )
    assert ("writer.avsc" if writer else "reader.avsc") in str(told.value)


# Protobuf


def read_protobuf(tmp_path, given: bytes, columns: list[str], *data: bytes, name: str = "shop.M") -> list[tuple]:
    form = formats.of("protobuf", columns, write(tmp_path / "m.desc", given), message=name)
    return rows(form.decode(binary(data)), *columns, formats.PROBLEM)


@pytest.mark.parametrize(
    ("type_", "given", "expected"),
    [
        pytest.param(STRING, "é", "é", id="string"),
        pytest.param(messages.FIELD.TYPE_BYTES, b"ab", "ab", id="bytes are text"),
        pytest.param(messages.FIELD.TYPE_BOOL, True, True, id="bool"),
        pytest.param(messages.FIELD.TYPE_INT32, -5, -5, id="int32"),
        pytest.param(messages.FIELD.TYPE_SINT64, -(2**63), -(2**63), id="sint64"),
        pytest.param(messages.FIELD.TYPE_FIXED32, 2**32 - 1, 2**32 - 1, id="fixed32"),
        pytest.param(messages.FIELD.TYPE_UINT64, 2**64 - 1, 2**64 - 1, id="uint64"),
        pytest.param(messages.FIELD.TYPE_FLOAT, 1.5, 1.5, id="float"),
        pytest.param(messages.FIELD.TYPE_DOUBLE, 0.1, 0.1, id="double"),
        pytest.param(".shop.Type", 2, "purchase", id="an enum is its name"),
        pytest.param(".shop.Type", 9, "9", id="a number without a name"),
        pytest.param(".google.protobuf.Timestamp", UTC_TIME, UTC_TIME, id="timestamp"),
    ],
)
def test_protobuf_types(tmp_path, type_, given, expected):
    shop = messages.descriptors({"M": [("before", STRING), ("a", type_), ("after", STRING)]})
    message = messages.message_class(shop, "shop.M")(before="x", after="z")
    if isinstance(given, dt.datetime):
        message.a.seconds = int(given.timestamp())
    else:
        message.a = given
    found = read_protobuf(tmp_path, shop, ["before", "a", "after"], message.SerializeToString())
    assert found == [("x", expected, "z", None)]


def test_absent_protobuf_fields_are_null_if_that_can_be_told_from_the_default(tmp_path):
    item = [("id", STRING), ("shop", STRING, "optional")]
    fields = [("a", STRING), ("b", STRING, "optional"), ("item", ".shop.Item"), ("t", ".google.protobuf.Timestamp")]
    shop = messages.descriptors({"Item": item, "M": [*fields, ("e", ".shop.Type")]})
    message = messages.message_class(shop, "shop.M")
    here = message(b="")
    here.item.SetInParent()
    here.t.SetInParent()
    columns = ["a", "b", "item.id", "item.shop", "t", "e"]
    assert read_protobuf(tmp_path, shop, columns, b"", here.SerializeToString()) == [
        ("", None, None, None, None, "unknown", None),
        ("", "", "", None, dt.datetime(1970, 1, 1, tzinfo=dt.UTC), "unknown", None),
    ]


@pytest.mark.parametrize(
    ("written", "read", "expected"),
    [
        pytest.param([("a", STRING), ("b", STRING)], [("a", STRING)], "x", id="a field was added: unknown fields are ignored"),
        pytest.param([("b", STRING)], [("c", STRING), ("a", STRING)], "", id="a field is not there yet: its default"),
        pytest.param([("b", STRING)], [("c", STRING), ("a", STRING, "optional")], None, id="or null"),
        pytest.param([("b", STRING)], [("a", STRING)], "y", id="renamed: the number counts"),
        pytest.param([("a", STRING)], [("a", messages.FIELD.TYPE_BYTES)], "x", id="string to bytes"),
        pytest.param([("n", messages.FIELD.TYPE_INT32)], [("a", messages.FIELD.TYPE_INT64)], -7, id="int32 to int64"),
        pytest.param([("n", messages.FIELD.TYPE_INT32)], [("a", STRING)], "", id="another kind of number: an unknown field"),
        pytest.param([("a", STRING)], [("a", STRING, "repeated"), ("b", STRING)], "", id="repeated now"),
    ],
)
def test_protobuf_evolves(tmp_path, written, read, expected):
    theirs = messages.message_class(messages.descriptors({"M": written}), "shop.M")
    known = {"a": "x", "b": "y", "n": -7}
    data = theirs(**{name: known[name] for name, *_ in written}).SerializeToString()
    column = read[-1][0]
    assert read_protobuf(tmp_path, messages.descriptors({"M": read}), [column], data) == [(expected, None)]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x0a\x05ab", id="cut off"),
        pytest.param(b"\x0a" + varint(2**60, False), id="a length of 2^60"),
        pytest.param(b"\x0a\x02\xff\xfe", id="text that isn't UTF-8"),
        pytest.param(b"\x00", id="field 0"),
        pytest.param(b"\x0f", id="wire type 7"),
        pytest.param(b"\x0c", id="the end of no group"),
        pytest.param(b"\x13" * 100_000, id="100,000 groups"),
        pytest.param(b"\xff" * 100, id="a number without end"),
    ],
)
def test_malformed_protobuf_has_a_problem(tmp_path, data):
    shop = messages.descriptors({"M": [("a", STRING)]})
    found = read_protobuf(tmp_path, shop, ["a"], b"\x0a\x01x", data, b"\x0a\x01y")
    assert found == [("x", None), (None, protobuf.NOT_OF_TYPE), ("y", None)]


def test_protobuf_of_the_second_syntax(tmp_path):
    shop = messages.descriptors({"M": [("a", STRING, "required"), ("b", STRING)]}, syntax="proto2")
    found = read_protobuf(tmp_path, shop, ["a", "b"], b"\x0a\x01x", b"\x12\x01y", b"\x0a\x01\xff")
    assert found == [("x", None, None), (None, "y", None), ("\ufffd", None, formats.NOT_TEXT)]


def test_a_protobuf_time_beyond_arrows_has_a_problem(tmp_path):
    shop = messages.descriptors({"M": [("t", ".google.protobuf.Timestamp")]})
    message = messages.message_class(shop, "shop.M")()
    message.t.seconds = 2**62
    assert read_protobuf(tmp_path, shop, ["t"], message.SerializeToString(), b"") == [
        (None, formats.OUT_OF_RANGE),
        (None, None),
    ]


@pytest.mark.parametrize(
    ("given", "name", "columns", "message"),
    [
        pytest.param(b"\xff", "shop.M", ["a"], "isn't a set of descriptors", id="no set"),
        pytest.param(
            messages.descriptors({"M": []}, imports=False), "shop.M", ["a"], "--include_imports", id="without imports"
        ),
        pytest.param(messages.SHOP, "Event", ["id"], "has no message 'Event': .* with its package", id="no such message"),
        pytest.param(messages.SHOP, "shop.Event", ["idx"], "shop.Event has no field 'idx'", id="no such field"),
        pytest.param(messages.SHOP, "shop.Event", ["item.idx"], "shop.Item has no field 'idx'", id="no such member"),
        pytest.param(messages.SHOP, "shop.Event", ["id.x"], "'id' is no single message", id="a member of a text"),
        pytest.param(messages.SHOP, "shop.Event", ["item"], "'item' is a message, no single value. Name one", id="a message"),
        pytest.param(messages.SHOP, "shop.Event", ["tags"], "'tags' is repeated, no single value", id="repeated"),
    ],
)
def test_descriptors_that_do_not_do_are_refused(tmp_path, given, name, columns, message):
    with pytest.raises(formats.SchemaError, match=message):
        formats.of("protobuf", columns, write(tmp_path / "m.desc", given), message=name)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"kind": "json", "schema_file": "x"}, "'json' takes no schema_file", id="a schema for JSON"),
        pytest.param({"kind": "avro"}, "'avro' needs schema_file", id="Avro without a schema"),
        pytest.param(
            {"kind": "avro", "schema_file": "/none.avsc"}, "/none.avsc can't be read .FileNotFoundError", id="no file"
        ),
        pytest.param({"kind": "avro", "schema_file": "x", "message": "M"}, "takes no message", id="a message's name for Avro"),
        pytest.param({"kind": "avro", "schema_file": "x", "schemas": {"seven": "y"}}, "'seven' must be the number", id="no id"),
        pytest.param(
            {"kind": "avro", "schema_file": "x", "schemas": {str(2**32): "y"}}, "must be the number", id="too large an id"
        ),
        pytest.param({"kind": "protobuf", "schema_file": "x"}, "needs message", id="Protobuf without a name"),
        pytest.param(
            {"kind": "protobuf", "schema_file": "x", "schemas": {}}, "takes no schemas", id="Avro's setting for Protobuf"
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(formats.SchemaError, match=message):
        formats.of(columns=["a"], **settings)


def test_a_format_needs_no_schema_file_after_it_was_made(make, tmp_path):
    form = pickle.dumps(make("wire"))
    for path in tmp_path.iterdir():
        path.unlink()
    assert problems(pickle.loads(form), messages.ENCODE["wire"](messages.event(random.Random(5)))) == [None]
