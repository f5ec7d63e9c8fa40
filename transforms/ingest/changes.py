"""What a message of a compacted topic says of its row: the row itself, or a change of it as Debezium's connectors write them.

A change is {"op": "u", "before": {...}, "after": {...}}: its op says that the row was created, updated, read by a snapshot (c,
u, r) or deleted (d). A row, a change or a key may stand in `payload` beside its `schema`.
"""

import json
from typing import Any


class ChangeError(ValueError):
    """A message can't be understood: says why, with nothing of the message."""


def row(value: bytes | None) -> dict[str, Any] | None:
    """Returns a row as a message leaves it; None: there is none any more, as it was deleted or the message has no value.

    Raises:
        ChangeError: it says neither.
    """
    given = None if value is None else content(value)
    if given is None:
        return None
    if not isinstance(given, dict):
        raise ChangeError("it is not a JSON object")
    if "op" not in given or not given.keys() & {"before", "after"}:
        return given
    if given["op"] == "d":
        return None
    if given["op"] not in ("c", "u", "r"):
        raise ChangeError("the change's op isn't c, u, r or d")
    if not isinstance(given.get("after"), dict):
        raise ChangeError("the change has no row")
    return given["after"]


def content(text: bytes) -> Any:
    """Returns JSON without a schema around it; None: a schema around nothing.

    Raises:
        ChangeError: it isn't any, or is nothing.
    """
    try:
        given = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ChangeError("it is not JSON") from error
    if given is None:
        raise ChangeError("it is null")
    return given["payload"] if isinstance(given, dict) and given.keys() == {"schema", "payload"} else given
