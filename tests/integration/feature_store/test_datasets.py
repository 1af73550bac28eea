"""Training datasets: joined as of each row, stored by content, the same whenever they are made again."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from foresight.transforms import source_sha256
from foresight.values import Column, DataType, Field, InvalidValue, MissingPolicy, Transform, ViewFeature, ViewSource
from services.feature_store.datasets.manifests import DatasetRequest, LoggedSelection, Manifest
from services.feature_store.datasets.splits import TimeSplit
from services.feature_store.groups import Reference
from services.runtime.errors import DataLoss, FailedPrecondition, NotFound, OutOfRange, TransformMismatch
from tests.conftest import MakeDatabase
from tests.integration.feature_store import test_ingestion as logs
from tests.integration.feature_store.rig import UTC_MICROS, LogInMemory, Store, at, running_store, source, state_folder

MODULE = __name__


def doubled(wind: Any, hour: Any) -> Any:
    """A transform: NaN where the wind is unknown."""
    return wind * 2 + hour


def broken(wind: Any) -> Any:
    """A transform that fails."""
    raise LookupError("nothing in /srv/secret")


def transform(function: Any, *inputs: str) -> Transform:
    """An on-demand transform of this module."""
    name = function.__name__
    return Transform(Field(name, DataType.FLOAT64), f"{MODULE}:{name}", source_sha256(function), inputs)


async def define(store: Store, *transforms: Transform) -> None:
    """A group with a correction, and a view with a default, a request feature and transforms."""
    await store.group(
        "weather", [Field("place", DataType.STRING)], [Field("wind", DataType.FLOAT64), Field("rain", DataType.INT64)]
    )
    default = Column.build("rain", DataType.INT64, [-1])
    features = (
        ViewFeature("wind", missing=MissingPolicy.FAIL),
        ViewFeature("rain", "", MissingPolicy.DEFAULT, default),
    )
    await store.view(
        "judged",
        ViewSource("weather", features, max_age=timedelta(minutes=60)),
        request_features=(Field("hour", DataType.INT64),),
        transforms=transforms,
    )
    await store.write(
        "weather", [{"place": p, "event_time": at(m), "wind": m, "rain": None} for p in "ab" for m in (0.0, 30.0)]
    )
    await store.write("weather", [{"place": "a", "event_time": at(30), "wind": 5.0, "rain": 3}])


def spine(rows: list[tuple[str | None, float, bool | None]]) -> pa.Table:
    """(place, minutes, label) with a pass-through column and the hour."""
    return pa.table(
        {
            "flight": [f"f{i}" for i in range(len(rows))],
            "place": pa.array([row[0] for row in rows], pa.string()),
            "hour": pa.array(range(len(rows)), pa.int32()),
            "event_time": pa.array([at(row[1]) for row in rows], UTC_MICROS),
            "late": pa.array([row[2] for row in rows], pa.bool_()),
        }
    )


SPINE = spine([("a", 40, True), ("b", 40, False), ("a", 10, True), (None, 40, True), ("a", 40, True), ("b", 91, False)])


def request(name: str = "first", **options: Any) -> DatasetRequest:
    """A request for the view."""
    return DatasetRequest(name, Reference("judged"), **options)


async def test_rows_follow_the_spine_and_are_read_by_split(store: Store) -> None:
    """Spine columns, then features in the view's order, label and split; defaults filled, FAIL left NULL."""
    await define(store)
    manifest = await store.create(request(split=TimeSplit(at(40))), SPINE)
    rows = (await store.read_dataset(manifest.id)).to_pylist()
    assert list(rows[0]) == ["flight", "place", "event_time", "wind", "rain", "hour", "late", "split"]
    assert [(row["flight"], row["wind"], row["rain"], row["hour"], row["split"]) for row in rows] == [
        ("f0", 5.0, 3, 0, "test"),
        ("f1", 30.0, -1, 1, "test"),
        ("f2", 0.0, -1, 2, "train"),
        ("f3", None, -1, 3, "test"),
        ("f4", 5.0, 3, 4, "test"),
        ("f5", None, -1, 5, "test"),
    ]
    assert (await store.read_dataset(manifest.id, "train")).num_rows == 1
    assert manifest.splits == (("train", 1), ("test", 5))
    assert (manifest.rows, manifest.commit, manifest.groups) == (6, 2, (Reference("weather", 1),))
    assert await store.datasets.get(manifest.id) == manifest


async def test_there_is_no_last_known_value_in_training(store: Store) -> None:
    """What is NULL, too old or not there reads the default where there is one, else NULL."""
    await define(store)
    default = Column.build("rain", DataType.INT64, [-1])
    age = timedelta(days=1)
    sources = [
        ViewSource("weather", (ViewFeature("rain", name, MissingPolicy.LAST_KNOWN, value, age),), timedelta(hours=1))
        for name, value in (("rain", default), ("plain_rain", None))
    ]
    await store.view("known", *sources)
    without_hour = SPINE.drop_columns(["hour"])
    manifest = await store.create(DatasetRequest("known", Reference("known")), without_hour)
    rows = (await store.read_dataset(manifest.id)).to_pylist()
    assert [row["rain"] for row in rows] == [3, -1, -1, -1, 3, -1]
    assert [row["plain_rain"] for row in rows] == [3, None, None, None, 3, None]


async def test_the_same_commit_gives_the_same_hash_after_corrections_and_a_restart(
    postgres_url: MakeDatabase,
) -> None:
    """In another state folder too, where nothing of it is stored."""
    settings = postgres_url("feature_store")
    made: list[Manifest] = []
    for _ in range(2):
        with state_folder() as folder:
            async with running_store(settings, folder) as store:
                if not made:
                    await define(store)
                made.append(await store.create(request(commit=2, known_by=True), SPINE))
                await store.write("weather", [{"place": "a", "event_time": at(30), "wind": 99.0}])
                made.append(await store.create(request(commit=2, known_by=True), SPINE.combine_chunks()))
                changed = await store.create(request(), SPINE)
                assert changed.content_sha256 != made[0].content_sha256
    assert len({manifest.content_sha256 for manifest in made}) == 1
    assert len({manifest.spine_sha256 for manifest in made}) == 1
    assert len({manifest.id for manifest in made}) == 4


async def test_transforms_run_on_what_was_joined(postgres_url: MakeDatabase) -> None:
    """The same function as online; one that fails, or that this process does not trust, says so."""
    settings = postgres_url("feature_store")
    with state_folder() as folder:
        async with running_store(settings, folder, modules=[MODULE]) as store:
            await define(store, transform(doubled, "wind", "hour"))
            table = await store.read_as_of("judged", SPINE)
            assert table["doubled"].to_pylist() == [10.0, 61.0, 2.0, None, 14.0, None]
            assert np.array_equal(table["flight"].to_pylist(), SPINE["flight"].to_pylist())
            await store.view("failing", source("weather", "wind"), transforms=(transform(broken, "wind"),))
            with pytest.raises(FailedPrecondition, match="failing failed") as caught:
                await store.read_as_of("failing", SPINE.drop_columns("hour"))
            # What a user's function raised may hold paths and data: it goes to the log, not to the caller.
            assert "secret" not in caught.value.message
            assert "Error" not in caught.value.message
        async with running_store(settings, folder) as store:
            with pytest.raises(TransformMismatch, match="not among the trusted"):
                await store.read_as_of("judged", SPINE)
            with pytest.raises(TransformMismatch):
                await store.view("other", source("weather", "wind"), transforms=(transform(broken, "wind"),))


async def test_a_wrong_spine_is_refused_with_every_fault(store: Store) -> None:
    """And so are selections that cannot be."""
    await define(store)
    wrong = SPINE.drop_columns("hour").append_column("wind", pa.array([1.0] * 6))
    wrong = wrong.set_column(3, "late", pa.array([True, None, None, True, True, True]))
    with pytest.raises(InvalidValue) as refused:
        await store.create(request(), wrong)
    faults = {v.field: v.description for v in refused.value.violations}
    assert faults == {
        "arrow.wind": "has the name of a feature that the view makes",
        "arrow.hour": "is missing",
        "arrow.late": "is NULL in 2 rows",
    }
    for table, pattern in (
        (SPINE.append_column("split", pa.array(["x"] * 6)), "split"),
        (SPINE.slice(0, 0), "no rows"),
        (SPINE.append_column("x", pa.array([{"a": 1}] * 6)), "do not carry"),
        (None, "spine"),
    ):
        with pytest.raises(InvalidValue, match=pattern):
            await store.create(request(), table)
    with pytest.raises(OutOfRange):
        await store.create(request(commit=3), SPINE)
    with pytest.raises(NotFound):
        await store.datasets.get("absent")
    assert (await store.read_as_of("judged", SPINE.slice(0, 0), known_by=True)).num_rows == 0


async def test_changed_or_missing_bytes_are_data_loss(store: Store) -> None:
    """Never handed out; making the dataset again, or one of the same content, repairs it."""
    await define(store)
    manifest = await store.create(request(), SPINE)
    path = store.folder / "datasets" / f"{manifest.content_sha256}.parquet"
    whole = path.read_bytes()
    for damaged in (whole[:200] + b"X" + whole[201:], whole[: len(whole) // 2], None):
        for repair in (store.create(request("again"), SPINE), store.datasets.recreate(manifest.id)):
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            with pytest.raises(DataLoss):
                await store.read_dataset(manifest.id)
            await repair
            assert (await store.read_dataset(manifest.id)).num_rows == 6


async def test_what_was_predicted_without_the_feature_store_is_no_training_row_unless_it_is_asked_for(
    store: Store, log: LogInMemory
) -> None:
    """Its features are what policies made up."""
    await logs.define(store)
    whole = logs.predictions(["a", "b"], 5)
    degraded = replace(whole, prediction_ids=["c", "d"], degraded=True)
    log.entries = [whole, degraded, *(logs.outcome(i, 20) for i in "abcd")]
    await logs.take_all(store, log)
    rows = await store.read("log_predictions_judged_v1")
    assert {row["prediction_id"] for row in rows if row["log_degraded"]} == {"c", "d"}
    selection = LoggedSelection(at(9), at(30))
    without = await store.create(request(logged=selection), None)
    assert (await store.read_dataset(without.id))["prediction_id"].to_pylist() == ["a", "b"]
    together = await store.create(request(logged=replace(selection, degraded=True)), None)
    assert (await store.read_dataset(together.id))["prediction_id"].to_pylist() == ["a", "b", "c", "d"]
    assert (await store.datasets.get(together.id)).logged == replace(selection, degraded=True)


async def test_what_shadows_predicted_is_no_training_row_unless_it_is_asked_for(store: Store, log: LogInMemory) -> None:
    """They have outcomes like the answers, and would count every question twice."""
    await logs.define(store)
    answered = logs.predictions(["a", "b"], 5)
    shadow = replace(answered, prediction_ids=["s", "t"], arm="next", arm_probability=0.0, shadow=True)
    log.entries = [answered, shadow, *(logs.outcome(i, 20) for i in ("a", "b", "s", "t"))]
    await logs.take_all(store, log)
    selection = LoggedSelection(at(9), at(30))
    without = await store.create(request(logged=selection), None)
    assert (await store.read_dataset(without.id))["prediction_id"].to_pylist() == ["a", "b"]
    together = await store.create(request(logged=replace(selection, shadows=True)), None)
    assert (await store.read_dataset(together.id))["prediction_id"].to_pylist() == ["a", "b", "s", "t"]
    found = await store.datasets.get(together.id)
    assert found.logged == replace(selection, shadows=True)


async def test_logged_predictions_with_the_outcomes_known_by_then(store: Store, log: LogInMemory) -> None:
    """Latest outcome observed by then; none: left out. In order of event time and id, of one deployment."""
    await logs.define(store)
    log.entries = [
        logs.predictions(["b1", "b0"], 5),
        logs.predictions(["a0", "a1"], 4),
        logs.predictions(["late"], 9),
        logs.predictions(["other"], 5, deployment="frozen"),
        *(logs.outcome(i, 20) for i in ("b1", "b0", "a0", "late", "other")),
        logs.outcome("a1", 31),
        logs.outcome("b0", 25, False),
        logs.outcome("b1", 31, False),
    ]
    selection = LoggedSelection(at(9), at(30), from_event_time=at(4), deployment="delays")
    with pytest.raises(FailedPrecondition, match="reingested"):
        await store.create(request(logged=selection), None)
    await logs.take_all(store, log)
    manifest = await store.create(request(logged=selection, split=TimeSplit(at(5))), None)
    table = await store.read_dataset(manifest.id)
    assert table.column_names == ["prediction_id", "place", "event_time", "wind", "hour", "late", "split"]
    rows = [
        tuple(row[name] for name in ("prediction_id", "wind", "hour", "late", "split")) for row in table.to_pylist()
    ]
    assert rows == [
        ("a0", None, 0, True, "train"),
        ("b0", 1.0, 1, False, "test"),
        ("b1", None, 0, True, "test"),
    ]
    assert manifest.logged == selection
    assert manifest.spine_sha256 == ""
    with pytest.raises(FailedPrecondition, match="no logged prediction"):
        await store.create(request(logged=LoggedSelection(at(2), at(30))), None)
    with pytest.raises(InvalidValue):
        await store.create(request(logged=selection), SPINE)
