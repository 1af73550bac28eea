"""Recognising records by their bytes accepts and answers what the thorough look does, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from foresight.logger.v1 import prediction_log_pb2
from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType, InvalidValue
from foresight.wire import encode_column
from services.logger.codec import decode_record
from services.logger.forms import END_BYTES_MAX, ENDS_MAX, Forms, Memory
from services.logger.record_codec import ArrivingRecords
from services.logger.records import LogRecord
from tests.integration.logger.rig import Record, column, new_incarnation, record

LIFE = new_incarnation()
NAMES = ["a", "bc", "hour", "n" * 62, "n" * 126, "n" * 130]
# An unknown field of PredictionRecord, Column, LoggedFeature and LoggedSource.
UNKNOWN = b"\xf8\x07\x01"

texts = st.one_of(
    st.text("ab\u00e9", max_size=4), st.sampled_from(["", "x" * 121, "x" * 126, "x" * 128, "x" * 4_096, "\u65e5\u672c"])
)
numbers = st.one_of(st.integers(-2, 300), st.sampled_from([2**31, 2**63 - 1, -(2**63)]))
floats = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0.0, -0.0, 1.7e308, -1.7e308]))
instants = st.one_of(st.integers(-(10**15), 10**15), st.sampled_from([253_402_300_799_999_999]))
values: dict[DataType, st.SearchStrategy[Any]] = {
    DataType.INT64: numbers,
    DataType.STRING: texts,
    DataType.BOOL: st.booleans(),
    DataType.FLOAT64: floats,
    DataType.TIMESTAMP: instants,
    DataType.FLOAT_VECTOR: st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2),
}
KEY_TYPES = [DataType.INT64, DataType.STRING, DataType.BOOL]


@st.composite
def columns(draw: st.DrawFn, types: list[DataType], least: int = 0) -> list[types_pb2.Column]:
    """Columns of one row under different names."""
    made = []
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=least, max_size=3, unique=True)):
        type = draw(st.sampled_from(types))
        value = draw(st.one_of(values[type], st.none()))
        message = encode_column(Column.build(name, type, [value], 2 if type is DataType.FLOAT_VECTOR else 0))
        if draw(st.booleans()) and not message.validity:
            message.validity = b"\1"
        made.append(message)
    return made


@st.composite
def right_records(draw: st.DrawFn) -> Record:
    """Records of one prediction with which nothing is wrong."""
    message = record(LIFE, draw(st.integers(1, 300)), deployment=draw(st.sampled_from(["delays", "other"])))
    types = list(values)
    for field, drawn in (
        ("entity_keys", draw(columns(KEY_TYPES))),
        ("request_features", draw(columns(types))),
        ("outputs", draw(columns(types, 1))),
    ):
        del getattr(message, field)[:]
        getattr(message, field).extend(drawn)
    for made in draw(columns(types)):
        feature = message.features.add(column=made)
        feature.column.name = "of_" + made.name
        feature.statuses = draw(st.sampled_from([b"", b"\1", b"\6"]))
        feature.policies = draw(st.sampled_from([b"", b"\0", b"\4"]))
        if draw(st.booleans()):
            feature.last_known_commits.append(draw(st.sampled_from([0, 1, 128, 2**64 - 1])))
            feature.last_known_event_time_micros.append(draw(instants))
    message.sources[0].commits[0] = draw(st.sampled_from([0, 1, 127, 128, 2**32, 2**64 - 1]))
    message.sources[0].event_time_micros[0] = draw(instants)
    message.event_time.nanos = draw(st.sampled_from([0, 1, 1_000, 999_999_999]))
    message.request_id = draw(st.sampled_from(["", "request", "\u00e9"]))
    message.transforms_sha256 = draw(st.sampled_from(["", "cd" * 32]))
    return message


def put(field: str, value: Any) -> Callable[[Record], object]:
    return lambda m: setattr(m, field, value)


def in_feature(field: str, value: bytes) -> Callable[[Record], object]:
    return lambda m: setattr(m.features[0], field, value)


def every_column(message: Record) -> list[types_pb2.Column]:
    of_features = [feature.column for feature in message.features]
    return [*message.entity_keys, *message.request_features, *of_features, *message.outputs]


def with_unknown_fields(message: Record) -> None:
    for made in every_column(message):
        made.MergeFromString(UNKNOWN)
    for part in (message, message.model, message.event_time, *message.features, *message.sources):
        part.MergeFromString(UNKNOWN)


def with_a_last_known_value_past_the_year_9999(message: Record) -> None:
    message.features[0].last_known_commits.append(1)
    message.features[0].last_known_event_time_micros.append(2**62)


def in_columns(change: Callable[[types_pb2.Column], object]) -> list[Callable[[Record], object]]:
    """The change in the first column of each kind."""
    return [
        lambda m: change(m.entity_keys[0]),
        lambda m: change(m.request_features[0]),
        lambda m: change(m.features[0].column),
        lambda m: change(m.outputs[0]),
    ]


FAULTS: list[Callable[[Record], object]] = [
    *(put(field, "") for field in ("replica", "incarnation", "caller", "deployment", "model_sha256")),
    *(put(field, "A") for field in ("incarnation", "deployment", "model_sha256", "transforms_sha256")),
    *(put(field, "a\0") for field in ("request_id", "caller", "deployment")),
    *(put(field, "e\u0301") for field in ("request_id", "caller", "deployment")),
    *(put("first_sequence", number) for number in (0, 2**63 - 2, 2**64 - 1)),
    put("replica", "../x"),
    put("caller", "x" * 1_025),
    *(
        lambda m, f=field: m.ClearField(f)
        for field in ("prediction_ids", "model", "view", "event_time", "served_at", "outputs", "sources", "entity_keys")
    ),
    lambda m: m.prediction_ids.__setitem__(0, m.prediction_ids[0].upper()),
    lambda m: setattr(m.model, "version", 0),
    lambda m: setattr(m.view, "version", 2**31),
    lambda m: setattr(m.view, "name", "log_x"),
    lambda m: setattr(m.event_time, "nanos", -1),
    lambda m: setattr(m.served_at, "nanos", 1_000_000_000),
    lambda m: setattr(m.served_at, "seconds", 253_402_300_800),
    lambda m: setattr(m.event_time, "seconds", -(2**63)),
    lambda m: m.forgotten_offsets.append(1),
    *(put("client_request_id", name) for name in ("a\0", "e\u0301", "x" * 129)),
    put("repeats_prediction_id", LIFE),
    lambda m: m.entity_keys.append(column("float", DataType.FLOAT64, [1.0])),
    lambda m: m.entity_keys.extend(column(f"k{i}", DataType.INT64, [i]) for i in range(300)),
    lambda m: m.outputs.append(m.outputs[0]),
    lambda m: m.entity_keys.append(m.entity_keys[0]),
    lambda m: m.features.append(m.features[0]),
    lambda m: m.request_features.append(m.request_features[0]),
    lambda m: m.outputs.append(column("float", DataType.FLOAT64, [float("1e300")])),
    lambda m: m.features.add(),
    lambda m: m.features[0].ClearField("column"),
    *(in_feature("statuses", number) for number in (b"\0", b"\7", b"\1\1")),
    *(in_feature("policies", number) for number in (b"\5", b"\0\0")),
    lambda m: m.features[0].last_known_commits.append(1),
    lambda m: m.features[0].last_known_event_time_micros.append(1),
    with_a_last_known_value_past_the_year_9999,
    lambda m: m.sources.add(),
    lambda m: m.sources[0].commits.append(1),
    lambda m: m.sources[0].commits.pop(),
    lambda m: m.sources[0].event_time_micros.pop(),
    lambda m: m.sources[0].event_time_micros.__setitem__(0, 2**62),
    lambda m: m.sources[0].ClearField("group"),
    lambda m: setattr(m.sources[0].group, "version", 0),
    with_unknown_fields,
    *in_columns(lambda c: setattr(c, "name", "")),
    *in_columns(lambda c: setattr(c, "name", "X")),
    *in_columns(lambda c: setattr(c, "validity", b"\2")),
    *in_columns(lambda c: setattr(c, "validity", b"\1\1")),
    *in_columns(lambda c: c.float64_values.values.append(float("nan"))),
    *in_columns(lambda c: c.float64_values.values.extend([1.0, 2.0])),
    *in_columns(lambda c: c.float64_values.SetInParent()),
    *in_columns(lambda c: c.int64_values.values.extend([1, 2])),
    *in_columns(lambda c: c.bool_values.values.extend([True, False])),
    *in_columns(lambda c: c.string_values.values.append("a\0")),
    *in_columns(lambda c: c.string_values.values.append("e\u0301")),
    *in_columns(lambda c: c.string_values.values.append("x" * 4_097)),
    *in_columns(lambda c: c.timestamp_values.micros.append(2**62)),
    *in_columns(lambda c: c.vector_values.values.append(1.0)),
    *in_columns(lambda c: c.ClearField("int64_values")),
]

faults = st.lists(st.sampled_from(FAULTS), max_size=2)


def thorough(message: Record) -> LogRecord | list[Any]:
    """What the thorough look says: the record, or the faults."""
    try:
        return decode_record(message, message.SerializeToString())
    except InvalidValue as error:
        return list(error.within("records[0]").violations)


def arrived(arriving: ArrivingRecords, message: Record) -> LogRecord | list[Any]:
    """What becomes of the record in a request."""
    try:
        return arriving.decode(prediction_log_pb2.AppendRecordsRequest(records=[message]))[0][0]
    except InvalidValue as error:
        return list(error.violations)


@settings(max_examples=300)
@given(st.lists(st.tuples(right_records(), faults), min_size=1, max_size=4))
def test_records_are_accepted_and_refused_as_by_the_thorough_look(
    drawn: list[tuple[Record, list[Callable[[Record], object]]]],
) -> None:
    arriving = ArrivingRecords()
    for message, changes in drawn:
        assert arriving.recognise(message, message.SerializeToString()) == thorough(message)
        for change in changes:
            try:
                change(message)
            except IndexError:
                continue
        assert arrived(arriving, message) == thorough(message)


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_each_fault_is_found_in_records_whose_forms_are_known(number: int) -> None:
    arriving, message = ArrivingRecords(), record(LIFE, 1)
    assert arrived(arriving, message) == thorough(message)
    FAULTS[number](message)
    expected = thorough(message)
    assert arrived(arriving, message) == expected
    assert arrived(arriving, message) == expected


@settings(max_examples=300)
@given(right_records(), st.data())
def test_bytes_that_were_changed_anywhere_are_accepted_and_refused_as_by_the_thorough_look(
    message: Record, data: st.DataObject
) -> None:
    arriving = ArrivingRecords()
    arrived(arriving, message)
    changed = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        parsed = Record.FromString(bytes(changed))
    except DecodeError:
        return
    expected = thorough(parsed)
    assert arrived(arriving, parsed) == expected
    assert arrived(arriving, parsed) == expected


def test_a_record_whose_parts_come_in_another_order_is_stored_in_that_of_the_numbers() -> None:
    message = record(LIFE, 1)
    where = Record(replica=message.replica, incarnation=message.incarnation, first_sequence=1).SerializeToString()
    rest = Record.FromString(message.SerializeToString())
    for field in ("replica", "incarnation", "first_sequence"):
        setattr(rest, field, type(getattr(rest, field))())
    shipped = Record.FromString(rest.SerializeToString() + where)
    found = arrived(ArrivingRecords(), shipped)
    assert isinstance(found, LogRecord)
    assert found.payload == message.SerializeToString()


def test_forms_of_lengths_of_one_byte_are_learned_and_longer_ones_looked_at_each_time() -> None:
    looked = []

    def look(data: bytes) -> tuple[str, DataType]:
        looked.append(data)
        return "origin", DataType.STRING

    forms = Forms(look)
    for size, more in ((125, 1), (126, 2)):
        data = column("origin", DataType.STRING, ["x" * size]).SerializeToString()
        looked.clear()
        assert forms.names([data, data]) == ["origin", "origin"]
        assert len(looked) == more


def test_ends_beyond_the_bound_are_looked_at_each_time() -> None:
    looked = []

    def look(data: bytes) -> tuple[str, DataType]:
        looked.append(data)
        return "hour", DataType.INT64

    forms = Forms(look)
    plain = column("hour", DataType.INT64, [1]).SerializeToString()
    ends = [bytes([0x78, number]) for number in range(ENDS_MAX - 1)]
    for end in ends:
        forms.names([plain + end])
    looked.clear()
    forms.names([plain, *(plain + end for end in ends)])
    assert looked == []
    for end in (b"\x78\x7f", b"\x7a" + bytes([END_BYTES_MAX]) + b"x" * END_BYTES_MAX):
        forms.names([plain + end] * 2)
        assert looked == [plain + end] * 2
        looked.clear()


def test_a_memory_that_is_full_forgets_all_and_goes_on() -> None:
    memory = Memory[int](3)
    for number in range(3):
        memory.remember(bytes([number]), number)
    memory.remember(b"\0", 7)
    assert len(memory) == 3
    memory.remember(b"\3", 3)
    assert (len(memory), memory.get(b"\3"), memory.get(b"\0")) == (1, 3, None)
