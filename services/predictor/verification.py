"""Proves what a prediction was made of: replays each stage from the record and compares byte by byte.

Each stage starts from what was recorded of the one before it, so a difference is blamed on the stage that made it,
and when no stage differs the whole chain agrees. All rows of the record are transformed and scored together, as they
were, and the row that is asked for is compared; features are replayed for that row alone.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from foresight.transforms import TransformSet
from foresight.values import Column, InvalidValue
from services.predictor.feature_replay import FeatureReplay
from services.predictor.mismatches import Mismatch, MismatchCause, compare_columns, short
from services.predictor.models import ModelCache
from services.predictor.plans import ViewPlan
from services.predictor.records import PredictionRecord
from services.predictor.scoring import apply_transforms
from services.predictor.spool import Spool
from services.predictor.vectors import VectorSource
from services.predictor.versions import ModelVersion, VersionRef
from services.predictor.views import ViewCatalogue
from services.runtime.errors import DataLoss, FailedPrecondition, NotFound, TransformMismatch

VERSIONS_MAX = 64


@dataclass(frozen=True, slots=True)
class Verification:
    """What a replay gave; no mismatch means that features and outputs agree byte by byte."""

    model: VersionRef
    mismatches: tuple[Mismatch, ...]


class RecordFinder(Protocol):
    """Where logged predictions are found."""

    async def find(self, prediction_id: str) -> tuple[PredictionRecord, int]:
        """The record and the prediction's row in it. Raises NotFound and Unavailable."""
        ...


class VersionSource(Protocol):
    """Where model versions are described."""

    async def model_version(self, ref: VersionRef) -> ModelVersion:
        """The version. Raises NotFound and Unavailable."""
        ...


class Verifier:
    """Verifies logged predictions, and those that wait in this replica's spool."""

    def __init__(
        self,
        records: RecordFinder,
        spool: Spool,
        decode: Callable[[bytes], PredictionRecord],
        views: ViewCatalogue,
        vectors: VectorSource,
        transforms: TransformSet,
        versions: VersionSource,
        models: ModelCache,
    ) -> None:
        self._records = records
        self._spool = spool
        self._decode = decode
        self._views = views
        self._features = FeatureReplay(vectors)
        self._transforms = transforms
        self._versions = versions
        self._models = models
        self._known_versions: OrderedDict[VersionRef, ModelVersion] = OrderedDict()

    async def verify(self, prediction_id: str) -> Verification:
        """Replays a prediction. Raises InvalidValue, NotFound, OutOfRange and Unavailable."""
        record, row = await self._find(_checked_id(prediction_id))
        plan = await self._views.plan(record.view)
        if not record.features and (plan.features or plan.transforms):
            # The caller gave what the model took: no other stage has anything to replay.
            return Verification(record.model, tuple(await self._compare_outputs(plan, record, row)))
        mismatches = await self._features.compare(plan, record, row) if plan.features else []
        mismatches += await asyncio.to_thread(self._compare_transforms, plan, record, row)
        mismatches += await self._compare_outputs(plan, record, row)
        return Verification(record.model, tuple(mismatches))

    async def _find(self, prediction_id: str) -> tuple[PredictionRecord, int]:
        try:
            return await self._records.find(prediction_id)
        except NotFound:
            spooled = await asyncio.to_thread(self._find_spooled, prediction_id)
            if spooled is not None:
                return spooled
            # It may have been shipped between the two look-ups.
            return await self._records.find(prediction_id)

    def _find_spooled(self, prediction_id: str) -> tuple[PredictionRecord, int] | None:
        for payload in self._spool.find(prediction_id.encode()):
            record = self._decode(payload)
            # The id may also stand in one of the record's texts.
            if prediction_id in record.prediction_ids:
                return record, record.prediction_ids.index(prediction_id)
        return None

    def _compare_transforms(self, plan: ViewPlan, record: PredictionRecord, row: int) -> list[Mismatch]:
        if record.transforms_sha256 != plan.transforms_sha256:
            return [
                Mismatch("transforms", MismatchCause.TRANSFORM, record.transforms_sha256, plan.transforms_sha256),
            ]
        recorded = record.features[len(plan.features) :]
        try:
            made = apply_transforms(self._transforms, plan, _inputs_of(plan, record))
        except (TransformMismatch, FailedPrecondition, InvalidValue) as error:
            return [Mismatch("transforms", MismatchCause.TRANSFORM, record.transforms_sha256, short(str(error)))]
        return list(compare_columns([f.column for f in recorded], list(made), row, MismatchCause.TRANSFORM))

    async def _compare_outputs(self, plan: ViewPlan, record: PredictionRecord, row: int) -> list[Mismatch]:
        try:
            version = await self._version(record.model)
            if version.artifact_sha256 != record.model_sha256:
                return [Mismatch("artifact", MismatchCause.MODEL, record.model_sha256, version.artifact_sha256)]
            model = await self._models.load(version, plan.view.label)
            columns = _inputs_of(plan, record)
            columns.update((f.column.name, f.column) for f in record.features)
            outputs = await asyncio.to_thread(model.score, columns)
        except (NotFound, DataLoss, FailedPrecondition, InvalidValue) as error:
            return [Mismatch("artifact", MismatchCause.MODEL, record.model_sha256, short(str(error)))]
        except KeyError as error:
            return [Mismatch("artifact", MismatchCause.MODEL, record.model_sha256, f"it takes {error}, not recorded")]
        return list(compare_columns(list(record.outputs), list(outputs), row, MismatchCause.MODEL))

    async def _version(self, ref: VersionRef) -> ModelVersion:
        version = self._known_versions.get(ref)
        if version is None:
            version = self._known_versions[ref] = await self._versions.model_version(ref)
            if len(self._known_versions) > VERSIONS_MAX:
                self._known_versions.popitem(last=False)
        return version


def _checked_id(prediction_id: str) -> str:
    try:
        canonical = str(uuid.UUID(prediction_id))
    except ValueError:
        canonical = ""
    if not prediction_id or canonical != prediction_id:
        raise InvalidValue("prediction_id", "is not an id that a prediction was answered with")
    return prediction_id


def _inputs_of(plan: ViewPlan, record: PredictionRecord) -> dict[str, Column]:
    """Recorded keys, request features and group features: what transforms take."""
    columns = {c.name: c for c in (*record.entity_keys, *record.request_features)}
    columns.update((f.column.name, f.column) for f in record.features[: len(plan.features)])
    return columns
