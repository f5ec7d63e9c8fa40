"""Whether a dead letter names a user: by all that it has of the row, and in doubt it does.

A letter is of what couldn't be decoded, so it is searched as a text: for an id that stands by itself, as it is or as JSON and
CSV write it, in any column. What is no text at all, and names nobody that can be read, may name anybody.
"""

import base64
import json
import re
from collections.abc import Collection, Iterator
from typing import Any


class Mentions:
    """Says whether a letter, as a JSON line, names one of some users.

    Args:
        ids: the users' privacy ids.
        column: theirs, in the source.
        is_text: the source's rows are texts; of others (Avro, Protobuf) only what was decoded can be searched.
    """

    def __init__(self, ids: Collection[str], column: str, is_text: bool):
        self._column, self._is_text = column, is_text
        written = {form for id_ in ids for form in _forms(id_.strip() or id_)}
        longest_first = sorted(written, key=len, reverse=True)
        self._alone = re.compile("|".join(map(_standing_alone, longest_first)))
        self._anywhere = re.compile("|".join(map(re.escape, longest_first)))

    def __call__(self, letter: str) -> bool:
        given = json.loads(letter)
        raw = _parsed(given["raw"])
        message = [base64.b64decode(given[part]) for part in ("key", "value") if given.get(part) is not None]
        if not self._is_text:
            names_somebody = isinstance(raw, dict) and raw.get(self._column) not in (None, "")
            decoded = (content.decode(errors="replace") for content in message)
            return not names_somebody or self._is_in(given["raw"]) or any(map(self._anywhere.search, decoded))
        texts = [_text(content) for content in message]
        return any(text is None or self._is_in(text) for text in [given["raw"] or "", *texts])

    def _is_in(self, text: str) -> bool:
        # What stands before an id may be the end of an escape: \nann.
        return any(map(self._alone.search, [text, *_values(_parsed(text))])) or (
            "\\" in text and self._anywhere.search(text) is not None
        )


def _forms(id_: str) -> Iterator[str]:
    """An id as texts have it."""
    yield id_
    yield id_.replace('"', '""')
    yield json.dumps(id_, ensure_ascii=False)[1:-1]
    escaped = json.dumps(id_)[1:-1]
    yield escaped
    yield re.sub(r"\\u[0-9a-f]{4}", lambda found: "\\u" + found[0][2:].upper(), escaped)


def _standing_alone(form: str) -> str:
    """A pattern of a text that is no part of a longer word."""
    before = r"(?<!\w)" if re.match(r"\w", form) else ""
    return before + re.escape(form) + (r"(?!\w)" if re.search(r"\w\Z", form) else "")


def _text(content: bytes) -> str | None:
    """None: it is none that could be searched."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _parsed(text: str | None) -> Any:
    """None: it is not JSON."""
    try:
        return json.loads(text or "", parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None


def _values(given: Any) -> Iterator[str]:
    """All texts in JSON, names of fields too."""
    waiting = [given]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            waiting += one
