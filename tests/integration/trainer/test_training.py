"""From datasets to registered versions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from foresight.scoring import ModelTask, OnnxModel
from foresight.values import Column, DataType, InvalidValue
from services.runtime.errors import DataLoss, FailedPrecondition, NotFound
from services.trainer.models import DatasetSelection, VersionRef
from services.trainer.training import TrainingJob
from tests.integration.trainer.rig import BLIND, TREES, Trainer, flights
from tests.unit.trainer.specifications import by_column, pipeline, spec


async def test_a_training_becomes_a_version_with_signature_metrics_and_lineage(trainer: Trainer) -> None:
    version = await trainer.train("late")
    assert version.ref == VersionRef("late", 1)
    assert version.view == VersionRef("delays", 1)
    assert [f.name for f in version.signature.inputs] == ["wind", "sky", "distance"]
    assert version.signature.task is ModelTask.BINARY_CLASSIFICATION
    assert version.signature.classes is not None
    assert version.signature.classes.to_list() == [False, True]
    assert version.lineage.train == (DatasetSelection("jan", "train"),)
    assert version.lineage.sklearn_version
    labels = trainer.store.tables["jan"]["late"].slice(0, 300)
    assert version.quality.train_rows == 300 - labels.null_count
    assert set(version.quality.metrics) == {"roc_auc", "log_loss", "brier", "accuracy"}
    assert version.quality.metrics["roc_auc"] > 0.9
    assert 0 <= version.quality.parity_max_difference <= 1e-4
    stages = list(dict.fromkeys(p.stage for p in trainer.progress))
    assert stages == ["reading", "fitting", "converting", "evaluating", "registering"]
    read = await trainer.registry.version(VersionRef("late"))
    assert (read.ref, read.artifact_sha256) == (version.ref, version.artifact_sha256)


async def test_the_artifact_scores_rows_with_missing_values_and_new_texts(trainer: Trainer) -> None:
    version = await trainer.train("late")
    model = OnnxModel(await trainer.artifacts.get(version.artifact_sha256), version.signature)
    features = {
        "wind": Column.build("wind", DataType.FLOAT64, [60.0, None]),
        "sky": Column.build("sky", DataType.STRING, ["grey", "never seen"]),
        "distance": Column.build("distance", DataType.FLOAT64, [500.0, None]),
    }
    probability, label = model.score(features)
    assert label.python(0) is True
    assert np.isfinite(probability.values).all()


async def test_evaluating_the_test_rows_gives_the_metrics_of_the_registration(trainer: Trainer) -> None:
    version = await trainer.train("late")
    measured, rows = await trainer.evaluation.evaluate([version.ref], DatasetSelection("jan", "test"))
    assert measured[0].metrics == pytest.approx(version.quality.metrics)
    assert rows == 100 - trainer.store.tables["jan"]["late"].slice(300).null_count


async def test_repeating_a_training_answers_the_same_version(trainer: Trainer) -> None:
    first = await trainer.train("late")
    assert (await trainer.train("late")).ref == first.ref
    second = await trainer.train("late", BLIND)
    assert second.ref.version == 2
    # The same content as version 1, which is not the latest any more.
    assert (await trainer.train("late")).ref.version == 3
    assert [v.ref.version for v in await trainer.registry.versions("late")] == [3, 2, 1]


async def test_datasets_are_put_one_after_the_other(trainer: Trainer) -> None:
    trainer.store.add("feb", flights(2))
    job = TrainingJob("late", "two months", (DatasetSelection("jan"), DatasetSelection("feb", "train")), (), TREES)
    version = await trainer.training.train(job, trainer.progress.append)
    known = sum(t.num_rows - t["late"].null_count for t in (flights(1), flights(2).slice(0, 300)))
    assert version.quality.train_rows == known
    assert version.quality.metrics == {}
    assert version.description == "two months"


async def test_datasets_of_different_views_are_refused(trainer: Trainer) -> None:
    trainer.store.add("other", flights(2), VersionRef("delays", 2))
    job = TrainingJob("late", "", (DatasetSelection("jan"), DatasetSelection("other")), (), TREES)
    with pytest.raises(FailedPrecondition, match="different views"):
        await trainer.training.train(job, trainer.progress.append)


@pytest.mark.parametrize("label", [None, True])
async def test_no_known_label_and_a_single_class_are_refused(trainer: Trainer, label: bool | None) -> None:
    table = trainer.store.tables["jan"]
    same = pa.array([label] * table.num_rows, pa.bool_())
    trainer.store.add("jan", table.set_column(table.column_names.index("late"), "late", same))
    with pytest.raises(FailedPrecondition, match=r"no rows|same label"):
        await trainer.train("late")
    assert await trainer.registry.versions() == []


@pytest.mark.parametrize(
    ("column", "says"), [("nowhere", "no feature of the view"), ("seen_at", "no model takes"), ("origin", "no feature")]
)
async def test_columns_that_no_model_can_take_are_refused(trainer: Trainer, column: str, says: str) -> None:
    bad = pipeline(
        ("prepare", by_column(("n", "passthrough", [column]))), ("model", spec("linear_model.LogisticRegression"))
    )
    with pytest.raises(FailedPrecondition, match=says):
        await trainer.train("late", bad)


async def test_an_unknown_parameter_is_refused_before_data_is_read(trainer: Trainer) -> None:
    with pytest.raises(InvalidValue, match="no such parameter"):
        await trainer.train("late", spec("linear_model.LogisticRegression", shape=1), dataset="nowhere")


async def test_an_unknown_dataset_is_not_found(trainer: Trainer) -> None:
    with pytest.raises(NotFound, match="training dataset nowhere"):
        await trainer.train("late", dataset="nowhere")


async def test_a_dataset_without_what_a_model_takes_cannot_measure_it(trainer: Trainer) -> None:
    version = await trainer.train("late")
    trainer.store.add("thin", flights(2).drop_columns(["wind"]))
    with pytest.raises(FailedPrecondition, match="no wind"):
        await trainer.evaluation.evaluate([version.ref], DatasetSelection("thin"))


async def test_a_damaged_artifact_is_data_loss(trainer: Trainer) -> None:
    version = await trainer.train("late")
    damaged = dataclasses.replace(version, artifact_sha256="0" * 64)
    with pytest.raises(NotFound):
        await trainer.evaluation.measure([damaged], DatasetSelection("jan"))
    path = next(p for p in trainer.artifacts._folder.rglob("*.onnx"))
    path.write_bytes(b"not it")
    with pytest.raises(DataLoss):
        await trainer.evaluation.evaluate([version.ref], DatasetSelection("jan"))


async def test_trainings_are_counted_by_outcome(trainer: Trainer) -> None:
    await trainer.train("late")
    with pytest.raises(NotFound):
        await trainer.train("late", dataset="nowhere")
    sample = trainer.metrics.registry.get_sample_value
    assert sample("foresight_trainer_trainings_total", {"outcome": "registered"}) == 1
    assert sample("foresight_trainer_trainings_total", {"outcome": "refused"}) == 1
    assert sample("foresight_trainer_training_duration_seconds_count") == 1


async def test_text_of_another_arrow_type_is_read_as_text(trainer: Trainer) -> None:
    table = trainer.store.tables["jan"]
    large = pc.cast(table["sky"], pa.large_string())
    trainer.store.add("jan", table.set_column(table.column_names.index("sky"), "sky", large))
    assert (await trainer.train("late")).ref.version == 1
