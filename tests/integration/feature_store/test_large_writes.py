"""Writes of any size: whole or not at all, once each, the same however they are cut; rows that are kept apart."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from foresight.values import (
    DataType,
    Expectation,
    ExpectationsBroken,
    FailurePolicy,
    FeatureStatus,
    Field,
    Fresh,
    InvalidValue,
    NotNull,
    Range,
    Unique,
)
from foresight.values.pipelines import PositionMove
from services.feature_store.commits import Commit
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.tables.row_source import FileRows, RowSource, TableRows, write_rows
from services.feature_store.writes.incoming_rows import IncomingRows
from services.feature_store.writes.writing import OBSERVED_ROWS_MIN, FeatureWrites, Write
from services.runtime.errors import AlreadyExists, LimitExceeded, OutOfRange, StaleEtag
from services.runtime.identity import LOCAL
from tests.integration.feature_store.rig import NOW, T0, Store, at, keys, source

PLACE = Field("place", DataType.STRING)
FEATURES = (Field("wind", DataType.FLOAT64), Field("note", DataType.STRING), Field("count", DataType.INT64))
T0_US = int(T0.timestamp() * 1e6)


def rows(n: int, **columns: Any) -> pa.Table:
    """Rows of 100 places, a second apart."""
    given = {
        "place": [f"p{i % 100}" for i in range(n)],
        "event_time": pa.array(T0_US + np.arange(n) * 1_000_000, pa.timestamp("us", "UTC")),
        "wind": np.arange(n) / 7,
        "note": pa.array([None if i % 5 == 0 else f"é{i}" for i in range(n)], pa.string()),
        "count": np.arange(n),
    }
    return pa.table(given | columns)


def in_file(table: pa.Table, folder: Path, sizes: Sequence[int] = ()) -> FileRows:
    """The table in a file, in batches of the given sizes."""

    def batches() -> Iterator[pa.RecordBatch]:
        start = 0
        for size in [*sizes, table.num_rows]:
            yield from table.slice(start, size).combine_chunks().to_batches()
            start = min(start + size, table.num_rows)

    return write_rows(folder / f"rows-{len(list(folder.iterdir()))}", table.schema, batches())


async def everything(store: Store) -> list[int]:
    """How much there is in the tables that writes fill."""
    tables = ["commits", "quarantine", "empty_writes", "pipeline_positions"]
    ids = [(await store.registry.group(Reference(group.name))).id for group in await store.registry.groups()]
    counts = []
    async with store.database.statements() as connection:
        for table in [*tables, *(f"rows_{id}" for id in ids)]:
            statement = f"SELECT count(*) FROM {table}"
            counts.append((await connection.exec_driver_sql(statement)).scalar_one())
    return counts


@pytest.fixture
def files(folder: Path) -> Path:
    """Where rows on their way are."""
    made = folder / "sent"
    made.mkdir()
    return made


async def test_rows_in_are_rows_out_however_they_are_cut(store: Store, files: Path) -> None:
    """From memory or from a file: the same rows, and the same digest, so that it is the same write."""
    await store.group("weather", [PLACE], FEATURES)
    for n, sizes in ((1, []), (7, [3, 3]), (60, [0, 1, 20]), (12, [1] * 11)):
        table = rows(n)
        whole = await store.write_table("weather", table, f"{n}")
        assert (await store.write_table("weather", in_file(table, files, sizes), f"{n}")).duplicate
        cut = await store.write_table("weather", in_file(table, files, sizes), f"{n} cut")
        assert (whole.rows, cut.rows, cut.number) == (n, n, whole.number + 1)
        assert (await store.write_table("weather", table, f"{n} cut")).duplicate
        found = [row for row in await store.read("weather") if row["commit"] == cut.number]
        expected = sorted(table.to_pylist(), key=lambda row: (row["event_time"], row["place"]))
        assert [{name: row[name] for name in table.column_names} for row in found] == expected
        with pytest.raises(AlreadyExists):
            await store.write_table("weather", in_file(rows(n + 1), files, sizes), f"{n}")


async def test_a_large_write_is_visible_online_and_offline(store: Store, files: Path) -> None:
    """When it is answered."""
    await store.group("weather", [PLACE], FEATURES)
    await store.view("judged", source("weather", "count"))
    commit = await store.write_table("weather", in_file(rows(30_000), files, [10_000, 10_000]))
    assert commit.rows == 30_000
    assert len(await store.read("weather", latest_only=True)) == 100
    vectors = await store.vectors.latest(Reference("judged"), keys(place=["p0", "p99"]), at(60_000))
    assert vectors.features[0].values.tolist() == [29_900, 29_999]


async def test_faults_of_all_batches_are_counted_and_leave_nothing(store: Store, files: Path) -> None:
    """Every kind of fault, in the last batch too, after most rows were copied."""
    await store.group("weather", [PLACE], FEATURES)
    n = 5_000
    wind = np.arange(n) / 7
    wind[[10, 2_000, n - 1]] = math.nan
    place = [f"p{i % 100}" for i in range(n)]
    place[n - 1] = place[n - 2] = None  # type: ignore[call-overload]
    note = ["x"] * n
    note[n - 3] = "e\u0301"
    table = rows(n, wind=wind, place=place, note=note)
    before = await everything(store)
    for rows_in in (TableRows(table), in_file(table, files, [1_000] * 4)):
        with pytest.raises(InvalidValue) as refused:
            await store.write_table("weather", rows_in)
        assert {(v.field, v.description) for v in refused.value.violations} == {
            ("arrow.wind", "has a NaN or an infinity in 3 rows; use NULL for an unknown number"),
            ("arrow.place", "is NULL in 2 rows"),
            ("arrow.note", "has a text that is not in Unicode normal form C in 1 row"),
        }
    times = T0_US + np.arange(n) * 1_000_000
    times[[5, n - 1]] += 400 * 86_400 * 1_000_000
    moved = rows(n, event_time=pa.array(times, pa.timestamp("us", "UTC")))
    with pytest.raises(OutOfRange, match="as 2 of the event times are"):
        await store.write_table("weather", in_file(moved, files, [1_000] * 4))
    known = rows(n).append_column("known_at", pa.array([None] * (n - 1) + [NOW + timedelta(seconds=1)]))
    with pytest.raises(InvalidValue, match="is in the future in 1 row"):
        await store.write_table("weather", in_file(known, files, [1_000] * 4))
    assert await everything(store) == before
    assert (await store.write_table("weather", in_file(rows(n), files))).number == 1


async def test_a_key_and_event_time_comes_once_in_all_batches(store: Store, files: Path) -> None:
    """Repetitions are found wherever they are, and said how many."""
    await store.group("weather", [PLACE], FEATURES)
    table = rows(4_000)
    again = pa.concat_tables([table, table.slice(17, 2)])
    before = await everything(store)
    for source_rows in (TableRows(again), in_file(again, files, [500] * 7)):
        with pytest.raises(InvalidValue, match=r"has 2 keys and event times more than once, such as place 'p1[78]'"):
            await store.write_table("weather", source_rows)
    assert await everything(store) == before


class BrokenRows:
    """Rows that cannot be read to their end."""

    def __init__(self, table: pa.Table, good: int, error: Exception) -> None:
        self._table = table
        self._good = good
        self._error = error

    @property
    def schema(self) -> pa.Schema:
        return self._table.schema

    @property
    def num_rows(self) -> int:
        return int(self._table.num_rows)

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield from self._table.slice(0, self._good).to_batches(max_chunksize=1_000)
        raise self._error


async def test_rows_that_cannot_be_read_to_their_end_leave_nothing(store: Store) -> None:
    """The cause is raised as it is."""
    await store.group("weather", [PLACE], FEATURES)
    before = await everything(store)
    for error in (LimitExceeded("the disk has no room", limit="disk"), KeyError("a bug")):
        with pytest.raises(type(error)):
            await store.write_table("weather", BrokenRows(rows(5_000), 4_000, error))
    assert await everything(store) == before


class StalledRows:
    """Rows that stop coming until they are let go."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.schema = table.schema
        self.num_rows = table.num_rows
        self.stalled = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.abandoned = 0

    def batches(self) -> Iterator[pa.RecordBatch]:
        try:
            for _ in range(1_000):
                yield from self._table.to_batches()
                self._loop.call_soon_threadsafe(self.stalled.set)
        finally:
            self.abandoned += 1


async def test_a_caller_who_goes_away_leaves_nothing(store: Store) -> None:
    """While the rows are being copied; the work stops soon, and others go on."""
    await store.group("weather", [PLACE], FEATURES)
    before = await everything(store)
    endless = StalledRows(rows(2_000))
    writing = asyncio.create_task(store.write_table("weather", endless, "mine"))
    await asyncio.wait_for(endless.stalled.wait(), 20)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert endless.abandoned == 1
    assert await everything(store) == before
    assert (await store.write_table("weather", rows(10), "mine")).duplicate is False


async def test_the_same_large_write_at_once_is_written_once(store: Store, files: Path) -> None:
    """All callers get the same answer."""
    await store.group("weather", [PLACE], FEATURES)
    table = rows(3_000)
    commits = await asyncio.gather(
        *(store.write_table("weather", in_file(table, files, [i * 100]), "once") for i in range(1, 5))
    )
    assert {commit.number for commit in commits} == {1}
    assert sorted(commit.duplicate for commit in commits) == [False, True, True, True]
    assert len(await store.read("weather")) == 3_000


EXPECTATIONS = (
    Expectation(Range(0, 100), "wind"),
    Expectation(NotNull(), "note", "noted"),
    Expectation(Unique(), "count"),
    Expectation(Fresh(timedelta(days=60))),
)


async def quarantined(store: Store, after: int = 0) -> list[dict[str, Any]]:
    """What was kept apart."""
    found: list[dict[str, Any]] = []
    async with store.quarantined.read(Reference("weather"), after) as stream:
        while (batch := await asyncio.to_thread(stream.next_batch)) is not None:
            found += batch.to_pylist()
    return found


async def test_broken_rows_are_kept_apart_and_the_others_are_written(store: Store, files: Path) -> None:
    """With what they broke and the number of the commit; repeating it answers the same."""
    await store.group("weather", [PLACE], FEATURES, expectations=EXPECTATIONS, failure_policy=FailurePolicy.QUARANTINE)
    await store.view("judged", source("weather", "count"))
    table = rows(1_000)  # wind beyond 100 from row 701 on; no note in every fifth row.
    for number, rows_in in enumerate((table, in_file(rows(1_000), files, [300, 300])), 1):
        commit = await store.write_table("weather", rows_in, f"w{number}", source="stations")
        assert (commit.rows, commit.quarantined_rows) == (560, 440)
        assert {b.name: b.rows for b in commit.broken} == {"wind_range": 299, "noted": 200}
        assert commit.broken[1].samples[0] == "place 'p0', event_time 2026-02-01T00:00:00Z, note NULL"
        repeated = await store.write_table("weather", rows_in, f"w{number}")
        assert repeated == Commit(number, commit.committed_at, 560, True, quarantined_rows=440, broken=commit.broken)
    with pytest.raises(AlreadyExists):
        await store.write_table("weather", rows(999), "w1")
    found = await quarantined(store)
    assert len(found) == 880
    assert [row["commit"] for row in found] == [1] * 440 + [2] * 440
    assert found[0] == {
        "place": "p0", "event_time": T0, "wind": 0.0, "note": None, "count": 0,
        "deleted": False, "commit": 1, "broken": ["noted"],
    }  # fmt: skip
    assert found[439]["broken"] == ["wind_range"]
    assert next(row for row in found if row["count"] == 705)["broken"] == ["wind_range", "noted"]
    assert await quarantined(store, 1) == found[440:]
    assert await quarantined(store, 2) == []
    with pytest.raises(OutOfRange):
        await quarantined(store, 3)
    assert len(await store.read("weather")) == 1_120
    # What is kept apart is not served.
    vectors = await store.vectors.latest(Reference("judged"), keys(place=["p0", "p1"]), at(60))
    assert [*vectors.features[0].values][1] == 601
    assert vectors.features[0].statuses[0] != vectors.features[0].statuses[1]


async def test_a_write_of_which_nothing_is_left_is_still_a_commit(store: Store) -> None:
    """Online and offline reads bear one without rows."""
    await store.group("weather", [PLACE], FEATURES, expectations=EXPECTATIONS, failure_policy=FailurePolicy.QUARANTINE)
    await store.view("judged", source("weather", "count"))
    bad = rows(3, wind=[-1.0, -2.0, -3.0])
    commit = await store.write_table("weather", bad, "bad")
    assert (commit.number, commit.rows, commit.quarantined_rows) == (1, 0, 3)
    assert (await store.write_table("weather", bad, "bad")).duplicate
    assert await store.read("weather") == []
    vectors = await store.vectors.replay(Reference("judged", 1), keys(place=["p0"]), at(1), 1)
    assert [*vectors.features[0].statuses] == [FeatureStatus.NOT_FOUND]
    good = await store.write_table("weather", rows(2, note=["a", "b"]))
    assert (good.number, good.rows) == (2, 2)
    for commit_number, status in ((1, FeatureStatus.NOT_FOUND), (2, FeatureStatus.PRESENT)):
        replayed = await store.vectors.replay(Reference("judged", 1), keys(place=["p0"]), at(1), commit_number)
        assert [*replayed.features[0].statuses] == [status]


async def test_what_was_fresh_once_may_be_repeated_for_ever(store: Store, files: Path) -> None:
    """A repetition is judged by its content, not by what has become of the world."""
    await store.group("weather", [PLACE], FEATURES, expectations=EXPECTATIONS[-1:])
    first = await store.write_table("weather", rows(5), "w")
    store.clock[0] = NOW + timedelta(days=300)
    assert (await store.write_table("weather", rows(5), "w")).number == first.number
    assert (await store.write_table("weather", in_file(rows(5), files, [2]), "w")).duplicate
    for rows_in in (rows(5), in_file(rows(5), files, [2])):
        with pytest.raises(ExpectationsBroken, match="breaks fresh in 5 of 5 rows"):
            await store.write_table("weather", rows_in, "other")
    assert len(await store.read("weather")) == 5


async def test_a_commit_knows_its_source_and_its_expectations(store: Store) -> None:
    """And whether the writer said when the rows were known."""
    await store.group("weather", [PLACE], FEATURES, expectations=EXPECTATIONS, failure_policy=FailurePolicy.QUARANTINE)
    known = rows(10).append_column("known_at", pa.array([NOW - timedelta(days=1)] * 10))
    await store.write_table("weather", known, source="stations")
    await store.write_table("weather", rows(3, note=["a", "b", "c"]))
    statement = "SELECT source, known_at_asserted, quarantined_rows, expectations::json->'held' FROM commits ORDER BY 1"
    async with store.database.statements() as connection:
        found = [tuple[Any, ...](row) for row in (await connection.exec_driver_sql(statement)).all()]
    assert [row[:3] for row in found] == [("stations", True, 2), (None, False, 0)]
    held = [row[3] for row in found]
    assert [str(names).count("wind_range") for names in held] == [1, 1]
    assert [str(names).count("noted") for names in held] == [0, 1]


async def position(store: Store) -> tuple[Any, ...] | None:
    statement = "SELECT position, commit FROM pipeline_positions WHERE pipeline = 'stations'"
    async with store.database.statements() as connection:
        row = (await connection.exec_driver_sql(statement)).one_or_none()
        return None if row is None else tuple(row)


def move(before: str, after: str) -> PositionMove:
    return PositionMove("stations", before, after)


async def test_a_position_moves_with_the_rows_or_not_at_all(store: Store, files: Path) -> None:
    """By comparison with what the run had read; a repetition is not compared again."""
    await store.group("weather", [PLACE], FEATURES)
    first = await store.write_table("weather", rows(3), "a", progress=move("", "10"))
    assert await position(store) == ("10", 1)
    before = await everything(store)
    for rows_in in (rows(4), in_file(rows(4), files, [2])):
        with pytest.raises(StaleEtag):
            await store.write_table("weather", rows_in, "b", progress=move("", "20"))
        with pytest.raises(StaleEtag):
            await store.write_table("weather", rows_in, "b", progress=move("9", "20"))
    with pytest.raises(InvalidValue):
        await store.write_table("weather", rows(4, wind=[math.inf] * 4), "b", progress=move("10", "20"))
    assert await everything(store) == before
    assert (await store.write_table("weather", in_file(rows(4), files), "b", progress=move("10", "20"))).number == 2
    assert await position(store) == ("20", 2)
    repeated = await store.write_table("weather", rows(3), "a", progress=move("", "10"))
    assert (repeated.number, repeated.duplicate) == (first.number, True)
    assert await position(store) == ("20", 2)
    with pytest.raises(StaleEtag):
        await store.write_table("weather", rows(2), "c", progress=PositionMove("unknown", "5", "6"))


async def test_a_position_moves_without_rows_too(store: Store) -> None:
    """That is no commit; its id is remembered all the same."""
    await store.group("weather", [PLACE], FEATURES)
    await store.write_table("weather", rows(3), "a", progress=move("", "10"))
    empty = await store.write_table("weather", rows(0), "b", progress=move("10", "20"))
    assert (empty.number, empty.rows, empty.duplicate) == (0, 0, False)
    assert await position(store) == ("20", 1)
    assert await store.commits.last() == 1
    assert await store.write_table("weather", rows(0), "b", progress=move("10", "20")) == Commit(
        0, empty.committed_at, 0, True
    )
    with pytest.raises(AlreadyExists):
        await store.write_table("weather", rows(1), "b", progress=move("20", "30"))
    with pytest.raises(AlreadyExists):
        await store.write_table("weather", rows(0), "a", progress=move("20", "30"))
    await store.write_table("weather", rows(0), "", progress=move("20", "30"))
    assert await position(store) == ("30", 1)
    with pytest.raises(InvalidValue, match="has no rows"):
        await store.write_table("weather", rows(0), "c")


async def test_of_runs_that_race_one_moves_the_position(store: Store, files: Path) -> None:
    """The others leave nothing."""
    await store.group("weather", [PLACE], FEATURES)
    outcomes = await asyncio.gather(
        *(
            store.write_table("weather", in_file(rows(50 + i), files, [20]), f"w{i}", progress=move("", f"{i}"))
            for i in range(4)
        ),
        return_exceptions=True,
    )
    done = [outcome for outcome in outcomes if isinstance(outcome, Commit)]
    assert len(done) == 1
    assert all(isinstance(outcome, StaleEtag) for outcome in outcomes if not isinstance(outcome, Commit))
    assert await position(store) == (f"{done[0].rows - 50}", 1)
    assert len(await store.read("weather")) == done[0].rows


class Observer:
    """Remembers what it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    async def committed(self, stored: StoredGroup, commit: Commit, rows: RowSource) -> None:
        counted = sum(batch.num_rows for batch in rows.batches())
        assert counted == rows.num_rows
        self.seen.append((commit.number, counted))


async def test_large_commits_are_observed_before_they_are_answered(store: Store, files: Path) -> None:
    """Once each, without the rows that were kept apart."""
    await store.group(
        "weather", [PLACE], FEATURES, expectations=EXPECTATIONS[1:2], failure_policy=FailurePolicy.QUARANTINE
    )
    observer = Observer()
    writes = FeatureWrites(
        store.registry,
        store.commits,
        store.applier,
        lambda: store.clock[0],
        store.own_metrics,
        store.workspace,
        observer,
    )

    async def write(rows_in: RowSource) -> Commit:
        return await writes.write(Write(Reference("weather"), rows_in, LOCAL))

    n = OBSERVED_ROWS_MIN * 5 // 4
    await write(TableRows(rows(n - 5)))
    assert observer.seen == []
    await write(TableRows(rows(n)))
    await write(in_file(rows(n + 10), files, [100, 5_000]))
    assert observer.seen == [(2, OBSERVED_ROWS_MIN), (3, OBSERVED_ROWS_MIN + 8)]


async def test_nothing_of_a_write_stays_in_the_workspace(store: Store, files: Path) -> None:
    """Neither of one that was accepted nor of one that was refused."""
    await store.group("weather", [PLACE], FEATURES, expectations=EXPECTATIONS, failure_policy=FailurePolicy.QUARANTINE)
    stored = await store.registry.group(Reference("weather"))
    incoming = IncomingRows(stored, in_file(rows(9), files), NOW, store.workspace, digested=True)
    assert list(incoming.accepted())
    incoming.close()
    n = 150_000
    texts = pa.array([f"{i:0100}" for i in range(n)])
    await store.write_table("weather", in_file(rows(n, note=texts, wind=np.full(n, -1.0)), files))
    assert len(await quarantined(store)) == n
    repeated = pa.concat_tables([rows(n, wind=np.full(n, -1.0), note=texts), rows(1)])
    with pytest.raises(InvalidValue):
        await store.write_table("weather", in_file(repeated, files))
    assert [path for path in (store.folder / "transit").rglob("*") if path.is_file()] == []
