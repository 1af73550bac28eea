"""What every online store keeps to: a state machine against a dictionary, and the store's own edges."""

from __future__ import annotations

import asyncio
import resource
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import lmdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresight.tables import arrow_type
from foresight.values import Column, DataType, FeatureGroup, Field
from services.feature_store.groups import StoredGroup
from services.feature_store.online import CommittedRows, FoundRow, KeyQuery, OnlineStore
from services.feature_store.online_lmdb import LmdbOnlineStore
from services.feature_store.row_source import TableRows
from services.runtime.errors import LimitExceeded

FEATURES = (
    Field("number", DataType.FLOAT64),
    Field("count", DataType.INT64),
    Field("flag", DataType.BOOL),
    Field("words", DataType.STRING),
    Field("moment", DataType.TIMESTAMP),
    Field("vector", DataType.FLOAT_VECTOR, 2),
    Field("remark", DataType.STRING),
)
KEYS = (Field("first", DataType.STRING), Field("second", DataType.INT64), Field("third", DataType.BOOL))
LONG = "x" * 4_000
GROUPS = [
    StoredGroup(1, FeatureGroup("one", KEYS, FEATURES, version=1)),
    StoredGroup(2, FeatureGroup("two", KEYS, FEATURES, version=1)),
]
Row = tuple[tuple[str, int, bool], int, int, bool, tuple[Any, ...]]

keys = st.tuples(
    st.sampled_from(["", "1", "12", "é", LONG, LONG + "1"]), st.sampled_from([0, 23, 3, -(2**63)]), st.booleans()
)
floats32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
values = st.tuples(
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.booleans(),
    st.none() | st.text(max_size=5),
    st.none() | st.integers(-(10**15), 10**15),
    st.none() | st.tuples(floats32, floats32).map(list),
    st.none() | st.just(""),
)
commits = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.dictionaries(st.tuples(keys, st.integers(-3, 3)), st.tuples(st.booleans(), values), max_size=6),
    ),
    max_size=5,
)
Run = Callable[[OnlineStore], Awaitable[None]]


def committed(group: StoredGroup, rows: Sequence[Row]) -> CommittedRows:
    """The rows as an Arrow table."""
    columns: dict[str, pa.Array] = {
        f.name: pa.array([row[0][i] for row in rows], arrow_type(f)) for i, f in enumerate(KEYS)
    }
    columns["event_time"] = pa.array([row[1] for row in rows], pa.timestamp("us", "UTC"))
    columns["commit"] = pa.array([row[2] for row in rows], pa.int64())
    columns["deleted"] = pa.array([row[3] for row in rows], pa.bool_())
    columns |= {f.name: pa.array([row[4][i] for row in rows], arrow_type(f)) for i, f in enumerate(FEATURES)}
    return CommittedRows(group, TableRows(pa.table(columns)))


def query(group: StoredGroup, entities: Sequence[tuple[str | None, int | None, bool | None]]) -> KeyQuery:
    """The look-up of entities."""
    columns = [Column.build(f.name, f.type, [entity[i] for entity in entities]) for i, f in enumerate(KEYS)]
    return KeyQuery(group, tuple(columns))


def with_store(run: Run, map_bytes: int = 1 << 20) -> None:
    """Runs against an empty store."""
    with tempfile.TemporaryDirectory() as folder:
        store = LmdbOnlineStore(Path(folder) / "online", map_bytes)
        try:
            asyncio.run(run(store))  # type: ignore[arg-type]
        finally:
            store.close()


@settings(max_examples=40, deadline=None)
@given(written=commits, data=st.data())
def test_the_store_has_the_latest_row_whatever_the_order(
    written: list[tuple[int, dict[Any, Any]]], data: st.DataObject
) -> None:
    """Rows applied in any grouping, and twice, read as the greatest (event time, commit) per key."""
    latest: dict[tuple[int, Any], FoundRow] = {}
    batches: list[CommittedRows] = []
    for number, (index, content) in enumerate(written, 1):
        rows = [(key, time, number, deleted, values) for (key, time), (deleted, values) in content.items()]
        batches.append(committed(GROUPS[index], rows))
        for key, time, _, deleted, values in rows:
            known = latest.get((index, key))
            if known is None or (time, number) > (known.event_time_us, known.commit):
                latest[index, key] = FoundRow(time, number, deleted, values)
    order = data.draw(st.permutations(batches + batches[:2]))
    asked = [key for _, content in written for key, _ in content] or [("absent", 1, True)]

    async def run(store: OnlineStore) -> None:
        for batch in order:
            await store.apply(len(written), [batch])
        found = await store.lookup([query(group, asked) for group in GROUPS])
        assert found.applied_commit == (len(written) if order else 0)
        for index in range(2):
            assert found.found[index] == [latest.get((index, key)) for key in asked]

    with_store(run)


def test_a_null_in_a_key_finds_nothing() -> None:
    """Not even a row whose key holds the zero that stands for it."""

    async def run(store: OnlineStore) -> None:
        empty = (None,) * len(FEATURES)
        await store.apply(1, [committed(GROUPS[0], [(("", 0, False), 1, 1, False, empty)])])
        asked = query(GROUPS[0], [(None, 0, False), ("", None, False), ("", 0, None), ("", 0, False)])
        (found,) = (await store.lookup([asked])).found
        assert [row is not None for row in found] == [False, False, False, True]

    with_store(run)


def test_the_store_grows_when_it_is_full() -> None:
    """More rows than the first map holds are all there; a large look-up leaves the event loop."""
    n = 3_000
    values = (1.0, 1, True, "w" * 300, 0, [1.0, 2.0], None)

    async def run(store: OnlineStore) -> None:
        rows: list[Row] = [((str(i), i, False), 1, 1, False, values) for i in range(n)]
        await store.apply(1, [committed(GROUPS[0], rows)])
        lookup = await store.lookup([query(GROUPS[0], [(str(i), i, False) for i in range(n)])])
        assert all(row == FoundRow(1, 1, False, values) for row in lookup.found[0])

    with_store(run, map_bytes=64 << 10)


def test_a_disk_without_room_costs_nothing_that_was_applied() -> None:
    """The rows come whole once there is room again, without a restart."""
    values = (1.0, 1, True, "w" * 300, 0, [1.0, 2.0], None)
    first: list[Row] = [(("old", 1, False), 1, 1, False, values)]
    second: list[Row] = [((str(i), i, False), 1, 2, False, values) for i in range(1_000)]

    async def run(store: OnlineStore) -> None:
        await store.apply(1, [committed(GROUPS[0], first)])
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, before[1]))
        try:
            with pytest.raises((LimitExceeded, lmdb.Error)):
                await store.apply(2, [committed(GROUPS[0], second)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        lookup = await store.lookup([query(GROUPS[0], [row[0] for row in first + second])])
        assert (lookup.applied_commit, lookup.found[0][1:]) == (1, [None] * len(second))
        assert lookup.found[0][0] == FoundRow(1, 1, False, values)
        await store.apply(2, [committed(GROUPS[0], second)])
        lookup = await store.lookup([query(GROUPS[0], [row[0] for row in first + second])])
        assert lookup.applied_commit == 2
        assert None not in lookup.found[0]

    with_store(run)


def test_a_second_process_sees_rows_of_a_store_that_grew() -> None:
    """Its map follows the one of the writer."""
    import subprocess
    import sys

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "online"
        reader = LmdbOnlineStore(path, 64 << 10)
        script = (
            "import asyncio, pathlib, sys\n"
            "from tests.laws.feature_store.test_online_laws import committed, GROUPS\n"
            "from services.feature_store.online_lmdb import LmdbOnlineStore\n"
            "store = LmdbOnlineStore(pathlib.Path(sys.argv[1]), 65536)\n"
            "values = (1.0, 1, True, 'w' * 300, 0, [1.0, 2.0], None)\n"
            "rows = [((str(i), i, False), 1, 7, False, values) for i in range(2000)]\n"
            "asyncio.run(store.apply(7, [committed(GROUPS[0], rows)]))\n"
        )
        subprocess.run([sys.executable, "-c", script, str(path)], check=True)
        try:
            lookup = asyncio.run(reader.lookup([query(GROUPS[0], [("1999", 1_999, False)])]))
            assert lookup.applied_commit == 7
            assert lookup.found[0][0] is not None
        finally:
            reader.close()


@pytest.mark.parametrize("first", ["1", LONG])
def test_composite_keys_stay_apart_also_when_they_are_digested(first: str) -> None:
    """A key longer than the store takes is found by its digest and compared whole."""

    async def run(store: OnlineStore) -> None:
        empty = (None,) * len(FEATURES)
        rows: list[Row] = [((first, 23, True), 1, 1, False, empty), ((first + "2", 3, True), 2, 1, False, empty)]
        await store.apply(1, [committed(GROUPS[0], rows)])
        asked = query(GROUPS[0], [(first, 23, True), (first + "2", 3, True), (first + "2", 23, True)])
        (found,) = (await store.lookup([asked])).found
        assert [row and row.event_time_us for row in found] == [1, 2, None]

    with_store(run)


def test_the_keys_of_a_group_are_told_whole_and_once() -> None:
    """Also those that are stored as digests, and none of another group."""

    async def run(store: OnlineStore) -> None:
        empty = (None,) * len(FEATURES)
        entities = [(LONG, 1, True), (LONG + "1", -(2**63), False), ("", 0, False), ("é", 23, True)]
        for group in GROUPS:
            mine = entities if group is GROUPS[0] else entities[:1]
            rows: list[Row] = [(entity, 5, 1, False, (None, None, None, LONG, None, None, "x")) for entity in mine]
            await store.apply(1, [committed(group, rows)])
        await store.apply(2, [committed(GROUPS[0], [(entities[0], 6, 2, True, empty)])])
        for group, wanted in zip(GROUPS, (entities, entities[:1]), strict=True):
            told = [
                entity
                async for columns in store.keys(group)
                for entity in zip(*(column.to_list() for column in columns), strict=True)
            ]
            assert sorted(map(repr, told)) == sorted(map(repr, wanted))
        nobody = StoredGroup(3, GROUPS[0].group)
        assert [columns async for columns in store.keys(nobody)] == []

    with_store(run)


def test_what_was_removed_is_gone_and_may_come_again() -> None:
    """Long keys too; a key without a row, or with a NULL, is no fault."""

    async def run(store: OnlineStore) -> None:
        empty = (None,) * len(FEATURES)
        rows: list[Row] = [((LONG, 1, True), 5, 1, False, empty), (("b", 1, True), 5, 1, False, empty)]
        await store.apply(1, [committed(GROUPS[0], rows)])
        asked = query(GROUPS[0], [(LONG, 1, True), ("absent", 1, True), ("b", None, True)])
        assert await store.remove(GROUPS[0], asked.keys) == 1
        assert await store.remove(GROUPS[0], asked.keys) == 0
        everything = query(GROUPS[0], [(LONG, 1, True), ("b", 1, True)])
        lookup = await store.lookup([everything])
        assert [row is not None for row in lookup.found[0]] == [False, True]
        assert lookup.applied_commit == 1
        await store.apply(2, [committed(GROUPS[0], [((LONG, 1, True), 3, 2, False, empty)])])
        assert (await store.lookup([everything])).found[0][0] == FoundRow(3, 2, False, empty)

    with_store(run)
