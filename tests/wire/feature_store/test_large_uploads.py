"""Large writes over the wire, from files and iterators; whoever goes away leaves nothing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from foresight.client import Client, Connection, InvalidArgument, Retry
from foresight.feature_store.v1 import offline_pb2, offline_pb2_grpc
from foresight.tables import encode_batches
from foresight.types.v1 import types_pb2
from foresight.values import (
    DataType,
    Expectation,
    FailurePolicy,
    FeatureGroup,
    Field,
    InvalidValue,
    NotNull,
    Range,
)

_NAMES = (f"sensors_{number}" for number in itertools.count())
FEATURES = tuple(Field(f"x{i}", DataType.FLOAT64) for i in range(10))
T0_US = 1_700_000_000_000_000


@pytest.fixture
def client(channel: grpc.Channel, feature_store: str) -> Client:
    """A client of the feature store itself; it shares the channel."""
    return Client(connection=Connection(channel, feature_store, Retry(0.0)))


@pytest.fixture
def group(client: Client) -> str:
    """A new group of twelve columns."""
    return registered(client)


def registered(client: Client, *expectations: Expectation, policy: FailurePolicy = FailurePolicy.REJECT) -> str:
    name = next(_NAMES)
    key = Field("sensor", DataType.INT64)
    client.apply(FeatureGroup(name, (key,), FEATURES, expectations=expectations, failure_policy=policy))
    return name


def batches(count: int, each: int = 50_000) -> Iterator[pa.RecordBatch]:
    """Batches of `each` rows."""
    for number in range(count):
        ids = np.arange(number * each, (number + 1) * each)
        columns = {
            "sensor": pa.array(ids % 1_000),
            "event_time": pa.array(T0_US + ids * 1_000, pa.timestamp("us", "UTC")),
        }
        yield pa.record_batch(columns | {f.name: pa.array(ids / 7) for f in FEATURES})


def test_parquet_readers_and_iterators_are_written_alike(client: Client, group: str, tmp_path: Path) -> None:
    """All as one commit each, of the same content."""
    table = pa.Table.from_batches(batches(3, each=400))
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=300)
    first = client.write(group, tmp_path / "rows.parquet", write_id="same")
    for data in (
        table,
        pa.RecordBatchReader.from_batches(table.schema, batches(3, each=400)),
        (batch.to_pylist() for batch in batches(3, each=400)),
        (batch.to_pandas() for batch in batches(3, each=400)),
    ):
        commit = client.write(group, data, write_id="same")
        assert (commit.number, commit.duplicate, commit.rows) == (first.number, True, 1_200)
    with pytest.raises(InvalidValue, match="different columns"):
        client.write(group, iter([table, table.drop_columns(["x1"])]))
    with pytest.raises(InvalidArgument, match="has no rows"):
        client.write(group, iter([]))
    assert client.count_rows(group) == 1_200


def test_what_breaks_off_an_upload_is_raised_and_leaves_nothing(client: Client, group: str) -> None:
    """A fault of the data on the way, and a fault in the last batch."""

    def failing() -> Iterator[pa.RecordBatch]:
        yield from batches(4)
        raise InvalidValue("x1", "cannot be read")

    with pytest.raises(InvalidValue, match="cannot be read"):
        client.write(group, failing())

    def faulty() -> Iterator[pa.RecordBatch]:
        yield from batches(4)
        wrong = next(batches(1)).to_pandas()
        wrong["event_time"] += np.timedelta64(30, "D")
        wrong.loc[[7, 9], "x1"] = np.inf
        yield wrong

    with pytest.raises(InvalidArgument, match="in 2 rows"):
        client.write(group, faulty())
    assert client.count_rows(group) == 0
    assert client.read(group, output="arrow").num_rows == 0


def test_a_connection_that_breaks_midway_leaves_nothing(client: Client, group: str, channel: grpc.Channel) -> None:
    """While rows arrive, and while they are copied; the same write id may be written afterwards."""
    stub = offline_pb2_grpc.OfflineFeatureServiceStub(channel)
    header = offline_pb2.WriteHeader(group=types_pb2.VersionRef(name=group), write_id="mine")
    schema = next(batches(1)).schema
    chunks = list(encode_batches(schema, batches(6)))

    def requests(count: int, pause_s: float) -> Iterator[offline_pb2.WriteFeaturesRequest]:
        yield offline_pb2.WriteFeaturesRequest(header=header)
        for chunk in chunks[:count]:
            yield offline_pb2.WriteFeaturesRequest(arrow=chunk)
        stop = time.monotonic() + pause_s
        while time.monotonic() < stop and call.is_active():
            yield offline_pb2.WriteFeaturesRequest()

    for count, timeout_s in ((len(chunks) // 2, 0.5), (len(chunks), 0.3), (len(chunks), 0.6)):
        call = stub.WriteFeatures.future(requests(count, 1.0), timeout=timeout_s)
        assert call.exception(timeout=30) is not None
    assert client.count_rows(group) == 0
    commit = client.write(group, batches(6), write_id="mine")
    assert (commit.rows, commit.duplicate) == (300_000, False)


def test_quarantined_rows_are_answered_and_read(client: Client) -> None:
    """Through the client, with counts and samples."""
    rules = (Expectation(Range(max=100), "x0"), Expectation(NotNull(), "x1"))
    kept, refused = registered(client, *rules, policy=FailurePolicy.QUARANTINE), registered(client, *rules)
    frame = next(batches(1, each=1_000)).to_pandas()
    frame.loc[[3], "x1"] = None
    commit = client.write(kept, frame)
    assert (commit.rows, commit.quarantined_rows) == (700, 300)
    assert {b.name: b.rows for b in commit.broken} == {"x0_range": 299, "x1_not_null": 1}
    assert commit.broken[1].samples == ("sensor 3, event_time 2023-11-14T22:13:20.003000Z, x1 NULL",)
    found = client.read_quarantine(kept)
    assert len(found) == 300
    assert list(found["broken"][0]) == ["x1_not_null"]
    assert set(found["commit"]) == {commit.number}
    assert client.read_quarantine(kept, after_commit=commit.number, output="arrow").num_rows == 0
    with pytest.raises(InvalidArgument) as broken:
        client.write(refused, frame)
    assert broken.value.reason == "EXPECTATION_FAILED"
    assert {v.field: v.description.split(",")[0] for v in broken.value.violations} == {
        "arrow.x0": "breaks x0_range in 299 of 1000 rows",
        "arrow.x1": "breaks x1_not_null in 1 of 1000 rows",
    }
    assert client.count_rows(refused) == 0
