"""Training: from datasets and a pipeline's specification to a registered version.

Trainings take turns. Nothing is registered, and no artifact named by a version, unless everything before succeeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import structlog

from foresight.scoring import OnnxModel, takes
from foresight.values import Field
from services.runtime.errors import FailedPrecondition, LimitExceeded
from services.runtime.threads import in_thread
from services.trainer.artifacts import ArtifactStore
from services.trainer.evaluation import measure_rows
from services.trainer.executor import Executor
from services.trainer.feature_store import DatasetManifest, FeatureStore
from services.trainer.metrics import TrainerMetrics
from services.trainer.models import DatasetSelection, Lineage, ModelVersion, NewVersion, Quality
from services.trainer.progress import Progress, Report
from services.trainer.registry import Registry
from services.trainer.rows import labelled, select
from services.trainer.specification import Estimator, columns_used, to_json
from services.trainer.tasks import FitResult, FitTask
from services.trainer.turns import Turns

log = structlog.get_logger()

WAITING_MAX = 4
TRAINING_BYTES_MAX = 2 << 30


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What to train."""

    model: str
    description: str
    train: tuple[DatasetSelection, ...]
    test: tuple[DatasetSelection, ...]
    pipeline: Estimator


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The rows of a training: only inputs and label, labels known."""

    manifest: DatasetManifest
    inputs: tuple[Field, ...]
    train: pa.Table
    test: pa.Table


class Training:
    """Trains models, one at a time; up to WAITING_MAX more wait."""

    def __init__(
        self,
        registry: Registry,
        artifacts: ArtifactStore,
        executor: Executor,
        feature_store: FeatureStore,
        metrics: TrainerMetrics,
    ) -> None:
        self._registry = registry
        self._artifacts = artifacts
        self._executor = executor
        self._feature_store = feature_store
        self._metrics = metrics
        self._turns = Turns("trainings", at_once=1, waiting_max=WAITING_MAX)

    async def train(self, job: TrainingJob, report: Report) -> ModelVersion:
        """Reads, fits, converts, evaluates, registers.

        Raises InvalidValue for the pipeline, FailedPrecondition for rows and label, LimitExceeded when too many
        trainings wait or the rows are too many, Unavailable when worker or feature store fail.
        """
        with self._metrics.training():
            async with self._turns.turn():
                await self._executor.check(job.pipeline)
                report(Progress("reading"))
                rows = await self._read(job, report)
                report(Progress("fitting", rows.train.num_rows))
                task = FitTask(job.pipeline, rows.inputs, rows.manifest.label, rows.train)
                fitted = await self._executor.fit(task, lambda stage: report(Progress(stage, rows.train.num_rows)))
                report(Progress("evaluating", rows.test.num_rows))
                metrics = await in_thread(_evaluate, fitted, rows.test, rows.manifest.label)
                report(Progress("registering"))
                version = await self._register(job, rows, fitted, metrics)
        log.info(
            "model_registered",
            model=version.ref.name,
            version=version.ref.version,
            train_rows=rows.train.num_rows,
            warnings=fitted.warnings,
        )
        return version

    async def _read(self, job: TrainingJob, report: Report) -> _Rows:
        chosen = (*job.train, *job.test)
        manifests = [await self._feature_store.manifest(selection.dataset_id) for selection in chosen]
        first = manifests[0]
        for manifest in manifests:
            if manifest.view != first.view:
                raise FailedPrecondition(f"the datasets are of different views: {first.view} and {manifest.view}")
        inputs = _inputs(first.features, job.pipeline)
        wanted = (*inputs, first.label)
        tables: list[pa.Table] = []
        rows = size = 0
        for selection in chosen:
            table = await self._feature_store.dataset(selection.dataset_id, selection.split)
            table = select(table, wanted, "the dataset")
            tables.append(labelled(table, first.label))
            rows += table.num_rows
            size += table.nbytes
            if size > TRAINING_BYTES_MAX:
                raise LimitExceeded(f"the rows take more than {TRAINING_BYTES_MAX} bytes", limit="bytes")
            report(Progress("reading", rows))
        train = pa.concat_tables(tables[: len(job.train)])
        if not train.num_rows:
            raise FailedPrecondition(
                "there are no rows with a label to train on, or all of them are held out for the test"
            )
        test = pa.concat_tables(tables[len(job.train) :]) if job.test else train.slice(0, 0)
        return _Rows(first, inputs, train, test)

    async def _register(
        self, job: TrainingJob, rows: _Rows, fitted: FitResult, metrics: dict[str, float]
    ) -> ModelVersion:
        pipeline = to_json(job.pipeline)
        new = NewVersion(
            model=job.model,
            description=job.description,
            view=rows.manifest.view,
            signature=fitted.signature,
            artifact_sha256=await self._artifacts.put(fitted.artifact),
            artifact_bytes=len(fitted.artifact),
            lineage=Lineage(job.train, job.test, pipeline, fitted.sklearn_version),
            quality=Quality(
                train_rows=rows.train.num_rows,
                metrics=metrics,
                parity_max_difference=fitted.parity_max_difference,
                parity_rows=fitted.parity_rows,
                batch_invariant=fitted.batch_invariant,
            ),
        )
        return await self._registry.register(new)


def _inputs(features: Sequence[Field], pipeline: Estimator) -> tuple[Field, ...]:
    """The features that the model gets, in the view's order: those the pipeline names, or all that models take."""
    used = columns_used(pipeline)
    if used is None:
        inputs = tuple(f for f in features if takes(f))
    else:
        known = {f.name: f for f in features}
        for name in used:
            if name not in known:
                raise FailedPrecondition(f"the pipeline takes {name[:63]!a}, which is no feature of the view")
            if not takes(known[name]):
                raise FailedPrecondition(f"the feature {name} is {known[name].type.value}, which no model takes")
        inputs = tuple(f for f in features if f.name in set(used))
    if not inputs:
        raise FailedPrecondition("there is no feature that the model could take")
    return inputs


def _evaluate(fitted: FitResult, test: pa.Table, label: Field) -> dict[str, float]:
    model = OnnxModel(fitted.artifact, fitted.signature, batch_invariant=fitted.batch_invariant)
    return measure_rows(model, test, label)
