"""The bytes of records are those that protobuf itself would write, request by request."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from foresight.logger.v1 import prediction_log_pb2
from foresight.values import Column, DataType, FeatureStatus
from foresight.wire import encode_column
from foresight.wire.column_bytes import columns_bytes, packed_varints, tag, varint
from services.predictor.policies import ResolvedFeature
from services.predictor.record_codec import decode_record, encode_records
from services.predictor.records import RecordBatch, RecordedRequest
from services.predictor.vectors import SourceRows
from services.predictor.versions import VersionRef
from tests.unit.values.columns import columns, same

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROWS = 6


@given(columns(rows=ROWS), st.lists(st.integers(0, ROWS), max_size=4))
def test_columns_are_written_as_protobuf_writes_them(column: Column, cuts: list[int]) -> None:
    """Of every type, with NULLs, whatever the rows of each part."""
    bounds = [(a, b) for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), ROWS], strict=True) if a < b]
    written = columns_bytes(column, bounds, tag(16))
    for data, (start, stop) in zip(written, bounds, strict=True):
        record = prediction_log_pb2.PredictionRecord(entity_keys=[encode_column(column.part(start, stop))])
        assert data == record.SerializeToString()


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**64 - 1), max_size=5))
def test_numbers_are_written_as_protobuf_writes_them(number: int, numbers: list[int]) -> None:
    latency = prediction_log_pb2.PredictionRecord(latency_us=number).SerializeToString()
    assert latency == (b"\x78" + varint(number) if number else b"")
    source = prediction_log_pb2.LoggedSource(commits=numbers).SerializeToString()
    packed = packed_varints(numbers)
    assert source == (tag(3) + varint(len(packed)) + packed if numbers else b"")


@given(st.data())
def test_a_batch_of_records_is_read_back_request_by_request(data: st.DataObject) -> None:
    """Rows of nobody are left out, and statuses where all is present."""
    keys, asked, feature, output = (data.draw(columns(rows=ROWS)) for _ in range(4))
    statuses = bytes(data.draw(st.lists(st.sampled_from([1, 2, 6]), min_size=ROWS, max_size=ROWS)))
    policies = bytes({FeatureStatus.PRESENT: 0, FeatureStatus.NULL: 1}.get(FeatureStatus(s), 4) for s in statuses)
    known_commits = [2**33 + i if p == 4 else 0 for i, p in enumerate(policies)]
    known_times = [i - 3 if p == 4 else 0 for i, p in enumerate(policies)]
    times, commits = list(range(ROWS)), [2**40 + i for i in range(ROWS)]
    requests = (_request(0, 1), _request(3, ROWS))
    batch = RecordBatch(
        requests=requests,
        model=VersionRef("late", 2),
        model_sha256="ab" * 32,
        view=VersionRef("flights", 3),
        transforms_sha256="",
        applied_commit=7,
        served_at=NOW,
        entity_keys=(keys,),
        request_features=(asked,),
        features=(ResolvedFeature(feature, statuses, policies, known_times, known_commits), ResolvedFeature(asked)),
        sources=(SourceRows(VersionRef("weather", 1), times, commits),),
        outputs=(output,),
    )
    for request, payload in zip(requests, encode_records(batch), strict=True):
        record = decode_record(payload)
        start, stop = request.start, request.stop
        assert record.prediction_ids == request.prediction_ids
        assert (record.event_time, record.latency_us) == (request.event_time, request.latency_us)
        assert (record.request_id, record.client_request_id) == ("r", "again")
        assert (record.caller, record.deployment) == ("someone", "late_flights")
        assert (record.model, record.view, record.applied_commit) == (batch.model, batch.view, 7)
        assert (record.served_at, record.model_sha256, record.transforms_sha256) == (NOW, "ab" * 32, "")
        assert same(record.entity_keys[0], keys.part(start, stop))
        assert same(record.request_features[0], asked.part(start, stop))
        assert same(record.features[0].column, feature.part(start, stop))
        assert same(record.outputs[0], output.part(start, stop))
        present = set(statuses[start:stop]) == {FeatureStatus.PRESENT}
        assert record.features[0].statuses == (b"" if present else statuses[start:stop])
        assert record.features[0].policies == (b"" if present else policies[start:stop])
        used = any(known_commits[start:stop])
        assert record.features[0].known_commits == (tuple(known_commits[start:stop]) if used else ())
        assert record.features[0].known_micros == (tuple(known_times[start:stop]) if used else ())
        assert not record.features[1].statuses
        assert tuple(record.sources[0].event_time_micros) == tuple(times[start:stop])
        assert tuple(record.sources[0].commits) == tuple(commits[start:stop])


def test_a_whole_record_is_what_protobuf_writes() -> None:
    """Byte by byte, but for the order of fields, which is of no meaning."""
    column = Column("x", DataType.FLOAT64, np.arange(2.0))
    refs = VersionRef("m", 1), VersionRef("v", 1)
    batch = RecordBatch((_request(0, 2),), refs[0], "", refs[1], "", 0, NOW, (column,), (), (), (), (column,))
    (payload,) = encode_records(batch)
    parsed = prediction_log_pb2.PredictionRecord.FromString(payload)
    assert len(parsed.SerializeToString()) == len(payload)


def _request(start: int, stop: int) -> RecordedRequest:
    ids = tuple(f"id-{row}" for row in range(start, stop))
    at = NOW + timedelta(seconds=start)
    return RecordedRequest(start, stop, ids, "r", "again", "someone", "late_flights", at, 10 + start)
