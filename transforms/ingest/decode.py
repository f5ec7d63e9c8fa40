"""A source's own columns into events: typed, checked, each row kept, dropped or dead with its reason.

What becomes of a row depends on that row, the job file, the public catalogue and the job's clock, and on no other row.
"""

import dataclasses
import datetime as dt
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data import events
from transforms.ingest import faults, formats, pseudonym, sources

MAX_VALUE = 1e9
"""Values beyond are malformed: their squares must stay far from overflow."""

_MICROSECONDS = {"s": 1_000_000, "ms": 1000, "us": 1}
_MAX_INT64 = 2**63 - 1

_SENSIBLE = "between '0001-01-02'::timestamptz and '9999-12-30'::timestamptz"
"""Times beyond are none: adding skew or slack to them might overflow."""

OK = "ok"
OPTED_OUT = "opted out"
LATE = "late"
DROPPED = (OPTED_OUT, "below min_value", "outside the window", LATE)
"""Reasons to leave a well-formed event out. Every other reason but OK makes a dead letter."""

DEAD_LETTERS = pa.schema([("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("raw", pa.string())])

_REPETITIVE = ("item_id", "event_type")
"""Fields with values that repeat: what only depends on the value is asked once for each value of a batch."""

_FAULTS = ("is_opted_out", "has_no_user", "has_no_item", "has_other_item", "has_other_type")
"""What may be wrong with the texts of a row."""

_PROBLEM = 255
"""The outcome of a row that couldn't be read; its own text says why."""


class Earlier(NamedTuple):
    """Windows before one: when the first of them started, and to what arrived by when the source was read for them."""

    start: dt.datetime
    seen_until: dt.datetime


@dataclasses.dataclass(frozen=True)
class EventRules:
    """How a row of the source becomes an event.

    Attributes:
        columns: ours = theirs; event_id, event_type, value and arrival_time may be absent.
        event_types: the weight of each in the user's row; without an event_type column there must be just one.
        window_start, window_end: events in [start, end) count.
        now: the job's clock; stands for the arrival where there is no arrival_time.
        context: columns to carry along, ours = theirs.
        time_unit: of times given as numbers since 1970-01-01 UTC.
        min_value: events with a smaller value don't count (explicit feedback by threshold).
        weigh_by_value: an event's weight is also multiplied by its value, which must be positive.
        max_skew_seconds: an event later than its arrival by more is malformed.
        slack_seconds: an event that arrives later than its window's end by more is late.
        earlier: what came since the source was read for these, and is of one of them, is late.
    """

    columns: Mapping[str, str]
    event_types: Mapping[str, float]
    window_start: dt.datetime
    window_end: dt.datetime
    now: dt.datetime
    context: Mapping[str, str] = dataclasses.field(default_factory=dict)
    time_unit: Literal["s", "ms", "us"] | None = None
    min_value: float | None = None
    weigh_by_value: bool = False
    max_skew_seconds: float = 300.0
    slack_seconds: float = 0.0
    earlier: Earlier | None = None

    def __post_init__(self) -> None:
        missing = [name for name in events.REQUIRED if name not in self.columns]
        if missing:
            raise ValueError(f"EventRules: columns must map {', '.join(missing)}; it maps {', '.join(self.columns)}.")
        if "event_type" not in self.columns and len(self.event_types) != 1:
            raise ValueError(
                f"EventRules: event_types must name just one type when columns maps no event_type, not {len(self.event_types)}."
            )
        for name, weight in self.event_types.items():
            if not (math.isfinite(weight) and 0 < weight <= MAX_VALUE):
                raise ValueError(f"EventRules: the weight of event type {name!r} must be in (0, 1e9], not {weight}.")
        if "value" not in self.columns and (self.min_value is not None or self.weigh_by_value):
            raise ValueError("EventRules: min_value and weigh_by_value need columns to map value.")

    @property
    def source_columns(self) -> list[str]:
        """The source's columns that are read, each once."""
        return list(dict.fromkeys([*self.columns.values(), *self.context.values()]))

    @property
    def repetitive_columns(self) -> list[str]:
        """Those of them with values that repeat."""
        others = {theirs for ours, theirs in self.columns.items() if ours not in _REPETITIVE}
        return [self.columns[name] for name in _REPETITIVE if name in self.columns and self.columns[name] not in others]


class Decoded(NamedTuple):
    """A batch after decoding.

    Attributes:
        events, rows: the events, and sources.ROW of each.
        dead_letters, authors: the letters, and the pseudonym of whoever each names; null: it names nobody.
        outcomes: how many rows had each.
    """

    events: pa.Table
    rows: pa.Array
    dead_letters: pa.Table
    authors: pa.Array
    outcomes: dict[str, int]


def late_letters(file: str, rows: pa.Array) -> pa.Table:
    """Letters of rows that are late, by their sources.ROW."""
    n = len(rows)
    return pa.table([pa.array([file] * n, pa.string()), rows, pa.array([LATE] * n), pa.nulls(n, pa.string())], DEAD_LETTERS)


class Decoder:
    """Decodes batches of one source; keeps a DuckDB connection.

    Args:
        rules: see EventRules.
        key: of the pseudonyms, 32 bytes.
        opt_outs: ids of users who take no part.
        catalogue_ids: the only items there are; None: any.
        fields: of data.events.EVENTS, those that the events are to have.
        keeps_late: late rows are letters, too; they count as late all the same.
    """

    def __init__(
        self,
        rules: EventRules,
        key: bytes,
        opt_outs: pa.Array | None = None,
        catalogue_ids: pa.Array | None = None,
        fields: Sequence[str] = events.EVENTS.names,
        keeps_late: bool = False,
    ):
        self._rules, self._key, self._fields = rules, key, fields
        self._opt_outs = pa.array([], pa.string()) if opt_outs is None else opt_outs
        self._catalogue_ids = catalogue_ids
        self._alive = {OK, *DROPPED} - ({LATE} if keeps_late else set())
        self._connection = duckdb.connect(config={"threads": 1})
        self._connection.execute("set TimeZone = 'UTC'")

    def decode(self, file: str, batch: pa.Table) -> Decoded:
        """Decodes rows as `sources.read` yields them.

        Raises:
            faults.RowsError: a fault of ours.
        """
        with faults.without_rows(file):
            return self._decode(file, batch)

    def _decode(self, file: str, batch: pa.Table) -> Decoded:
        given = self._rules.source_columns
        # DuckDB's names have no case, and some types of Arrow's it doesn't take: columns go in by number.
        columns = {_number(i): _for_duckdb(batch[name]) for i, name in enumerate(given)}
        place = {name: batch[name] for name in (sources.ROW, sources.PROBLEM, sources.RAW)}
        numbered = pa.table({**columns, **place})
        texts = {name: self._texts(name, numbered) for name in ("privacy_id", *_REPETITIVE)}
        asked = pa.table({**{name: numbered[name] for name in numbered.column_names}, **self._faults(texts)})
        query, reasons = _query(self._rules, asked.schema, [name for name in self._fields if name not in texts])
        rows = self._ask(query, asked)
        outcome = rows["outcome"].to_numpy()
        tally = {reasons[i]: int(count) for i, count in enumerate(np.bincount(outcome)[:_PROBLEM]) if count}
        alive = [number for number, reason in enumerate(reasons) if reason in self._alive]
        is_dead = ~np.isin(outcome, alive)
        letters = DEAD_LETTERS.empty_table()
        if is_dead.any():
            letters = self._dead_letters(file, numbered.filter(pa.array(is_dead)), outcome[is_dead], reasons)
        named = texts["privacy_id"].filter(pa.array(is_dead))
        authors = pc.if_else(_is_empty(named), None, pseudonym.pseudonymise(pc.fill_null(named, ""), self._key))
        problems = letters.filter(pa.array(outcome[is_dead] == _PROBLEM))["reason"]
        tally |= {entry["values"]: entry["counts"] for entry in pc.value_counts(problems).to_pylist()}
        chosen = pa.table({name: texts[name] if name in texts else rows[name] for name in self._fields})
        numbers = batch[sources.ROW].combine_chunks()
        if tally.keys() - {OK}:
            is_ok = pa.array(outcome == reasons.index(OK))
            chosen, numbers = chosen.filter(is_ok), numbers.filter(is_ok)
        return Decoded(self._events(chosen), numbers, letters, authors, tally)

    def _ask(self, query: str, batch: pa.Table) -> pa.Table:
        """Answers row for row: DuckDB keeps the order of a single table that is only projected."""
        self._connection.register("batch", batch)
        answer = self._connection.sql(query).to_arrow_table()
        self._connection.unregister("batch")
        return answer

    def _texts(self, name: str, numbered: pa.Table) -> pa.StringArray | pa.DictionaryArray:
        """A text field; one of _REPETITIVE as a dictionary, each distinct value turned into text once."""
        if name not in self._rules.columns:
            only = pa.array(np.zeros(numbered.num_rows, np.int32))
            return pa.DictionaryArray.from_arrays(only, pa.array(list(self._rules.event_types)))
        column = numbered[_number(self._rules.source_columns.index(self._rules.columns[name]))].combine_chunks()
        if pa.types.is_nested(column.type) or pa.types.is_null(column.type):
            column = self._as_text(column)
        if name not in _REPETITIVE:
            plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
            return self._as_text(plain)
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        return pa.DictionaryArray.from_arrays(encoded.indices.cast(pa.int32()), self._as_text(encoded.dictionary))

    def _as_text(self, values: pa.Array) -> pa.StringArray:
        if values.type == pa.string():
            return values
        return self._ask(f"select {_text('v', values.type)} as v from batch", pa.table({"v": values}))["v"].combine_chunks()

    def _faults(self, texts: Mapping[str, pa.StringArray | pa.DictionaryArray]) -> dict[str, pa.Array]:
        """Those of _FAULTS that some row has, by row."""
        items, types = (texts[name].dictionary for name in _REPETITIVE)
        catalogue = items if self._catalogue_ids is None else self._catalogue_ids
        configured = pa.array(list(self._rules.event_types), pa.string())
        found = [
            pc.is_in(texts["privacy_id"], value_set=self._opt_outs) if len(self._opt_outs) else None,
            _is_empty(texts["privacy_id"]),
            _by_row(texts["item_id"], _is_empty(items)),
            _by_row(texts["item_id"], pc.invert(pc.is_in(items, value_set=catalogue))),
            _by_row(texts["event_type"], pc.invert(pc.is_in(types, value_set=configured))),
        ]
        return {
            name: faults for name, faults in zip(_FAULTS, found, strict=True) if faults is not None and pc.any(faults).as_py()
        }

    def _dead_letters(self, file: str, dead: pa.Table, outcome: np.ndarray, reasons: Sequence[str]) -> pa.Table:
        """Makes the dead rows' text, and of no others: it would take longer than all the rest."""
        raw = self._ask(_raw_query(self._rules), dead)["raw"]
        known = pa.array(reasons).take(pa.array(np.minimum(outcome, len(reasons) - 1)))
        reason = pc.if_else(pa.array(outcome == _PROBLEM), dead[sources.PROBLEM].combine_chunks(), known)
        return pa.table([pa.array([file] * dead.num_rows, pa.string()), dead[sources.ROW], reason, raw], schema=DEAD_LETTERS)

    def _events(self, rows: pa.Table) -> pa.Table:
        if "privacy_id" in rows.column_names:
            ids = pseudonym.pseudonymise(rows["privacy_id"].combine_chunks(), self._key)
            rows = rows.set_column(rows.column_names.index("privacy_id"), "privacy_id", ids)
        return rows.cast(pa.schema([events.EVENTS.field(name) for name in rows.column_names]))


def _by_row(texts: pa.DictionaryArray, of_value: pa.BooleanArray) -> pa.BooleanArray | None:
    """A fault of values as one of rows; a row without a value has it. None: no row can have it."""
    if texts.null_count or pc.any(of_value).as_py():
        return pc.fill_null(of_value.take(texts.indices), True)
    return None


def _is_empty(values: pa.StringArray) -> pa.BooleanArray:
    return pc.fill_null(pc.equal(values, ""), True)


def _query(rules: EventRules, schema: pa.Schema, fields: Sequence[str]) -> tuple[str, list[str]]:
    """The decoding of `fields` as one query over the view `batch`, row for row, and what its outcomes mean.

    All texts in it are quoted.
    """
    number = {column: _number(i) for i, column in enumerate(rules.source_columns)}
    theirs = {name: number[column] for name, column in rules.columns.items()}
    types = {name: schema.field(number[column]).type for name, column in rules.columns.items()}

    def missing(name: str) -> str:
        if name not in theirs:
            return "true"
        is_text = types[name] in (pa.string(), pa.large_string()) or pa.types.is_dictionary(types[name])
        return f"{theirs[name]} is null" + (f" or {theirs[name]} = ''" if is_text else "")

    def time(name: str) -> str:
        return _time(theirs[name], types[name], rules.time_unit) if name in theirs else "null::timestamptz"

    event_id = _text(theirs["event_id"], types["event_id"]) if "event_id" in theirs else "null::varchar"
    value = f"try_cast({theirs['value']} as double)" if "value" in theirs else "null::double"
    no_faults = "".join(f"false as {name}, " for name in _FAULTS if name not in schema.names)
    context_keys = ", ".join(map(formats.sql_string, rules.context))
    context_values = ", ".join(f"{number[column]}::varchar" for column in rules.context.values())
    outcome, reasons = _outcome(rules)
    query = f"""
        with decoded as (
            select *, {no_faults}{event_id} as event_text, {missing("value")} as no_value, {value} as value,
                {missing("event_time")} as no_time, {time("event_time")} as event_time,
                {missing("arrival_time")} as no_arrival, {time("arrival_time")} as arrival_time,
                map([{context_keys}]::varchar[], [{context_values}]::varchar[]) as context
            from batch
        ), ranged as (
            select * replace (
                case when event_time {_SENSIBLE} then event_time end as event_time,
                case when arrival_time {_SENSIBLE} then arrival_time end as arrival_time
            ), case when event_text is not null then hash(event_text) end as event_id from decoded
        )
        select {"".join(f"{name}, " for name in fields)}{outcome} as outcome from ranged
    """
    return query, reasons


def _raw_query(rules: EventRules) -> str:
    """Each row's own text, or else its mapped columns as JSON."""
    raw = ", ".join(f"{formats.sql_string(column)}, {_number(i)}::varchar" for i, column in enumerate(rules.source_columns))
    return f"select coalesce({sources.RAW}, json_object({raw})::varchar) as raw from batch"


def _outcome(rules: EventRules) -> tuple[str, list[str]]:
    """A number for what becomes of a row, and the numbers' meanings in order."""
    skew, slack = (f"interval {_seconds(s)} second" for s in (rules.max_skew_seconds, rules.slack_seconds))
    tests: list[tuple[str, str]] = [
        ("has_no_user", "privacy_id is missing"),
        ("has_no_item", "item_id is missing"),
        ("no_time", "event_time is missing"),
        ("event_time is null", "event_time is not a time"),
        ("not no_arrival and arrival_time is null", "arrival_time is not a time"),
        ("has_other_type", "event_type is not in source.event_types"),
        ("not no_value and value is null", "value is not a number"),
        (f"not isfinite(value) or abs(value) > {MAX_VALUE!r}", "value is not finite or beyond 1e9"),
        (f"event_time > coalesce(arrival_time, {_timestamp(rules.now)}) + {skew}", "event_time is in the future"),
    ]
    if rules.min_value is not None or rules.weigh_by_value:
        tests.append(("value is null", "value is missing"))
    if rules.min_value is not None:
        tests.append((f"value < {rules.min_value!r}", "below min_value"))
    if rules.weigh_by_value:
        tests.append(("value <= 0", "value is not a positive weight"))
    tests += [
        ("has_other_item", "item_id is not in the catalogue"),
    ]
    start, end = _timestamp(rules.window_start), _timestamp(rules.window_end)
    if rules.earlier is not None:
        first, seen_until = map(_timestamp, rules.earlier)
        tests.append((f"event_time >= {first} and event_time < {start} and arrival_time > {seen_until}", LATE))
    tests += [
        (f"event_time < {start} or event_time >= {end}", "outside the window"),
        (f"arrival_time > {end} + {slack}", LATE),
    ]
    reasons = [OK, OPTED_OUT, *(reason for _, reason in tests)]
    cases = " ".join(f"when {condition} then {reasons.index(reason)}" for condition, reason in tests)
    problem = f"when {sources.PROBLEM} is not null then {_PROBLEM}"
    return f"(case when is_opted_out then {reasons.index(OPTED_OUT)} {problem} {cases} else 0 end)::utinyint", reasons


def _text(column: str, kind: pa.DataType) -> str:
    """An id as text: whole floats without their '.0' (pandas turns integers with gaps into floats); empty is missing."""
    if pa.types.is_floating(kind):
        whole = f"case when {column} = floor({column}) and abs({column}) < 1e15 then {column}::bigint::varchar"
        return f"case when not isnan({column}) then {whole} else {column}::varchar end end"
    return f"nullif({column}::varchar, '')"


def _time(column: str, kind: pa.DataType, unit: str | None) -> str:
    """A time in UTC: timestamps and dates as they are (without a zone: UTC), numbers by unit, text as ISO 8601."""
    if pa.types.is_temporal(kind):
        return f"try_cast({column} as timestamptz)"
    if unit is None:
        return f"try_cast({column}::varchar as timestamptz)"
    return f"try(make_timestamptz((try_cast({column} as double) * {_MICROSECONDS[unit]})::bigint))"


def _seconds(seconds: float) -> str:
    return formats.sql_string(repr(float(seconds)))


def _timestamp(time: dt.datetime) -> str:
    return f"{formats.sql_string(time.astimezone(dt.UTC).isoformat())}::timestamptz"


def _number(column: int) -> str:
    return f"c{column}"


def _for_duckdb(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Makes a column one that DuckDB takes: times beyond microseconds become null, rare number types common ones."""
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.unit in ("s", "ms"):
        steps, most = column.cast(pa.int64()), _MAX_INT64 // _MICROSECONDS[kind.unit]
        fits = pc.and_(pc.less(steps, most), pc.greater(steps, -most))
        return pc.if_else(fits, column, pa.scalar(None, kind))
    if pa.types.is_float16(kind):
        return column.cast(pa.float32())
    if pa.types.is_decimal256(kind):
        return column.cast(pa.string())
    return column


def malformed_share(outcomes: Mapping[str, int]) -> float:
    """The share of rows that became dead letters; 0 for no rows."""
    total = sum(outcomes.values())
    dead = total - sum(outcomes.get(reason, 0) for reason in (OK, *DROPPED))
    return dead / total if total else 0.0


def add_outcomes(tallies: Iterable[dict[str, int]]) -> dict[str, int]:
    """Adds up tallies of outcomes."""
    total: dict[str, int] = {}
    for tally in tallies:
        for reason, count in tally.items():
            total[reason] = total.get(reason, 0) + count
    return total
