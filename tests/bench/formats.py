"""How fast messages are decoded, and what else could do it: batches of 20,000 to an Arrow table, on one thread.

    python -m tests.bench.formats

The ways take turns, so that each meets the same machine, and the best of nine rounds counts, in the processor's time. Those
marked * don't keep one row a message or don't notice bad ones: they show what is left to gain. orjson is measured where it is
installed.
"""

import io
import json
import pathlib
import random
import tempfile
import time
from collections.abc import Callable
from typing import Any

import duckdb
import fastavro
import pyarrow as pa
import pyarrow.json

from tests.transforms import messages
from transforms.ingest import formats

try:
    import orjson
except ImportError:
    orjson = None

MESSAGES, ROUNDS = 20_000, 9


def by_loads(loads: Callable[[bytes], Any], values: pa.BinaryArray) -> pa.Table:
    """One object after the other, bad ones dead, scalars as text."""
    rows, problems = [], []
    for value in values.to_pylist():
        try:
            given = loads(value)
        except ValueError:
            given = None
        problems.append(None if isinstance(given, dict) else formats.NOT_JSON)
        found = [given.get(name) for name in messages.COLUMNS] if isinstance(given, dict) else [None] * len(messages.COLUMNS)
        rows.append([v if v is None or isinstance(v, str) else str(v) for v in found])
    columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    return pa.table([*columns, pa.array(problems, pa.string())], names=[*messages.COLUMNS, formats.PROBLEM])


def by_pyarrow(values: pa.BinaryArray) -> pa.Table:
    """All joined: two objects in a message would be two rows, and a bad one stops the batch."""
    kinds = {"value": pa.float64(), "time": pa.int64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in messages.COLUMNS])
    text = b"\n".join(values.to_pylist())
    parse = pa.json.ParseOptions(schema, unexpected_field_behavior="ignore")
    return pa.json.read_json(io.BytesIO(text), pa.json.ReadOptions(use_threads=False, block_size=2 * len(text)), parse)


def by_struct(connection: duckdb.DuckDBPyConnection, values: pa.BinaryArray) -> pa.Table:
    """DuckDB's from_json without a check: what isn't convertible is null."""
    connection.register("messages", pa.table({"message": values.cast(pa.string())}))
    struct = json.dumps(dict.fromkeys(messages.COLUMNS, "VARCHAR"))
    return connection.sql(f"select unnest(from_json(message, '{struct}')) from messages").to_arrow_table()


def by_fastavro(values: pa.BinaryArray) -> pa.Table:
    """fastavro's own reader, which strangers' bytes can bring down (transforms/ingest/avro.py)."""
    schema = fastavro.parse_schema(messages.EVENT)
    records = [fastavro.schemaless_reader(io.BytesIO(value), schema, None) for value in values.to_pylist()]
    columns = [[record[name] for record in records] for name in ("id", "user", "type", "value", "time")]
    return pa.table([*map(pa.array, columns), pa.array([record["item"]["id"] for record in records])], names=[*"abcdef"])


def by_fastavro_resolved(values: pa.BinaryArray) -> pa.Table:
    """The same with a reader's schema that lacks the unmapped fields."""
    schema = fastavro.parse_schema(messages.EVENT)
    fewer = [field for field in messages.EVENT["fields"] if field["name"] not in ("tags", "page")]
    reader = fastavro.parse_schema({**messages.EVENT, "fields": fewer})
    records = [fastavro.schemaless_reader(io.BytesIO(value), schema, reader) for value in values.to_pylist()]
    columns = [[record[name] for record in records] for name in ("id", "user", "type", "value", "time")]
    return pa.table([*map(pa.array, columns), pa.array([record["item"]["id"] for record in records])], names=[*"abcdef"])


def measure() -> dict[str, Any]:
    """Messages a second by each way, the bytes of a message in each format, and the ratios."""
    rng = random.Random(0)
    events = [messages.event(rng) for _ in range(MESSAGES)]
    values = {kind: messages.binary([encode(event) for event in events]) for kind, encode in messages.ENCODE.items()}
    with tempfile.TemporaryDirectory() as directory, duckdb.connect(config={"threads": 1}) as connection:
        ways: dict[str, tuple[str, Callable[[pa.BinaryArray], pa.Table]]] = {
            kind: (kind, messages.make_format(kind, pathlib.Path(directory)).decode) for kind in messages.ENCODE
        }
        ways["json.loads"] = "json", lambda batch: by_loads(json.loads, batch)
        if orjson:
            ways["orjson"] = "json", lambda batch: by_loads(orjson.loads, batch)
        ways["pyarrow.json *"] = "json", by_pyarrow
        ways["DuckDB from_json *"] = "json", lambda batch: by_struct(connection, batch)
        ways["fastavro *"] = "avro", by_fastavro
        ways["fastavro, resolved *"] = "avro", by_fastavro_resolved
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(ROUNDS):
            for name, (kind, decode) in ways.items():
                start = time.process_time()
                assert decode(values[kind]).num_rows == MESSAGES
                best[name] = min(best[name], time.process_time() - start)
    rates = {name: round(MESSAGES / seconds) for name, seconds in best.items()}
    return {
        "messages_per_second": rates,
        "bytes": {kind: round(batch.nbytes / MESSAGES) - 4 for kind, batch in values.items()},
        "json_times_loads": round(rates["json"] / rates["json.loads"], 1),
        "avro_times_fastavro": round(rates["avro"] / rates["fastavro *"], 1),
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
