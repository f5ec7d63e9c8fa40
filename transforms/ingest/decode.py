"""A source's own columns into events: typed, checked, each row kept, dropped or dead with its reason.

What becomes of a row depends on that row, the job file, the public catalogue and the job's clock, and on no other row.
"""

import dataclasses
import datetime as dt
import math
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from data import events
from transforms.ingest import pseudonym, sources

MAX_VALUE = 1e9
"""Values beyond are malformed: their squares must stay far from overflow."""

_MICROSECONDS = {"s": 1_000_000, "ms": 1000, "us": 1}
_MAX_INT64 = 2**63 - 1

_SENSIBLE = "between '0001-01-02'::timestamptz and '9999-12-30'::timestamptz"
"""Times beyond are none: adding skew or slack to them might overflow."""

OK = "ok"
OPTED_OUT = "opted out"
DROPPED = (OPTED_OUT, "below min_value", "outside the window", "late")
"""Reasons to leave a well-formed event out. Every other reason but OK makes a dead letter."""

DEAD_LETTERS = pa.schema([("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("raw", pa.string())])

WEIGHTED_EVENTS = events.EVENTS.append(pa.field("weight", pa.float64(), nullable=False))
"""Events and how much each counts in its user's row."""


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


class Decoded(NamedTuple):
    """A batch after decoding: its events, its dead letters, and how many rows had each outcome."""

    events: pa.Table
    dead_letters: pa.Table
    outcomes: dict[str, int]


class Decoder:
    """Decodes batches of one source; keeps a DuckDB connection with the opt-outs and the catalogue's ids."""

    def __init__(self, rules: EventRules, key: bytes, opt_outs: pa.Array | None = None, catalogue_ids: pa.Array | None = None):
        self._rules = rules
        self._key = key
        self._connection = duckdb.connect()
        self._connection.execute("set TimeZone = 'UTC'")
        nobody = pa.array([], pa.string())
        self._connection.register("opt_outs", pa.table({"id": nobody if opt_outs is None else opt_outs}))
        self._has_catalogue = catalogue_ids is not None
        self._connection.register("catalogue", pa.table({"id": nobody if catalogue_ids is None else catalogue_ids}))

    def decode(self, file: str, batch: pa.Table) -> Decoded:
        """Decodes rows as `sources.read` yields them."""
        given = self._rules.source_columns
        # DuckDB's names have no case, and some types of Arrow's it doesn't take: columns go in by number.
        columns = {_number(i): _for_duckdb(batch[name]) for i, name in enumerate(given)}
        place = {name: batch[name] for name in (sources.ROW, sources.PROBLEM, sources.RAW)}
        numbered = pa.table({**columns, **place})
        rows = self._ask(_query(self._rules, numbered.schema, self._has_catalogue), numbered)
        outcome = rows["outcome"]
        tally = {entry["values"]: entry["counts"] for entry in pc.value_counts(outcome).to_pylist()}
        dead = rows.filter(pc.invert(pc.is_in(outcome, value_set=pa.array([OK, *DROPPED]))))
        good = rows.select(WEIGHTED_EVENTS.names)
        good = good if tally.keys() == {OK} else good.filter(pc.equal(outcome, OK))
        return Decoded(self._events(good), self._dead_letters(file, dead, numbered), tally)

    def _ask(self, query: str, batch: pa.Table) -> pa.Table:
        self._connection.register("batch", batch)
        answer = self._connection.sql(query).to_arrow_table()
        self._connection.unregister("batch")
        return answer

    def _dead_letters(self, file: str, dead: pa.Table, batch: pa.Table) -> pa.Table:
        """Looks the dead rows' text up again: making it for every row would take longer than all the rest."""
        if not dead.num_rows:
            return DEAD_LETTERS.empty_table()
        batch = batch.filter(pc.is_in(batch[sources.ROW], value_set=dead[sources.ROW].combine_chunks()))
        raw = self._ask(_raw_query(self._rules), batch)["raw"]
        reasons = dead.sort_by(sources.ROW)
        files = pa.array([file] * dead.num_rows, pa.string())
        return pa.table([files, reasons[sources.ROW], reasons["outcome"], raw], schema=DEAD_LETTERS)

    def _events(self, rows: pa.Table) -> pa.Table:
        ids = pseudonym.pseudonymise(rows["privacy_id"].combine_chunks(), self._key)
        rows = rows.set_column(rows.column_names.index("privacy_id"), "privacy_id", ids)
        return rows.select(WEIGHTED_EVENTS.names).cast(WEIGHTED_EVENTS)


def _query(rules: EventRules, schema: pa.Schema, has_catalogue: bool) -> str:
    """The whole decoding as one query over the view `batch`, row for row. All texts in it are quoted."""
    number = {column: _number(i) for i, column in enumerate(rules.source_columns)}
    theirs = {name: number[column] for name, column in rules.columns.items()}
    types = {name: schema.field(number[column]).type for name, column in rules.columns.items()}

    def given(name: str) -> str:
        if name not in theirs:
            return "null::varchar"
        return _text(theirs[name], types[name])

    def missing(name: str) -> str:
        if name not in theirs:
            return "true"
        empty = f" or {theirs[name]} = ''" if types[name] in (pa.string(), pa.large_string()) else ""
        return f"{theirs[name]} is null{empty}"

    def time(name: str) -> str:
        return _time(theirs[name], types[name], rules.time_unit) if name in theirs else "null::timestamptz"

    event_type = given("event_type") if "event_type" in theirs else sources.sql_string(next(iter(rules.event_types)))
    value = f"try_cast({theirs['value']} as double)" if "value" in theirs else "null::double"
    weights = " ".join(f"when {sources.sql_string(name)} then {weight!r}::double" for name, weight in rules.event_types.items())
    context_keys = ", ".join(map(sources.sql_string, rules.context))
    context_values = ", ".join(f"{number[column]}::varchar" for column in rules.context.values())
    return f"""
        with decoded as (
            select {sources.ROW}, {sources.PROBLEM} as problem,
                {given("event_id")} as event_id, {given("privacy_id")} as privacy_id, {given("item_id")} as item_id,
                {event_type} as event_type,
                {missing("value")} as no_value, {value} as value,
                {missing("event_time")} as no_time, {time("event_time")} as event_time,
                {missing("arrival_time")} as no_arrival, {time("arrival_time")} as arrival_time,
                map([{context_keys}]::varchar[], [{context_values}]::varchar[]) as context
            from batch
        ), ranged as (
            select * replace (
                case when event_time {_SENSIBLE} then event_time end as event_time,
                case when arrival_time {_SENSIBLE} then arrival_time end as arrival_time
            ) from decoded
        )
        select *, {_outcome(rules, has_catalogue)} as outcome,
            case event_type {weights} end {"* value" if rules.weigh_by_value else ""} as weight
        from ranged
    """


def _raw_query(rules: EventRules) -> str:
    """Each row's own text, or else its mapped columns as JSON, by row number."""
    raw = ", ".join(f"{sources.sql_string(column)}, {_number(i)}::varchar" for i, column in enumerate(rules.source_columns))
    return f"select coalesce({sources.RAW}, json_object({raw})::varchar) as raw from batch order by {sources.ROW}"


def _outcome(rules: EventRules, has_catalogue: bool) -> str:
    types = ", ".join(map(sources.sql_string, rules.event_types))
    skew, slack = (f"interval {_seconds(s)} second" for s in (rules.max_skew_seconds, rules.slack_seconds))
    tests: list[tuple[str, str]] = [
        ("privacy_id is null", "privacy_id is missing"),
        ("item_id is null", "item_id is missing"),
        ("no_time", "event_time is missing"),
        ("event_time is null", "event_time is not a time"),
        ("not no_arrival and arrival_time is null", "arrival_time is not a time"),
        (f"event_type is null or event_type not in ({types})", "event_type is not in source.event_types"),
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
    if has_catalogue:
        tests.append(("item_id not in (from catalogue)", "item_id is not in the catalogue"))
    tests += [
        (
            f"event_time < {_timestamp(rules.window_start)} or event_time >= {_timestamp(rules.window_end)}",
            "outside the window",
        ),
        (f"arrival_time > {_timestamp(rules.window_end)} + {slack}", "late"),
    ]
    cases = " ".join(f"when {condition} then {sources.sql_string(reason)}" for condition, reason in tests)
    opted_out = f"when privacy_id in (from opt_outs) then {sources.sql_string(OPTED_OUT)}"
    return f"case {opted_out} when problem is not null then problem {cases} else {sources.sql_string(OK)} end"


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
    return sources.sql_string(repr(float(seconds)))


def _timestamp(time: dt.datetime) -> str:
    return f"{sources.sql_string(time.astimezone(dt.UTC).isoformat())}::timestamptz"


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
