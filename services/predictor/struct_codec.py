"""Rows of google.protobuf.Struct, as JSON callers have them, from and to typed columns.

A value is read as the type that the view has for its name, and nothing is guessed:

    INT64         a number without fraction below 2^53 in size, or a decimal string
    FLOAT64       a finite number
    BOOL, STRING  the same
    TIMESTAMP     RFC 3339 text, to the microsecond
    FLOAT_VECTOR  a list of as many finite numbers as the field has
    any           null

JSON knows only doubles, in which 2^53 may be what is left of 2^53 + 1: from there on an integer is text. The columns
are to the bit those that a caller of Predict would have sent for these values. Of a name that is twice in a row
protobuf keeps the last, before anybody sees it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from google.protobuf.struct_pb2 import Struct, Value

from foresight.values import Column, DataType, Field, InvalidValue, Violation, micros_from_instant
from foresight.values.errors import quoted
from foresight.values.features import REQUEST_FEATURES_MAX, VIEW_KEYS_MAX
from foresight.values.names import STRING_BYTES_MAX, check_text
from services.predictor.questions import ROWS_MAX

# No view has more.
FIELDS_MAX = VIEW_KEYS_MAX + REQUEST_FEATURES_MAX
# Doubles below it are exact, and no other integer is rounded to one of them.
INTEGER_END = 2**53
# More are not told: the status could not hold them.
FAULTS_MAX = 16
# From half a step beyond the largest 32-bit float on, a number is rounded to infinity.
_FLOAT32_END = float(2**128 - 2**103)
_DECIMAL = re.compile(r"(?:0|-?[1-9][0-9]{0,18})\Z")
_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6}0{0,3})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})\Z"
)
_NAME_SHOWN_MAX = 63
_KINDS = {
    None: "no value",
    "null_value": "a null of another enum",
    "number_value": "a number",
    "string_value": "a text",
    "bool_value": "a bool",
    "struct_value": "an object",
    "list_value": "a list",
}


class _Wrong(Exception):
    """A value cannot be read; the text says why."""


def decode_rows(rows: Sequence[Struct], fields: Sequence[Field]) -> dict[str, Column]:
    """The column of each field. Raises InvalidValue that names `rows[i].name`, for the first faults of all."""
    if not 1 <= len(rows) <= ROWS_MAX:
        raise InvalidValue("rows", f"are {len(rows):,}, not 1 to {ROWS_MAX:,}")
    faults: list[Violation] = []
    names = {f.name for f in fields}
    values: dict[str, list[Any]] = {f.name: [] for f in fields}
    for i, row in enumerate(rows):
        given = row.fields
        if len(given) > FIELDS_MAX:
            raise InvalidValue(f"rows[{i}]", f"has {len(given):,} fields, more than {FIELDS_MAX}")
        for field in fields:
            try:
                if field.name not in given:
                    raise _Wrong("is missing")
                values[field.name].append(_value(given[field.name], field))
            except _Wrong as wrong:
                faults.append(Violation(f"rows[{i}].{field.name}", str(wrong)))
        if len(given) > len(fields) or any(name not in names for name in given):
            faults += _strangers(i, given, names)
        if len(faults) >= FAULTS_MAX:
            break
    if faults:
        raise InvalidValue(faults[0].field, faults[0].description, *faults[1:FAULTS_MAX])
    return {field.name: _column(field, values[field.name]) for field in fields}


def encode_rows(columns: Sequence[Column], rows: int) -> list[Struct]:
    """A Struct per row with the value of each column by name."""
    structs = [Struct() for _ in range(rows)]
    for column in columns:
        for struct, value in zip(structs, _json_values(column), strict=True):
            _fill(struct.fields[column.name], value)
    return structs


def _value(message: Value, field: Field) -> Any:
    """The value as `Column` holds it, None for NULL. Raises _Wrong."""
    kind = message.WhichOneof("kind")
    if kind == "null_value" and not message.null_value:
        return None
    read = _READERS[field.type].get(kind or "")
    if read is None:
        raise _Wrong(f"is {_KINDS[kind]}, not {_EXPECTED[field.type]}")
    return read(getattr(message, kind or ""), field)


def _finite(number: float, field: Field) -> float:
    if not math.isfinite(number):
        raise _Wrong("is NaN or infinite; use null for an unknown number")
    return number


def _integer(number: float, field: Field) -> int:
    if not _finite(number, field).is_integer():
        raise _Wrong("has a fraction, and is an int64")
    if abs(number) >= INTEGER_END:
        raise _Wrong("is a number of 2^53 or more in size, which may have lost digits: send it as a decimal string")
    return int(number)


def _decimal(text: str, field: Field) -> int:
    if not _DECIMAL.match(text):
        raise _Wrong(f"{quoted(text)} is not a decimal integer")
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise _Wrong("does not fit into 64 bits")
    return number


def _bool(value: bool, field: Field) -> bool:
    return value


def _text(text: str, field: Field) -> str:
    try:
        return check_text(text, "", STRING_BYTES_MAX)
    except InvalidValue as error:
        raise _Wrong(error.violations[0].description) from None


def _instant(text: str, field: Field) -> int:
    if not _RFC_3339.match(text):
        raise _Wrong(f"{quoted(text)} is not an RFC 3339 instant to the microsecond, as in 2026-03-01T12:00:00Z")
    try:
        return micros_from_instant(datetime.fromisoformat(text.upper()))
    except InvalidValue as error:
        raise _Wrong(error.violations[0].description) from None
    except ValueError:
        raise _Wrong(f"{quoted(text)} is not an instant that exists") from None


def _vector(message: Any, field: Field) -> list[float]:
    items = message.values
    if len(items) != field.dimension:
        raise _Wrong(f"has {len(items)} values, not {field.dimension}")
    for place, item in enumerate(items):
        kind = item.WhichOneof("kind")
        if kind != "number_value":
            raise _Wrong(f"has {_KINDS[kind]} at {place}, not a number")
        # NaN compares false.
        if not abs(item.number_value) < _FLOAT32_END:
            raise _Wrong(f"has a number at {place} that is NaN, infinite or beyond 32-bit floats")
    return [item.number_value for item in items]


_READERS: dict[DataType, dict[str, Callable[[Any, Field], Any]]] = {
    DataType.INT64: {"number_value": _integer, "string_value": _decimal},
    DataType.FLOAT64: {"number_value": _finite},
    DataType.BOOL: {"bool_value": _bool},
    DataType.STRING: {"string_value": _text},
    DataType.TIMESTAMP: {"string_value": _instant},
    DataType.FLOAT_VECTOR: {"list_value": _vector},
}
_EXPECTED = {
    DataType.INT64: "an integer or a decimal string",
    DataType.FLOAT64: "a number",
    DataType.BOOL: "a bool",
    DataType.STRING: "a text",
    DataType.TIMESTAMP: "an RFC 3339 text",
    DataType.FLOAT_VECTOR: "a list of numbers",
}
_DTYPES: dict[DataType, tuple[Any, Any]] = {
    DataType.INT64: (np.int64, 0),
    DataType.FLOAT64: (np.float64, 0.0),
    DataType.BOOL: (np.bool_, False),
    DataType.STRING: (np.object_, ""),
    DataType.TIMESTAMP: (np.int64, 0),
}


def _column(field: Field, values: list[Any]) -> Column:
    """The column of values that were read."""
    if all(value is None for value in values):
        return Column.nulls(field, len(values))
    valid = np.array([value is not None for value in values], np.bool_) if None in values else None
    if field.type is DataType.FLOAT_VECTOR:
        rows = [[0.0] * field.dimension if value is None else value for value in values]
        return Column(field.name, field.type, np.array(rows, np.float64).astype(np.float32), valid)
    dtype, zero = _DTYPES[field.type]
    array = np.fromiter((zero if value is None else value for value in values), dtype, len(values))
    return Column(field.name, field.type, array, valid)


def _strangers(row: int, given: Any, names: set[str]) -> Iterator[Violation]:
    """Faults of names that the view does not have, the least few of them."""
    for name in sorted(name for name in given if name not in names)[:FAULTS_MAX]:
        # It is the client's own text: shown only as far as it is plain and short.
        shown = name[:_NAME_SHOWN_MAX] if name.isascii() and name.isprintable() else ascii(name)[:_NAME_SHOWN_MAX]
        yield Violation(f"rows[{row}].{shown}", "is neither an entity key nor a request feature")


def _json_values(column: Column) -> list[Any]:
    """The column's values as JSON has them."""
    values = column.to_list()
    match column.type:
        case DataType.INT64:
            return [str(v) if v is not None and abs(v) >= INTEGER_END else v for v in values]
        case DataType.TIMESTAMP:
            return [None if v is None else v.isoformat().replace("+00:00", "Z") for v in values]
    return values


def _fill(message: Value, value: Any) -> None:
    if value is None:
        message.null_value = 0  # type: ignore[assignment]
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, str):
        message.string_value = value
    elif isinstance(value, list):
        message.list_value.values.extend(Value(number_value=item) for item in value)
        message.list_value.SetInParent()
    else:
        message.number_value = value
