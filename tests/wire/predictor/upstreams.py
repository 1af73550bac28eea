"""Hand-written feature store, trainer and logger on Unix sockets, with switches for what tests need to go wrong."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from foresight.feature_store.v1 import online_pb2, online_pb2_grpc, registry_pb2, registry_pb2_grpc
from foresight.logger.v1 import prediction_log_pb2, prediction_log_pb2_grpc
from foresight.trainer.v1 import model_registry_pb2, model_registry_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.values import Column, FeatureStatus, FeatureView
from foresight.wire import decode_columns, decode_instant, encode_column, encode_view
from services.runtime.boundary import Boundary
from services.runtime.errors import NotFound, Unavailable
from services.runtime.metrics import Metrics
from services.runtime.status import MalformedMessage


@dataclass
class Row:
    """The latest row of one key in one group."""

    event_time_micros: int
    commit: int
    values: dict[str, Any]


class FeatureStore(online_pb2_grpc.OnlineFeatureServiceServicer, registry_pb2_grpc.FeatureRegistryServiceServicer):
    """Serves `rows[group][key]`; a replay reads the same rows, so a test that changes them after a prediction makes a
    difference, and `earlier[group][key]` as of their commits. `hold` makes look-ups wait, `error` makes them fail."""

    def __init__(self) -> None:
        self.views: dict[tuple[str, int], FeatureView] = {}
        self.rows: dict[str, dict[tuple[Any, ...], Row]] = {}
        self.earlier: dict[str, dict[tuple[Any, ...], list[Row]]] = {}
        self.max_age_micros: dict[str, int] = {}
        # By group, for replays: up to which commit the rows of everybody were erased.
        self.erased_commits: dict[str, int] = {}
        self.types: dict[str, Any] = {}
        self.applied_commit = 7
        self.away = False
        # Whether it answers numbers that are none.
        self.garbled = False
        self.error: Exception | None = None
        self.hold: asyncio.Event | None = None
        # The view whose look-ups wait; '' means all.
        self.held_view = ""
        self.waiting = 0
        self.lookups = 0

    async def GetFeatureView(self, request: Any, context: Any) -> registry_pb2.GetFeatureViewResponse:
        if self.away:
            raise Unavailable("the database does not answer")
        view = self.views.get((request.view.name, request.view.version))
        if view is None:
            raise NotFound("feature view", request.view.name)
        return registry_pb2.GetFeatureViewResponse(view=encode_view(view))

    async def GetFeatureVectors(self, request: Any, context: Any) -> online_pb2.GetFeatureVectorsResponse:
        self.lookups += 1
        if self.hold is not None and self.held_view in ("", request.view.name):
            self.waiting += 1
            await self.hold.wait()
        if self.away:
            raise Unavailable("the online store does not answer")
        if self.error is not None:
            raise self.error
        vectors = self._vectors(request)
        if self.garbled:
            vectors.features[0].column.float64_values.values[0] = math.nan
        return online_pb2.GetFeatureVectorsResponse(vectors=vectors)

    async def ReplayFeatureVectors(self, request: Any, context: Any) -> online_pb2.ReplayFeatureVectorsResponse:
        assert request.applied_commit <= self.applied_commit
        return online_pb2.ReplayFeatureVectorsResponse(vectors=self._vectors(request, request.applied_commit))

    def _row(self, group: str, key: tuple[Any, ...], commit: int | None) -> Row | None:
        latest = self.rows.get(group, {}).get(key)
        if commit is None:
            return latest
        rows = [*self.earlier.get(group, {}).get(key, []), *([latest] if latest else [])]
        known = [row for row in rows if row.commit <= commit]
        return max(known, key=lambda row: (row.event_time_micros, row.commit), default=None)

    def _vectors(self, request: Any, commit: int | None = None) -> online_pb2.FeatureVectors:
        view = self.views[(request.view.name, request.view.version)]
        keys = decode_columns(request.entity_keys, "entity_keys")
        n = len(next(iter(keys.values())))
        times = list(getattr(request, "event_time_micros", ()))
        times = times or [int(decode_instant(request.event_time).timestamp() * 1e6)] * n
        message = online_pb2.FeatureVectors(view=request.view, applied_commit=self.applied_commit)
        fields = {f.name: f for f in view.features}
        for position, source in enumerate(view.sources):
            found = [self._row(source.group, tuple(keys[k].python(i) for k in sorted(keys)), commit) for i in range(n)]
            message.rows.add(
                group=types_pb2.VersionRef(name=source.group, version=source.group_version),
                event_time_micros=[r.event_time_micros if r else 0 for r in found],
                commits=[r.commit if r else 0 for r in found],
                erased_commits=[self.erased_commits[source.group]] * n if source.group in self.erased_commits else [],
            )
            for feature in source.features:
                name = source.name_of(feature)
                statuses = [
                    self._status(source.group, r, feature.feature, at) for r, at in zip(found, times, strict=True)
                ]
                values = [
                    r.values[feature.feature] if r and s is FeatureStatus.PRESENT else None
                    for r, s in zip(found, statuses, strict=True)
                ]
                type = self.types.get(name, fields[name].type)
                column = Column.build(name, type, values)
                message.features.add(column=encode_column(column), statuses=bytes(statuses), source=position)
        return message

    def _status(self, group: str, row: Row | None, feature: str, at: int) -> FeatureStatus:
        if row is None:
            return FeatureStatus.NOT_FOUND
        if row.event_time_micros > at:
            return FeatureStatus.FUTURE
        if at - row.event_time_micros > self.max_age_micros.get(group, 2**62):
            return FeatureStatus.EXPIRED
        return FeatureStatus.PRESENT if row.values[feature] is not None else FeatureStatus.NULL


class Trainer(model_registry_pb2_grpc.ModelRegistryServiceServicer):
    """Has versions, deployments and artifacts in memory."""

    def __init__(self) -> None:
        self.versions: dict[tuple[str, int], model_registry_pb2.ModelVersion] = {}
        self.deployments: dict[str, model_registry_pb2.Deployment] = {}
        self.artifacts: dict[str, bytes] = {}
        self.downloads = 0
        self._changed = asyncio.Condition()

    def register(self, version: model_registry_pb2.ModelVersion, artifact: bytes) -> None:
        version.artifact_sha256 = version.artifact_sha256 or hashlib.sha256(artifact).hexdigest()
        version.artifact_bytes = len(artifact)
        self.artifacts[version.artifact_sha256] = artifact
        self.versions[(version.model.name, version.model.version)] = version

    async def deploy(self, name: str, model: str, version: int) -> None:
        described = self.versions[(model, version)]
        async with self._changed:
            self.deployments[name] = model_registry_pb2.Deployment(
                name=name, model=described.model, view=described.view, etag=str(version), version=described
            )
            self._changed.notify_all()

    async def deploy_arms(self, name: str, *arms: model_registry_pb2.Arm, salt: str = "", etag: str = "1") -> None:
        """Deploys arms; their models are named and looked up here."""
        for arm in arms:
            arm.version.CopyFrom(self.versions[(arm.model.name, arm.model.version)])
        first = arms[0].version
        async with self._changed:
            self.deployments[name] = model_registry_pb2.Deployment(
                name=name, model=first.model, view=first.view, etag=etag, version=first, arms=arms, salt=salt or name
            )
            self._changed.notify_all()

    async def withdraw(self, name: str) -> None:
        async with self._changed:
            del self.deployments[name]
            self._changed.notify_all()

    async def WatchDeployments(
        self, request: Any, context: Any
    ) -> AsyncIterator[model_registry_pb2.WatchDeploymentsResponse]:
        async with self._changed:
            while True:
                yield model_registry_pb2.WatchDeploymentsResponse(deployments=list(self.deployments.values()))
                await self._changed.wait()

    async def GetModelVersion(self, request: Any, context: Any) -> model_registry_pb2.GetModelVersionResponse:
        version = self.versions.get((request.model.name, request.model.version))
        if version is None:
            raise NotFound("model version", request.model.name)
        return model_registry_pb2.GetModelVersionResponse(version=version)

    async def DownloadArtifact(
        self, request: Any, context: Any
    ) -> AsyncIterator[model_registry_pb2.DownloadArtifactResponse]:
        self.downloads += 1
        artifact = self.artifacts.get(request.sha256)
        if artifact is None:
            raise NotFound("artifact", request.sha256)
        for start in range(0, len(artifact), 1_000):
            yield model_registry_pb2.DownloadArtifactResponse(chunk=artifact[start : start + 1_000])


_EMPTY = prediction_log_pb2.PredictionRecord()


@dataclass
class Logger(prediction_log_pb2_grpc.PredictionLogServiceServicer):
    """Keeps records by prediction id, with `ids_only` an empty one of each; `refuses` says which are invalid."""

    records: dict[str, tuple[prediction_log_pb2.PredictionRecord, int]] = field(default_factory=dict)
    numbers: dict[str, list[int]] = field(default_factory=dict)
    quarantined: list[prediction_log_pb2.QuarantinedRange] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    duplicates: int = 0
    away: bool = False
    ids_only: bool = False
    refuses: Callable[[prediction_log_pb2.PredictionRecord], bool] = lambda record: False

    async def AppendRecords(self, request: Any, context: Any) -> prediction_log_pb2.AppendRecordsResponse:
        if self.away:
            raise Unavailable("the database does not answer")
        if any(self.refuses(r) for r in request.records):
            raise MalformedMessage
        self.calls.append(len(request.records))
        for record in request.records:
            for row, prediction_id in enumerate(record.prediction_ids):
                if prediction_id in self.records:
                    self.duplicates += 1
                    continue
                self.records[prediction_id] = (_EMPTY if self.ids_only else record, row)
                self.numbers.setdefault(record.incarnation, []).append(record.first_sequence + row)
        self.quarantined.extend(request.quarantined)
        return prediction_log_pb2.AppendRecordsResponse()

    async def GetPrediction(self, request: Any, context: Any) -> prediction_log_pb2.GetPredictionResponse:
        if request.prediction_id not in self.records:
            raise NotFound("prediction", request.prediction_id)
        record, row = self.records[request.prediction_id]
        return prediction_log_pb2.GetPredictionResponse(record=record, row=row)


async def start_server(address: str, *servicers: object) -> grpc.aio.Server:
    """Serves the fakes with the services' own error mapping."""
    server = grpc.aio.server(interceptors=[Boundary(Metrics("fake"))])
    adders: Sequence[tuple[type, Callable[..., None]]] = (
        (online_pb2_grpc.OnlineFeatureServiceServicer, online_pb2_grpc.add_OnlineFeatureServiceServicer_to_server),
        (
            registry_pb2_grpc.FeatureRegistryServiceServicer,
            registry_pb2_grpc.add_FeatureRegistryServiceServicer_to_server,
        ),
        (
            model_registry_pb2_grpc.ModelRegistryServiceServicer,
            model_registry_pb2_grpc.add_ModelRegistryServiceServicer_to_server,
        ),
        (
            prediction_log_pb2_grpc.PredictionLogServiceServicer,
            prediction_log_pb2_grpc.add_PredictionLogServiceServicer_to_server,
        ),
    )
    for servicer in servicers:
        for type, add in adders:
            if isinstance(servicer, type):
                add(servicer, server)
    server.add_insecure_port(address)
    await server.start()
    return server
