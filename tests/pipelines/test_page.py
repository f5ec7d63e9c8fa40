"""Pages of one file: well-formed, whole in themselves, and no text in them is markup."""

import html.parser

import pytest

from data import errors
from pipelines import page

VOID = {"meta", "br", "img"}


class Reader(html.parser.HTMLParser):
    """Follows a page as a browser would; what isn't closed, or asks for something outside, is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "action", "style", "srcset"} and not (value or "").startswith("data:"):
                self.outside.append(f"{name}={value}")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(content: bytes) -> Reader:
    """Reads a page; fails if it isn't one that stands for itself."""
    text = content.decode()
    assert text.startswith("<!DOCTYPE html>\n<html")
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert reader.outside == []
    assert not {"script", "link", "iframe", "base"} & set(reader.tags)
    assert "@import" not in text
    assert "url(" not in text
    return reader


def test_a_page_is_one_well_formed_file():
    parts = [
        page.paragraph("a ", page.element("b", "b"), " c", kind="note"),
        page.table(["name", "number"], [["x", 1], ["y", None]]),
        page.terms({"word": "meaning"}),
        page.folded("more", page.bar(0.5, "half")),
        page.interval(-1, 2, 5, (-1, 5), "-1 to 5"),
        page.picture(b"PNG", "a chart"),
    ]
    found = read(page.document("Title", page.section("Part", *parts)))
    assert "".join(found.text).count("Title") == 2
    assert {"svg", "img", "table", "details", "dl"} <= set(found.tags)


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "a & b", "</style><b>"])
def test_text_is_no_markup_wherever_it_stands(text):
    picture = page.picture(b"", text)
    content = page.document(text, page.section(text, page.paragraph(text), page.table([text], [[text]]), picture))
    found = read(content)
    assert "".join(found.text).count(text) == 6
    assert found.tags.count("img") == 1
    assert "b" not in found.tags


def test_control_characters_are_replaced():
    assert b"a\xef\xbf\xbdb" in page.document("a\x00b")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (12345, "12,345"), (0.123456, "0.1235"), (98765.4, "98,765"), (float("nan"), "nan")]
)
def test_numbers_are_shown_as_people_read_them(value, text):
    assert page.shown(value) == text


def test_no_file_is_overwritten(tmp_path):
    page.check_free(tmp_path / "new.html")
    (tmp_path / "old.html").touch()
    with pytest.raises(errors.BadRequestError, match=r"old\.html: is there already; delete it, or name another with --output"):
        page.check_free(tmp_path / "new.html", tmp_path / "old.html")
    with pytest.raises(errors.BadRequestError, match="there is no such directory"):
        page.check_free(tmp_path / "nowhere" / "new.html")
