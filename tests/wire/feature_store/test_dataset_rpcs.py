"""TrainingDatasetService on the wire: what its calls carry, and what wrong ones get."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import grpc
import pyarrow as pa
import pytest

from foresight.feature_store.v1 import query_pb2, training_dataset_pb2
from foresight.tables import decode_table
from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType
from foresight.wire import encode_column, encode_instant
from tests.wire.feature_store.test_feature_store_calls import T0, UTC_MICROS, Calls, Code, refused, rows, uploaded

INVALID = (Code.INVALID_ARGUMENT, "INVALID_FIELD")
FAILED = (Code.FAILED_PRECONDITION, "FAILED_PRECONDITION")
Create = Callable[..., training_dataset_pb2.TrainingDataset]
LABELLED = pa.table(
    {
        "place": ["a", "b", "a"],
        "event_time": pa.array([T0 + timedelta(minutes=i) for i in range(3)], UTC_MICROS),
        "hour": [1, 2, 3],
        "late": [True, False, True],
    }
)


@pytest.fixture
def calls(channel: grpc.Channel) -> Calls:
    """Stubs with a fresh group, which has rows, and view."""
    made = Calls(channel)
    made.write(rows(1.0, 2.0))
    return made


@pytest.fixture
def create(calls: Calls) -> Create:
    """Creates a dataset with a header's fields, of the labelled spine unless another one is given."""

    def creating(sent: pa.Table | None = LABELLED, **fields: Any) -> training_dataset_pb2.TrainingDataset:
        header = training_dataset_pb2.TrainingDatasetHeader(**{"name": "first", "view": calls.view, **fields})
        message = training_dataset_pb2.CreateTrainingDatasetRequest
        requests = [message(header=header)] if sent is None else uploaded(message, header, sent)
        return calls.datasets.CreateTrainingDataset(iter(requests)).dataset

    return creating


def call_of(calls: Calls, name: str) -> tuple[Any, Any]:
    """A call that takes an id, and its message."""
    whole = f"{name}TrainingDataset"
    return getattr(calls.datasets, whole), getattr(training_dataset_pb2, f"{whole}Request")


def read(calls: Calls, dataset_id: str, split: str = "") -> pa.Table:
    """The rows of a dataset."""
    request = training_dataset_pb2.ReadTrainingDatasetRequest(dataset_id=dataset_id, split=split)
    return decode_table(part.arrow for part in calls.datasets.ReadTrainingDataset(request))


def test_a_dataset_lives_through_all_calls(calls: Calls, create: Create) -> None:
    """Created, described, listed, read by split, purged, made again, deleted."""
    stub = calls.datasets
    split = training_dataset_pb2.HashSplit(seed=2**64 - 1, test_share=0.4, validation_share=0.4)
    made = create(hash_split=split)
    assert made.hash_split == training_dataset_pb2.HashSplit(
        seed=2**64 - 1, test_share=0.4, validation_share=0.4, keys=["place"]
    )
    assert (made.stored, made.rows, list(made.max_age_micros)) == (True, 3, [3_600_000_000])
    assert made.stored_bytes > 0
    named = {"dataset_id": made.id}
    assert stub.GetTrainingDataset(training_dataset_pb2.GetTrainingDatasetRequest(**named)).dataset == made
    everything = read(calls, made.id)
    assert sum(read(calls, made.id, part.split).num_rows for part in made.splits) == everything.num_rows == 3
    purge = training_dataset_pb2.PurgeTrainingDatasetRequest(**named)
    assert stub.PurgeTrainingDataset(purge).freed_bytes == made.stored_bytes
    again = stub.PurgeTrainingDataset(purge)
    assert (again.freed_bytes, again.dataset.stored, again.dataset.stored_bytes) == (0, False, 0)
    refused(*FAILED, lambda: read(calls, made.id))
    recreate = training_dataset_pb2.RecreateTrainingDatasetRequest(**named)
    assert stub.RecreateTrainingDataset(recreate).dataset == made
    assert read(calls, made.id).equals(everything)
    stub.DeleteTrainingDataset(training_dataset_pb2.DeleteTrainingDatasetRequest(**named))
    for name in ("Get", "Purge", "Recreate", "Delete"):
        call, message = call_of(calls, name)
        request = message(**named)
        refused(Code.NOT_FOUND, "NOT_FOUND", lambda call=call, request=request: call(request))  # type: ignore[misc]
    refused(Code.NOT_FOUND, "NOT_FOUND", lambda: read(calls, made.id))


def test_times_split_into_three(create: Create) -> None:
    """Both bounds are in the manifest."""
    minute = timedelta(minutes=1)
    made = create(validation_from=encode_instant(T0 + minute), test_from=encode_instant(T0 + 2 * minute))
    assert [(part.split, part.rows) for part in made.splits] == [("train", 1), ("validation", 1), ("test", 1)]
    assert made.validation_from == encode_instant(T0 + minute)
    assert not made.HasField("hash_split")


def test_a_query_is_a_spine(calls: Calls, create: Create) -> None:
    """No data follow; the manifest has the query with the version of its group."""
    above = query_pb2.Condition(
        column="wind",
        operator=query_pb2.OPERATOR_GREATER,
        values=encode_column(Column.build("wind", DataType.FLOAT64, [1.5])),
    )
    query = query_pb2.GroupQuery(group=types_pb2.VersionRef(name=calls.group.name), where=[above])
    spine = query_pb2.SpineQuery(query=query, columns=[query_pb2.ColumnMapping(column="wind", name="hour")])
    assert refused(*INVALID, lambda: create(None, spine=spine)) == ["header.spine.late", "header.spine.hour"]
    assert refused(*INVALID, lambda: create(spine=spine)) == ["arrow"]
    query.where[0].values.name = "another"
    query.where[0].operator = 77  # type: ignore[assignment]
    assert refused(*INVALID, lambda: create(None, spine=query_pb2.SpineQuery(query=query))) == [
        "header.spine.query.where.operator"
    ]


def test_datasets_are_listed(calls: Calls, create: Create) -> None:
    """Those of a view, the newest first, in pages."""
    made = [create(name=f"n{i}") for i in range(3)]
    request = training_dataset_pb2.ListTrainingDatasetsRequest(view=calls.view, page_size=2)
    first = calls.datasets.ListTrainingDatasets(request)
    request.page_token = first.next_page_token
    second = calls.datasets.ListTrainingDatasets(request)
    assert [*first.datasets, *second.datasets] == made[::-1]
    assert second.next_page_token == ""
    listing = calls.datasets.ListTrainingDatasets
    message = training_dataset_pb2.ListTrainingDatasetsRequest
    assert [d.id for d in listing(message(view=calls.view, name="n1")).datasets] == [made[1].id]
    for wrong, field in (
        ({"page_size": 1_001}, "page_size"),
        ({"page_token": "../.."}, "page_token"),
        ({"view": types_pb2.VersionRef(name="No!")}, "view.name"),
        ({"view": types_pb2.VersionRef()}, "view.name"),
    ):
        assert refused(*INVALID, lambda wrong=wrong: listing(message(**wrong))) == [field]  # type: ignore[misc]


def test_what_cannot_be_is_refused(create: Create) -> None:
    """Before anything is stored, with the field at fault."""
    split, minute = training_dataset_pb2.HashSplit, timedelta(minutes=1)
    t0 = encode_instant(T0)
    for fields, wrong in (
        ({"validation_from": t0}, ["header.validation_from"]),
        ({"validation_from": t0, "test_from": t0}, ["header.validation_from"]),
        ({"hash_split": split(), "test_from": t0}, ["header.hash_split"]),
        ({"hash_split": split(test_share=math.nan)}, ["header.hash_split.test_share"]),
        ({"hash_split": split(test_share=1)}, ["header.hash_split.test_share"]),
        ({"hash_split": split(test_share=0.6, validation_share=0.6)}, ["header.hash_split"]),
        ({"hash_split": split(keys=["hour"])}, ["header.hash_split.keys"]),
        ({"hash_split": split(keys=["place", "place"])}, ["header.hash_split.keys"]),
        ({"commit": 1, "as_of_time": t0}, ["header.as_of_time"]),
        ({"name": "split"}, ["header.name"]),
        ({"name": "x" * 64}, ["header.name"]),
    ):
        assert refused(*INVALID, lambda fields=fields: create(**fields)) == wrong  # type: ignore[misc]
    assert refused(*INVALID, lambda: create(None)) == ["arrow"]
    refused(Code.OUT_OF_RANGE, "OUT_OF_RANGE", lambda: create(commit=2**64 - 1))
    early = create(as_of_time=encode_instant(T0 - minute))
    assert early.commit == 0


def test_an_id_that_cannot_be_one_is_refused(calls: Calls) -> None:
    """By every call."""
    for name in ("Get", "Purge", "Recreate", "Delete"):
        call, message = call_of(calls, name)
        for dataset_id in ("", "x" * 65, "é", "a\nb"):
            request = message(dataset_id=dataset_id)
            assert refused(*INVALID, lambda call=call, request=request: call(request)) == ["dataset_id"]  # type: ignore[misc]
    assert refused(*INVALID, lambda: read(calls, "")) == ["dataset_id"]
    assert refused(*INVALID, lambda: read(calls, "x", "dev")) == ["split"]
