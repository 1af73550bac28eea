"""The feature store's RPCs: decode, one call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias, TypeVar

import grpc

from foresight.feature_store.v1 import (
    log_ingestion_pb2,
    log_ingestion_pb2_grpc,
    offline_pb2,
    offline_pb2_grpc,
    online_pb2,
    online_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
)
from foresight.types.v1 import types_pb2
from foresight.values import DataType, InvalidValue
from foresight.wire import (
    decode_columns,
    decode_group,
    decode_instant,
    decode_optional_instant,
    decode_view,
    encode_field,
    encode_group,
    encode_instant,
    encode_view,
)
from services.feature_store.datasets import TrainingDatasets
from services.feature_store.groups import Reference
from services.feature_store.histories import EventTimes
from services.feature_store.ingestion import LogIngestion
from services.feature_store.manifests import DatasetRequest, LoggedSelection, Manifest
from services.feature_store.offline import OfflineFeatures
from services.feature_store.registry import Registry
from services.feature_store.transit import TablesInTransit, Upload, chunks_of, chunks_of_stream
from services.feature_store.vectors import FeatureVectors, VectorReader
from services.runtime.identity import caller_of

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
M = TypeVar(
    "M", offline_pb2.WriteFeaturesRequest, offline_pb2.ReadAsOfRequest, offline_pb2.CreateTrainingDatasetRequest
)
SERVICES = (
    "foresight.feature_store.v1.FeatureRegistryService",
    "foresight.feature_store.v1.OfflineFeatureService",
    "foresight.feature_store.v1.OnlineFeatureService",
    "foresight.feature_store.v1.LogIngestionService",
)
_VALUES = {
    DataType.INT64: "int64_values",
    DataType.FLOAT64: "float64_values",
    DataType.BOOL: "bool_values",
    DataType.STRING: "string_values",
}
_ALL_PRESENT = 1


class RegistryServicer(registry_pb2_grpc.FeatureRegistryServiceServicer):
    """FeatureRegistryService."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def RegisterFeatureGroup(
        self, request: registry_pb2.RegisterFeatureGroupRequest, context: Context
    ) -> registry_pb2.RegisterFeatureGroupResponse:
        group, created = await self._registry.register_group(decode_group(request.group))
        return registry_pb2.RegisterFeatureGroupResponse(group=encode_group(group), created=created)

    async def GetFeatureGroup(
        self, request: registry_pb2.GetFeatureGroupRequest, context: Context
    ) -> registry_pb2.GetFeatureGroupResponse:
        group, rows = await self._registry.described_group(_reference(request.group, "group"))
        return registry_pb2.GetFeatureGroupResponse(group=encode_group(group), rows=rows)

    async def ListFeatureGroups(
        self, request: registry_pb2.ListFeatureGroupsRequest, context: Context
    ) -> registry_pb2.ListFeatureGroupsResponse:
        groups = await self._registry.groups()
        return registry_pb2.ListFeatureGroupsResponse(groups=[encode_group(group) for group in groups])

    async def RegisterFeatureView(
        self, request: registry_pb2.RegisterFeatureViewRequest, context: Context
    ) -> registry_pb2.RegisterFeatureViewResponse:
        view, created = await self._registry.register_view(decode_view(request.view))
        return registry_pb2.RegisterFeatureViewResponse(view=encode_view(view), created=created)

    async def GetFeatureView(
        self, request: registry_pb2.GetFeatureViewRequest, context: Context
    ) -> registry_pb2.GetFeatureViewResponse:
        view = await self._registry.view(_reference(request.view, "view"))
        return registry_pb2.GetFeatureViewResponse(view=encode_view(view))

    async def ListFeatureViews(
        self, request: registry_pb2.ListFeatureViewsRequest, context: Context
    ) -> registry_pb2.ListFeatureViewsResponse:
        views = await self._registry.views()
        return registry_pb2.ListFeatureViewsResponse(views=[encode_view(view) for view in views])


class OfflineServicer(offline_pb2_grpc.OfflineFeatureServiceServicer):
    """OfflineFeatureService."""

    def __init__(self, features: OfflineFeatures, datasets: TrainingDatasets, transit: TablesInTransit) -> None:
        self._features = features
        self._datasets = datasets
        self._transit = transit

    async def WriteFeatures(
        self, request_iterator: AsyncIterator[offline_pb2.WriteFeaturesRequest], context: Context
    ) -> offline_pb2.WriteFeaturesResponse:
        with self._transit.upload() as upload:
            header = (await _received(request_iterator, upload)).header
            commit = await self._features.write(
                _reference(header.group, "header.group"),
                header.write_id,
                await upload.table(),
                caller_of(context.invocation_metadata() or ()),
            )
        return offline_pb2.WriteFeaturesResponse(
            commit=commit.number,
            committed_at=encode_instant(commit.committed_at),
            rows=commit.rows,
            duplicate=commit.duplicate,
        )

    async def ReadFeatures(
        self, request: offline_pb2.ReadFeaturesRequest, context: Context
    ) -> AsyncIterator[offline_pb2.ReadFeaturesResponse]:
        times = EventTimes(_optional(request, "from_event_time"), _optional(request, "to_event_time"))
        group = _reference(request.group, "group")
        async with self._features.read(group, request.commit, times, latest_only=request.latest_only) as batches:
            async for chunk in chunks_of_stream(batches):
                yield offline_pb2.ReadFeaturesResponse(arrow=chunk)

    async def ReadAsOf(
        self, request_iterator: AsyncIterator[offline_pb2.ReadAsOfRequest], context: Context
    ) -> AsyncIterator[offline_pb2.ReadAsOfResponse]:
        with self._transit.upload() as upload:
            header = (await _received(request_iterator, upload)).header
            view = _reference(header.view, "header.view")
            table = await self._features.read_as_of(view, header.commit, await upload.table(), known_by=header.known_by)
        async for chunk in chunks_of(table):
            yield offline_pb2.ReadAsOfResponse(arrow=chunk)

    async def CreateTrainingDataset(
        self, request_iterator: AsyncIterator[offline_pb2.CreateTrainingDatasetRequest], context: Context
    ) -> offline_pb2.CreateTrainingDatasetResponse:
        with self._transit.upload() as upload:
            header = (await _received(request_iterator, upload)).header
            manifest = await self._datasets.create(_dataset_request(header), await upload.table_if_any())
        return offline_pb2.CreateTrainingDatasetResponse(dataset=_encode_manifest(manifest))

    async def GetTrainingDataset(
        self, request: offline_pb2.GetTrainingDatasetRequest, context: Context
    ) -> offline_pb2.GetTrainingDatasetResponse:
        manifest = await self._datasets.get(_dataset_id(request.dataset_id))
        return offline_pb2.GetTrainingDatasetResponse(dataset=_encode_manifest(manifest))

    async def ReadTrainingDataset(
        self, request: offline_pb2.ReadTrainingDatasetRequest, context: Context
    ) -> AsyncIterator[offline_pb2.ReadTrainingDatasetResponse]:
        table = await self._datasets.read(_dataset_id(request.dataset_id), request.split)
        async for chunk in chunks_of(table):
            yield offline_pb2.ReadTrainingDatasetResponse(arrow=chunk)


class OnlineServicer(online_pb2_grpc.OnlineFeatureServiceServicer):
    """OnlineFeatureService."""

    def __init__(self, vectors: VectorReader) -> None:
        self._vectors = vectors

    async def GetFeatureVectors(
        self, request: online_pb2.GetFeatureVectorsRequest, context: Context
    ) -> online_pb2.GetFeatureVectorsResponse:
        vectors = await self._vectors.latest(
            _reference(request.view, "view"),
            decode_columns(request.entity_keys, "entity_keys"),
            _event_time(request),
        )
        return online_pb2.GetFeatureVectorsResponse(vectors=_encode_vectors(vectors))

    async def ReplayFeatureVectors(
        self, request: online_pb2.ReplayFeatureVectorsRequest, context: Context
    ) -> online_pb2.ReplayFeatureVectorsResponse:
        vectors = await self._vectors.replay(
            _reference(request.view, "view"),
            decode_columns(request.entity_keys, "entity_keys"),
            _event_time(request),
            request.applied_commit,
        )
        return online_pb2.ReplayFeatureVectorsResponse(vectors=_encode_vectors(vectors))


class LogIngestionServicer(log_ingestion_pb2_grpc.LogIngestionServiceServicer):
    """LogIngestionService."""

    def __init__(self, ingestion: LogIngestion) -> None:
        self._ingestion = ingestion

    async def GetIngestionStatus(
        self, request: log_ingestion_pb2.GetIngestionStatusRequest, context: Context
    ) -> log_ingestion_pb2.GetIngestionStatusResponse:
        status = await self._ingestion.status()
        return log_ingestion_pb2.GetIngestionStatusResponse(
            cursor=status.cursor,
            logger_head=status.head,
            predictions=status.predictions,
            outcomes=status.outcomes,
            last_pull_at=encode_instant(status.last_pull_at) if status.last_pull_at else None,
        )


async def _received(requests: AsyncIterator[M], upload: Upload) -> M:
    """The first message of an upload, once all have come."""
    first: M | None = None
    async for request in requests:
        if first is None:
            first = request
            if not request.HasField("header"):
                raise InvalidValue("header", "is required in the first message")
        elif request.HasField("header"):
            raise InvalidValue("header", "belongs into the first message only")
        upload.add(request.arrow)
    if first is None:
        raise InvalidValue("header", "is required; no message came")
    return first


def _reference(message: types_pb2.VersionRef, field: str) -> Reference:
    try:
        return Reference(message.name, message.version)
    except InvalidValue as error:
        raise error.within(field) from None


def _optional(message: Any, field: str) -> Any:
    return decode_optional_instant(message.HasField(field), getattr(message, field), field)


def _event_time(request: online_pb2.GetFeatureVectorsRequest | online_pb2.ReplayFeatureVectorsRequest) -> Any:
    if not request.HasField("event_time"):
        raise InvalidValue("event_time", "is required")
    return decode_instant(request.event_time)


def _dataset_id(text: str) -> str:
    if not 1 <= len(text) <= 64 or not text.isascii() or not text.isprintable():
        raise InvalidValue("dataset_id", "is not the id of a training dataset")
    return text


def _dataset_request(header: offline_pb2.TrainingDatasetHeader) -> DatasetRequest:
    logged = None
    if header.HasField("logged"):
        for field in ("to_event_time", "observed_by"):
            if not header.logged.HasField(field):
                raise InvalidValue(f"header.logged.{field}", "is required")
        logged = LoggedSelection(
            deployment=header.logged.deployment,
            from_event_time=_optional(header.logged, "from_event_time"),
            to_event_time=_optional(header.logged, "to_event_time"),
            observed_by=_optional(header.logged, "observed_by"),
        )
    return DatasetRequest(
        name=header.name,
        view=_reference(header.view, "header.view"),
        known_by=header.known_by,
        commit=header.commit,
        test_from=_optional(header, "test_from"),
        logged=logged,
    )


def _encode_manifest(manifest: Manifest) -> offline_pb2.TrainingDataset:
    logged = manifest.logged
    return offline_pb2.TrainingDataset(
        id=manifest.id,
        name=manifest.name,
        view=_encode_reference(manifest.view),
        commit=manifest.commit,
        known_by=manifest.known_by,
        rows=manifest.rows,
        splits=[offline_pb2.SplitRows(split=split, rows=rows) for split, rows in manifest.splits],
        content_sha256=manifest.content_sha256,
        spine_sha256=manifest.spine_sha256,
        groups=[_encode_reference(group) for group in manifest.groups],
        created_at=encode_instant(manifest.created_at),
        features=[encode_field(f) for f in manifest.features],
        label=encode_field(manifest.label),
        test_from=encode_instant(manifest.test_from) if manifest.test_from else None,
        logged=None
        if logged is None
        else offline_pb2.LoggedPredictions(
            deployment=logged.deployment,
            from_event_time=encode_instant(logged.from_event_time) if logged.from_event_time else None,
            to_event_time=encode_instant(logged.to_event_time),
            observed_by=encode_instant(logged.observed_by),
        ),
    )


def _encode_reference(reference: Reference) -> types_pb2.VersionRef:
    return types_pb2.VersionRef(name=reference.name, version=reference.version)


def _encode_vectors(vectors: FeatureVectors) -> online_pb2.FeatureVectors:
    """Filled in place: building each column apart and copying it would cost as much as the look-up."""
    message = online_pb2.FeatureVectors(applied_commit=vectors.applied_commit)
    message.view.name, message.view.version = vectors.view.name, vectors.view.version
    for feature in vectors.features:
        into = message.features.add(statuses=feature.statuses, source=feature.source)
        column, type = into.column, feature.field.type
        column.name = feature.field.name
        if type is DataType.TIMESTAMP:
            column.timestamp_values.micros.extend(feature.values)
        elif type is DataType.FLOAT_VECTOR:
            column.vector_values.dimension = feature.field.dimension
            column.vector_values.values.extend([number for vector in feature.values for number in vector])
        else:
            getattr(column, _VALUES[type]).values.extend(feature.values)
        if feature.statuses.strip(b"\x01"):
            column.validity = bytes(status == _ALL_PRESENT for status in feature.statuses)
    for rows in vectors.rows:
        source = message.rows.add(event_time_micros=rows.event_time_us, commits=rows.commits)
        source.group.name, source.group.version = rows.group.group.name, rows.group.group.version
    return message
