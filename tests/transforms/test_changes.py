"""Rows and changes of rows, as compacted topics have them."""

import json

import pytest

from transforms.ingest import changes


def change(op: object, before: object, after: object) -> dict:
    return {"op": op, "before": before, "after": after, "source": {"table": "items"}}


ROW = {"id": 1, "tags": ["x"], "price": 2.5}


@pytest.mark.parametrize("wrap", [pytest.param(False, id="bare"), pytest.param(True, id="in payload")])
@pytest.mark.parametrize(
    ("given", "row"),
    [
        pytest.param(ROW, ROW, id="row"),
        pytest.param({"id": 1, "op": "d"}, {"id": 1, "op": "d"}, id="row with a column op"),
        pytest.param(change("c", None, ROW), ROW, id="created"),
        pytest.param(change("u", {"id": 1}, ROW), ROW, id="updated"),
        pytest.param({"op": "r", "after": ROW}, ROW, id="read by a snapshot"),
        pytest.param(change("d", ROW, None), None, id="deleted"),
    ],
)
def test_a_message_leaves_a_row(wrap, given, row):
    assert changes.row(json.dumps({"schema": {}, "payload": given} if wrap else given).encode()) == row


@pytest.mark.parametrize("value", [None, b'{"schema": null, "payload": null}'])
def test_without_a_value_there_is_no_row(value):
    assert changes.row(value) is None


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"id": "\xff"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"null", "null"),
        (b"[]", "not a JSON object"),
        (b"7", "not a JSON object"),
        (json.dumps(change("t", None, None)).encode(), "op isn't"),
        (json.dumps(change(["c"], None, ROW)).encode(), "op isn't"),
        (json.dumps(change("u", ROW, None)).encode(), "has no row"),
        (json.dumps(change("u", None, ["id"])).encode(), "has no row"),
    ],
)
def test_what_is_neither_is_named(value, why):
    with pytest.raises(changes.ChangeError, match=why):
        changes.row(value)
