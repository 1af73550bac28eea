"""Batch predictions into a real sink."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sqlalchemy import text

from services.runtime.errors import AlreadyExists, FailedPrecondition, NotFound
from services.trainer.batch import BatchJob
from services.trainer.models import DatasetSelection, VersionRef
from services.trainer.progress import Progress
from services.trainer.specification import Value
from tests.integration.trainer.rig import NOW, Trainer, schedule
from tests.unit.trainer.specifications import by_column, pipeline, spec

JOB = BatchJob(
    deployment="delays",
    group=VersionRef("schedule"),
    start=NOW,
    end=NOW + timedelta(days=1),
    event_time=NOW - timedelta(hours=6),
    sink_table="tomorrow",
    run_id="2026-03-01",
)


async def _deploy(trainer: Trainer, rows: int = 10) -> None:
    await trainer.train("late")
    await trainer.registry.set_deployment("delays", VersionRef("late"))
    trainer.store.schedule = schedule(rows)


async def _sink(trainer: Trainer, question: str = "SELECT * FROM tomorrow ORDER BY scheduled_for") -> list[Any]:
    async with trainer.sink_database.transaction() as connection:
        return [dict(row) for row in (await connection.execute(text(question))).mappings()]


async def test_rows_are_scored_into_a_table_made_for_them(trainer: Trainer) -> None:
    await _deploy(trainer)
    progress: list[Progress] = []
    run = await trainer.batch.run(JOB, progress.append)
    assert (run.rows, run.model, run.event_time) == (10, VersionRef("late", 1), JOB.event_time)
    assert [p.stage for p in progress] == ["reading", "scoring", "writing"]
    rows = await _sink(trainer)
    assert len(rows) == 10
    assert list(rows[0]) == [
        *("run_id", "as_of", "scored_at", "model", "model_version", "flight", "origin", "hour", "distance", "codes"),
        *("scheduled_for", "prediction_probability", "prediction_label"),
    ]
    assert rows[1]["flight"] == "F1"
    assert rows[1]["codes"] == [1.0, 2.0]
    assert rows[1]["as_of"] == JOB.event_time
    assert rows[1]["scheduled_for"] == NOW + timedelta(minutes=1)
    # A storm at JFK; nothing is known of LGA.
    assert rows[1]["prediction_label"] is True
    assert rows[1]["prediction_probability"] > 0.9
    assert 0 < rows[0]["prediction_probability"] < 1
    assert trainer.metrics.registry.get_sample_value("foresight_trainer_batch_rows_total") == 10


async def test_the_same_run_again_answers_the_first_and_writes_nothing(trainer: Trainer) -> None:
    await _deploy(trainer)
    first = await trainer.batch.run(JOB, lambda _: None)
    trainer.store.schedule = schedule(3)
    assert await trainer.batch.run(JOB, lambda _: None) == first
    assert len(await _sink(trainer)) == 10
    with pytest.raises(AlreadyExists):
        await trainer.batch.run(dataclasses.replace(JOB, event_time=NOW), lambda _: None)
    assert await trainer.batch.runs() == [first]


async def test_a_run_that_was_written_and_not_recorded_is_replaced_by_its_repetition(trainer: Trainer) -> None:
    await _deploy(trainer)
    await trainer.batch.run(JOB, lambda _: None)
    async with trainer.database.transaction() as connection:
        await connection.execute(text("DELETE FROM batch_runs"))
    trainer.store.schedule = schedule(3)
    assert (await trainer.batch.run(JOB, lambda _: None)).rows == 3
    assert len(await _sink(trainer)) == 3


async def test_runs_share_a_table_and_are_listed_newest_first(trainer: Trainer) -> None:
    await _deploy(trainer)
    await trainer.batch.run(JOB, lambda _: None)
    without_id = await trainer.batch.run(dataclasses.replace(JOB, run_id=""), lambda _: None)
    assert without_id.run_id
    counts = await _sink(trainer, "SELECT run_id, count(*) AS n FROM tomorrow GROUP BY run_id")
    assert {row["run_id"]: row["n"] for row in counts} == {JOB.run_id: 10, without_id.run_id: 10}
    assert {run.run_id for run in await trainer.batch.runs()} == {JOB.run_id, without_id.run_id}


async def test_no_rows_are_a_finished_run(trainer: Trainer) -> None:
    await _deploy(trainer, rows=0)
    run = await trainer.batch.run(JOB, lambda _: None)
    assert run.rows == 0
    assert await _sink(trainer) == []


async def test_a_table_with_other_columns_is_refused_and_left_alone(trainer: Trainer) -> None:
    await _deploy(trainer)
    await trainer.batch.run(JOB, lambda _: None)
    trainer.store.schedule = schedule(10).drop_columns(["codes"])
    with pytest.raises(FailedPrecondition, match="other columns than this run writes: codes"):
        await trainer.batch.run(dataclasses.replace(JOB, run_id="other"), lambda _: None)
    assert len(await _sink(trainer)) == 10


async def test_a_group_without_what_the_view_needs_is_refused(trainer: Trainer) -> None:
    await _deploy(trainer)
    trainer.store.schedule = schedule(10).drop_columns(["hour"])
    with pytest.raises(FailedPrecondition, match="the group schedule has no hour"):
        await trainer.batch.run(JOB, lambda _: None)
    with pytest.raises(NotFound):
        await trainer.batch.run(dataclasses.replace(JOB, deployment="nowhere"), lambda _: None)


async def test_a_score_that_the_model_cannot_give_is_null(trainer: Trainer) -> None:
    """A linear model was trained without NULL and gets one: its NaN is not written as a number."""
    table = trainer.store.tables["jan"]
    trainer.store.add("jan", table.filter(table["wind"].is_valid()))
    linear = pipeline(
        ("prepare", by_column(("numbers", "passthrough", ["wind"]))),
        ("model", spec("linear_model.LogisticRegression")),
    )
    await trainer.train("late", linear)
    await trainer.registry.set_deployment("delays", VersionRef("late"))
    trainer.store.schedule = schedule(4)
    await trainer.batch.run(JOB, lambda _: None)
    rows = await _sink(trainer)
    for output in ("prediction_probability", "prediction_label"):
        assert [row[output] is None for row in rows] == [True, False, True, False]


@pytest.mark.parametrize(
    ("step", "trained_on", "reason"),
    [
        (("numbers", "passthrough", ["hour"]), ["clear", "grey"], "hour: holds an integer beyond"),
        (("texts", spec("preprocessing.OneHotEncoder"), ["sky"]), ["clear"], "a value that it refuses"),
    ],
    ids=["too many digits", "unknown category"],
)
async def test_a_stored_value_that_the_model_refuses_is_a_failed_precondition(
    trainer: Trainer, step: tuple[str, Value, list[str]], trained_on: list[str], reason: str
) -> None:
    """It is no fault of the caller's, and no bug."""
    table = trainer.store.tables["jan"]
    trainer.store.add("jan", table.filter(pc.is_in(table["sky"], pa.array(trained_on))))
    model = ("model", spec("tree.DecisionTreeClassifier"))
    await trainer.train("late", pipeline(("prepare", by_column(step)), model))
    await trainer.registry.set_deployment("delays", VersionRef("late"))
    rows = schedule(4)
    huge = pa.array([2**60] * 4, pa.int64())
    trainer.store.schedule = rows.set_column(rows.column_names.index("hour"), "hour", huge)
    with pytest.raises(FailedPrecondition, match=reason):
        await trainer.batch.run(JOB, lambda _: None)
    trainer.store.add("feb", table.set_column(table.column_names.index("hour"), "hour", pa.array([2**60] * len(table))))
    with pytest.raises(FailedPrecondition, match=reason):
        await trainer.evaluation.evaluate([VersionRef("late")], DatasetSelection("feb"))


def test_a_run_is_the_same_only_with_the_same_content() -> None:
    later: datetime = NOW + timedelta(days=2)
    others = [
        dataclasses.replace(JOB, end=later),
        dataclasses.replace(JOB, group=VersionRef("schedule", 1)),
        dataclasses.replace(JOB, sink_table="other"),
    ]
    assert len({JOB.content_sha256, *(o.content_sha256 for o in others)}) == 4
    assert dataclasses.replace(JOB, run_id="x").content_sha256 == JOB.content_sha256
