"""Which predictions of arriving records are new, and what outcomes are about."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.logger.v1 import prediction_log_pb2
from foresight.values import Column, DataType, InvalidValue
from foresight.wire import encode_column
from services.logger.record_codec import ArrivingRecords, WireRecords
from services.logger.records import Incarnation, KnownPrediction, LogRecord, QuarantinedRange, all_new, sort_out
from services.logger.scalars import decode_scalar, encode_rows, encode_scalar
from services.logger.targets import id_of_target, target_of_id, targets_of_keys
from services.runtime.ids import new_id
from tests.integration.logger.rig import new_incarnation, record

LIFE = Incarnation("predictor-0", "life")


def a_record(first: int, ids: list[str]) -> LogRecord:
    payload = ",".join(ids).encode()
    return LogRecord(LIFE, first, tuple(ids), tuple(i.encode() for i in ids), "delays", "view", 1, 0, payload)


def cut(payload: bytes, start: int, stop: int) -> bytes:
    return b",".join(payload.split(b",")[start:stop])


@given(
    st.lists(st.lists(st.integers(0, 15), min_size=1, max_size=8, unique=True), max_size=6),
    st.sets(st.integers(0, 15)),
)
def test_every_new_prediction_is_kept_once_and_every_other_is_counted(
    batches: list[list[int]], known: set[int]
) -> None:
    records = [a_record(1, [str(i) for i in batch]) for batch in batches]
    stored = {str(i): KnownPrediction(LIFE, i, b"") for i in known}
    result = sort_out(records, stored, cut)
    kept = [i for piece in result.fresh for i in piece.prediction_ids]
    assert len(kept) == len(set(kept)) == result.appended
    assert set(kept) == {str(i) for batch in batches for i in batch} - set(stored)
    assert sum(result.duplicates.values()) == sum(map(len, batches)) - len(kept)
    for piece in result.fresh:
        assert piece.payload == ",".join(piece.prediction_ids).encode()


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=4, unique=True), max_size=6))
def test_records_of_which_nothing_is_known_are_all_new_unless_an_id_comes_twice(batches: list[list[int]]) -> None:
    records = [a_record(1, [str(i) for i in batch]) for batch in batches]
    once = len(set(itertools.chain(*batches))) == sum(map(len, batches))
    assert all_new(records) == (sort_out(records, {}, cut) if once else None)


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_rows_of_a_partly_known_record_keep_their_sequence_numbers(is_known: list[bool]) -> None:
    ids = [str(i) for i in range(len(is_known))]
    whole = a_record(5, ids)
    known = {i: KnownPrediction(LIFE, 5 + int(i), i.encode()) for i, flag in zip(ids, is_known, strict=True) if flag}
    result = sort_out([whole], known, cut)
    numbers = {i: p.first_sequence + row for p in result.fresh for row, i in enumerate(p.prediction_ids)}
    assert numbers == {i: 5 + int(i) for i in ids if i not in known}
    assert result.reused == []


def test_an_id_that_comes_with_another_sequence_number_is_reported() -> None:
    result = sort_out([a_record(1, ["a"])], {"a": KnownPrediction(LIFE, 2, b"a")}, cut)
    assert (result.fresh, result.reused) == ([], ["a"])


@given(st.integers(1, 6), st.data())
def test_cutting_a_record_into_pieces_loses_no_row(n: int, data: st.DataObject) -> None:
    whole = record(new_incarnation(), 1, n)
    whole.features[0].last_known_commits.extend(range(n))
    whole.features[0].last_known_event_time_micros.extend(range(-n, 0))
    middle = data.draw(st.integers(1, n))
    payload = whole.SerializeToString()
    pieces = [WireRecords().cut(payload, a, b) for a, b in ((0, middle), (middle, n)) if a < b]
    messages = [prediction_log_pb2.PredictionRecord.FromString(piece) for piece in pieces]
    assert [i for m in messages for i in m.prediction_ids] == list(whole.prediction_ids)
    assert [c for m in messages for c in m.sources[0].commits] == list(whole.sources[0].commits)
    assert b"".join(m.features[0].statuses for m in messages) == whole.features[0].statuses
    assert [c for m in messages for c in m.features[0].last_known_commits] == list(range(n))
    assert [t for m in messages for t in m.features[0].last_known_event_time_micros] == list(range(-n, 0))
    assert messages[-1].first_sequence == 1 + (middle if middle < n else 0)
    assert messages[0].model_sha256 == whole.model_sha256


@given(st.integers(1, 8), st.data())
def test_a_record_without_some_rows_twice_is_the_record_without_all_of_them(n: int, data: st.DataObject) -> None:
    whole = record(new_incarnation(), 5, n)
    layout, rows = WireRecords(), st.sets(st.integers(0, n - 1))
    one, two = data.draw(rows), data.draw(rows)
    payload, gone = layout.without(whole.SerializeToString(), one)
    assert gone == sorted(one)
    offsets = [offset for offset in range(n) if offset not in one]
    payload, gone = layout.without(payload, [row for row, offset in enumerate(offsets) if offset in two])
    assert gone == sorted(one | two)
    left = prediction_log_pb2.PredictionRecord.FromString(payload)
    kept = [offset for offset in range(n) if offset not in one | two]
    assert list(left.prediction_ids) == [whole.prediction_ids[offset] for offset in kept]
    assert list(left.forgotten_offsets) == gone
    assert left.first_sequence == whole.first_sequence
    assert list(left.sources[0].event_time_micros) == [whole.sources[0].event_time_micros[o] for o in kept]
    assert layout.keys(payload).columns["flight"].to_list() == [5 + offset for offset in kept]


@given(st.integers(-(2**63), 2**63 - 1), st.text("a9é日-", min_size=1, max_size=8))
def test_a_value_leaves_its_trace_in_every_record_that_holds_it(number: int, name: str) -> None:
    flight, origin = Column.build("flight", DataType.INT64, [number]), Column.build("origin", DataType.STRING, [name])
    message = record(new_incarnation(), 1, 2)
    message.entity_keys[0].CopyFrom(encode_column(Column.build("flight", DataType.INT64, [3, number])))
    message.entity_keys[1].CopyFrom(encode_column(Column.build("origin", DataType.STRING, [name, "x"])))
    for column in (flight, origin):
        assert WireRecords().trace(column) in message.SerializeToString()


def test_records_and_ranges_say_what_is_wrong_with_them() -> None:
    with pytest.raises(InvalidValue, match="first_sequence"):
        a_record(0, ["a"])
    with pytest.raises(InvalidValue, match="same id twice"):
        a_record(1, ["a", "a"])
    with pytest.raises(InvalidValue, match="last_sequence"):
        QuarantinedRange(LIFE, 2, 1, "")
    with pytest.raises(InvalidValue, match="reason"):
        QuarantinedRange(LIFE, 1, 1, "x" * 1_025)


keys = st.one_of(
    st.tuples(st.just(DataType.INT64), st.one_of(st.none(), st.integers(-3, 3), st.just(2**63 - 1))),
    st.tuples(st.just(DataType.BOOL), st.one_of(st.none(), st.booleans())),
    st.tuples(st.just(DataType.STRING), st.one_of(st.none(), st.sampled_from(["", "0", "1", "a", "ab", "b", "\x01"]))),
)
Key = tuple[DataType, object]
situations = st.tuples(
    st.sampled_from(["d", "dd"]), st.dictionaries(st.sampled_from(["a", "b", "ab"]), keys), st.integers(-1, 1)
)


def target(situation: tuple[str, dict[str, Key], int], *, backwards: bool = False) -> bytes:
    deployment, keys, event_time = situation
    names = sorted(keys, reverse=backwards)
    columns = {name: Column.build(name, keys[name][0], [keys[name][1]]) for name in names}
    return targets_of_keys(deployment, columns, [event_time])[0]


@given(situations, situations)
def test_targets_are_equal_exactly_when_deployment_keys_and_time_are(
    one: tuple[str, dict[str, Key], int], two: tuple[str, dict[str, Key], int]
) -> None:
    assert (target(one) == target(two, backwards=True)) == (known(one) == known(two))


def known(situation: tuple[str, dict[str, Key], int]) -> object:
    """What a client knows: the type of a value (True == 1 in Python, but not as keys), not that of a NULL."""
    deployment, keys, event_time = situation
    return (
        deployment,
        {name: None if value is None else (type, value) for name, (type, value) in keys.items()},
        event_time,
    )


def test_a_prediction_may_have_as_many_keys_as_a_view() -> None:
    message = record(new_incarnation(), 1)
    columns = [Column.build(f"key_{i}", DataType.INT64, [i] * len(message.prediction_ids)) for i in range(32)]
    message.entity_keys.extend(encode_column(column) for column in columns)
    (decoded,), _ = ArrivingRecords().decode(prediction_log_pb2.AppendRecordsRequest(records=[message]))
    assert decoded.payload == message.SerializeToString()


def test_a_target_of_an_id_is_never_one_of_keys() -> None:
    prediction_id = new_id()
    assert id_of_target(target_of_id(prediction_id)) == prediction_id
    assert target_of_id(prediction_id)[:1] != target(("d", {}, 0))[:1]


@pytest.mark.parametrize(
    ("type", "values"),
    [
        (DataType.INT64, [-(2**63), 0, 2**63 - 1]),
        (DataType.FLOAT64, [-0.0, 0.0, 1e-308, 0.1]),
        (DataType.BOOL, [True, False]),
        (DataType.STRING, ["", "é", "a"]),
    ],
)
def test_scalars_keep_their_value_and_differ_when_it_does(type: DataType, values: list[object]) -> None:
    encoded = [encode_scalar(type, value) for value in values]
    assert encode_rows(Column.build("v", type, values)) == encoded
    assert [decode_scalar(type, data) for data in encoded] == values
    assert all(a != b for a, b in itertools.combinations(encoded, 2))
