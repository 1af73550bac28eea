"""Commits: ordered, whole, once each."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from foresight.values import DataType, Expectation, FailurePolicy, Field, InvalidValue, Range
from foresight.values.pipelines import PositionMove
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.reads.histories import EventTimes
from services.feature_store.reads.queries import GroupQuery
from services.feature_store.tables.row_source import TableRows
from services.feature_store.writes.writing import Write
from services.runtime.errors import AlreadyExists, NotFound, OutOfRange, PermissionDenied
from services.runtime.identity import LOCAL
from tests.integration.feature_store.rig import NOW, Store, at, table

KEY = Field("place", DataType.STRING)
FEATURES = (Field("wind", DataType.FLOAT64), Field("note", DataType.STRING), Field("v", DataType.FLOAT_VECTOR, 2))


async def test_rows_come_back_as_written_in_commit_order(store: Store) -> None:
    """Values, NULLs, tombstones, known_at and the commit that wrote them."""
    await store.group("weather", [KEY], FEATURES)
    first = await store.write(
        "weather",
        [
            {"place": "b", "event_time": at(5), "wind": 1.5, "note": "é", "v": [1.0, 2.0]},
            {"place": "a", "event_time": at(5), "wind": None, "note": "", "v": None},
        ],
    )
    second = await store.write("weather", [{"place": "a", "event_time": at(1), "deleted": True, "known_at": at(2)}])
    assert (first.number, second.number) == (1, 2)
    assert second.committed_at > first.committed_at
    common = {"known_at": first.committed_at, "commit": 1, "deleted": False}
    assert await store.read("weather") == [
        {"place": "a", "event_time": at(5), "wind": None, "note": "", "v": None} | common,
        {"place": "b", "event_time": at(5), "wind": 1.5, "note": "é", "v": [1.0, 2.0]} | common,
        {"place": "a", "event_time": at(1), "wind": None, "note": None, "v": None}
        | {"known_at": at(2), "commit": 2, "deleted": True},
    ]
    assert len(await store.read("weather", commit=1)) == 2


async def test_latest_only_takes_event_time_then_commit_and_leaves_tombstones_out(store: Store) -> None:
    """A late batch does not replace a newer row; a correction does."""
    await store.group("weather", [KEY], FEATURES)
    await store.write("weather", [{"place": p, "event_time": at(5), "wind": 1.0} for p in ("a", "b", "c")])
    await store.write("weather", [{"place": "a", "event_time": at(5), "wind": 2.0}])
    await store.write("weather", [{"place": "b", "event_time": at(4), "wind": 3.0}])
    await store.write("weather", [{"place": "c", "event_time": at(6), "deleted": True}])
    latest = await store.read("weather", latest_only=True)
    assert [(row["place"], row["wind"]) for row in latest] == [("a", 2.0), ("b", 1.0)]


async def test_event_times_bound_a_read(store: Store) -> None:
    """From inclusive, to exclusive."""
    await store.group("weather", [KEY], FEATURES)
    await store.write("weather", [{"place": "a", "event_time": at(i), "wind": float(i)} for i in range(5)])
    async with store.reads.read(GroupQuery(Reference("weather"), EventTimes(at(1), at(3)))) as stream:
        batch = stream.next_batch()
    assert batch is not None
    assert batch["wind"].to_pylist() == [1.0, 2.0]


async def test_the_same_write_id_commits_once(store: Store) -> None:
    """Also when two calls race; other rows under the id are refused, and nothing is half there."""
    await store.group("weather", [KEY], FEATURES)
    rows = [{"place": "a", "event_time": at(1), "wind": 1.0}]
    commits = await asyncio.gather(*(store.write("weather", rows, "once") for _ in range(4)))
    assert {commit.number for commit in commits} == {1}
    assert sorted(commit.duplicate for commit in commits) == [False, True, True, True]
    with pytest.raises(AlreadyExists):
        await store.write("weather", [rows[0] | {"wind": 2.0}], "once")
    assert len(await store.read("weather")) == 1


async def test_a_watermark_never_gains_a_row(store: Store) -> None:
    """While eight writers publish, what a reader saw up to a watermark is all there ever will be."""
    await store.group("weather", [KEY], FEATURES)
    done = asyncio.Event()
    seen: dict[int, int] = {}

    async def write(writer: int) -> None:
        for turn in range(6):
            # Larger batches take longer between their write number and their commit.
            n = 1 + (writer * 37 + turn * 101) % 400
            rows = [{"place": f"{writer}-{i}", "event_time": at(turn), "wind": 1.0} for i in range(n)]
            await store.write("weather", rows)

    async def watch() -> None:
        while not done.is_set():
            last = await store.commits.last()
            if last and last not in seen:
                seen[last] = len(await store.read("weather", commit=last))
            await asyncio.sleep(0)

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(write(writer) for writer in range(8)))
    done.set()
    await watcher
    commits = await store.commits.after(0, 1_000)
    assert [commit.number for commit in commits] == list(range(1, 49))
    assert len(seen) > 3
    for last, rows in seen.items():
        assert rows == sum(commit.rows for commit in commits if commit.number <= last)


async def test_a_refused_write_changes_nothing(store: Store) -> None:
    """Every fault is named, and no row is stored."""
    group = await store.group("weather", [KEY], FEATURES)
    with pytest.raises(InvalidValue) as refused:
        await store.write(
            "weather",
            [
                {"place": "a", "event_time": at(1), "wind": float("nan"), "known_at": NOW + timedelta(seconds=1)},
                {"place": None, "event_time": at(1), "note": "e\u0301"},
            ],
        )
    assert {v.field for v in refused.value.violations} == {"arrow.place", "arrow.wind", "arrow.note"}
    with pytest.raises(InvalidValue, match="more than once, such as place 'a'"):
        await store.write("weather", [{"place": "a", "event_time": at(1)}] * 2)
    with pytest.raises(OutOfRange):
        await store.write("weather", [{"place": "a", "event_time": NOW + timedelta(days=367)}])
    rows = TableRows(table(group, [{"place": "a", "event_time": at(1), "known_at": at(2)}]))
    with pytest.raises(PermissionDenied):
        await store.writes.write(Write(Reference("weather"), rows, "spiffe://foresight/application/demo"))
    with pytest.raises(PermissionDenied):
        await store.writes.write(Write(Reference("weather"), rows, "spiffe://foresight/operator-evil/demo"))
    with pytest.raises(NotFound):
        await store.writes.write(Write(Reference("absent"), rows, LOCAL))
    assert await store.read("weather") == []
    assert await store.commits.last() == 0
    await store.writes.write(Write(Reference("weather"), rows, "spiffe://foresight/operator/ada"))
    with pytest.raises(OutOfRange):
        await store.read("weather", commit=2)


async def test_long_text_keys_are_stored_and_found(store: Store) -> None:
    """Longer than an entry of PostgreSQL's index or of the online store may be."""
    await store.group("weather", [KEY], FEATURES)
    # Random enough not to be compressed away.
    long = "".join(chr(0x4E00 + (i * 7_919) % 20_000) for i in range(1_365))
    await store.write("weather", [{"place": long, "event_time": at(1), "wind": 1.0}])
    assert (await store.read("weather"))[0]["place"] == long


@pytest.mark.parametrize("value", [5.0, 0.5])
async def test_a_write_that_a_drop_overtook_is_refused_whatever_is_left_of_it(
    store: Store, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept apart for a group that is gone would be found by nobody, and forgotten by no erasure."""
    await store.group(
        "tides",
        [Field("place", DataType.STRING)],
        [Field("level", DataType.FLOAT64)],
        expectations=(Expectation(Range(0, 1), "level"),),
        failure_policy=FailurePolicy.QUARANTINE,
    )
    stored, last = await store.registry.group(Reference("tides")), await store.commits.last()
    await store.registry.drop_group(Reference("tides", 1), "")

    async def as_it_was(_: Reference) -> StoredGroup:
        return stored

    monkeypatch.setattr(store.registry, "group", as_it_was)
    with pytest.raises(NotFound):
        await store.write("tides", [{"place": "a", "event_time": at(1), "level": value}])
    nothing = table(stored.group, [{"place": "a", "event_time": at(1), "level": 0.0}]).slice(1)
    with pytest.raises(NotFound):
        await store.write_table("tides", nothing, "none", progress=PositionMove("tidal", "", "1"))
    # The drop itself is one.
    assert await store.commits.last() == last + 1
    async with store.database.statements() as connection:
        assert (await connection.exec_driver_sql("SELECT * FROM quarantine")).all() == []
        assert (await connection.exec_driver_sql("SELECT * FROM pipeline_positions")).all() == []
