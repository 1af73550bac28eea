"""Bad input to the logger: a clear status that names the field, and nothing applied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from foresight.logger.v1 import outcome_pb2, prediction_log_pb2
from foresight.types.v1 import types_pb2
from foresight.values import DataType
from foresight.values.features import VIEW_KEYS_MAX
from services.runtime.ids import new_id
from tests.integration.logger.rig import (
    Logger,
    Record,
    by_id,
    by_keys,
    column,
    lost,
    new_incarnation,
    record,
)

LIFE = new_incarnation()
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def changed(change: Callable[[Record], object], n: int = 2) -> Record:
    message = record(LIFE, 1, n)
    change(message)
    return message


def put(field: str, value: Any) -> Callable[[Record], object]:
    return lambda message: setattr(message, field, value)


def of_arm(**values: Any) -> Record:
    """A record of an arm."""
    message = record(LIFE, 1, 2)
    message.arm = "next"
    for field, value in values.items():
        setattr(message, field, value)
    return message


BAD_RECORDS: list[tuple[str, Record, str]] = [
    ("no replica", changed(put("replica", "")), "replica"),
    ("a path as replica", changed(put("replica", "../etc")), "replica"),
    ("a long replica", changed(put("replica", "a" * 64)), "replica"),
    ("an incarnation that is no UUID", changed(put("incarnation", "1")), "incarnation"),
    ("sequence 0", changed(put("first_sequence", 0)), "first_sequence"),
    ("a sequence that overflows", changed(put("first_sequence", 2**64 - 1)), "first_sequence"),
    ("no prediction", changed(lambda m: m.ClearField("prediction_ids")), "prediction_ids"),
    ("an id in capitals", changed(lambda m: m.prediction_ids.__setitem__(1, new_id().upper())), "prediction_ids[1]"),
    ("an id that is SQL", changed(lambda m: m.prediction_ids.__setitem__(0, "' OR 1=1")), "prediction_ids[0]"),
    ("the same id twice", changed(lambda m: m.prediction_ids.__setitem__(1, m.prediction_ids[0])), "prediction_ids"),
    ("one id too many", changed(lambda m: m.prediction_ids.append(new_id())), "entity_keys[flight]"),
    ("1,025 predictions", record(LIFE, 1, 1_025), "prediction_ids"),
    ("a NUL in the request id", changed(put("request_id", "a\0")), "request_id"),
    ("an arm with capitals", changed(put("arm", "Champion")), "arm"),
    ("a probability of no arm", changed(put("arm_probability", 0.5)), "arm"),
    ("a shadow that is no arm", changed(put("shadow", True)), "arm"),
    ("a probability over 1", of_arm(arm_probability=1.1), "arm_probability"),
    ("a probability that is no number", of_arm(arm_probability=float("nan")), "arm_probability"),
    ("a shadow with a share", of_arm(shadow=True, arm_probability=0.1), "arm_probability"),
    ("a forced shadow", of_arm(shadow=True, arm_forced=True), "arm_probability"),
    ("a caller of a megabyte", changed(put("caller", "x" * 1_000_000)), "caller"),
    ("a deployment with capitals", changed(put("deployment", "Delays")), "deployment"),
    ("no deployment", changed(put("deployment", "")), "deployment"),
    ("no model", changed(lambda m: m.ClearField("model")), "model.name"),
    ("model version 0", changed(lambda m: setattr(m.model, "version", 0)), "model.version"),
    ("view version 0", changed(lambda m: setattr(m.view, "version", 0)), "view.version"),
    ("view version 2^31", changed(lambda m: setattr(m.view, "version", 2**31)), "view.version"),
    ("a digest that is none", changed(put("model_sha256", "xyz")), "model_sha256"),
    ("a digest of transforms that is none", changed(put("transforms_sha256", "xyz")), "transforms_sha256"),
    ("no event time", changed(lambda m: m.ClearField("event_time")), "event_time"),
    ("bad nanos", changed(lambda m: setattr(m.event_time, "nanos", -1)), "event_time"),
    ("year 10000", changed(lambda m: setattr(m.served_at, "seconds", 253_402_300_800)), "served_at"),
    (
        "a float as key",
        changed(lambda m: m.entity_keys.append(column("x", DataType.FLOAT64, [1.0, 2.0]))),
        "entity_keys",
    ),
    ("a key given twice", changed(lambda m: m.entity_keys.append(m.entity_keys[0])), "entity_keys"),
    ("a ragged column", changed(lambda m: m.outputs.append(column("x", DataType.BOOL, [True]))), "outputs[x]"),
    ("a column without a type", changed(lambda m: m.outputs.append(types_pb2.Column(name="x"))), "outputs[x]"),
    ("a column without a name", changed(lambda m: setattr(m.outputs[0], "name", "")), "outputs"),
    ("a column named in capitals", changed(lambda m: setattr(m.outputs[0], "name", "X")), "outputs"),
    ("no outputs", changed(lambda m: m.ClearField("outputs")), "outputs"),
    (
        "NaN in an output",
        changed(lambda m: m.outputs[0].float64_values.values.__setitem__(0, float("nan"))),
        "outputs[probability]",
    ),
    (
        "an unset feature",
        changed(lambda m: m.features.append(prediction_log_pb2.LoggedFeature())),
        "features",
    ),
    (
        "statuses of another length",
        changed(lambda m: setattr(m.features[0], "statuses", b"\1")),
        "features[0].statuses",
    ),
    ("an unknown status", changed(lambda m: setattr(m.features[0], "statuses", b"\1\7")), "features[0].statuses"),
    ("an unknown policy", changed(lambda m: setattr(m.features[0], "policies", b"\0\5")), "features[0].policies"),
    (
        "too few commits of last known rows",
        changed(lambda m: m.features[0].last_known_commits.append(1)),
        "features[0].last_known_commits",
    ),
    (
        "no times of last known rows",
        changed(lambda m: m.features[0].last_known_commits.extend([1, 2])),
        "features[0].last_known_event_time_micros",
    ),
    ("a missing commit", changed(lambda m: m.sources[0].commits.pop()), "sources[0].commits"),
    ("a missing time", changed(lambda m: m.sources[0].event_time_micros.pop()), "sources[0].event_time_micros"),
    (
        "a time past the year 9999",
        changed(lambda m: m.sources[0].event_time_micros.__setitem__(0, 2**62)),
        "sources[0].event_time_micros",
    ),
    ("a source without a group", changed(lambda m: m.sources[0].ClearField("group")), "sources[0].group.name"),
]


def violated(error: grpc.aio.AioRpcError) -> list[str]:
    """The fields that the error names."""
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    assert isinstance(details, bytes)
    bad = error_details_pb2.BadRequest()
    for detail in status_pb2.Status.FromString(details).details:
        if detail.Unpack(bad):
            return [violation.field for violation in bad.field_violations]
    return []


async def test_each_fault_of_a_record_is_named_and_nothing_of_the_request_is_stored(logger: Logger) -> None:
    good = record(LIFE, 10)
    for what, message, field in BAD_RECORDS:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await logger.append(good, message, quarantined=[lost(LIFE, 100, 100)])
        assert (what, refused.value.code()) == (what, INVALID)
        assert (what, violated(refused.value)) == (what, [f"records[1].{field}"])
    assert (await logger.read()).head == 0
    assert await logger.ledger() == {}
    assert (await logger.append(good)).appended == 1


async def test_bad_ranges_are_named(logger: Logger) -> None:
    for bad, field in (
        (lost("x", 1, 2), "incarnation"),
        (lost(LIFE, 0, 2), "first_sequence"),
        (lost(LIFE, 3, 2), "last_sequence"),
        (lost(LIFE, 1, 2**64 - 1), "last_sequence"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await logger.append(record(LIFE, 1), quarantined=[lost(LIFE, 1, 1), bad])
        assert refused.value.code() is INVALID
        assert violated(refused.value) == [f"quarantined[1].{field}"]
    assert await logger.ledger() == {}


async def test_too_much_at_once_is_refused_with_the_limit(logger: Logger) -> None:
    tiny = record(LIFE, 1)
    for request in (
        prediction_log_pb2.AppendRecordsRequest(records=[tiny] * 1_001),
        prediction_log_pb2.AppendRecordsRequest(quarantined=[lost(LIFE, 1, 1)] * 1_001),
        prediction_log_pb2.AppendRecordsRequest(records=[_large(1), _large(2)]),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await logger.log.AppendRecords(request)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await logger.append(_large(3, 1_100))
    assert violated(refused.value) == ["records[0]"]
    assert (await logger.read()).head == 0


def _large(sequence: int, texts: int = 600) -> Record:
    message = record(LIFE, sequence)
    for n in range(texts):
        message.features.add().column.CopyFrom(column(f"text_{n}", DataType.STRING, ["x" * 4_000]))
    return message


async def test_bad_reads_are_refused(logger: Logger) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await logger.read(page_size=1_001)
    assert violated(refused.value) == ["page_size"]
    for bad in ("", "x", "{" + new_id() + "}", new_id().upper(), "../" * 12):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await logger.log.GetPrediction(prediction_log_pb2.GetPredictionRequest(prediction_id=bad))
        assert refused.value.code() is INVALID
        assert violated(refused.value) == ["prediction_id"]


Outcomes = outcome_pb2.RecordOutcomesRequest


def with_(request: Outcomes, change: Callable[[Outcomes], object]) -> Outcomes:
    change(request)
    return request


def mixed(request: Outcomes) -> None:
    request.prediction_ids.append(new_id())


def without(field: str, request: Outcomes) -> Outcomes:
    return with_(request, lambda r: r.ClearField(field))  # type: ignore[arg-type]


def with_key(*columns: types_pb2.Column) -> Outcomes:
    return with_(by_keys([1], [True]), lambda r: r.entity_keys.extend(columns))


def with_nan() -> Outcomes:
    request = by_id([new_id()], [1.0], type=DataType.FLOAT64)
    request.values.float64_values.values[0] = float("nan")
    return request


TOO_MANY_KEYS = [column(f"k{i}", DataType.INT64, [1]) for i in range(VIEW_KEYS_MAX)]
BAD_OUTCOMES: list[tuple[str, Outcomes, str]] = [
    ("nothing", Outcomes(), "values"),
    ("no rows", by_id([], []), "values"),
    ("neither ids nor keys", without("prediction_ids", by_id([new_id()], [True])), "prediction_ids"),
    ("ids and keys", with_(by_keys([1], [True]), lambda r: r.prediction_ids.append(new_id())), "entity_keys"),
    ("an id that is none", by_id(["x"], [True]), "prediction_ids[0]"),
    ("more ids than values", by_id([new_id(), new_id()], [True]), "prediction_ids"),
    ("more revisions than values", by_id([new_id()], [True], [0, 1]), "revisions"),
    ("no observation time", without("observed_at_micros", by_id([new_id()], [True])), "observed_at_micros"),
    ("a year over 9999", by_id([new_id()], [True], observed_at=2**62), "observed_at_micros[0]"),
    ("a NULL", by_id([new_id()], [None]), "values"),
    ("an instant as value", by_id([new_id()], [0], type=DataType.TIMESTAMP), "values"),
    ("NaN", with_nan(), "values[late]"),
    ("10,001 outcomes", by_id([new_id()] * 10_001, [True] * 10_001), "values"),
    ("keys without a deployment", by_keys([1], [True], deployment=""), "deployment"),
    ("keys without event times", without("event_time_micros", by_keys([1], [True])), "event_time_micros"),
    ("an event time past 9999", by_keys([1], [True], event_time_micros=2**62), "event_time_micros[0]"),
    ("fewer keys than values", with_key(column("x", DataType.INT64, [])), "entity_keys[x]"),
    ("a float key", with_key(column("x", DataType.FLOAT64, [1.0])), "entity_keys"),
    ("a key twice", with_key(column("flight", DataType.INT64, [1])), "entity_keys"),
    ("more keys than a view can have", with_key(*TOO_MANY_KEYS), "entity_keys"),
]


async def test_each_fault_of_outcomes_is_named_and_nothing_is_held(logger: Logger) -> None:
    for what, request, field in BAD_OUTCOMES:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await logger.outcomes.RecordOutcomes(request)
        assert (what, refused.value.code()) == (what, INVALID)
        assert (what, violated(refused.value)) == (what, [field])
    assert (await logger.store.state()).held == 0


async def test_bytes_that_are_no_message_are_refused_as_malformed(logger: Logger) -> None:
    for method in ("PredictionLogService/AppendRecords", "OutcomeService/RecordOutcomes"):
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        call = logger.channel.unary_unary(f"/foresight.logger.v1.{method}")
        for data in (b"\xff\xff\xff", b"\x0a\x7f", b"\x0a\x03\x0a\x01\xff"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(data)
            assert refused.value.code() is INVALID
