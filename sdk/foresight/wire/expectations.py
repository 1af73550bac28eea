"""Expectations, failure policies and durations on the wire."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from foresight.feature_store.v1 import registry_pb2
from foresight.values.errors import InvalidValue
from foresight.values.expectations import (
    Expectation,
    FailurePolicy,
    Fresh,
    NotNull,
    OneOf,
    Range,
    Rule,
    Unique,
)
from foresight.wire.columns import decode_column, encode_column

# The name of a column of values is ignored; an empty one would be refused.
_VALUES = "values"
_DURATION_S_MAX = 315_576_000_000


def encode_duration(duration: timedelta) -> Duration:
    """The message of a duration."""
    message = Duration()
    message.FromTimedelta(duration)
    return message


def decode_duration(message: Duration, field: str) -> timedelta:
    """The duration of a message, cut to microseconds. Raises InvalidValue for what is not a valid duration."""
    if not -999_999_999 <= message.nanos <= 999_999_999 or abs(message.seconds) > _DURATION_S_MAX:
        raise InvalidValue(field, "is not a valid duration")
    return timedelta(seconds=message.seconds, microseconds=message.nanos // 1_000)


def encode_failure_policy(policy: FailurePolicy) -> registry_pb2.FailurePolicy.ValueType:
    """The enum value of a policy."""
    return registry_pb2.FailurePolicy.ValueType(policy.value)


def decode_failure_policy(number: int, field: str = "failure_policy") -> FailurePolicy:
    """The policy of an enum value; unset is REJECT. Raises InvalidValue for an unknown one."""
    try:
        return FailurePolicy(number or FailurePolicy.REJECT)
    except ValueError:
        raise InvalidValue(field, "is not a known policy") from None


def encode_expectation(expectation: Expectation) -> registry_pb2.Expectation:
    """The message of an expectation."""
    message = registry_pb2.Expectation(name=expectation.name, column=expectation.column)
    match expectation.rule:
        case Range(min=least, max=most):
            message.range.CopyFrom(registry_pb2.Range(min=least, max=most))
        case OneOf(values=values):
            message.one_of.values.CopyFrom(encode_column(values))
        case NotNull():
            message.not_null.SetInParent()
        case Unique():
            message.unique.SetInParent()
        case Fresh(max_age=max_age):
            message.fresh.max_age.CopyFrom(encode_duration(max_age))
    return message


def decode_expectation(message: registry_pb2.Expectation, where: str) -> Expectation:
    """The expectation of a message. Raises InvalidValue, also for one without a rule."""
    try:
        return Expectation(_decode_rule(message), message.column, message.name)
    except InvalidValue as error:
        raise error.within(where) from None


def decode_expectations(messages: Iterable[registry_pb2.Expectation]) -> tuple[Expectation, ...]:
    """The expectations of a group. Raises InvalidValue naming `expectations[<position>]`."""
    return tuple(decode_expectation(message, f"expectations[{i}]") for i, message in enumerate(messages))


def _decode_rule(message: registry_pb2.Expectation) -> Rule:
    match message.WhichOneof("rule"):
        case "range":
            bounds = message.range
            return Range(bounds.min if bounds.HasField("min") else None, bounds.max if bounds.HasField("max") else None)
        case "one_of":
            values = message.one_of.values
            if not values.name:
                named = type(values)(name=_VALUES)
                named.MergeFrom(values)
                values = named
            return OneOf(decode_column(values, "one_of.values"))
        case "not_null":
            return NotNull()
        case "unique":
            return Unique()
        case "fresh":
            if not message.fresh.HasField("max_age"):
                raise InvalidValue("fresh.max_age", "is required")
            return Fresh(decode_duration(message.fresh.max_age, "fresh.max_age"))
    raise InvalidValue("rule", "is unset or not known")
