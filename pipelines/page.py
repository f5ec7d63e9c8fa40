"""One HTML page for people: text, tables and small charts, whole in one file that asks nothing of any network.

All of it is built as a tree, so that no text, wherever it comes from, can become markup.
"""

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from data import errors

Element = ET.Element
Child = ET.Element | str

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.75rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.note { color: #666; } .warning { color: #a40; } img { max-width: 100%; }
svg { vertical-align: middle; } dt { font-weight: bold; }
@media print { body { margin: 0; max-width: none; } details { display: block; } }
"""
_WIDTH, _HEIGHT = 240, 14


def element(tag: str, *children: Child, **attributes: str) -> Element:
    """Returns an element; `class_` is its class."""
    made = ET.Element(tag, {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()})
    for child in children:
        if isinstance(child, ET.Element):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + _printable(child)
        else:
            made.text = (made.text or "") + _printable(child)
    return made


def paragraph(*children: Child, kind: str = "") -> Element:
    """Returns a paragraph; of the kind "note" or "warning" if it is one."""
    return element("p", *children, class_=kind) if kind else element("p", *children)


def section(title: str, *children: Child) -> Element:
    """Returns a part of the page under a heading."""
    return element("section", element("h2", title), *children)


def table(head: Sequence[str], rows: Sequence[Sequence[Child | float | None]]) -> Element:
    """Returns a table; numbers stand right, None is a dash."""
    is_number = [bool(rows) and all(isinstance(row[place], int | float | None) for row in rows) for place in range(len(head))]
    kinds = [{"class_": "number"} if number else {} for number in is_number]
    titles = element("tr", *(element("th", text, **kind) for text, kind in zip(head, kinds, strict=True)))
    body = [
        element("tr", *(element("td", _cell(value), **kind) for value, kind in zip(row, kinds, strict=True))) for row in rows
    ]
    return element("table", element("thead", titles), element("tbody", *body))


def terms(meanings: dict[str, str]) -> Element:
    """Returns a list of words and what they mean."""
    return element(
        "dl", *(element(tag, text) for pair in meanings.items() for tag, text in zip(("dt", "dd"), pair, strict=True))
    )


def folded(title: str, *children: Child) -> Element:
    """Returns what is shown when its title is clicked."""
    return element("details", element("summary", title), *children)


def picture(png: bytes, text: str) -> Element:
    """Returns an image that is in the page itself; `text` says what it shows."""
    return element("img", src="data:image/png;base64," + base64.b64encode(png).decode(), alt=_printable(text))


def bar(share: float, text: str) -> Element:
    """Returns a bar filled to a share in [0, 1]; `text` says it in words."""
    filled = _WIDTH * min(max(share, 0.0), 1.0)
    box = {"height": str(_HEIGHT), "y": "0", "x": "0"}
    return _svg(
        text,
        element("rect", width=str(_WIDTH), fill="#e4e4e4", **box),
        element("rect", width=f"{filled:.1f}", fill="#36c" if share < 0.9 else "#a40", **box),
    )


def interval(low: float, middle: float, high: float, ends: tuple[float, float], text: str) -> Element:
    """Returns a line from low to high with a dot in the middle, on a scale between `ends`; a bar marks 0 if it is on it."""
    span = max(ends[1] - ends[0], 1e-12)
    x = [f"{min(max((value - ends[0]) / span, 0.0), 1.0) * (_WIDTH - 8) + 4:.1f}" for value in (low, middle, high, 0.0)]
    half = str(_HEIGHT // 2)
    drawn = [
        element("line", x1=x[0], x2=x[2], y1=half, y2=half, stroke="#36c", stroke_width="2"),
        element("circle", cx=x[1], cy=half, r="3.5", fill="#36c"),
    ]
    if ends[0] < 0 < ends[1]:
        drawn.insert(0, element("line", x1=x[3], x2=x[3], y1="0", y2=str(_HEIGHT), stroke="#888"))
    return _svg(text, *drawn)


def document(title: str, *sections: Element) -> bytes:
    """Returns the page, in UTF-8."""
    head = element("head", element("meta", charset="utf-8"), element("title", title), element("style", _STYLE))
    body = element("body", element("h1", title), *sections)
    root = element("html", head, body, lang="en")
    return b"<!DOCTYPE html>\n" + ET.tostring(root, encoding="utf-8", method="html") + b"\n"


def check_free(*paths: Path) -> None:
    """Refuses files that are there, before anything is computed for them.

    Raises:
        errors.BadRequestError: one is, or its directory isn't.
    """
    for path in paths:
        if path.exists():
            raise errors.BadRequestError(f"{path}: is there already; delete it, or name another with --output.")
        if not path.absolute().parent.is_dir():
            raise errors.BadRequestError(f"{path}: there is no such directory; make it, or name another with --output.")


def shown(value: float) -> str:
    """A number as people read it: four digits that count, thousands apart."""
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 1000 and abs(value) < 1e15):
        return f"{round(value):,}"
    return f"{value:.4g}"


def _svg(text: str, *drawn: Element) -> Element:
    return element("svg", element("title", text), *drawn, width=str(_WIDTH), height=str(_HEIGHT), role="img")


def _cell(value: Child | float | None) -> Child:
    if value is None:
        return "-"
    return value if isinstance(value, str | ET.Element) else shown(value)


def _printable(text: str) -> str:
    """A title may hold codes that no page may have."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
