"""Columns of one row as bytes: what many records have in common is looked at once, and then recognised.

A column's bytes are a beginning (lengths, name, type), the value, and an end (NULL or not, status, policy). Columns of
one feature begin alike in every record, and most have no end. Whoever has looked closely at a column has its form
remembered; bytes that begin and end as a form says have the form's name, type and number of rows, so that of later
columns only the value is left to check. Bytes are protobuf's, written by its library, hence canonical.

What is not recognised, or not right at first sight, is looked at closely: forms save work, they decide nothing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from foresight.values import DataType
from foresight.values.instants import MICROS_MAX, MICROS_MIN

# A view has as many as it has columns, and a few more for each column whose values differ in length.
FORMS_MAX = 16_384
# Ends of one form: NULL or not, a few statuses and policies. One more, or a longer one, is not remembered.
ENDS_MAX = 64
END_BYTES_MAX = 16
# Versions of groups that are known.
GROUPS_MAX = 4_096
# From here on a length takes two bytes.
_LENGTH_END = 0x80
_DELIMITED = 0x0A
_ARMS = {
    DataType.INT64: 0x12,
    DataType.FLOAT64: 0x1A,
    DataType.BOOL: 0x22,
    DataType.STRING: 0x2A,
    DataType.TIMESTAMP: 0x32,
}
# Bytes between a name and a value: the type's tag, a length, the values' tag, a length.
_BETWEEN = 4
# NaN and infinity have all bits of the exponent set; the topmost seven are in a double's last byte. Numbers from 2^1009
# on, which have these seven too, are looked at closely.
_EXPONENT = 0x7F
_ONE_VARINT = re.compile(rb"[\x80-\xff]*[\x00-\x7f]", re.DOTALL)
# What follows the event time of a source of one row: tag and length of the commits, and one of them.
_ONE_COMMIT = re.compile(rb"\x1a.[\x80-\xff]*[\x00-\x7f]", re.DOTALL)
# Tag and length of the event time of one row.
_ONE_TIME = b"\x12\x08"
_INSTANT = struct.Struct("<q")

Look = Callable[[bytes], tuple[str, DataType]]
V = TypeVar("V")


class Memory(Generic[V]):
    """Values under bytes, at most `most`: one more makes it forget all, and those still in use soon come again."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[bytes, V] = {}
        self.get = self._known.get

    def __len__(self) -> int:
        return len(self._known)

    def remember(self, key: bytes, value: V) -> None:
        """Keeps a value."""
        if len(self._known) >= self._most and key not in self._known:
            self._known.clear()
        self._known[key] = value


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """How columns of one name, type and length of value look; the value is `[start:stop]` of their bytes."""

    name: str
    type: DataType
    start: int
    stop: int
    is_float: bool
    ends: set[bytes] = field(default_factory=lambda: {b""})

    def fits(self, data: bytes) -> bool:
        """Whether a column that begins as the form does is right at first sight: its value, and its end."""
        stop = self.stop
        if len(data) != stop and data[stop:] not in self.ends:
            return False
        if self.type is DataType.FLOAT64:
            return data[stop - 1] & _EXPONENT != _EXPONENT
        value = data[self.start : stop]
        if self.type is DataType.STRING:
            return value.isascii() and b"\0" not in value
        if self.type is DataType.TIMESTAMP:
            return bool(MICROS_MIN <= _INSTANT.unpack(value)[0] <= MICROS_MAX)
        return len(value) == 1 or _ONE_VARINT.fullmatch(value) is not None


class Forms:
    """The forms of columns, or of messages whose first field is a column: `column_at` is where that begins, 0 or 2.

    `look` looks closely at one: it answers name and type when all is right with it and it has one row, and raises
    InvalidValue otherwise. Several threads may use it at once.
    """

    def __init__(self, look: Look, column_at: int = 0) -> None:
        self._look = look
        self._column_at = column_at
        self._known = Memory[Form](FORMS_MAX)

    def names(self, columns: Sequence[bytes]) -> list[str]:
        """The names of columns with which all is right. Raises InvalidValue, or IndexError for what is no column."""
        known, length_at, between = self._known.get, self._column_at + 1, self._column_at + 2 + _BETWEEN
        names = []
        for data in columns:
            form = known(data[: data[length_at] + between])
            if form is None:
                names.append(self._closer(data))
            elif form.is_float and len(data) == form.stop and data[-1] & _EXPONENT != _EXPONENT:
                # What `fits` says of most columns, without a call.
                names.append(form.name)
            elif form.fits(data):
                names.append(form.name)
            else:
                names.append(self._closer(data))
        return names

    def _closer(self, data: bytes) -> str:
        name, type = self._look(data)
        self.learn(data, name, type)
        return name

    def form(self, column: bytes) -> Form | None:
        """The form of a column that is right at first sight and has no end."""
        form = self._known.get(column[: column[self._column_at + 1] + self._column_at + 2 + _BETWEEN])
        return form if form is not None and form.stop == len(column) and form.fits(column) else None

    def learn(self, column: bytes, name: str, type: DataType) -> None:
        """Remembers the form of a column that was looked at closely, where it has one."""
        start = self._column_at + 2 + len(name) + _BETWEEN
        length = column[start - 1]
        stop = start + length
        beginning, end = column[:start], column[stop:]
        own = (_DELIMITED, len(name), *name.encode(), _ARMS.get(type, 0), length + 2, _DELIMITED, length)
        outer = column[: self._column_at]
        if max(own) >= _LENGTH_END or beginning != outer + bytes(own) or not _is_short(outer):
            return
        form = self._known.get(beginning)
        if form is None:
            form = Form(name, type, start, stop, type is DataType.FLOAT64)
            self._known.remember(beginning, form)
        if len(end) <= END_BYTES_MAX and len(form.ends) < ENDS_MAX:
            form.ends.add(end)


class Sources:
    """Sources of one row, each the group that comes first, an event time and a commit: groups are recognised.

    `look` looks closely at one: it answers the bytes of its group when all is right, and raises InvalidValue otherwise.
    Several threads may use it at once.
    """

    def __init__(self, look: Callable[[bytes], bytes]) -> None:
        self._look = look
        self._groups = Memory[bool](GROUPS_MAX)

    def check(self, sources: Iterable[bytes]) -> None:
        """Raises InvalidValue, or IndexError for what is no source, unless all is right with them."""
        for source in sources:
            start = source[1] + 4
            beginning = source[:start]
            if (
                self._groups.get(beginning)
                and _ONE_COMMIT.fullmatch(source, start + _INSTANT.size)
                and MICROS_MIN <= _INSTANT.unpack_from(source, start)[0] <= MICROS_MAX
            ):
                continue
            group = self._look(source)
            if len(group) < _LENGTH_END and beginning == bytes((_DELIMITED, len(group))) + group + _ONE_TIME:
                self._groups.remember(beginning, True)


def _is_short(outer: bytes) -> bool:
    """Whether what is around a column is nothing, or a tag and a length of one byte."""
    return not outer or (outer[0] == _DELIMITED and outer[1] < _LENGTH_END)
