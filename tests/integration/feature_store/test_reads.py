"""Reads by keys, times and conditions, as of a commit or a time, and spines made of rows."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from adbc_driver_postgresql import dbapi
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foresight.transforms import TransformSet
from foresight.values import Column, DataType, Field, InvalidValue
from services.feature_store.groups import Reference
from services.feature_store.postgres.row_filters import array_sql, value_sql
from services.feature_store.reads.asof import NumpyAsOf
from services.feature_store.reads.histories import EventTimes
from services.feature_store.reads.large_join import JoinBounds
from services.feature_store.reads.queries import Condition, GroupQuery, Operator, SpineQuery
from services.feature_store.reads.reading import FeatureReads
from services.feature_store.reads.spine_queries import SpineQueries
from services.feature_store.reads.view_join import ViewJoin
from services.feature_store.reads.watermarks import Watermarks
from services.feature_store.tables.row_source import FileRows, TableRows, read_all
from services.feature_store.tables.spill import SpillFolder
from services.runtime.errors import NotFound, OutOfRange
from tests.conftest import MakeDatabase
from tests.integration.feature_store.rig import NOW, UTC_MICROS, Store, at, source

PLACE, LEG = Field("place", DataType.STRING), Field("leg", DataType.INT64)
FEATURES = (
    Field("wind", DataType.FLOAT64),
    Field("sky", DataType.STRING),
    Field("open", DataType.BOOL),
    Field("count", DataType.INT64),
    Field("seen", DataType.TIMESTAMP),
    Field("v", DataType.FLOAT_VECTOR, 2),
)
# Whatever ends a literal, a string, an array or a statement somewhere.
HOSTILE = [
    "'",
    "''",
    "\\",
    "\\'; DROP TABLE commits; --",
    '"',
    "{a,b}",
    ",",
    "NULL",
    "",
    " ",
    "é",
    "𝄞",
    "%s $1 :x",
    "\n",
]


def row(place: str, leg: int, minutes: float, **values: Any) -> dict[str, Any]:
    """A row of the group."""
    return {"place": place, "leg": leg, "event_time": at(minutes)} | values


ROWS = [
    row("a", 1, 1, wind=1.5, sky="clear", open=True, count=1, seen=at(0), v=[1.0, 2.0]),
    row("a", 1, 2, wind=-3.0, sky="it's", open=False, count=-(2**63), seen=at(1)),
    row("a", 2, 1, wind=None, sky=None, open=None, count=None, seen=None),
    row("b", 1, 3, wind=0.1 + 0.2, sky="Z", open=True, count=2**63 - 1, seen=at(2)),
    *(row("hostile", i, 4, sky=text, count=i) for i, text in enumerate(HOSTILE)),
]


async def define(store: Store) -> None:
    """The group with its rows."""
    await store.group("weather", [PLACE, LEG], FEATURES)
    await store.write("weather", ROWS)


async def read(store: Store, *where: Condition, **options: Any) -> list[tuple[str, int, float]]:
    """(place, leg, minutes) of the rows that a query finds, in their order."""
    commit, as_of_time = options.pop("commit", 0), options.pop("as_of_time", None)
    query = GroupQuery(Reference("weather"), where=where, **options)
    found = []
    async with store.reads.read(query, commit, as_of_time) as stream:
        while (batch := await asyncio.to_thread(stream.next_batch)) is not None:
            found += batch.to_pylist()
    return [(r["place"], r["leg"], (r["event_time"] - at(0)) / timedelta(minutes=1)) for r in found]


def condition(column: str, operator: Operator, *values: Any) -> Condition:
    """A condition with values of the column's type."""
    fields = {f.name: f for f in (PLACE, LEG, Field("event_time", DataType.TIMESTAMP), *FEATURES)}
    return Condition(column, operator, Column.build("x", fields[column].type, values) if values else None)


def plain(column: str, row: dict[str, Any]) -> Any:
    """A value as it compares: texts by their bytes."""
    value = row.get(column)
    return value.encode() if isinstance(value, str) else value


HOLDS: dict[Operator, Callable[[Any, Any], bool]] = {
    Operator.EQUAL: lambda a, b: a == b,
    Operator.NOT_EQUAL: lambda a, b: a != b,
    Operator.LESS: lambda a, b: a < b,
    Operator.AT_MOST: lambda a, b: a <= b,
    Operator.GREATER: lambda a, b: a > b,
    Operator.AT_LEAST: lambda a, b: a >= b,
}


async def test_every_operator_on_every_type(store: Store) -> None:
    """Against plain Python, with each value that there is, texts that would break out of a literal included."""
    await define(store)
    for column in ("place", "leg", "event_time", "wind", "sky", "open", "count", "seen"):
        present = [r for r in ROWS if r.get(column) is not None]
        for value in {str(r[column]): r[column] for r in present}.values():
            for operator, holds in HOLDS.items():
                if column == "open" and operator not in (Operator.EQUAL, Operator.NOT_EQUAL):
                    continue
                asked = value.encode() if isinstance(value, str) else value
                expected = {(r["place"], r["leg"]) for r in present if holds(plain(column, r), asked)}
                found = await read(store, condition(column, operator, value))
                assert {(place, leg) for place, leg, _ in found} == expected, (column, operator, value)
    nulls = [r for r in ROWS if r.get("wind") is None]
    assert len(await read(store, condition("wind", Operator.IS_NULL))) == len(nulls)
    assert len(await read(store, condition("v", Operator.NOT_NULL))) == 1
    hostile = await read(store, condition("sky", Operator.IN, *HOSTILE[::2]))
    assert sorted(leg for _, leg, _ in hostile) == list(range(0, len(HOSTILE), 2))
    both = condition("place", Operator.EQUAL, "a"), condition("wind", Operator.LESS, 0.0)
    assert await read(store, *both) == [("a", 1, 2.0)]


async def test_keys_are_compared_column_by_column(store: Store) -> None:
    """Not every first with every second; a key that is asked for twice, or that there is not, changes nothing."""
    await define(store)
    keys = (
        Column.build("leg", DataType.INT64, [2, 1, 1, 7, 2]),
        Column.build("place", DataType.STRING, ["a", "b", "absent", "a", "a"]),
    )
    assert await read(store, keys=keys) == [("a", 2, 1.0), ("b", 1, 3.0)]
    hostile = (
        Column.build("place", DataType.STRING, ["'", '"', "\\"]),
        Column.build("leg", DataType.INT64, [1, 2, 3]),
    )
    assert await read(store, keys=hostile) == []
    await store.write("weather", [row(text, 5, 9) for text in HOSTILE])
    asked = (Column.build("place", DataType.STRING, HOSTILE), Column.build("leg", DataType.INT64, [5] * len(HOSTILE)))
    assert sorted(place for place, _, _ in await read(store, keys=asked)) == sorted(HOSTILE)


async def test_conditions_apply_to_the_latest_rows(store: Store) -> None:
    """A key whose latest row does not fulfil them is left out; tombstones are, and those before the times."""
    await define(store)
    await store.write("weather", [row("b", 1, 3, wind=9.0), row("a", 2, 5, deleted=True)])
    windy = condition("wind", Operator.GREATER, 0.0)
    assert await read(store, windy) == [("a", 1, 1.0), ("b", 1, 3.0), ("b", 1, 3.0)]
    assert await read(store, windy, latest_only=True) == [("b", 1, 3.0)]
    before = EventTimes(end=at(2))
    assert await read(store, windy, latest_only=True, times=before) == [("a", 1, 1.0)]
    not_hostile = condition("place", Operator.NOT_EQUAL, "hostile")
    assert await read(store, not_hostile, latest_only=True) == [("a", 1, 2.0), ("b", 1, 3.0)]
    # The latest row as such, then the condition; not the latest of those before.
    assert await read(store, condition("event_time", Operator.LESS, at(2)), latest_only=True) == []


async def test_a_read_as_of_a_commit_or_a_time(store: Store) -> None:
    """A time means the commits that were published by then, to the microsecond."""
    await store.group("weather", [PLACE, LEG], FEATURES)
    first = await store.write("weather", [row("a", 1, 1)])
    second = await store.write("weather", [row("a", 1, 2)])
    just_before = second.committed_at - timedelta(microseconds=1)
    assert await read(store, commit=1) == await read(store, as_of_time=first.committed_at) == [("a", 1, 1.0)]
    assert await read(store, as_of_time=just_before) == [("a", 1, 1.0)]
    assert len(await read(store, as_of_time=second.committed_at)) == 2
    assert await read(store, as_of_time=first.committed_at - timedelta(microseconds=1)) == []
    assert len(await read(store, as_of_time=second.committed_at.astimezone(ZoneInfo("Asia/Tokyo")))) == 2
    with pytest.raises(OutOfRange):
        await read(store, commit=3)
    with pytest.raises(InvalidValue, match="as_of_time"):
        await read(store, commit=1, as_of_time=NOW)
    with pytest.raises(NotFound):
        async with store.reads.read(GroupQuery(Reference("absent"))):
            pass
    with pytest.raises(InvalidValue, match="not a key, a feature"):
        await read(store, Condition("absent", Operator.IS_NULL))


async def flights(store: Store) -> None:
    """Flights with the weather at their origin as their view; some of the flights were corrected or deleted."""
    await store.group("weather", [PLACE], (Field("wind", DataType.FLOAT64),))
    fields = (
        Field("place", DataType.STRING),
        Field("departure", DataType.TIMESTAMP),
        Field("hour", DataType.INT64),
        Field("delayed", DataType.BOOL),
    )
    await store.group("flights", [Field("flight", DataType.STRING)], fields)
    await store.write("weather", [{"place": "a", "event_time": at(m), "wind": float(m)} for m in (0, 10, 20)])

    def flight(name: str, minutes: float, **values: Any) -> dict[str, Any]:
        default = {"place": "a", "departure": at(minutes - 5), "hour": 7, "delayed": False}
        return {"flight": name, "event_time": at(minutes)} | default | values

    await store.write("flights", [flight("x", 5), flight("x", 15), flight("y", 11, place="b"), flight("z", 12)])
    await store.write(
        "flights", [flight("x", 15, hour=8), flight("z", 12, deleted=True), flight("w", 30, delayed=True)]
    )
    request = (Field("hour", DataType.INT64),)
    await store.view("judged", source("weather", "wind"), request_features=request, label=Field("late", DataType.BOOL))


async def test_scoring_data_are_the_latest_rows_joined_as_of_a_time(store: Store) -> None:
    """One row per key; the time of asking is every row's event time, and what came after it is left out."""
    await flights(store)
    query = SpineQuery(GroupQuery(Reference("flights"), latest_only=True), at=at(18))
    table = await store.read_as_of("judged", query)
    assert table.to_pylist() == [
        {"flight": "x", "event_time": at(18), "place": "a", "wind": 10.0, "hour": 8},
        {"flight": "y", "event_time": at(18), "place": "b", "wind": None, "hour": 7},
    ]
    early = await store.read_as_of("judged", SpineQuery(GroupQuery(Reference("flights"), latest_only=True), at=at(5)))
    assert early["flight"].to_pylist() == ["x"]
    only = SpineQuery(
        GroupQuery(
            Reference("flights"), where=(Condition("place", Operator.EQUAL, Column.build("p", DataType.STRING, ["b"])),)
        ),
    )
    assert (await store.read_as_of("judged", only))["flight"].to_pylist() == ["y"]


async def test_a_spine_of_rows_leaves_out_what_was_corrected_or_deleted(store: Store) -> None:
    """And takes event time and label from the columns that are named."""
    await flights(store)
    mapped = (("departure", "event_time"), ("delayed", "late"))
    table = await store.read_as_of("judged", SpineQuery(GroupQuery(Reference("flights")), mapped))
    assert table.column_names == ["flight", "event_time", "place", "wind", "hour", "late"]
    assert table.select(["flight", "event_time", "hour", "late", "wind"]).to_pylist() == [
        {"flight": "w", "event_time": at(25), "hour": 7, "late": True, "wind": 20.0},
        {"flight": "x", "event_time": at(0), "hour": 7, "late": False, "wind": 0.0},
        {"flight": "x", "event_time": at(10), "hour": 8, "late": False, "wind": 10.0},
        {"flight": "y", "event_time": at(6), "hour": 7, "late": False, "wind": None},
    ]
    as_of = await store.read_as_of("judged", SpineQuery(GroupQuery(Reference("flights")), mapped), commit=2)
    assert as_of["flight"].to_pylist() == ["x", "x", "y", "z"]
    with pytest.raises(InvalidValue, match="not a column"):
        await store.read_as_of("judged", SpineQuery(GroupQuery(Reference("flights")), (("absent", "late"),)))
    with pytest.raises(InvalidValue, match="hour"):
        await store.read_as_of("judged", SpineQuery(GroupQuery(Reference("weather"))))


async def test_an_hour_that_there_is_twice_is_two_hours(store: Store) -> None:
    """Instants come from any zone; the night the clocks go back has 1:30 twice, and they are an hour apart."""
    zone = ZoneInfo("America/New_York")
    first, again = (datetime(2025, 11, 2, 1, 30, tzinfo=zone, fold=fold) for fold in (0, 1))
    await store.group("weather", [PLACE], (Field("wind", DataType.FLOAT64),))
    await store.view("judged", source("weather", "wind"))
    await store.write("weather", [{"place": "a", "event_time": t, "wind": w} for t, w in ((first, 1.0), (again, 2.0))])
    shown = datetime(2025, 11, 2, 6, 29, 59, tzinfo=UTC), again.astimezone(ZoneInfo("Asia/Kolkata"))
    spine = pa.table(
        {
            "place": ["a", "a", "a"],
            "event_time": pa.array([first, *shown], pa.timestamp("ns", "America/New_York")),
        }
    )
    assert (await store.read_as_of("judged", spine))["wind"].to_pylist() == [1.0, 1.0, 2.0]


TINY = JoinBounds(table_rows=0, table_bytes=0, part_rows=40, part_bytes=2_000, range_rows=64, buffer_bytes=1_000)


def through_files(store: Store, folder: Path) -> FeatureReads:
    """Reads that hold next to nothing in memory."""
    spills = SpillFolder(folder / "parts", reserve_bytes=0)
    join = ViewJoin(store.rows, NumpyAsOf(), TransformSet(()), spills, TINY)
    queries = SpineQueries(store.registry, store.rows, spills)
    return FeatureReads(store.registry, Watermarks(store.commits), store.rows, queries, join)


async def test_what_goes_through_files_equals_what_is_joined_in_memory(store: Store, folder: Path) -> None:
    """Every type of value, two groups, a spine in a file, hot keys; and nothing stays on the disk."""
    random = np.random.default_rng(11)
    await store.group("weather", [PLACE, LEG], FEATURES)
    await store.group("places", [PLACE], (Field("name", DataType.STRING), Field("size", DataType.FLOAT_VECTOR, 3)))
    options = {"max_age": timedelta(minutes=200)}
    await store.view(
        "judged",
        source("weather", "wind", "sky", "open", "count", "seen", "v", **options),
        source("places", "name", "size"),
    )
    made: dict[tuple[str, int, int], dict[str, Any]] = {}
    for _ in range(700):
        place, leg, minutes = (f"p{random.zipf(1.7) % 9}", int(random.integers(3)), int(random.integers(400)))
        made[place, leg, minutes] = row(
            place, leg, minutes, wind=float(random.random()), sky=f"s{minutes}", open=bool(leg), count=minutes,
            seen=at(minutes), v=[1.0, float(leg)], deleted=bool(random.random() < 0.1),
        )  # fmt: skip
    await store.write("weather", list(made.values()))
    await store.write("weather", [{**r, "wind": None} for r in list(made.values())[::7]])
    names = [{"place": f"p{i}", "event_time": at(i), "name": "é" * i, "size": [float(i)] * 3} for i in range(7)]
    await store.write("places", names)
    size = 1_500
    spine = pa.table(
        {
            "id": range(size),
            "place": pa.array([None if i % 50 == 0 else f"p{random.zipf(1.7) % 11}" for i in range(size)]),
            "leg": pa.array(random.integers(0, 4, size)),
            "event_time": pa.array([at(float(m)) for m in random.uniform(-5, 500, size)], UTC_MICROS),
            "note": pa.array(["x", "y", None] * 500).dictionary_encode(),
        }
    )
    expected = await store.read_as_of("judged", spine)
    assert expected["name"].null_count < size > expected["wind"].null_count
    path = folder / "spine.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, spine.schema) as writer:
        writer.write_table(spine.combine_chunks(), 333)
    reads = through_files(store, folder)
    for known_by in (False, True):
        async with reads.read_as_of(Reference("judged"), FileRows(path, spine.schema, size), known_by=known_by) as rows:
            assert not isinstance(rows, TableRows)
            found = await asyncio.to_thread(read_all, rows)
            again = await asyncio.to_thread(read_all, rows)
        if not known_by:
            assert found.combine_chunks().equals(expected.combine_chunks())
        else:
            assert found["wind"].null_count == size
        assert again.equals(found)
    assert not [p for p in (folder / "parts").rglob("*") if p.is_file()]


async def test_a_cancelled_join_stops_and_leaves_nothing(store: Store, folder: Path) -> None:
    """Wherever it is; and the next one works."""
    await store.group("weather", [PLACE], (Field("wind", DataType.FLOAT64),))
    await store.view("judged", source("weather", "wind"))
    rows = [{"place": f"p{i % 7}", "event_time": at(i), "wind": float(i)} for i in range(500)]
    await store.write("weather", rows)
    spine = pa.table({"place": [f"p{i % 7}" for i in range(500)], "event_time": pa.array([at(500)] * 500, UTC_MICROS)})
    reads = through_files(store, folder)

    async def join() -> int:
        async with reads.read_as_of(Reference("judged"), TableRows(spine)) as joined:
            return int((await asyncio.to_thread(read_all, joined))["wind"].null_count)

    for pauses in (1, 5, 20, 60, 120):
        task = asyncio.create_task(join())
        for _ in range(pauses):
            # A turn of the loop each; threads come back in between.
            await asyncio.to_thread(int)
        task.cancel()
        await asyncio.wait([task])
        assert not [p for p in (folder / "parts").rglob("*") if p.is_file()]
    assert await join() == 0


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
instants = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(lambda t: t.replace(tzinfo=UTC))  # noqa: DTZ001


def test_literals_come_back_as_they_were(postgres_url: MakeDatabase) -> None:
    """Any text, number and instant, alone and in an array, through the very path that reads take."""
    with dbapi.connect(postgres_url("literals").with_password(options="-ctimezone=UTC")) as connection:

        def round_trip(type: DataType, values: Sequence[Any]) -> None:
            column = Column.build("x", type, values)
            alone = ", ".join(f"{value_sql(column, i)} AS c{i}" for i in range(len(values)))
            with connection.cursor() as cursor:
                cursor.execute(f"SELECT {alone}, {array_sql(column)} AS everything")
                (found,) = cursor.fetch_arrow_table().to_pylist()
            everything = found.pop("everything")
            expected = column.to_list()
            assert list(found.values()) == expected
            assert everything == expected

        @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(
            words=st.lists(texts.filter(is_nfc) | st.sampled_from(HOSTILE), min_size=1, max_size=5),
            integers=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3),
            floats=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=3),
            times=st.lists(instants, min_size=1, max_size=3),
            flags=st.lists(st.booleans(), min_size=1, max_size=3),
        )
        def check(
            words: list[str], integers: list[int], floats: list[float], times: list[datetime], flags: list[bool]
        ) -> None:
            round_trip(DataType.STRING, words)
            round_trip(DataType.INT64, integers)
            round_trip(DataType.FLOAT64, floats)
            round_trip(DataType.TIMESTAMP, times)
            round_trip(DataType.BOOL, flags)

        check()


def is_nfc(text: str) -> bool:
    """What a column of texts takes."""
    return unicodedata.is_normalized("NFC", text)
