"""Statistics of a store: of commits, of what counts by a commit, of datasets and of the log; kept, and forgotten."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry

from foresight.values import Column, DataType, Field
from services.feature_store.datasets.manifests import DatasetRequest
from services.feature_store.datasets.splits import TimeSplit
from services.feature_store.groups import Reference
from services.feature_store.postgres.published_rows import PublishedRowReader
from services.feature_store.postgres.statistics import GroupCommitTable
from services.feature_store.statistics.described import DescribedRows
from services.feature_store.statistics.description import ColumnStatistics, Statistics
from services.feature_store.statistics.measures import StatisticsMetrics
from services.feature_store.statistics.targets import CommitRows, DatasetRows, LatestRows, LogWindow, Target
from services.feature_store.tables.row_source import TableRows
from services.feature_store.tables.scratch import ScratchFolder
from services.runtime.errors import FailedPrecondition, NotFound, OutOfRange
from tests.conftest import MakeDatabase
from tests.integration.feature_store.rig import (
    T0,
    UTC_MICROS,
    LogInMemory,
    Store,
    at,
    running_store,
    source,
    state_folder,
    table,
)
from tests.integration.feature_store.test_ingestion import define, predictions, take_all

PLACE, WIND = Field("place", DataType.STRING), Field("wind", DataType.FLOAT64)
MANY = 12_000


@pytest.fixture
async def store(postgres_url: MakeDatabase) -> AsyncIterator[Store]:
    """A store with the group `weather`."""
    with state_folder() as folder:
        async with running_store(postgres_url("statistics"), folder) as running:
            await running.group("weather", [PLACE], [WIND])
            yield running


def row(place: str, minutes: float, wind: float | None, **more: Any) -> dict[str, Any]:
    return {"place": place, "event_time": at(minutes), "wind": wind} | more


def many(rows: int = MANY) -> pa.Table:
    """Rows enough to be described while they are written."""
    times = [T0 + timedelta(seconds=i) for i in range(rows)]
    winds = pa.array(np.arange(rows, dtype=np.float64), mask=np.arange(rows) % 10 == 0)
    return pa.table(
        {"place": [f"p{i % 7}" for i in range(rows)], "event_time": pa.array(times, UTC_MICROS), "wind": winds}
    )


async def described(store: Store, target: Target) -> dict[str, ColumnStatistics]:
    """Statistics by column."""
    _, statistics = await store.described.get(target)
    return {column.name: column for column in statistics.columns}


def counted(store: Store, kind: str, outcome: str) -> float:
    name = "foresight_feature_store_statistics_total"
    return store.metrics.registry.get_sample_value(name, {"kind": kind, "outcome": outcome}) or 0.0


async def kept(store: Store) -> int:
    """How many statistics are kept."""
    async with store.database.statements() as connection:
        return int((await connection.exec_driver_sql("SELECT count(*) FROM statistics")).scalar_one())


async def test_a_large_commit_is_described_while_it_is_written(store: Store) -> None:
    await store.write_table("weather", many())
    assert counted(store, "commit", "computed") == 1
    found = await described(store, CommitRows(Reference("weather")))
    assert counted(store, "commit", "computed") == 1
    assert list(found) == ["place", "event_time", "wind"]
    assert (found["wind"].rows, found["wind"].nulls) == (MANY, MANY // 10)
    assert found["wind"].maximum == MANY - 1
    assert (found["place"].distinct, found["place"].top_values[0]) == (7, "p0")


async def test_what_was_described_with_the_write_is_what_the_rows_say_later(store: Store) -> None:
    commit = await store.write_table("weather", many())
    with_write = await described(store, CommitRows(Reference("weather"), commit.number))
    stored = await store.registry.group(Reference("weather"))
    await store.statistics.forget([stored.id], [])
    assert await described(store, CommitRows(Reference("weather"), commit.number)) == with_write
    assert counted(store, "commit", "computed") == 2


async def test_a_small_commit_is_described_when_somebody_asks_and_then_kept(store: Store) -> None:
    first = await store.write("weather", [row("a", 0, 1.0), row("b", 0, None)])
    await store.write("weather", [row("a", 1, 5.0)])
    assert counted(store, "commit", "computed") == 0
    last = await described(store, CommitRows(Reference("weather")))
    assert (last["wind"].rows, last["wind"].mean) == (1, 5.0)
    for _ in range(2):
        found = await described(store, CommitRows(Reference("weather"), first.number))
        assert (found["wind"].rows, found["wind"].nulls, found["wind"].mean) == (2, 1, 1.0)
    assert counted(store, "commit", "computed") == 2


async def test_tombstones_are_not_described(store: Store) -> None:
    await store.write("weather", [row("a", 0, 1.0), row("b", 0, 2.0)])
    commit = await store.write("weather", [row("a", 1, None, deleted=True), row("c", 1, 3.0, deleted=False)])
    found = await described(store, CommitRows(Reference("weather"), commit.number))
    assert (found["place"].rows, found["place"].top_values) == (1, ("c",))
    latest = await described(store, LatestRows(Reference("weather")))
    assert (latest["place"].top_values, latest["wind"].mean) == (("b", "c"), 2.5)


async def test_latest_rows_are_those_of_the_commit_that_is_named(store: Store) -> None:
    first = await store.write("weather", [row("a", 0, 1.0), row("b", 0, 2.0)])
    await store.write("weather", [row("a", 5, 9.0)])
    assert (await described(store, LatestRows(Reference("weather"))))["wind"].maximum == 9.0
    assert (await described(store, LatestRows(Reference("weather"), first.number)))["wind"].maximum == 2.0
    subject, _ = await store.described.get(LatestRows(Reference("weather")))
    assert subject.target == LatestRows(Reference("weather", 1), 2)


async def test_commits_of_other_groups_change_nothing(store: Store) -> None:
    await store.group("planes", [Field("tail", DataType.STRING)], [Field("seats", DataType.INT64)])
    await store.write("weather", [row("a", 0, 1.0)])
    await described(store, LatestRows(Reference("weather")))
    other = await store.write("planes", [{"tail": "N1", "event_time": at(0), "seats": 5}])
    await described(store, LatestRows(Reference("weather")))
    assert counted(store, "latest", "computed") == 1
    with pytest.raises(NotFound):
        await store.described.get(CommitRows(Reference("weather"), other.number))
    with pytest.raises(OutOfRange):
        await store.described.get(CommitRows(Reference("weather"), other.number + 1))
    with pytest.raises(NotFound):
        await store.described.get(CommitRows(Reference("weather", 2)))


async def test_a_group_without_rows_has_nothing_to_describe(store: Store) -> None:
    for target in (CommitRows(Reference("weather")), LatestRows(Reference("weather"))):
        with pytest.raises(FailedPrecondition, match="has no rows yet"):
            await store.described.get(target)


async def test_who_asks_at_once_shares_one_computation(store: Store) -> None:
    await store.write("weather", [row("a", 0, 1.0)])
    answers = await asyncio.gather(*(described(store, LatestRows(Reference("weather"))) for _ in range(8)))
    assert all(answer == answers[0] for answer in answers)
    assert counted(store, "latest", "computed") == 1


async def test_an_added_feature_is_described_with_its_default(store: Store) -> None:
    await store.write("weather", [row("a", 0, 1.0)])
    await described(store, CommitRows(Reference("weather")))
    rain = Field("rain", DataType.FLOAT64)
    default = Column.build("rain", DataType.FLOAT64, [0.5])
    await store.registry.add_features(Reference("weather", 1), [rain], {"rain": default}, "")
    found = await described(store, CommitRows(Reference("weather")))
    assert (found["rain"].minimum, found["rain"].nulls) == (0.5, 0)


async def test_forgotten_statistics_are_computed_anew_and_stale_ones_never_kept(store: Store) -> None:
    await store.write("weather", [row("a", 0, 1.0)])
    subject, statistics = await store.described.get(CommitRows(Reference("weather")))
    assert subject.group is not None
    before = await store.statistics.erasures()
    assert await store.statistics.forget([subject.group.id], []) == 1
    assert await store.statistics.find(subject) is None
    # Computed from rows that were read before something was forgotten.
    assert not await store.statistics.keep(subject, statistics, before)
    assert await store.statistics.find(subject) is None
    assert await store.statistics.keep(subject, statistics, before + 1)
    assert await store.statistics.find(subject) == statistics


async def test_statistics_of_latest_rows_are_kept_for_the_last_commits_only(store: Store) -> None:
    for i in range(18):
        await store.write("weather", [row("a", i, float(i))])
        await described(store, LatestRows(Reference("weather")))
    assert await kept(store) == 16
    await described(store, LatestRows(Reference("weather"), 1))
    assert counted(store, "latest", "computed") == 19


class Broken:
    """An engine without memory."""

    def describe(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Statistics:
        raise MemoryError


async def test_a_commit_that_could_not_be_described_is_described_later(store: Store) -> None:
    stored = await store.registry.group(Reference("weather"))
    commit = await store.write("weather", [row("a", 0, 1.0)])
    metrics = StatisticsMetrics(CollectorRegistry())
    broken = DescribedRows(
        store.registry,
        store.commits,
        GroupCommitTable(store.database),
        store.rows,
        PublishedRowReader(store.database, ScratchFolder(store.folder / "broken")),
        store.datasets,
        store.statistics,
        Broken(),
        metrics,
    )
    await broken.committed(stored, commit, TableRows(table(stored.group, [row("a", 0, 1.0)])))
    assert metrics.asked.labels("commit", "failed")._value.get() == 1
    assert (await described(store, CommitRows(Reference("weather"))))["wind"].mean == 1.0


async def test_datasets_are_described_by_split(store: Store) -> None:
    await store.view("judged", source("weather", "wind"))
    await store.write("weather", [row("a", i, float(i)) for i in range(10)])
    spine = pa.table(
        {
            "place": ["a"] * 10,
            "event_time": pa.array([at(i) for i in range(10)], UTC_MICROS),
            "late": [i < 3 for i in range(10)],
        }
    )
    request = DatasetRequest("late_flights", Reference("judged"), split=TimeSplit(test_from=at(8)))
    manifest = await store.datasets.create(request, TableRows(spine))
    whole = await described(store, DatasetRows(manifest.id))
    assert (whole["wind"].rows, whole["wind"].mean) == (10, 4.5)
    assert dict(zip(whole["split"].top_values, whole["split"].top_counts, strict=True)) == {"train": 8, "test": 2}
    assert (await described(store, DatasetRows(manifest.id, "test")))["wind"].mean == 8.5
    _, _, compared = await store.described.compare(DatasetRows(manifest.id, "train"), DatasetRows(manifest.id, "test"))
    wind = next(row for row in compared if row.column == "wind")
    assert wind.kolmogorov_smirnov == 1.0
    assert wind.mean_change == pytest.approx((8.5 - 3.5) / np.std(np.arange(8), ddof=1))
    await store.datasets.delete(manifest.id)
    with pytest.raises(NotFound):
        await store.described.get(DatasetRows(manifest.id))
    assert await kept(store) == 0


async def test_dropping_a_group_drops_its_statistics(store: Store) -> None:
    await store.write("weather", [row("a", 0, 1.0)])
    await described(store, CommitRows(Reference("weather")))
    assert await kept(store) == 1
    await store.registry.drop_group(Reference("weather", 1), "")
    assert await kept(store) == 0


async def test_a_window_of_the_log_is_described_as_it_was_reingested(postgres_url: MakeDatabase) -> None:
    log = LogInMemory()
    with state_folder() as folder:
        async with running_store(postgres_url("statistics"), folder, log=log) as store:
            await define(store)
            window = LogWindow(Reference("judged"), at(60))
            with pytest.raises(FailedPrecondition, match="reingested"):
                await store.described.get(window)
            log.entries = [predictions(["p0", "p1", "p2"], 1), predictions(["p3", "p4"], 5, deployment="other")]
            await take_all(store, log)
            found = await described(store, window)
            assert (found["wind"].rows, found["wind"].nulls, found["wind"].maximum) == (5, 2, 2.0)
            assert found["log_deployment"].top_values == ("delays", "other")
            only = await described(store, LogWindow(Reference("judged"), at(60), deployment="other"))
            assert (only["wind"].rows, only["prediction_id"].minimum) == (2, "p3")
            early = await described(store, LogWindow(Reference("judged"), at(5), at(0)))
            assert (early["wind"].rows, early["event_time"].distinct) == (3, 1)
            log.entries.append(predictions(["p5"], 10))
            await take_all(store, log)
            assert (await described(store, window))["wind"].rows == 6
            assert counted(store, "log", "computed") == 4
            # What shadows made would count the same questions again.
            log.entries.append(dataclasses.replace(predictions(["p6"], 10), arm="next", shadow=True))
            await take_all(store, log)
            assert (await described(store, window))["wind"].rows == 6
