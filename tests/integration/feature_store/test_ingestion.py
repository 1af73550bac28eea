"""Reingestion: the log becomes feature groups, each entry once, whatever stops in between."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foresight.values import DataType, Field, InvalidValue, micros_from_instant
from services.feature_store.commits import CursorMove, StagedRows
from services.feature_store.groups import Reference
from services.feature_store.logs.ingestion import LogIngestion
from services.feature_store.logs.log_groups import (
    LoggedColumn,
    OutcomeEntry,
    PredictionEntry,
    prediction_rows,
    predictions_group,
)
from services.feature_store.metrics import FeatureStoreMetrics
from services.feature_store.online.leases import FileLease
from services.feature_store.tables.row_source import TableRows
from services.runtime.errors import Unavailable
from services.runtime.metrics import Metrics
from tests.conftest import MakeDatabase
from tests.integration.feature_store.rig import NOW, LogInMemory, Store, at, running_store, source

VIEW = Reference("judged", 1)


def logged(name: str, type: DataType, values: Sequence[Any]) -> LoggedColumn:
    """A logged column."""
    return LoggedColumn(Field(name, type), list(values))


def predictions(
    ids: Sequence[str], minutes: float = 1, *, deployment: str = "delays", **outputs: Any
) -> PredictionEntry:
    """One record: the wind is the prediction's position, NULL for the first."""
    n = len(ids)
    made = outputs or {"probability": (DataType.FLOAT64, [i / 4 for i in range(n)])}
    columns = [
        logged("place", DataType.STRING, ["a"] * n),
        logged("hour", DataType.INT64, range(n)),
        logged("wind", DataType.FLOAT64, [None if i == 0 else float(i) for i in range(n)]),
    ]
    return PredictionEntry(
        view=VIEW,
        prediction_ids=list(ids),
        deployment=deployment,
        model="delay",
        model_version=3,
        caller="spiffe://foresight/application/demo",
        event_time_us=micros_from_instant(at(minutes)),
        served_at_us=micros_from_instant(at(minutes + 1)),
        columns={column.field.name: column for column in columns},
        outputs={name: logged(name, *values) for name, values in made.items()},
    )


def outcome(
    prediction_id: str, minutes: float, value: Any = True, type: DataType = DataType.BOOL, view: Reference = VIEW
) -> OutcomeEntry:
    """An outcome observed at a time."""
    return OutcomeEntry(view, prediction_id, micros_from_instant(at(minutes)), logged("late", type, [value]))


async def define(store: Store) -> None:
    """The view behind the predictions."""
    await store.group("weather", [Field("place", DataType.STRING)], [Field("wind", DataType.FLOAT64)])
    await store.view("judged", source("weather", "wind"), request_features=(Field("hour", DataType.INT64),))


async def take_all(store: Store, log: LogInMemory) -> None:
    """Pulls until the log's end."""
    while await store.ingestion.pull(log):
        pass


async def test_predictions_and_outcomes_become_rows(store: Store, log: LogInMemory) -> None:
    """With where they came from, keys, features as the model got them, and outputs; strict in event time."""
    await define(store)
    log.entries = [predictions(["p0", "p1"]), outcome("p1", 30)]
    await take_all(store, log)
    rows = await store.read("log_predictions_judged_v1")
    assert [row.pop("prediction_id") for row in rows] == ["p0", "p1"]
    assert {name: rows[1][name] for name in rows[1] if name not in ("commit", "known_at")} == {
        "event_time": at(1),
        "log_deployment": "delays",
        "log_model": "delay",
        "log_model_version": 3,
        "log_caller": "spiffe://foresight/application/demo",
        "log_served_at": at(2),
        "log_arm": "",
        "log_arm_probability": 1.0,
        "log_arm_forced": False,
        "log_shadow": False,
        "log_degraded": False,
        "place": "a",
        "wind": 1.0,
        "hour": 1,
        "prediction_probability": 0.25,
        "deleted": False,
    }
    assert rows[0]["wind"] is None
    (observed,) = await store.read("log_outcomes_judged_v1")
    assert (observed["prediction_id"], observed["event_time"], observed["late"]) == ("p1", at(30), True)
    stored = await store.registry.group(Reference("log_predictions_judged_v1"))
    assert stored.group.strict_event_time
    assert stored.group.derived
    status = await store.ingestion.status()
    assert (status.cursor, status.head, status.predictions, status.outcomes) == (2, 2, 2, 1)


async def test_rows_say_which_arm_made_them(store: Store, log: LogInMemory) -> None:
    await define(store)
    made = predictions(["p0"])
    log.entries = [
        made,
        replace(made, prediction_ids=["p1"], arm="champion", arm_probability=0.9),
        replace(made, prediction_ids=["p2"], arm="off", arm_probability=0.0, arm_forced=True),
        replace(made, prediction_ids=["p3"], arm="next", arm_probability=0.0, shadow=True),
    ]
    await take_all(store, log)
    rows = await store.read("log_predictions_judged_v1")
    names = ("log_arm", "log_arm_probability", "log_arm_forced", "log_shadow")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("", 1.0, False, False),
        ("champion", 0.9, False, False),
        ("off", 0.0, True, False),
        ("next", 0.0, False, True),
    ]


async def test_a_group_from_before_there_were_arms_gets_the_columns(store: Store, log: LogInMemory) -> None:
    """Rows that it has read as what they were: of deployments with one arm, and of no shadow."""
    await define(store)
    view, entry = await store.registry.view(VIEW), predictions(["old"])
    group = predictions_group(view, [entry], None)
    features = tuple(f for f in group.features if f.name not in group.defaults)
    before = await store.registry.derived_group(replace(group, features=features, defaults={}))
    staged = StagedRows(before, TableRows(prediction_rows(before.group, [entry])))
    await store.commits.reingest([staged], CursorMove(0, 1, 1, 0))
    log.entries = [entry, replace(entry, prediction_ids=["new"], arm="next", arm_probability=0.0, shadow=True)]
    await take_all(store, log)
    rows = {row["prediction_id"]: row for row in await store.read("log_predictions_judged_v1")}
    names = ("log_arm", "log_arm_probability", "log_arm_forced", "log_shadow")
    assert [rows["old"][name] for name in names] == ["", 1.0, False, False]
    assert [rows["new"][name] for name in names] == ["next", 0.0, False, True]


async def test_log_rows_stay_out_of_the_online_store(store: Store, log: LogInMemory) -> None:
    """The applied commit passes over them."""
    await define(store)
    log.entries = [predictions(["p0"])]
    await take_all(store, log)
    await store.applier.applied(await store.commits.last(), 10)
    with pytest.raises(InvalidValue, match="reingestion only"):
        await store.write("log_predictions_judged_v1", [{"prediction_id": "x", "event_time": at(1)}])


async def test_a_crash_between_pages_repeats_and_loses_nothing(
    postgres_url: MakeDatabase, folder: Path, log: LogInMemory
) -> None:
    """Rows and cursor move together: the next process goes on where the last one committed."""
    settings = postgres_url("feature_store")
    log.entries = [predictions([f"p{i}-{j}" for j in range(3)]) for i in range(1_200)]
    async with running_store(settings, folder, log=log) as store:
        await define(store)
        assert await store.ingestion.pull(log)
        running = asyncio.create_task(store.ingestion.run())
        async with asyncio.timeout(20):
            while (await store.ingestion.status()).cursor < 1_000:
                await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
    async with running_store(settings, folder, log=log) as store:
        await take_all(store, log)
        rows = await store.read("log_predictions_judged_v1")
        assert sorted(row["prediction_id"] for row in rows) == sorted(
            f"p{i}-{j}" for i in range(1_200) for j in range(3)
        )


async def test_two_stores_on_one_database_take_each_page_once(
    postgres_url: MakeDatabase, folder: Path, log: LogInMemory
) -> None:
    """Whoever is slower finds the cursor moved and writes nothing."""
    settings = postgres_url("feature_store")
    log.entries = [predictions([f"p{i}"]) for i in range(2_000)]
    async with (
        running_store(settings, folder / "one", log=log) as one,
        running_store(settings, folder / "two", log=log) as two,
    ):
        await define(one)
        tasks = [asyncio.create_task(each.ingestion.run()) for each in (one, two)]
        async with asyncio.timeout(30):
            while (await one.ingestion.status()).cursor < 2_000:
                await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        ids = [row["prediction_id"] for row in await one.read("log_predictions_judged_v1")]
        assert len(ids) == len(set(ids)) == 2_000
        assert (await one.ingestion.status()).predictions == 2_000


async def test_one_of_several_processes_follows_the_log_and_another_goes_on_when_it_ends(
    store: Store, log: LogInMemory
) -> None:
    """The other one knows how far the log goes meanwhile, and counts nothing that it did not take."""
    await define(store)
    log.entries = [predictions(["p0"])]
    lock = store.folder / "reingestion.lock"
    several = [
        LogIngestion(store.registry, store.commits, log, lambda: NOW, own, store.applier.pass_over, FileLease(lock))
        for own in (FeatureStoreMetrics(Metrics("one").registry), FeatureStoreMetrics(Metrics("other").registry))
    ]
    running = []
    async with asyncio.timeout(30):
        for number, each in enumerate(several):
            running.append(asyncio.create_task(each.run()))
            while (await each.status()).last_pull_at is None or (await each.status()).predictions < 1:
                await asyncio.sleep(0.01)
            log.entries += [predictions([f"q{number}"])] * number
        running[0].cancel()
        await asyncio.wait(running[:1])
        while (await several[1].status()).predictions < 2:
            await asyncio.sleep(0.01)
    running[1].cancel()
    await asyncio.wait(running)
    ids = [row["prediction_id"] for row in await store.read("log_predictions_judged_v1")]
    assert ids == ["p0", "q1"]


async def test_the_log_is_followed_again_after_it_was_away(store: Store, log: LogInMemory) -> None:
    """With a backoff in between; the lag is 0 once caught up."""
    await define(store)
    log.away = True
    with pytest.raises(Unavailable):
        await store.ingestion.pull(log)
    running = asyncio.create_task(store.ingestion.run())
    await asyncio.sleep(0)
    log.entries = [predictions(["p0"])]
    log.away = False
    async with asyncio.timeout(10):
        while (await store.ingestion.status()).predictions < 1:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])
    assert store.metrics.registry.get_sample_value("foresight_feature_store_reingestion_lag_seconds") == 0
    assert store.metrics.registry.get_sample_value("foresight_feature_store_reingested_predictions_total") == 1


async def test_lag_is_the_age_of_what_was_taken_last_while_there_is_more(store: Store, log: LogInMemory) -> None:
    """By the store's clock."""
    await define(store)
    log.entries = [predictions([f"p{i}"], 1) for i in range(501)]
    store.clock[0] = at(2.5)
    assert await store.ingestion.pull(log)
    assert store.metrics.registry.get_sample_value("foresight_feature_store_reingestion_lag_seconds") == 30.0


async def test_another_model_may_have_other_outputs(store: Store, log: LogInMemory) -> None:
    """New outputs widen the group; one of the same name and another type gets a column of its own."""
    await define(store)
    log.entries = [predictions(["p0"])]
    await take_all(store, log)
    log.entries.append(
        predictions(
            ["p1"], probability=(DataType.STRING, ["high"]), score=(DataType.INT64, [7]), id=(DataType.INT64, [1])
        )
    )
    await take_all(store, log)
    rows = {row["prediction_id"]: row for row in await store.read("log_predictions_judged_v1")}
    assert (rows["p0"]["prediction_probability"], rows["p0"]["prediction_score"]) == (0.0, None)
    assert (rows["p1"]["prediction_probability"], rows["p1"]["prediction_probability_string"]) == (None, "high")
    assert (rows["p1"]["prediction_score"], rows["p1"]["prediction_id_int64"]) == (7, 1)


async def test_strange_entries_do_not_stop_the_log(store: Store, log: LogInMemory) -> None:
    """An unknown view and a label of another type are skipped and counted; exact numbers stand for bools."""
    await define(store)
    log.entries = [
        outcome("p9", 1, view=Reference("unknown", 4)),
        predictions(["p0"]),
        outcome("p0", 2, "yes", DataType.STRING),
        outcome("p0", 3, 1, DataType.INT64),
    ]
    await take_all(store, log)
    (observed,) = await store.read("log_outcomes_judged_v1")
    assert (observed["late"], observed["event_time"]) == (True, at(3))
    assert store.metrics.registry.get_sample_value("foresight_feature_store_reingestion_skipped_total") == 2
    assert (await store.ingestion.status()).cursor == 4


async def test_a_correction_at_the_same_instant_comes_in_a_later_commit(store: Store, log: LogInMemory) -> None:
    """Rows of one commit never share key and event time."""
    await define(store)
    log.entries = [predictions(["p0"]), outcome("p0", 5, True), outcome("p0", 5, False)]
    await take_all(store, log)
    rows = await store.read("log_outcomes_judged_v1")
    assert [row["late"] for row in rows] == [True, False]
    assert rows[0]["commit"] < rows[1]["commit"]
    assert [row["late"] for row in await store.read("log_outcomes_judged_v1", latest_only=True)] == [False]
