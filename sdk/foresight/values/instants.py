"""Instants: timezone-aware datetimes, or integers of microseconds since 1970-01-01T00:00:00Z."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from foresight.values.errors import InvalidValue

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROS_MIN = (datetime(1, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
MICROS_MAX = (datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)


def micros_from_instant(instant: datetime, field: str = "event_time") -> int:
    """Microseconds since the epoch. Raises InvalidValue for a naive datetime and outside of years 1 to 9999."""
    if instant.utcoffset() is None:
        raise InvalidValue(field, "has no time zone")
    micros = (instant - EPOCH) // timedelta(microseconds=1)
    if not MICROS_MIN <= micros <= MICROS_MAX:
        raise InvalidValue(field, "lies outside of the years 1 to 9999")
    return micros


def instant_from_micros(micros: int, field: str = "event_time") -> datetime:
    """The UTC datetime of microseconds since the epoch. Raises InvalidValue outside of years 1 to 9999."""
    if not MICROS_MIN <= micros <= MICROS_MAX:
        raise InvalidValue(field, "lies outside of the years 1 to 9999")
    return EPOCH + timedelta(microseconds=micros)
