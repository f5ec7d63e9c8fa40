import datetime as dt
import json
import os
import subprocess
import sys

import duckdb
import hypothesis
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from data import events as schema
from transforms.ingest import decode, pseudonym, sources

KEY = bytes(range(32))
TIME = dt.datetime(2025, 3, 1, 12, tzinfo=dt.UTC)
START, END, NOW = (dt.datetime(2025, month, 1, tzinfo=dt.UTC) for month in (1, 7, 9))
SECOND = dt.timedelta(seconds=1)
MICROSECOND = dt.timedelta(microseconds=1)
NAMES = ("privacy_id", "item_id", "event_type", "event_time")
ROW = {"privacy_id": "u", "item_id": "i", "event_type": "view", "event_time": "2025-03-01T12:00:00Z"}


def make_rules(*names: str, **changes) -> decode.EventRules:
    settings = {
        "columns": {name: name for name in (*NAMES, *names)},
        "event_types": {"view": 1.0, "purchase": 2.0},
        "window_start": START,
        "window_end": END,
        "now": NOW,
    }
    return decode.EventRules(**{**settings, **changes})


def make_batch(columns: dict, problem: list | None = None, raw: list | None = None) -> pa.Table:
    """Columns as `sources.read` yields them."""
    table = pa.table(columns)
    nothing = [None] * table.num_rows
    place = [np.arange(1, table.num_rows + 1), pa.array(problem or nothing, pa.string()), pa.array(raw or nothing, pa.string())]
    for name, column in zip((sources.ROW, sources.PROBLEM, sources.RAW), place, strict=True):
        table = table.append_column(name, [column])
    return table


def decode_columns(rules: decode.EventRules, columns: dict, **sets) -> decode.Decoded:
    return decode.Decoder(rules, KEY, **sets).decode("file", make_batch(columns))


def decode_row(rules: decode.EventRules, row: dict, **sets) -> decode.Decoded:
    arrays = {name: value if isinstance(value, pa.Array) else pa.array([value]) for name, value in row.items()}
    return decode_columns(rules, arrays, **sets)


def hash_of(privacy_id: str) -> bytes:
    return pseudonym.pseudonymise(pa.array([privacy_id]).dictionary_encode(), KEY)[0].as_py()


def test_a_whole_row_becomes_an_event():
    rules = make_rules("event_id", "value", "arrival_time", context={"device": "Device", "page": "Page"})
    row = {**ROW, "event_type": "purchase", "event_id": "e1", "value": "2.5", "arrival_time": "2025-03-01 14:00:00+02"}
    decoded = decode_row(rules, {**row, "Device": "phone", "Page": None})
    assert decoded.events.schema.equals(schema.EVENTS)
    assert decoded.events.to_pylist() == [
        {
            "event_id": duckdb.sql("select hash('e1')").limit(1).fetchall()[0][0],
            "privacy_id": hash_of("u"),
            "item_id": "i",
            "event_type": "purchase",
            "value": 2.5,
            "event_time": TIME,
            "arrival_time": TIME,
            "context": [("device", "phone"), ("page", None)],
        }
    ]
    assert decoded.dead_letters.to_pylist() == []
    assert decoded.outcomes == {"ok": 1}


def test_columns_that_are_not_mapped_are_null_and_the_single_event_type_is_filled_in():
    columns = {name: name for name in ("privacy_id", "item_id", "event_time")}
    row = {**ROW, "event_type": "unread", "value": "unread"}
    [event] = decode_row(make_rules(columns=columns, event_types={"it's": 3.0}), row).events.to_pylist()
    assert event == {
        "event_id": None,
        "privacy_id": hash_of("u"),
        "item_id": "i",
        "event_type": "it's",
        "value": None,
        "event_time": TIME,
        "arrival_time": None,
        "context": [],
    }


NAN, INF = float("nan"), float("inf")
MISSING_USER, MISSING_ITEM, MISSING_TIME = (f"{name} is missing" for name in ("privacy_id", "item_id", "event_time"))
NOT_A_TIME, FUTURE = "event_time is not a time", "event_time is in the future"
UNKNOWN_TYPE = "event_type is not in source.event_types"
NOT_FINITE = "value is not finite or beyond 1e9"


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        pytest.param({}, "ok", id="well-formed"),
        pytest.param({"privacy_id": pa.array([None], pa.string())}, MISSING_USER, id="null user"),
        pytest.param({"privacy_id": pa.nulls(1)}, MISSING_USER, id="user column without a type"),
        pytest.param({"privacy_id": ""}, MISSING_USER, id="empty user"),
        pytest.param({"privacy_id": NAN}, MISSING_USER, id="NaN user"),
        pytest.param({"item_id": pa.array([None], pa.string())}, MISSING_ITEM, id="null item"),
        pytest.param({"item_id": ""}, MISSING_ITEM, id="empty item"),
        pytest.param({"item_id": NAN}, MISSING_ITEM, id="NaN item"),
        pytest.param({"event_type": None}, UNKNOWN_TYPE, id="null event type"),
        pytest.param({"event_type": ""}, UNKNOWN_TYPE, id="empty event type"),
        pytest.param({"event_type": "View"}, UNKNOWN_TYPE, id="event type in other case"),
        pytest.param({"event_time": pa.array([None], pa.string())}, MISSING_TIME, id="null time"),
        pytest.param({"event_time": ""}, MISSING_TIME, id="empty time"),
        pytest.param({"event_time": "yesterday"}, NOT_A_TIME, id="text time"),
        pytest.param({"event_time": "now"}, NOT_A_TIME, id="the word now"),
        pytest.param({"event_time": "2025-13-01"}, NOT_A_TIME, id="month 13"),
        pytest.param({"event_time": "2025-02-30"}, NOT_A_TIME, id="30 February"),
        pytest.param({"event_time": "1740830400"}, NOT_A_TIME, id="number as text without unit"),
        pytest.param({"event_time": 1740830400}, NOT_A_TIME, id="number without unit"),
        pytest.param({"event_time": pa.array([5], pa.time32("s"))}, NOT_A_TIME, id="time of day"),
        pytest.param({"event_time": "infinity"}, NOT_A_TIME, id="infinite time"),
        pytest.param({"event_time": "-infinity"}, NOT_A_TIME, id="minus infinite time"),
        pytest.param({"event_time": NOW + 300 * SECOND}, "outside the window", id="as late as the skew allows"),
        pytest.param({"event_time": NOW + 300 * SECOND + MICROSECOND}, FUTURE, id="later than the skew allows"),
        pytest.param({"event_time": START - MICROSECOND}, "outside the window", id="before the window"),
        pytest.param({"event_time": START}, "ok", id="at the window's start"),
        pytest.param({"event_time": END - MICROSECOND}, "ok", id="at the window's last moment"),
        pytest.param({"event_time": END}, "outside the window", id="at the window's end"),
    ],
)
def test_outcome(changes, outcome):
    assert decode_row(make_rules(), {**ROW, **changes}).outcomes == {outcome: 1}


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        pytest.param("2.5", "ok", id="number as text"),
        pytest.param(3, "ok", id="integer"),
        pytest.param(-1e9, "ok", id="least"),
        pytest.param(1e9, "ok", id="largest"),
        pytest.param(1.1e9, NOT_FINITE, id="beyond 1e9"),
        pytest.param(-1.1e9, NOT_FINITE, id="beyond -1e9"),
        pytest.param(1e308, NOT_FINITE, id="1e308"),
        pytest.param("1e400", NOT_FINITE, id="1e400 as text"),
        pytest.param(NAN, NOT_FINITE, id="NaN"),
        pytest.param("nan", NOT_FINITE, id="NaN as text"),
        pytest.param(INF, NOT_FINITE, id="infinite"),
        pytest.param("five", "value is not a number", id="text"),
        pytest.param("1,5", "value is not a number", id="decimal comma"),
        pytest.param(TIME, "value is not a number", id="time"),
        pytest.param(None, "ok", id="null"),
        pytest.param("", "ok", id="empty"),
    ],
)
def test_outcome_of_a_value(value, outcome):
    assert decode_row(make_rules("value"), {**ROW, "value": value}).outcomes == {outcome: 1}


@pytest.mark.parametrize(
    ("settings", "value", "outcome", "kept"),
    [
        pytest.param({"min_value": 4.0}, 3.99, "below min_value", None, id="below min_value"),
        pytest.param({"min_value": 4.0}, 4.0, "ok", 4.0, id="at min_value"),
        pytest.param({"min_value": 4.0}, None, "value is missing", None, id="no value for min_value"),
        pytest.param({"min_value": -1.0}, -0.5, "ok", -0.5, id="negative min_value"),
        pytest.param({"weigh_by_value": True}, 2.5, "ok", 2.5, id="weight is multiplied"),
        pytest.param({"weigh_by_value": True}, None, "value is missing", None, id="no value for a weight"),
        pytest.param({"weigh_by_value": True}, 0.0, "value is not a positive weight", None, id="weight 0"),
        pytest.param({"weigh_by_value": True}, -1.0, "value is not a positive weight", None, id="negative weight"),
        pytest.param({"weigh_by_value": True, "min_value": 1.0}, -1.0, "below min_value", None, id="min_value before weight"),
    ],
)
def test_explicit_feedback(settings, value, outcome, kept):
    decoded = decode_row(make_rules("value", **settings), {**ROW, "value": pa.array([value], pa.float64())})
    assert decoded.outcomes == {outcome: 1}
    assert [event["value"] for event in decoded.events.to_pylist()] == ([] if kept is None else [kept])


@pytest.mark.parametrize(
    ("event_time", "arrival", "outcome"),
    [
        pytest.param(TIME, None, "ok", id="none: never late"),
        pytest.param(TIME, "", "ok", id="empty: never late"),
        pytest.param(TIME, "soon", "arrival_time is not a time", id="text"),
        pytest.param(TIME, END + 60 * SECOND, "ok", id="at the slack"),
        pytest.param(TIME, END + 60 * SECOND + MICROSECOND, "late", id="after the slack"),
        pytest.param(TIME, "infinity", "arrival_time is not a time", id="infinite"),
        pytest.param(TIME, "294247-01-10 04:00:54+00", "arrival_time is not a time", id="the last microsecond"),
        pytest.param(TIME, TIME - 300 * SECOND, "ok", id="before the event, at the skew"),
        pytest.param(TIME, TIME - 301 * SECOND, FUTURE, id="before the event, beyond the skew"),
        pytest.param(NOW + 600 * SECOND, NOW + 600 * SECOND, "outside the window", id="stands for the clock"),
        pytest.param(START - SECOND, END + 61 * SECOND, "outside the window", id="outside goes before late"),
    ],
)
def test_outcome_by_arrival(event_time, arrival, outcome):
    rules = make_rules("arrival_time", slack_seconds=60.0)
    assert decode_row(rules, {**ROW, "event_time": event_time, "arrival_time": arrival}).outcomes == {outcome: 1}


@pytest.mark.parametrize(
    ("time", "unit"),
    [
        pytest.param("2025-03-01 12:00:00", None, id="text without a zone is UTC"),
        pytest.param("2025-03-01T14:00:00+02:00", None, id="text with an offset"),
        pytest.param("2025-03-01 21:00:00 Asia/Tokyo", None, id="text with a zone"),
        pytest.param(TIME.replace(tzinfo=None), None, id="timestamp without a zone is UTC"),
        pytest.param(TIME.astimezone(dt.timezone(dt.timedelta(hours=9))), None, id="timestamp with a zone"),
        pytest.param(pa.array([TIME], pa.timestamp("ns", "Asia/Tokyo")), None, id="nanoseconds in a zone"),
        pytest.param(pa.array([TIME.replace(tzinfo=None)], pa.timestamp("ms")), None, id="milliseconds without a zone"),
        pytest.param(TIME, "s", id="a timestamp needs no unit"),
        pytest.param(1740830400, "s", id="seconds"),
        pytest.param("1740830400", "s", id="seconds as text"),
        pytest.param(1740830400.0, "s", id="seconds as float"),
        pytest.param(1740830400000, "ms", id="milliseconds"),
        pytest.param(1740830400000000, "us", id="microseconds"),
    ],
)
def test_times_are_read_in_utc(time, unit):
    decoded = decode_row(make_rules(time_unit=unit), {**ROW, "event_time": time})
    assert [event["event_time"] for event in decoded.events.to_pylist()] == [TIME]


def test_a_date_is_its_midnight_in_utc():
    decoded = decode_row(make_rules(), {**ROW, "event_time": dt.date(2025, 3, 1)})
    assert [event["event_time"] for event in decoded.events.to_pylist()] == [dt.datetime(2025, 3, 1, tzinfo=dt.UTC)]


@pytest.mark.parametrize("time", ["2025-03-01T12:00:00Z", "", NAN, INF, 1e300, -(2**63)], ids=str)
def test_bad_epoch_numbers_are_no_events(time):
    decoded = decode_row(make_rules(time_unit="s"), {**ROW, "event_time": time})
    assert set(decoded.outcomes) <= {NOT_A_TIME, MISSING_TIME}


def test_fractions_of_seconds_are_kept():
    decoded = decode_row(make_rules(time_unit="s"), {**ROW, "event_time": 1740830400.25})
    assert [event["event_time"] for event in decoded.events.to_pylist()] == [TIME + dt.timedelta(milliseconds=250)]


def test_a_timestamp_too_far_for_microseconds_takes_no_neighbour_along():
    times = pa.array([2**60, 1740830400000], pa.timestamp("ms"))
    columns = {"privacy_id": ["u", "u"], "item_id": ["i", "i"], "event_type": ["view", "view"], "event_time": times}
    assert decode_columns(make_rules(), columns).outcomes["ok"] == 1


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        pytest.param(["a", " a", "A"], ["a", " a", "A"], id="text as it is"),
        pytest.param([17850, -1], ["17850", "-1"], id="integers"),
        pytest.param([17850.0, -1.0, 0.0], ["17850", "-1", "0"], id="whole floats"),
        pytest.param([1.5], ["1.5"], id="broken floats"),
        pytest.param(pa.array([17850.0], pa.float32()), ["17850"], id="short floats"),
        pytest.param(pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"], id="dictionary"),
        pytest.param(pa.array([b"abc"], pa.binary()), ["abc"], id="bytes"),
    ],
)
def test_ids_as_text(ids, expected):
    n = len(ids)
    columns = {"privacy_id": ids, "item_id": ids, "event_type": ["view"] * n, "event_time": [TIME] * n}
    events = decode_columns(make_rules(), columns).events.to_pylist()
    assert [(event["privacy_id"], event["item_id"]) for event in events] == [(hash_of(text), text) for text in expected]


def test_an_opt_out_finds_the_id_that_pandas_made_a_float():
    decoded = decode_row(make_rules(), {**ROW, "privacy_id": 17850.0}, opt_outs=pa.array(["17850"]))
    assert decoded.outcomes == {"opted out": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"item_id": ""},
        {"event_time": "yesterday"},
        {"event_type": "unknown"},
        {"event_time": START - SECOND},
        {"event_time": NOW + 301 * SECOND},
    ],
    ids=str,
)
def test_opted_out_users_leave_no_event_and_no_dead_letter(changes):
    decoded = decode_row(make_rules(), {**ROW, **changes}, opt_outs=pa.array(["other", "u"]))
    assert decoded.outcomes == {"opted out": 1}
    assert decoded.events.num_rows == decoded.dead_letters.num_rows == 0


def test_opted_out_users_leave_no_dead_letter_for_a_row_that_is_not_utf8():
    batch = make_batch({name: [value] for name, value in ROW.items()}, ["not UTF-8"], ['{"privacy_id": "u", "x": "\ufffd"}'])
    assert decode.Decoder(make_rules(), KEY, pa.array(["u"])).decode("file", batch).dead_letters.to_pylist() == []


@pytest.mark.parametrize(
    ("ids", "outcome"),
    [
        pytest.param(["i", "j"], "ok", id="in it"),
        pytest.param(["I", "j"], "item_id is not in the catalogue", id="not in it"),
        pytest.param([], "item_id is not in the catalogue", id="empty catalogue"),
    ],
)
def test_outcome_by_catalogue(ids, outcome):
    assert decode_row(make_rules(), ROW, catalogue_ids=pa.array(ids, pa.string())).outcomes == {outcome: 1}


def test_dead_letters_have_file_row_reason_and_the_mapped_columns_as_json():
    columns = {
        "privacy_id": [1.0, None, 3.0],
        "item_id": ["i", 'say "x"', None],
        "event_type": ["view"] * 3,
        "event_time": [TIME] * 3,
        "unmapped": ["secret"] * 3,
    }
    decoded = decode_columns(make_rules(context={"also": "privacy_id"}), columns)
    assert decoded.dead_letters.schema.equals(decode.DEAD_LETTERS)
    letters = [{**letter, "raw": json.loads(letter["raw"])} for letter in decoded.dead_letters.to_pylist()]
    rest = {"event_type": "view", "event_time": "2025-03-01 12:00:00+00"}
    assert letters == [
        {"file": "file", "row": 2, "reason": MISSING_USER, "raw": {"privacy_id": None, "item_id": 'say "x"', **rest}},
        {"file": "file", "row": 3, "reason": MISSING_ITEM, "raw": {"privacy_id": "3.0", "item_id": None, **rest}},
    ]
    assert decoded.outcomes == {"ok": 1, MISSING_USER: 1, MISSING_ITEM: 1}
    assert decoded.authors.to_pylist() == [None, hash_of("3")]
    assert decoded.rows.to_pylist() == [1]


@pytest.mark.parametrize("keeps_late", [True, False])
def test_late_rows_are_letters_where_they_are_kept_and_count_as_late_all_the_same(keeps_late):
    row = {**ROW, "arrival_time": END + SECOND}
    decoded = decode_row(make_rules("arrival_time"), row, keeps_late=keeps_late)
    assert decoded.outcomes == {"late": 1}
    assert decoded.dead_letters["reason"].to_pylist() == ["late"] * keeps_late
    assert decoded.authors.to_pylist() == [hash_of("u")] * keeps_late


def test_a_problem_of_the_source_is_the_reason_and_its_text_the_raw():
    batch = make_batch({name: [None, value] for name, value in ROW.items()}, ["not a JSON object", None], ["{x", "{}"])
    decoded = decode.Decoder(make_rules(), KEY).decode("a.jsonl", batch)
    assert decoded.dead_letters.to_pylist() == [{"file": "a.jsonl", "row": 1, "reason": "not a JSON object", "raw": "{x"}]
    assert decoded.outcomes == {"not a JSON object": 1, "ok": 1}


def test_the_raw_id_is_in_no_event():
    decoded = decode_row(make_rules(), {**ROW, "privacy_id": "alice-the-user"})
    assert "alice" not in str(decoded.events.to_pylist())


@pytest.mark.parametrize(
    "odd",
    [
        *('say "x"', "it's", "two words", "$1", "a.b", "ü", "\\"),
        *("privacy_id", "outcome", "weight", "problem", "raw", "value", "select", "batch"),
        *("x; drop table batch; --", '") from batch --', "'); select 1; --"),
    ],
)
def test_odd_names_of_columns_types_and_ids_are_only_names(odd):
    columns = {"privacy_id": odd, "item_id": "item", "event_type": "type", "event_time": "time"}
    rules = make_rules(columns=columns, event_types={odd: 2.0, "view": 1.0}, context={odd: odd})
    row = {odd: odd, "item": odd, "type": odd, "time": TIME}
    [event] = decode_row(rules, row, catalogue_ids=pa.array([odd])).events.to_pylist()
    assert (event["privacy_id"], event["item_id"], event["event_type"]) == (hash_of(odd), odd, odd)
    assert event["context"] == [(odd, odd)]
    assert decode_row(rules, row, opt_outs=pa.array([odd])).outcomes == {"opted out": 1}
    [letter] = decode_row(rules, {**row, "time": "never"}).dead_letters.to_pylist()
    assert json.loads(letter["raw"]) == {odd: odd, "item": odd, "type": odd, "time": "never"}


def test_names_that_differ_in_case_are_two_columns():
    rules = make_rules(columns={"privacy_id": "ID", "item_id": "id", "event_time": "time"}, event_types={"view": 1.0})
    [event] = decode_row(rules, {"ID": "user", "id": "item", "time": TIME}).events.to_pylist()
    assert (event["privacy_id"], event["item_id"]) == (hash_of("user"), "item")


def test_no_rows_give_empty_tables_of_the_same_schemas():
    decoded = decode_columns(make_rules(), {name: pa.array([], pa.string()) for name in ROW})
    assert (decoded.events, decoded.dead_letters) == (schema.EVENTS.empty_table(), decode.DEAD_LETTERS.empty_table())
    assert (len(decoded.rows), len(decoded.authors), decoded.outcomes) == (0, 0, {})


def test_a_decoder_takes_batches_of_other_types_in_turn():
    decoder = decode.Decoder(make_rules(), KEY)
    batches = [{**ROW, "privacy_id": 5.0}, {**ROW, "privacy_id": "5"}, {**ROW, "event_time": TIME, "privacy_id": 5}]
    for row in batches:
        [event] = decoder.decode("file", make_batch({name: [value] for name, value in row.items()})).events.to_pylist()
        assert (event["privacy_id"], event["event_time"]) == (hash_of("5"), TIME)


PROCESS = """
import tests.transforms.test_decode as t
for time in ("2025-03-01 12:00:00", t.TIME.replace(tzinfo=None), t.dt.date(2025, 3, 1), t.START.replace(tzinfo=None)):
    print([str(e["event_time"]) for e in t.decode_row(t.make_rules(), {**t.ROW, "event_time": time}).events.to_pylist()])
"""


def test_the_time_zone_of_the_process_does_not_matter():
    environment = {**os.environ, "TZ": "Asia/Tokyo"}
    done = subprocess.run([sys.executable, "-c", PROCESS], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "['2025-03-01 12:00:00+00:00']",
        "['2025-03-01 12:00:00+00:00']",
        "['2025-03-01 00:00:00+00:00']",
        "['2025-01-01 00:00:00+00:00']",
    ]


TEXTS = st.one_of(st.none(), st.sampled_from(["", "u", "i", "out", "view", "purchase", "'", "nan"]), st.text(max_size=3))
TIMES = st.one_of(
    TEXTS,
    st.sampled_from(["2025-01-01", "2025-06-30T23:59:59.999999Z", "2025-07-01", "infinity", "-infinity", "9999-12-31", "-1"]),
    st.datetimes(dt.datetime(2024, 12, 1), dt.datetime(2025, 10, 1)).map(dt.datetime.isoformat),
)
ROWS = st.fixed_dictionaries(
    {
        "privacy_id": TEXTS,
        "item_id": TEXTS,
        "event_type": st.one_of(st.just("view"), TEXTS),
        "event_time": TIMES,
        "arrival_time": TIMES,
        "value": st.one_of(TEXTS, st.floats().map(str)),
        "event_id": TEXTS,
    }
)


@hypothesis.settings(max_examples=25, database=None, derandomize=True)
@hypothesis.given(st.lists(ROWS, min_size=2, max_size=8))
def test_what_becomes_of_a_row_never_depends_on_other_rows(rows):
    rules = make_rules("arrival_time", "value", "event_id", min_value=-5.0, slack_seconds=3600.0)
    decoder = decode.Decoder(rules, KEY, pa.array(["out"]))
    batch = make_batch({name: pa.array([row[name] for row in rows], pa.string()) for name in rows[0]})
    whole, single = decoder.decode("file", batch), [decoder.decode("file", batch.slice(n, 1)) for n in range(len(rows))]
    assert whole.events.to_pylist() == [event for one in single for event in one.events.to_pylist()]
    assert whole.dead_letters.to_pylist() == [letter for one in single for letter in one.dead_letters.to_pylist()]
    assert whole.outcomes == decode.add_outcomes([one.outcomes for one in single])
    assert sum(whole.outcomes.values()) == len(rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"columns": {"item_id": "i"}}, "columns must map privacy_id, event_time; it maps item_id", id="required"),
        pytest.param(
            {"columns": {"privacy_id": "u", "item_id": "i", "event_time": "t"}},
            "just one type .*, not 2",
            id="types, no column",
        ),
        pytest.param({"event_types": {"view": 0.0}}, r"'view' must be in \(0, 1e9\], not 0\.0", id="weight 0"),
        pytest.param({"event_types": {"view": -1.0}}, r"'view' must be in \(0, 1e9\], not -1\.0", id="negative weight"),
        pytest.param({"event_types": {"view": NAN}}, r"'view' must be in \(0, 1e9\], not nan", id="NaN weight"),
        pytest.param({"event_types": {"view": 2e9}}, r"'view' must be in \(0, 1e9\], not 2000000000\.0", id="large weight"),
        pytest.param({"min_value": 1.0}, "min_value and weigh_by_value need columns to map value", id="min_value"),
        pytest.param({"weigh_by_value": True}, "min_value and weigh_by_value need columns to map value", id="weigh_by_value"),
    ],
)
def test_rules_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^EventRules: .*{message}"):
        make_rules(**changes)


def test_source_columns_are_read_once_each():
    assert make_rules("value", context={"v": "value", "page": "Page"}).source_columns == [*NAMES, "value", "Page"]


@pytest.mark.parametrize(
    ("outcomes", "share"),
    [
        ({}, 0.0),
        ({"ok": 3}, 0.0),
        ({"opted out": 1, "late": 1, "below min_value": 1, "outside the window": 1}, 0.0),
        ({"ok": 1, "opted out": 1, MISSING_USER: 1, "not UTF-8": 1}, 0.5),
        ({NOT_A_TIME: 2}, 1.0),
    ],
    ids=["no rows", "all good", "dropped", "half", "all dead"],
)
def test_malformed_share_counts_dead_letters_among_all_rows(outcomes, share):
    assert decode.malformed_share(outcomes) == share


def test_outcomes_add_up():
    assert decode.add_outcomes([{"ok": 1}, {}, {"ok": 2, "late": 3}]) == {"ok": 3, "late": 3}
    assert decode.add_outcomes([]) == {}
