"""TrainingDatasetService: decode, one call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator

from foresight.feature_store.v1 import training_dataset_pb2, training_dataset_pb2_grpc
from foresight.values import InvalidValue
from foresight.wire import encode_field, encode_instant
from services.feature_store.datasets.datasets import TrainingDatasets
from services.feature_store.datasets.manifests import DatasetRequest, LoggedSelection, Manifest, ManifestFilter
from services.feature_store.datasets.splits import HashSplit, SplitRule, TimeSplit
from services.feature_store.servicers.messages import (
    Context,
    decode_reference,
    decode_set_instant,
    encode_reference,
    receive,
)
from services.feature_store.servicers.queries import decode_spine_query, encode_spine_query
from services.feature_store.tables.transit import TablesInTransit, chunks_of_rows


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
            manifest = await self._datasets.create(_decode_request(header), await upload.rows_if_any())
        return training_dataset_pb2.CreateTrainingDatasetResponse(dataset=_encode_manifest(manifest))

    async def GetTrainingDataset(
        self, request: training_dataset_pb2.GetTrainingDatasetRequest, context: Context
    ) -> training_dataset_pb2.GetTrainingDatasetResponse:
        manifest = await self._datasets.get(_dataset_id(request.dataset_id))
        return training_dataset_pb2.GetTrainingDatasetResponse(dataset=_encode_manifest(manifest))

    async def ReadTrainingDataset(
        self, request: training_dataset_pb2.ReadTrainingDatasetRequest, context: Context
    ) -> AsyncIterator[training_dataset_pb2.ReadTrainingDatasetResponse]:
        async with self._datasets.read(_dataset_id(request.dataset_id), request.split) as rows:
            async for chunk in chunks_of_rows(rows):
                yield training_dataset_pb2.ReadTrainingDatasetResponse(arrow=chunk)

    async def ListTrainingDatasets(
        self, request: training_dataset_pb2.ListTrainingDatasetsRequest, context: Context
    ) -> training_dataset_pb2.ListTrainingDatasetsResponse:
        view = decode_reference(request.view, "view") if request.HasField("view") else None
        manifests, token = await self._datasets.page(
            ManifestFilter(request.name, view), request.page_size, request.page_token
        )
        return training_dataset_pb2.ListTrainingDatasetsResponse(
            datasets=[_encode_manifest(manifest) for manifest in manifests], next_page_token=token
        )

    async def PurgeTrainingDataset(
        self, request: training_dataset_pb2.PurgeTrainingDatasetRequest, context: Context
    ) -> training_dataset_pb2.PurgeTrainingDatasetResponse:
        manifest, freed = await self._datasets.purge(_dataset_id(request.dataset_id))
        return training_dataset_pb2.PurgeTrainingDatasetResponse(dataset=_encode_manifest(manifest), freed_bytes=freed)

    async def RecreateTrainingDataset(
        self, request: training_dataset_pb2.RecreateTrainingDatasetRequest, context: Context
    ) -> training_dataset_pb2.RecreateTrainingDatasetResponse:
        manifest = await self._datasets.recreate(_dataset_id(request.dataset_id))
        return training_dataset_pb2.RecreateTrainingDatasetResponse(dataset=_encode_manifest(manifest))

    async def DeleteTrainingDataset(
        self, request: training_dataset_pb2.DeleteTrainingDatasetRequest, context: Context
    ) -> training_dataset_pb2.DeleteTrainingDatasetResponse:
        await self._datasets.delete(_dataset_id(request.dataset_id))
        return training_dataset_pb2.DeleteTrainingDatasetResponse()


def _dataset_id(text: str) -> str:
    if not 1 <= len(text) <= 64 or not text.isascii() or not text.isprintable():
        raise InvalidValue("dataset_id", "is not the id of a training dataset")
    return text


def _decode_request(header: training_dataset_pb2.TrainingDatasetHeader) -> DatasetRequest:
    return DatasetRequest(
        name=header.name,
        view=decode_reference(header.view, "header.view"),
        known_by=header.known_by,
        commit=header.commit,
        as_of_time=decode_set_instant(header, "as_of_time"),
        split=_decode_split(header),
        logged=_decode_logged(header.logged) if header.HasField("logged") else None,
        spine=decode_spine_query(header.spine, "header.spine") if header.HasField("spine") else None,
    )


def _decode_split(header: training_dataset_pb2.TrainingDatasetHeader) -> SplitRule | None:
    by_time = [name for name in ("test_from", "validation_from") if header.HasField(name)]
    if header.HasField("hash_split"):
        if by_time:
            raise InvalidValue("header.hash_split", f"does not go with {by_time[0]}; split by key or by time")
        message = header.hash_split
        return HashSplit(message.seed, message.test_share, message.validation_share, tuple(message.keys))
    if by_time == ["validation_from"]:
        raise InvalidValue("header.validation_from", "needs test_from, where validation ends")
    if not by_time:
        return None
    return TimeSplit(decode_set_instant(header, "test_from"), decode_set_instant(header, "validation_from"))


def _decode_logged(message: training_dataset_pb2.LoggedPredictions) -> LoggedSelection:
    for field in ("to_event_time", "observed_by"):
        if not message.HasField(field):
            raise InvalidValue(f"header.logged.{field}", "is required")
    return LoggedSelection(
        deployment=message.deployment,
        from_event_time=decode_set_instant(message, "from_event_time"),
        to_event_time=decode_set_instant(message, "to_event_time"),
        observed_by=decode_set_instant(message, "observed_by"),
        shadows=message.shadows,
        degraded=message.degraded,
    )


def _encode_manifest(manifest: Manifest) -> training_dataset_pb2.TrainingDataset:
    message = training_dataset_pb2.TrainingDataset(
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
        logged=None if manifest.logged is None else _encode_logged(manifest.logged),
        spine=None if manifest.spine is None else encode_spine_query(manifest.spine),
        stored=manifest.stored,
        stored_bytes=manifest.stored_bytes,
        transforms=[
            training_dataset_pb2.TransformSource(function=function, source_sha256=sha256)
            for function, sha256 in manifest.transforms
        ],
        max_age_micros=[-1 if age is None else age for age in manifest.max_ages_us],
        forgotten_at=None if manifest.forgotten_at is None else encode_instant(manifest.forgotten_at),
    )
    _encode_split(manifest.split, message)
    return message


def _encode_split(rule: SplitRule | None, message: training_dataset_pb2.TrainingDataset) -> None:
    if isinstance(rule, TimeSplit):
        message.test_from.CopyFrom(encode_instant(rule.test_from))
        if rule.validation_from is not None:
            message.validation_from.CopyFrom(encode_instant(rule.validation_from))
    elif isinstance(rule, HashSplit):
        shares = {"test_share": rule.test_share, "validation_share": rule.validation_share}
        message.hash_split.CopyFrom(training_dataset_pb2.HashSplit(seed=rule.seed, keys=rule.keys, **shares))


def _encode_logged(logged: LoggedSelection) -> training_dataset_pb2.LoggedPredictions:
    return training_dataset_pb2.LoggedPredictions(
        deployment=logged.deployment,
        from_event_time=encode_instant(logged.from_event_time) if logged.from_event_time else None,
        to_event_time=encode_instant(logged.to_event_time),
        observed_by=encode_instant(logged.observed_by),
        shadows=logged.shadows,
        degraded=logged.degraded,
    )
