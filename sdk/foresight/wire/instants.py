"""google.protobuf.Timestamp and aware datetimes; nanoseconds below a microsecond are cut off."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from foresight.values.errors import InvalidValue
from foresight.values.instants import instant_from_micros, micros_from_instant


def encode_instant(instant: datetime) -> Timestamp:
    """The message of an aware datetime."""
    seconds, micros = divmod(micros_from_instant(instant), 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1_000)


def decode_instant(message: Timestamp, field: str = "event_time") -> datetime:
    """The UTC datetime of a message. Raises InvalidValue for bad nanos and years outside of 1 to 9999."""
    if not 0 <= message.nanos < 1_000_000_000:
        raise InvalidValue(field, "has nanos outside of 0 to 999,999,999")
    return instant_from_micros(message.seconds * 1_000_000 + message.nanos // 1_000, field)


def decode_optional_instant(present: bool, message: Timestamp, field: str) -> datetime | None:
    """The instant of a field that may be unset; `present` is `request.HasField(field)`."""
    return decode_instant(message, field) if present else None
