"""Which dead letters name a user: in doubt they do."""

import base64
import json

import pytest

from transforms.ingest import mentions


def letter(raw: str | None, value: bytes | None = None, key: bytes | None = None) -> str:
    given = {"file": "ann", "row": 1, "reason": "ann", "raw": raw}
    message = {
        name: None if part is None else base64.b64encode(part).decode() for name, part in (("key", key), ("value", value))
    }
    return json.dumps(given if value is None and key is None else {**given, **message})


def names(found: str, *ids: str, is_text: bool = True) -> bool:
    return mentions.Mentions(ids or ("ann",), "user", is_text)(found)


@pytest.mark.parametrize(
    "raw",
    [
        '{"user": "ann", "item": "x"}',
        '{"user": "bob", "friends": [{"name": "ann"}]}',
        '{"user": "bob", "ann": 1}',
        "ann,x,2025",
        'x,"ann",2025',
        '{"user": "ann',
        '{"note": "\\nann"}',
        '{"note": "\\nann',
    ],
)
def test_a_letter_names_whoever_its_row_names(raw):
    assert names(letter(raw))
    assert names(letter(None, raw.encode()))
    assert names(letter(None, b"{}", raw.encode()))


@pytest.mark.parametrize("raw", [None, "", "anna,x", "joann,x", '{"user": "annette"}', '{"user": "an", "item": "n"}'])
def test_it_doesnt_name_others(raw):
    assert not names(letter(raw))
    assert raw is None or not names(letter(None, raw.encode()))


@pytest.mark.parametrize(
    ("id_", "raw"),
    [
        ("17", '{"user": 17}'),
        ("1.50", '{"user": 1.50}'),
        ("Zoë", '{"user": "Zo\\u00eb'),
        ("Zoë", '{"user": "Zo\\u00EB'),
        ('a "b"', 'x,"a ""b""",2025'),
        ("a\\b", '{"user": "a\\\\b'),
        ("a.b", "a.b,x"),
        ("@ann", "x@ann"),
        (" ann ", "ann,x"),
    ],
)
def test_ids_of_all_kinds_are_found_as_a_row_has_them(id_, raw):
    assert names(letter(raw), id_)


def test_an_id_is_no_pattern():
    assert not names(letter("axb,x"), "a.b")


@pytest.mark.parametrize("value", [b"\xff\xfea\x00n\x00n\x00", "ann".encode("utf-16-le"), b"\xff"])
def test_what_is_no_text_may_name_anybody(value):
    assert names(letter(None, value), "somebody")


@pytest.mark.parametrize(
    ("raw", "value", "is_named"),
    [
        ('{"user": "ann"}', b"\x06ann", True),
        ('{"user": "bob"}', b"\x06bob", False),
        ('{"user": "bob"}', b"\x06bob\x06ann", True),
        ('{"user": null}', b"\x02", True),
        ('{"user": ""}', b"\x02", True),
        (None, b"bob", True),
    ],
    ids=["names her", "names another", "names both", "names nobody", "is empty", "not decoded"],
)
def test_of_binary_rows_those_that_name_nobody_else_may_name_anybody(raw, value, is_named):
    assert names(letter(raw, value), is_text=False) is is_named
