"""The parts of an Avro datum: values and blocks in its bytes, each checked as it is read.

https://avro.apache.org/docs/current/specification/#binary-encoding
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = list[Any]
Read = Callable[[bytes, int], tuple[Any, int]]
"""Takes a value at a place in a datum; returns it and the place behind it."""
Step = Callable[[bytes, int, Row], int]
"""Goes over a value at a place, puts what is wanted of it into the row, and returns the place behind it."""

CUT_OFF = "Avro datum is cut off"
LEFT_OVER = "Avro datum has bytes left over"
NOT_OF_SCHEMA = "Avro datum isn't of its schema"
OTHER_TYPE = "Avro datum has a type that source.schema_file doesn't"
TOO_DEEP = "Avro datum is nested too deeply"


class MalformedError(ValueError):
    """A datum can't be decoded; the text says why and quotes nothing of it."""


def read(step: Step, data: bytes, slots: int) -> Row:
    """The row that `step` makes of a whole datum.

    Raises:
        MalformedError: it goes over fewer bytes than there are, or over more.
    """
    row: Row = [None] * slots
    try:
        end = step(data, 0, row)
    except (IndexError, struct.error):
        raise MalformedError(CUT_OFF) from None
    except RecursionError:
        raise MalformedError(TOO_DEEP) from None
    if end != len(data):
        raise MalformedError(LEFT_OVER)
    return row


def long(data: bytes, at: int) -> tuple[int, int]:
    """A number in zigzag groups of seven bits, of at most 64."""
    byte = data[at]
    at += 1
    number = byte & 0x7F
    shift = 7
    while byte >= 0x80:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if shift > 63 and (byte >= 0x80 or number >> 64):
            raise MalformedError(NOT_OF_SCHEMA)
    return (number >> 1) ^ -(number & 1), at


def bytes_(data: bytes, at: int) -> tuple[bytes, int]:
    """Bytes after their length; text is no different here."""
    size, at = long(data, at)
    end = _end(data, at, size)
    return data[at:end], end


def _end(data: bytes, at: int, size: int) -> int:
    if size < 0:
        raise MalformedError(NOT_OF_SCHEMA)
    if size > len(data) - at:
        raise MalformedError(CUT_OFF)
    return at + size


def boolean(data: bytes, at: int) -> tuple[bool, int]:
    """One byte, 0 or 1."""
    if data[at] > 1:
        raise MalformedError(NOT_OF_SCHEMA)
    return data[at] == 1, at + 1


_FLOAT, _DOUBLE = struct.Struct("<f"), struct.Struct("<d")


def float_(data: bytes, at: int) -> tuple[float, int]:
    """Four bytes."""
    return _FLOAT.unpack_from(data, at)[0], at + 4


def double(data: bytes, at: int) -> tuple[float, int]:
    """Eight bytes."""
    return _DOUBLE.unpack_from(data, at)[0], at + 8


SIMPLE: dict[str, Read] = {
    "boolean": boolean,
    "int": long,
    "long": long,
    "float": float_,
    "double": double,
    "bytes": bytes_,
    "string": bytes_,
}


def fixed(size: int) -> Read:
    """So many bytes."""

    def read(data: bytes, at: int) -> tuple[bytes, int]:
        end = _end(data, at, size)
        return data[at:end], end

    return read


def enum(symbols: Sequence[bytes | None]) -> Read:
    """One of these symbols, by its number; None is one that isn't known."""

    def read(data: bytes, at: int) -> tuple[bytes, int]:
        index, at = long(data, at)
        if not 0 <= index < len(symbols):
            raise MalformedError(NOT_OF_SCHEMA)
        symbol = symbols[index]
        if symbol is None:
            raise MalformedError(OTHER_TYPE)
        return symbol, at

    return read


def converted(read: Read, convert: Callable[[Any], Any]) -> Read:
    """What `convert` makes of the value."""

    def read_and_convert(data: bytes, at: int) -> tuple[Any, int]:
        value, at = read(data, at)
        return convert(value), at

    return read_and_convert


def take(read: Read, slot: int) -> Step:
    """Reads the value into the slot."""

    def step(data: bytes, at: int, row: Row) -> int:
        row[slot], at = read(data, at)
        return at

    return step


def put(value: Any, slot: int) -> Step:
    """Puts a value into the slot that isn't in the datum."""

    def step(data: bytes, at: int, row: Row) -> int:
        row[slot] = value
        return at

    return step


def drop(read: Read) -> Step:
    """Reads the value only to find its end."""
    return lambda data, at, row: read(data, at)[1]


def skip_bytes(data: bytes, at: int, row: Row) -> int:
    """Over bytes after their length."""
    size, at = long(data, at)
    return _end(data, at, size)


def nothing(data: bytes, at: int, row: Row) -> int:
    """Over a null, which takes no bytes."""
    return at


def refuse(data: bytes, at: int, row: Row) -> int:
    """Never over a value that can't be resolved."""
    raise MalformedError(OTHER_TYPE)


def all_of(steps: Sequence[Step]) -> Step:
    """One after the other."""

    def step(data: bytes, at: int, row: Row) -> int:
        for each in steps:
            at = each(data, at, row)
        return at

    return step


def one_of(branches: Sequence[Step]) -> Step:
    """The branch whose number comes first."""

    def step(data: bytes, at: int, row: Row) -> int:
        index, at = long(data, at)
        if not 0 <= index < len(branches):
            raise MalformedError(NOT_OF_SCHEMA)
        return branches[index](data, at, row)

    return step


def blocks_of(item: Step) -> Step:
    """Over an array or a map: blocks of items, each with their number; a negative one has the block's bytes after it."""

    def step(data: bytes, at: int, row: Row) -> int:
        count, at = long(data, at)
        while count:
            end = None
            if count < 0:
                size, at = long(data, at)
                end = _end(data, at, size)
            for _ in range(abs(count)):
                start, at = at, item(data, at, row)
                if at == start:
                    break  # such items take no bytes, however many there are
            if end not in (None, at):
                raise MalformedError(NOT_OF_SCHEMA)
            count, at = long(data, at)
        return at

    return step


def of_name(steps: Mapping[str, Step], name: str) -> Step:
    """The step of this name when its turn comes: a type may hold itself."""
    return lambda data, at, row: steps[name](data, at, row)
