"""TrainingDatasetService: decode, one call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator

from foresight.feature_store.v1 import training_dataset_pb2, training_dataset_pb2_grpc
from foresight.values import InvalidValue
from foresight.wire import encode_field, encode_instant
from services.feature_store.datasets import TrainingDatasets
from services.feature_store.manifests import DatasetRequest, LoggedSelection, Manifest
from services.feature_store.row_source import read_all
from services.feature_store.servicers.messages import (
    Context,
    decode_reference,
    decode_set_instant,
    encode_reference,
    receive,
)
from services.feature_store.transit import TablesInTransit, chunks_of


class TrainingDatasetServicer(training_dataset_pb2_grpc.TrainingDatasetServiceServicer):
    """TrainingDatasetService."""

    def __init__(self, datasets: TrainingDatasets, transit: TablesInTransit) -> None:
        self._datasets = datasets
        self._transit = transit

    async def CreateTrainingDataset(
        self, request_iterator: AsyncIterator[training_dataset_pb2.CreateTrainingDatasetRequest], context: Context
    ) -> training_dataset_pb2.CreateTrainingDatasetResponse:
        async with self._transit.upload() as upload:
            header = (await receive(request_iterator, upload)).header
            spine = await upload.rows_if_any()
            manifest = await self._datasets.create(_dataset_request(header), spine and read_all(spine))
        return training_dataset_pb2.CreateTrainingDatasetResponse(dataset=_encode_manifest(manifest))

    async def GetTrainingDataset(
        self, request: training_dataset_pb2.GetTrainingDatasetRequest, context: Context
    ) -> training_dataset_pb2.GetTrainingDatasetResponse:
        manifest = await self._datasets.get(_dataset_id(request.dataset_id))
        return training_dataset_pb2.GetTrainingDatasetResponse(dataset=_encode_manifest(manifest))

    async def ReadTrainingDataset(
        self, request: training_dataset_pb2.ReadTrainingDatasetRequest, context: Context
    ) -> AsyncIterator[training_dataset_pb2.ReadTrainingDatasetResponse]:
        table = await self._datasets.read(_dataset_id(request.dataset_id), request.split)
        async for chunk in chunks_of(table):
            yield training_dataset_pb2.ReadTrainingDatasetResponse(arrow=chunk)


def _dataset_id(text: str) -> str:
    if not 1 <= len(text) <= 64 or not text.isascii() or not text.isprintable():
        raise InvalidValue("dataset_id", "is not the id of a training dataset")
    return text


def _dataset_request(header: training_dataset_pb2.TrainingDatasetHeader) -> DatasetRequest:
    logged = None
    if header.HasField("logged"):
        for field in ("to_event_time", "observed_by"):
            if not header.logged.HasField(field):
                raise InvalidValue(f"header.logged.{field}", "is required")
        logged = LoggedSelection(
            deployment=header.logged.deployment,
            from_event_time=decode_set_instant(header.logged, "from_event_time"),
            to_event_time=decode_set_instant(header.logged, "to_event_time"),
            observed_by=decode_set_instant(header.logged, "observed_by"),
        )
    return DatasetRequest(
        name=header.name,
        view=decode_reference(header.view, "header.view"),
        known_by=header.known_by,
        commit=header.commit,
        test_from=decode_set_instant(header, "test_from"),
        logged=logged,
    )


def _encode_manifest(manifest: Manifest) -> training_dataset_pb2.TrainingDataset:
    logged = manifest.logged
    return training_dataset_pb2.TrainingDataset(
        id=manifest.id,
        name=manifest.name,
        view=encode_reference(manifest.view),
        commit=manifest.commit,
        known_by=manifest.known_by,
        rows=manifest.rows,
        splits=[training_dataset_pb2.SplitRows(split=split, rows=rows) for split, rows in manifest.splits],
        content_sha256=manifest.content_sha256,
        spine_sha256=manifest.spine_sha256,
        groups=[encode_reference(group) for group in manifest.groups],
        created_at=encode_instant(manifest.created_at),
        features=[encode_field(f) for f in manifest.features],
        label=encode_field(manifest.label),
        test_from=encode_instant(manifest.test_from) if manifest.test_from else None,
        logged=None
        if logged is None
        else training_dataset_pb2.LoggedPredictions(
            deployment=logged.deployment,
            from_event_time=encode_instant(logged.from_event_time) if logged.from_event_time else None,
            to_event_time=encode_instant(logged.to_event_time),
            observed_by=encode_instant(logged.observed_by),
        ),
    )
