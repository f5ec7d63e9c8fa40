"""Protobuf messages into rows of mapped fields, by a set of descriptors as `protoc --descriptor_set_out` writes it."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
from google.protobuf import descriptor, descriptor_pb2, descriptor_pool, message, message_factory

Take = Callable[[Any], Any]
"""A field's value in a message."""

NOT_OF_TYPE = "Protobuf message isn't of its type"

_TIMESTAMP = "google.protobuf.Timestamp"
_TYPES = {
    descriptor.FieldDescriptor.CPPTYPE_INT32: pa.int64(),
    descriptor.FieldDescriptor.CPPTYPE_INT64: pa.int64(),
    descriptor.FieldDescriptor.CPPTYPE_UINT32: pa.int64(),
    descriptor.FieldDescriptor.CPPTYPE_UINT64: pa.uint64(),
    descriptor.FieldDescriptor.CPPTYPE_FLOAT: pa.float64(),
    descriptor.FieldDescriptor.CPPTYPE_DOUBLE: pa.float64(),
    descriptor.FieldDescriptor.CPPTYPE_BOOL: pa.bool_(),
    descriptor.FieldDescriptor.CPPTYPE_ENUM: pa.binary(),
    descriptor.FieldDescriptor.CPPTYPE_STRING: pa.binary(),
}


class MalformedError(ValueError):
    """A message can't be decoded; the text says why and quotes nothing of it."""


class Reader:
    """Reads messages of one type as rows of its fields, `item.id` being field id of message item.

    An absent field that can be told from one with its default (`optional`, a oneof, a message) is null. An enum is its name,
    or its number where it has none. A google.protobuf.Timestamp is a time.

    Attributes:
        types: of the columns, Arrow's; text as binary, not yet checked to be UTF-8 (the second syntax doesn't).

    Raises:
        ValueError: the set, the message's name or a column doesn't fit.
    """

    def __init__(self, descriptors: bytes, name: str, columns: Sequence[str]):
        found = _find(descriptors, name)
        self._class = message_factory.GetMessageClass(found)
        fields = [_fields(found, column.split(".")) for column in columns]
        self.types = [_arrow_type(path[-1]) for path in fields]
        self._takes = [_take(path) for path in fields]

    def read(self, data: bytes) -> list[Any]:
        """Decodes one message; fields that the type doesn't know are left out.

        Raises:
            MalformedError: it isn't one of the type.
        """
        try:
            whole = self._class.FromString(data)
            return [take(whole) for take in self._takes]
        except (message.DecodeError, UnicodeDecodeError):
            raise MalformedError(NOT_OF_TYPE) from None


def _find(descriptors: bytes, name: str) -> descriptor.Descriptor:
    pool = descriptor_pool.DescriptorPool()
    try:
        for file in descriptor_pb2.FileDescriptorSet.FromString(descriptors).file:
            pool.Add(file)
    except (message.DecodeError, TypeError) as error:
        raise ValueError(
            f"isn't a set of descriptors ({type(error).__name__}): make it with protoc --include_imports --descriptor_set_out"
        ) from error
    try:
        return pool.FindMessageTypeByName(name)
    except KeyError:
        raise ValueError(f"has no message {name!r}: source.message takes its full name, with its package") from None


def _fields(found: descriptor.Descriptor, path: Sequence[str]) -> list[descriptor.FieldDescriptor]:
    """The fields on the way to the one that is mapped."""
    fields: list[descriptor.FieldDescriptor] = []
    for depth, name in enumerate(path):
        above = ".".join(path[:depth])
        if fields and (fields[-1].message_type is None or fields[-1].is_repeated):
            raise ValueError(f"{above!r} is no single message, so it has no member {name!r}")
        inside = fields[-1].message_type if fields else found
        if name not in inside.fields_by_name:
            raise ValueError(f"{inside.full_name} has no field {name!r}")
        fields.append(inside.fields_by_name[name])
    last = fields[-1]
    if last.is_repeated or (last.message_type and last.message_type.full_name != _TIMESTAMP):
        hint = "" if last.is_repeated else " Name one of its members."
        raise ValueError(f"{'.'.join(path)!r} is {'repeated' if last.is_repeated else 'a message'}, no single value.{hint}")
    return fields


def _arrow_type(field: descriptor.FieldDescriptor) -> pa.DataType:
    if field.message_type:
        return pa.timestamp("us", "UTC")
    return _TYPES[field.cpp_type]


def _take(path: Sequence[descriptor.FieldDescriptor]) -> Take:
    takes = [_take_field(field) for field in path]

    def take(whole: Any) -> Any:
        value = whole
        for each in takes:
            if value is None:
                return None
            value = each(value)
        return value

    return takes[0] if len(takes) == 1 else take


def _take_field(field: descriptor.FieldDescriptor) -> Take:
    name, has_presence = field.name, field.has_presence
    convert = _conversion(field)
    if not has_presence and convert is None:
        return operator.attrgetter(name)

    def take(whole: Any) -> Any:
        if has_presence and not whole.HasField(name):
            return None
        value = getattr(whole, name)
        return convert(value) if convert else value

    return take


def _conversion(field: descriptor.FieldDescriptor) -> Take | None:
    if field.message_type and field.message_type.full_name == _TIMESTAMP:
        return lambda time: time.seconds * 1_000_000 + time.nanos // 1000
    if field.enum_type:
        names = {number: value.name for number, value in field.enum_type.values_by_number.items()}
        return lambda number: names.get(number, str(number))
    return None
