"""Measuring model versions on training datasets, by scoring their rows with the artifacts that serve."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from foresight.scoring import OnnxModel, Signature
from foresight.values import Field
from services.runtime.errors import FailedPrecondition
from services.runtime.threads import in_thread
from services.trainer.feature_store import DatasetManifest, FeatureStore
from services.trainer.measures import measure
from services.trainer.models import DatasetSelection, ModelMetrics, ModelVersion, VersionRef
from services.trainer.registry import Registry
from services.trainer.rows import columns, labelled, select
from services.trainer.scorers import Scorers, score_rows


class Evaluation:
    """Scores datasets with registered versions."""

    def __init__(self, registry: Registry, scorers: Scorers, feature_store: FeatureStore) -> None:
        self._registry = registry
        self._scorers = scorers
        self._feature_store = feature_store

    async def evaluate(
        self, models: Sequence[VersionRef], selection: DatasetSelection
    ) -> tuple[Sequence[ModelMetrics], int]:
        """Metrics of each model, in order, and the number of labelled rows. Raises NotFound, FailedPrecondition."""
        versions = [await self._registry.version(ref) for ref in models]
        return await self.measure(versions, selection)

    async def measure(
        self, versions: Sequence[ModelVersion], selection: DatasetSelection
    ) -> tuple[Sequence[ModelMetrics], int]:
        """As `evaluate`, of versions at hand."""
        manifest = await self._feature_store.manifest(selection.dataset_id)
        for version in versions:
            _check_fits(version, manifest)
        scorers = [await self._scorers.load(version) for version in versions]
        table = await self._feature_store.dataset(selection.dataset_id, selection.split)
        table = labelled(table, manifest.label)
        measured = [
            ModelMetrics(version.ref, await in_thread(measure_rows, scorer, table, manifest.label))
            for version, scorer in zip(versions, scorers, strict=True)
        ]
        return measured, table.num_rows


def measure_rows(model: OnnxModel, table: pa.Table, label: Field) -> dict[str, float]:
    """Metrics of a model on a table with its inputs and labels without NULL. Blocks: call it in a thread."""
    if not table.num_rows:
        return {}
    signature: Signature = model.signature
    of = "the dataset"
    features = columns(select(table, signature.inputs, of), signature.inputs)
    labels = columns(select(table, [label], of), [label])[label.name]
    return measure(signature, score_rows(model, features), labels)


def _check_fits(version: ModelVersion, manifest: DatasetManifest) -> None:
    features = {f.name: f.type for f in manifest.features}
    for field in version.signature.inputs:
        if features.get(field.name) is not field.type:
            raise FailedPrecondition(f"the dataset has no {field.type.value} {field.name}, which {version.ref} takes")
    label = version.signature.label
    if (label.name, label.type) != (manifest.label.name, manifest.label.type):
        raise FailedPrecondition(f"the dataset's label is not {label.name}, which {version.ref} predicts")
