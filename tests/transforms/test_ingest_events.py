import datetime as dt
import json

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.runners.portability import fn_api_runner
from apache_beam.testing import test_pipeline, util

from transforms.ingest import decode, events, pseudonym, sources

KEY = bytes(range(32))
RULES = decode.EventRules(
    columns={"privacy_id": "user", "item_id": "item", "event_time": "time"},
    event_types={"view": 1.5},
    window_start=dt.datetime(2025, 1, 1, tzinfo=dt.UTC),
    window_end=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    now=dt.datetime(2026, 2, 1, tzinfo=dt.UTC),
)
MISSING = "item_id is missing"


def write(path, *rows: str) -> list[sources.Fragment]:
    path.write_text("\n".join(["user,item,time", *rows, ""]))
    return sources.find_fragments("csv", [str(path)], RULES.source_columns)


def run(fragments, opt_outs=None, catalogue_ids=None, events_out=None, letters=None, outcomes=None) -> None:
    """Checks each given output of IngestEvents against the whole expected content."""
    with test_pipeline.TestPipeline(runner=fn_api_runner.FnApiRunner()) as root:
        ingested = root | events.IngestEvents(
            fragments, events.ReadAndDecode(events.Decoding(RULES, KEY, opt_outs, catalogue_ids))
        )
        rows = ingested.events | "Rows" >> beam.FlatMap(lambda table: table.to_pylist() or ["an empty table"])
        parsed = ingested.dead_letters | "Parse" >> beam.Map(json.loads)
        util.assert_that(rows, util.equal_to(events_out or []), label="events")
        util.assert_that(parsed, util.equal_to(letters or []), label="dead letters")
        util.assert_that(ingested.outcomes, util.equal_to([outcomes]), label="outcomes")


def event(user: str, item: str, day: int) -> dict:
    return {
        "event_id": None,
        "privacy_id": pseudonym.pseudonymise(pa.array([user]).dictionary_encode(), KEY)[0].as_py(),
        "item_id": item,
        "event_type": "view",
        "value": None,
        "event_time": dt.datetime(2025, 1, day, tzinfo=dt.UTC),
        "arrival_time": None,
        "context": [],
    }


def test_files_become_events_dead_letters_and_one_tally(tmp_path):
    a, b = str(tmp_path / "a.csv"), str(tmp_path / "b.csv")
    fragments = [
        *write(tmp_path / "a.csv", "ann,x,2025-01-02", "bob,,2025-01-02", "bob,y"),
        *write(tmp_path / "b.csv", "ann,y,2025-01-03", "eve,x,2025-01-02", "bob,x,2024-01-01", "bob,z,2025-01-02"),
    ]
    raw = {"user": "bob", "item": "", "time": "2025-01-02"}
    not_there = {"user": "bob", "item": "z", "time": "2025-01-02"}
    run(
        fragments,
        opt_outs=pa.array(["eve"]),
        catalogue_ids=pa.array(["x", "y"]),
        events_out=[event("ann", "x", 2), event("ann", "y", 3)],
        letters=[
            {"file": a, "row": 2, "reason": MISSING, "raw": json.dumps(raw, separators=(",", ":"))},
            {"file": a, "row": 3, "reason": "CSV row has 2 columns, not 3", "raw": "bob,y"},
            {
                "file": b,
                "row": 4,
                "reason": "item_id is not in the catalogue",
                "raw": json.dumps(not_there, separators=(",", ":")),
            },
        ],
        outcomes={
            "ok": 2,
            MISSING: 1,
            "CSV row has 2 columns, not 3": 1,
            "opted out": 1,
            "outside the window": 1,
            "item_id is not in the catalogue": 1,
        },
    )


@pytest.mark.parametrize("files", [0, 1], ids=["no file", "a file without rows"])
def test_no_rows_still_give_one_empty_tally(tmp_path, files):
    run(write(tmp_path / "a.csv") if files else [], outcomes={})


def test_only_dropped_rows_give_no_events(tmp_path):
    run(write(tmp_path / "a.csv", "eve,x,2025-01-02"), opt_outs=pa.array(["eve"]), outcomes={"opted out": 1})


def test_logs_name_files_and_rows_and_show_no_payload(tmp_path, caplog):
    fragments = write(tmp_path / "a.csv", "alice-the-user,item-one,2025-01-02", "alice-the-user,,never")
    with caplog.at_level("INFO", logger="transforms"):
        do_fn = events.ReadAndDecode(events.Decoding(RULES, KEY))
        do_fn.setup()
        list(do_fn.process(fragments[0]))
    assert caplog.messages == [f"read rows 1 to 2 of {tmp_path / 'a.csv'}"]
