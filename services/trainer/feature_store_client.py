"""The feature store over gRPC."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

import grpc
import pyarrow as pa

from foresight.feature_store.v1 import (
    lineage_pb2,
    lineage_pb2_grpc,
    offline_pb2,
    offline_pb2_grpc,
    query_pb2,
    registry_pb2,
    registry_pb2_grpc,
    training_dataset_pb2,
    training_dataset_pb2_grpc,
)
from foresight.tables import decode_table, encode_table
from foresight.types.v1 import types_pb2
from foresight.values import FeatureView, InvalidValue
from foresight.wire import decode_field, decode_view, encode_instant
from services.runtime.channel import translated
from services.runtime.errors import DataLoss, LimitExceeded
from services.trainer.feature_store import DatasetManifest, Thing
from services.trainer.models import VersionRef

UPSTREAM = "feature store"
# All of it reads, or leaves the same behind when it is repeated: another process of the feature store may be asked.
REPEATABLE = (
    ("foresight.feature_store.v1.OfflineFeatureService", "ReadFeatures"),
    ("foresight.feature_store.v1.OfflineFeatureService", "ReadAsOf"),
    ("foresight.feature_store.v1.TrainingDatasetService", "GetTrainingDataset"),
    ("foresight.feature_store.v1.TrainingDatasetService", "ReadTrainingDataset"),
    ("foresight.feature_store.v1.FeatureRegistryService", "GetFeatureView"),
    ("foresight.feature_store.v1.LineageService", "DeclareUses"),
)
LOOKUP_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 600.0
TABLE_BYTES_MAX = 1 << 30
VIEWS_MAX = 64


class FeatureStoreClient:
    """See FeatureStore. Views are immutable, so up to VIEWS_MAX of them are remembered."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._offline: Any = offline_pb2_grpc.OfflineFeatureServiceStub(channel)
        self._datasets: Any = training_dataset_pb2_grpc.TrainingDatasetServiceStub(channel)
        self._registry: Any = registry_pb2_grpc.FeatureRegistryServiceStub(channel)
        self._lineage: Any = lineage_pb2_grpc.LineageServiceStub(channel)
        self._views: OrderedDict[VersionRef, FeatureView] = OrderedDict()

    async def manifest(self, dataset_id: str) -> DatasetManifest:
        """See FeatureStore."""
        request = training_dataset_pb2.GetTrainingDatasetRequest(dataset_id=dataset_id)
        with translated(UPSTREAM):
            response = await self._datasets.GetTrainingDataset(request, timeout=LOOKUP_TIMEOUT_S)
        dataset = response.dataset
        return DatasetManifest(
            id=dataset.id,
            view=VersionRef(dataset.view.name, dataset.view.version),
            features=tuple(decode_field(f, "features") for f in dataset.features),
            label=decode_field(dataset.label, "label"),
        )

    async def dataset(self, dataset_id: str, split: str) -> pa.Table:
        """See FeatureStore."""
        request = training_dataset_pb2.ReadTrainingDatasetRequest(dataset_id=dataset_id, split=split)
        with translated(UPSTREAM):
            return await _table(self._datasets.ReadTrainingDataset(request, timeout=READ_TIMEOUT_S))

    async def view(self, view: VersionRef) -> FeatureView:
        """See FeatureStore."""
        known = self._views.get(view)
        if known is not None:
            self._views.move_to_end(view)
            return known
        request = registry_pb2.GetFeatureViewRequest(view=_ref(view))
        with translated(UPSTREAM):
            response = await self._registry.GetFeatureView(request, timeout=LOOKUP_TIMEOUT_S)
        found = decode_view(response.view)
        if view.version:
            self._views[view] = found
            while len(self._views) > VIEWS_MAX:
                self._views.popitem(last=False)
        return found

    async def latest_rows(self, group: VersionRef, start: datetime, end: datetime) -> pa.Table:
        """See FeatureStore."""
        query = query_pb2.GroupQuery(
            group=_ref(group),
            from_event_time=encode_instant(start),
            to_event_time=encode_instant(end),
            latest_only=True,
        )
        request = offline_pb2.ReadFeaturesRequest(query=query)
        with translated(UPSTREAM):
            return await _table(self._offline.ReadFeatures(request, timeout=READ_TIMEOUT_S))

    async def as_of(self, view: VersionRef, spine: pa.Table) -> pa.Table:
        """See FeatureStore."""
        with translated(UPSTREAM):
            return await _table(self._offline.ReadAsOf(_as_of_requests(view, spine), timeout=READ_TIMEOUT_S))

    async def declare(self, user: Thing, used: Sequence[Thing]) -> None:
        """See Uses."""
        request = lineage_pb2.DeclareUsesRequest(user=_thing(user), used=[_thing(thing) for thing in used])
        with translated(UPSTREAM):
            await self._lineage.DeclareUses(request, timeout=LOOKUP_TIMEOUT_S)


async def _as_of_requests(view: VersionRef, spine: pa.Table) -> AsyncIterator[offline_pb2.ReadAsOfRequest]:
    header: offline_pb2.AsOfHeader | None = offline_pb2.AsOfHeader(view=_ref(view))
    for chunk in encode_table(spine):
        yield offline_pb2.ReadAsOfRequest(header=header, arrow=chunk)
        header = None


async def _table(responses: Any) -> pa.Table:
    """The table of a streamed answer."""
    chunks: list[bytes] = []
    size = 0
    async for response in responses:
        chunks.append(response.arrow)
        size += len(response.arrow)
        if size > TABLE_BYTES_MAX:
            responses.cancel()
            raise LimitExceeded(f"the rows take more than {TABLE_BYTES_MAX} bytes", limit="bytes")
    try:
        return decode_table(chunks)
    except InvalidValue as error:
        raise DataLoss(f"the {UPSTREAM} sent a table that cannot be read") from error


def _ref(ref: VersionRef) -> types_pb2.VersionRef:
    return types_pb2.VersionRef(name=ref.name, version=ref.version)


def _thing(thing: Thing) -> lineage_pb2.Thing:
    kind = lineage_pb2.ThingKind.Value(f"THING_KIND_{thing.kind.name}")
    return lineage_pb2.Thing(kind=kind, name=thing.name, version=thing.version)
