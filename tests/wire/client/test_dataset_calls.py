"""Training datasets through the client and the command line, against scripted services."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner, Result

from foresight.cli.app import app
from foresight.client import Client, DataLoss, FailedPrecondition, HashSplit, InvalidValue, Logged, Unavailable
from foresight.client.features import spine_fields
from foresight.client.frames import to_table
from foresight.client.queries import rows_of
from foresight.feature_store.v1 import registry_pb2, training_dataset_pb2
from foresight.tables import decode_table, encode_table
from foresight.types.v1 import types_pb2
from foresight.values import DataType, Field
from foresight.wire import decode_view, encode_field, encode_group, encode_instant
from services.runtime import errors
from tests.wire.client.delays import NOON, WEATHER, described_view
from tests.wire.client.fake_foresight import FakeForesight, Gateway, pieces

Run = Callable[..., Result]
ROWS = pa.table({"wind": [1.5, None, 2.0], "split": ["train", "test", "train"]})


def described(**changes: Any) -> training_dataset_pb2.TrainingDataset:
    """A manifest."""
    content: dict[str, Any] = {
        "id": "d1",
        "name": "spring",
        "view": types_pb2.VersionRef(name="delays", version=2),
        "commit": 7,
        "rows": 3,
        "splits": [
            training_dataset_pb2.SplitRows(split="train", rows=2),
            training_dataset_pb2.SplitRows(split="test", rows=1),
        ],
        "content_sha256": "ab" * 32,
        "groups": [types_pb2.VersionRef(name="weather", version=1), types_pb2.VersionRef(name="planes", version=3)],
        "max_age_micros": [3_600_000_000, -1],
        "features": [encode_field(Field("wind", DataType.FLOAT64))],
        "label": encode_field(Field("late", DataType.BOOL)),
        "created_at": encode_instant(NOON),
        "stored": True,
        "stored_bytes": 2_500_000,
        "hash_split": training_dataset_pb2.HashSplit(seed=4, test_share=0.25, keys=["origin"]),
        "transforms": [training_dataset_pb2.TransformSource(function="m:f", source_sha256="cd" * 32)],
    }
    return training_dataset_pb2.TrainingDataset(**content | changes)


@pytest.fixture
def run(gateway: Gateway) -> Run:
    """Runs a command against the fake."""
    return lambda *words: CliRunner().invoke(app, [*map(str, words), "--state", str(gateway.state)])


@pytest.fixture
def dataset(fake: FakeForesight) -> None:
    """A dataset that the fake describes and whose rows it has."""
    fake.on("GetTrainingDataset", training_dataset_pb2.GetTrainingDatasetResponse(dataset=described()))
    response = training_dataset_pb2.ReadTrainingDatasetResponse
    fake.on("ReadTrainingDataset", lambda r: pieces(response, encode_table(ROWS)))


def test_a_manifest_says_all_that_the_rows_are_made_of(client: Client, fake: FakeForesight, dataset: None) -> None:
    found = client.training_dataset("d1")
    assert found.hash_split == HashSplit(test_share=0.25, seed=4, keys=("origin",))
    assert found.max_ages == (timedelta(hours=1), None)
    assert (found.stored, found.stored_bytes, found.transforms) == (True, 2_500_000, {"m:f": "cd" * 32})
    assert (found.forgotten_at, found.validation_from) == (None, None)
    forgotten = described(stored=False, forgotten_at=encode_instant(NOON))
    fake.on("GetTrainingDataset", training_dataset_pb2.GetTrainingDatasetResponse(dataset=forgotten))
    assert client.training_dataset("d1").forgotten_at == NOON


def test_splits_and_times_are_asked_for(client: Client, fake: FakeForesight) -> None:
    fake.on("CreateTrainingDataset", training_dataset_pb2.CreateTrainingDatasetResponse(dataset=described()))
    logged: Any = {"logged": Logged(NOON, NOON)}
    day = timedelta(days=1)
    client.create_training_dataset("spring", "delays", as_of_time=NOON, hash_split=HashSplit(0.25, 0.125, 9), **logged)
    client.create_training_dataset("spring", "delays", validation_from=NOON, test_from=NOON + day, **logged)
    first, second = (requests[0].header for requests in fake.requests("CreateTrainingDataset"))
    assert (first.hash_split.seed, first.hash_split.test_share, first.hash_split.validation_share) == (9, 0.25, 0.125)
    assert (first.as_of_time, second.validation_from) == (encode_instant(NOON), encode_instant(NOON))
    with pytest.raises(InvalidValue, match="seed"):
        client.create_training_dataset("spring", "delays", hash_split=HashSplit(seed=2**64), **logged)


def test_a_spine_is_rows_of_a_group(client: Client, fake: FakeForesight) -> None:
    """Nothing is sent but the query; the manifest has it in the words of the client."""
    weather = registry_pb2.GetFeatureGroupResponse(group=encode_group(WEATHER))
    fake.on("GetFeatureGroup", weather)
    spine = rows_of(
        "weather",
        where=[("wind", ">", 1.5), ("origin", "in", ["JFK", "LGA"]), ("wind", "is not null")],
        keys={"origin": ["JFK"]},
        from_event_time=NOON,
        latest=True,
        columns={"windy": "late"},
        at=NOON + timedelta(days=1),
    )

    def made(requests: list[training_dataset_pb2.CreateTrainingDatasetRequest]) -> Any:
        [request] = requests
        return training_dataset_pb2.CreateTrainingDatasetResponse(dataset=described(spine=request.header.spine))

    fake.on("CreateTrainingDataset", made)
    found = client.create_training_dataset("spring", "delays", spine, version=2).spine
    assert found is not None
    assert found.where == (("wind", ">", 1.5), ("origin", "in", ["JFK", "LGA"]), ("wind", "is not null"))
    assert (found.group, found.keys, found.columns) == ("weather", {"origin": ["JFK"]}, {"windy": "late"})
    assert (found.from_event_time, found.to_event_time, found.latest) == (NOON, None, True)
    assert found.at == NOON + timedelta(days=1)


def test_a_spine_comes_batch_by_batch(client: Client, fake: FakeForesight, tmp_path: Path) -> None:
    """From a file, again after a lost connection; from a reader once, as its rows do not come again."""
    fake.on("GetFeatureView", described_view())
    table = pa.table(
        {
            "origin": pa.array(["JFK", "LGA"] * 50_000).dictionary_encode(),
            "event_time": pa.array([NOON] * 100_000, pa.timestamp("ns", "UTC")),
            "hour": pa.array([None] * 99_999 + [1], pa.int32()),
            "late": [True] * 100_000,
            "note": pa.nulls(100_000),
        }
    )
    path = tmp_path / "spine.parquet"
    parquet.write_table(table, path, row_group_size=30_000)
    away = errors.Unavailable("away")
    answer = training_dataset_pb2.CreateTrainingDatasetResponse(dataset=described())
    fake.on("CreateTrainingDataset", away, answer)
    client.create_training_dataset("spring", "delays", path)
    lost, again = fake.requests("CreateTrainingDataset")
    assert [request.arrow for request in lost] == [request.arrow for request in again]
    sent = decode_table(request.arrow for request in again)
    assert sent.equals(to_table(table, spine_fields(decode_view(described_view().view))))
    assert len(again) > 2
    client.create_training_dataset("spring", "delays", table.to_reader(10_000))
    assert decode_table(request.arrow for request in fake.requests("CreateTrainingDataset")[2]).equals(sent)
    fake.on("CreateTrainingDataset", away, answer)
    with pytest.raises(Unavailable):
        client.create_training_dataset("spring", "delays", table.to_reader())
    assert len(fake.requests("CreateTrainingDataset")) == 4
    for wrong in (tmp_path / "absent.parquet", tmp_path / "spine.txt"):
        with pytest.raises(InvalidValue, match=wrong.name):
            client.create_training_dataset("spring", "delays", wrong)


def test_a_list_comes_page_by_page(client: Client, fake: FakeForesight) -> None:
    """As many pages as are wanted."""

    def page(request: training_dataset_pb2.ListTrainingDatasetsRequest) -> Any:
        start = int(request.page_token or 0)
        end = min(start + request.page_size, 1_500)
        return training_dataset_pb2.ListTrainingDatasetsResponse(
            datasets=[described(id=f"d{i}") for i in range(start, end)], next_page_token=str(end) if end < 1_500 else ""
        )

    fake.on("ListTrainingDatasets", page)
    assert [d.id for d in client.training_datasets()] == [f"d{i}" for i in range(1_500)]
    assert len(client.training_datasets("spring", "delays", 2, limit=1_200)) == 1_200
    sizes = [(r.page_size, r.name, r.view.version) for r in fake.requests("ListTrainingDatasets")[2:]]
    assert sizes == [(1_000, "spring", 2), (200, "spring", 2)]
    assert client.training_datasets(limit=0) == []


def test_rows_come_as_a_frame_or_as_a_stream(client: Client, fake: FakeForesight, dataset: None) -> None:
    """A stream that is left early is given up; damage ends either."""
    assert client.read_training_dataset("d1", "validation", "arrow").equals(ROWS)
    assert fake.requests("ReadTrainingDataset")[0].split == "validation"
    with client.stream_training_dataset("d1") as batches:
        assert pa.Table.from_batches(list(batches), batches.schema).equals(ROWS)
    with client.stream_training_dataset("d1") as batches:
        assert batches.schema.names == ["wind", "split"]
    with pytest.raises(OSError, match="mine"), client.stream_training_dataset("d1"):
        # What the caller does with the rows is no damage of theirs.
        raise OSError("mine")
    response = training_dataset_pb2.ReadTrainingDatasetResponse
    lost = errors.DataLoss("the stored rows of the dataset do not match their digest")
    fake.on("ReadTrainingDataset", lambda r: [*list(pieces(response, encode_table(ROWS))), lost])
    with pytest.raises(DataLoss, match="digest"):
        client.read_training_dataset("d1")
    with pytest.raises(DataLoss, match="digest"), client.stream_training_dataset("d1") as batches:
        list(batches)


def test_purge_recreate_delete(client: Client, fake: FakeForesight) -> None:
    purged = training_dataset_pb2.PurgeTrainingDatasetResponse(dataset=described(), freed_bytes=5)
    fake.on("PurgeTrainingDataset", purged)
    fake.on("RecreateTrainingDataset", training_dataset_pb2.RecreateTrainingDatasetResponse(dataset=described()))
    fake.on("DeleteTrainingDataset", errors.FailedPrecondition("the training dataset d1 is used by model m version 1"))
    assert client.purge_training_dataset("d1") == 5
    again = client.recreate_training_dataset("d1")
    assert again.id == "d1"
    with pytest.raises(FailedPrecondition, match="model m version 1"):
        client.delete_training_dataset(again)
    assert [r.dataset_id for r in fake.requests("DeleteTrainingDataset")] == ["d1"]


def test_datasets_are_listed_and_shown(run: Run, fake: FakeForesight, dataset: None) -> None:
    fake.on("ListTrainingDatasets", training_dataset_pb2.ListTrainingDatasetsResponse(datasets=[described()]))
    listed = run("datasets", "spring", "--view", "delays", "--limit", 5)
    for text in ("d1", "spring", "delays v2", "train 2, test 1", "2.4 MiB", "a spine"):
        assert text in listed.stdout
    [request] = fake.requests("ListTrainingDatasets")
    assert (request.name, request.view.name, request.page_size) == ("spring", "delays", 5)
    assert json.loads(run("datasets", "--json").stdout)[0]["hash_split"]["seed"] == 4
    shown = run("dataset", "show", "d1").stdout
    for text in ("weather v1, at most 1:00:00 old", "planes v3, of any age", "hash of origin with seed 4", "25% test"):
        assert text in shown
    assert json.loads(run("dataset", "show", "d1", "--json").stdout)["content_sha256"] == "ab" * 32
    fake.on("ListTrainingDatasets", training_dataset_pb2.ListTrainingDatasetsResponse())
    assert "no training datasets yet" in run("datasets").stdout


def test_rows_are_written_to_a_file(run: Run, fake: FakeForesight, dataset: None, tmp_path: Path) -> None:
    """A file that was not written to its end is not there."""
    for suffix in ("parquet", "csv", "jsonl"):
        out = tmp_path / f"rows.{suffix}"
        assert json.loads(run("dataset", "read", "d1", "--out", out, "--json").stdout)["rows"] == 3
    assert parquet.read_table(tmp_path / "rows.parquet").equals(ROWS)
    assert (tmp_path / "rows.csv").read_text() == '"wind","split"\n1.5,"train"\n,"test"\n2,"train"\n'
    assert json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[1]) == {"wind": None, "split": "test"}
    response = training_dataset_pb2.ReadTrainingDatasetResponse
    lost = errors.DataLoss("the stored rows of the dataset do not match their digest")
    fake.on("ReadTrainingDataset", lambda r: [*list(pieces(response, encode_table(ROWS)))[:1], lost])
    failed = run("dataset", "read", "d1", "--out", tmp_path / "lost.parquet")
    assert failed.exit_code == 1
    assert "digest" in failed.stderr
    assert not list(tmp_path.glob("*lost*"))
    assert run("dataset", "read", "d1", "--out", tmp_path / "rows.xls").exit_code == 2


def test_datasets_are_purged_recreated_and_deleted(run: Run, fake: FakeForesight) -> None:
    for freed, text in ((2_048, "2.0 KiB became free"), (0, "nothing became free")):
        purged = training_dataset_pb2.PurgeTrainingDatasetResponse(dataset=described(), freed_bytes=freed)
        fake.on("PurgeTrainingDataset", purged)
        assert text in run("dataset", "purge", "d1").stdout
    fake.on("RecreateTrainingDataset", training_dataset_pb2.RecreateTrainingDatasetResponse(dataset=described()))
    assert "3 rows of spring made again" in run("dataset", "recreate", "d1").stdout
    fake.on("DeleteTrainingDataset", training_dataset_pb2.DeleteTrainingDatasetResponse())
    assert "d1 deleted" in run("dataset", "delete", "d1").stdout
    fake.on("DeleteTrainingDataset", errors.FailedPrecondition("the training dataset d1 is used by model m version 1"))
    refused = run("dataset", "delete", "d1")
    assert (refused.exit_code, "model m version 1" in refused.stderr) == (1, True)
