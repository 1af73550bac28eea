"""Proves what a prediction was made of: replays each stage from the record and compares byte by byte.

Each stage starts from what was recorded of the one before it, so a difference is blamed on the stage that made it,
and when no stage differs the whole chain agrees. All rows of the record are replayed together, as they were scored,
and the row that is asked for is compared.
"""

from __future__ import annotations

import asyncio
import enum
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from foresight.transforms import TransformSet
from foresight.values import Column, FeatureStatus, InvalidValue
from services.predictor.models import ModelCache
from services.predictor.plans import ViewPlan
from services.predictor.policies import ResolvedFeature, apply_policies
from services.predictor.records import PredictionRecord
from services.predictor.scoring import apply_transforms
from services.predictor.spool import Spool
from services.predictor.vectors import NO_VECTORS, SourceRows, Vectors, VectorSource
from services.predictor.versions import ModelVersion, VersionRef
from services.predictor.views import ViewCatalogue
from services.runtime.errors import DataLoss, FailedPrecondition, FeatureMissing, NotFound, TransformMismatch

VERSIONS_MAX = 64
TEXT_CHARACTERS_MAX = 200


class MismatchCause(enum.IntEnum):
    """What differs; the numbers are those of the wire enum."""

    DATA = 1
    EXPIRY = 2
    TRANSFORM = 3
    MODEL = 4
    TYPE = 5
    FORGOTTEN = 6


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One difference, with both values as text."""

    name: str
    cause: MismatchCause
    recorded: str
    replayed: str


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
        self._vectors = vectors
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
        replayed = NO_VECTORS
        if plan.features:
            replayed = await self._vectors.replay(
                record.view, record.entity_keys, record.event_time, record.applied_commit
            )
        mismatches = list(_compare_features(plan, record, replayed, row))
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
            return [Mismatch("transforms", MismatchCause.TRANSFORM, record.transforms_sha256, _text(str(error)))]
        return list(_compare_columns([f.column for f in recorded], list(made), row, MismatchCause.TRANSFORM))

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
            return [Mismatch("artifact", MismatchCause.MODEL, record.model_sha256, _text(str(error)))]
        except KeyError as error:
            return [Mismatch("artifact", MismatchCause.MODEL, record.model_sha256, f"it takes {error}, not recorded")]
        return list(_compare_columns(list(record.outputs), list(outputs), row, MismatchCause.MODEL))

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


def _compare_features(plan: ViewPlan, record: PredictionRecord, replayed: Vectors, row: int) -> Iterator[Mismatch]:
    """Differences of source rows, statuses and values after policies."""
    differing: dict[int, MismatchCause] = {}
    for position, group in enumerate(plan.groups):
        recorded, now = _row_of(record.sources, position, row), _row_of(replayed.sources, position, row)
        if recorded != now:
            erased = 0 < recorded[1] <= _erased_until(replayed.sources, position, row)
            differing[position] = MismatchCause.FORGOTTEN if erased else MismatchCause.DATA
            yield Mismatch(group.name, differing[position], _row_text(recorded), _row_text(now))
    try:
        resolved = apply_policies(plan, replayed, len(record.prediction_ids))
    except FeatureMissing as missing:
        # Under the policy FAIL the recorded prediction had a value.
        name = missing.metadata["feature"]
        sources = {planned.field.name: planned.source for planned in plan.features}
        cause = differing.get(sources.get(name, -1), MismatchCause.DATA if differing else MismatchCause.EXPIRY)
        yield Mismatch(name, cause, FeatureStatus.PRESENT.name, missing.metadata["status"])
        return
    recorded_features = record.features[: len(plan.features)]
    for planned, then, now_feature in zip(plan.features, recorded_features, resolved, strict=True):
        yield from _compare_feature(then, now_feature, row, differing.get(planned.source))


def _compare_feature(
    then: ResolvedFeature, now: ResolvedFeature, row: int, other_row: MismatchCause | None
) -> Iterator[Mismatch]:
    """`other_row`: why another row answers now; None: the same one does."""
    name = then.column.name
    recorded, replayed = _status_of(then, row), _status_of(now, row)
    if recorded is not replayed:
        yield Mismatch(name, other_row or MismatchCause.EXPIRY, recorded.name, replayed.name)
        return
    yield from _compare_columns([then.column], [now.column], row, other_row or MismatchCause.DATA)


def _compare_columns(then: list[Column], now: list[Column], row: int, cause: MismatchCause) -> Iterator[Mismatch]:
    """Differences of one row; another type is a cause of its own."""
    replayed = {c.name: c for c in now}
    for recorded in then:
        column = replayed.pop(recorded.name, None)
        if column is None:
            yield Mismatch(recorded.name, cause, _value_text(recorded, row), "absent")
        elif column.type is not recorded.type:
            yield Mismatch(recorded.name, MismatchCause.TYPE, recorded.type.value, column.type.value)
        elif not recorded.take([row]).equals(column.take([row])):
            yield Mismatch(recorded.name, cause, _value_text(recorded, row), _value_text(column, row))
    for column in replayed.values():
        yield Mismatch(column.name, cause, "absent", _value_text(column, row))


def _status_of(feature: ResolvedFeature, row: int) -> FeatureStatus:
    return FeatureStatus(feature.statuses[row]) if feature.statuses else FeatureStatus.PRESENT


def _row_of(sources: tuple[SourceRows, ...], position: int, row: int) -> tuple[int, int]:
    """Event time and commit of a source's row; zeros where there is none."""
    if position >= len(sources):
        return 0, 0
    return sources[position].event_time_micros[row], sources[position].commits[row]


def _erased_until(sources: tuple[SourceRows, ...], position: int, row: int) -> int:
    """The last commit up to which rows of the entity were erased; 0: none were."""
    erased = sources[position].erased_commits if position < len(sources) else ()
    return erased[row] if erased else 0


def _row_text(row: tuple[int, int]) -> str:
    return f"event time {row[0]} us, commit {row[1]}" if row != (0, 0) else "no row"


def _value_text(column: Column, row: int) -> str:
    return _text(repr(column.python(row)))


def _text(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS_MAX else text[: TEXT_CHARACTERS_MAX - 1] + "…"
