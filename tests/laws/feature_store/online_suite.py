"""What every online store keeps to: a state machine against a dictionary, and laws of their own.

The suite is run over LMDB by `test_online_laws.py`, and over a cluster by `tests/redis_cluster`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from foresight.tables import arrow_type
from foresight.values import Column, DataType, FeatureGroup, Field
from services.feature_store.groups import StoredGroup
from services.feature_store.online.store import CommittedRows, FoundRow, KeyQuery, OnlineStore
from services.feature_store.tables.row_source import TableRows
from services.runtime.errors import FailedPrecondition

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
# What a group may gain later, and what older rows read then.
ADDITIONS: tuple[tuple[Field, Any], ...] = (
    (Field("added_text", DataType.STRING), "as before"),
    (Field("added_number", DataType.FLOAT64), None),
    (Field("added_vector", DataType.FLOAT_VECTOR, 2), [0.5, -1.0]),
    (Field("added_moment", DataType.TIMESTAMP), 7),
    (Field("added_count", DataType.INT64), -1),
)
LONG = "x" * 4_000
GROUPS = [
    StoredGroup(1, FeatureGroup("one", KEYS, FEATURES, version=1)),
    StoredGroup(2, FeatureGroup("two", KEYS, FEATURES, version=1)),
    StoredGroup(3, FeatureGroup("three", (Field("id", DataType.INT64),), FEATURES[:2], version=1)),
]
EMPTY = (None,) * len(FEATURES)
Key = tuple[Any, ...]
Open = Callable[[], AbstractAsyncContextManager[OnlineStore]]

texts = st.sampled_from(["", "1", "12", "é", LONG, LONG + "1"])
composite = st.tuples(texts, st.sampled_from([0, 23, 3, -(2**63)]), st.booleans())
simple = st.tuples(st.integers(0, 3))
floats32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES: dict[DataType, st.SearchStrategy[Any]] = {
    DataType.FLOAT64: st.floats(allow_nan=False, allow_infinity=False),
    DataType.INT64: st.integers(-(2**63), 2**63 - 1),
    DataType.BOOL: st.booleans(),
    DataType.STRING: st.text(max_size=5),
    DataType.TIMESTAMP: st.integers(-(10**15), 10**15),
    DataType.FLOAT_VECTOR: st.tuples(floats32, floats32).map(list),
}
# Instants whose halves of 32 bits order otherwise than they do, from the year 1 to 9999.
times = st.sampled_from(
    [-62_135_596_800_000_000, -(2**32) - 1, -1, 0, 1, 2**31, 2**32 - 1, 2**32, 253_402_300_799_999_999]
)


@dataclass(frozen=True)
class Row:
    """A row as it was written; `values` are those of the features that the group had then."""

    key: Key
    event_time_us: int
    commit: int
    deleted: bool
    values: tuple[Any, ...]


@dataclass
class Written:
    """A commit and the group as it was then."""

    number: int
    group: StoredGroup
    rows: list[Row] = field(default_factory=list)


def table(group: StoredGroup, rows: Sequence[Row]) -> pa.Table:
    """Rows as an Arrow table."""
    keys, features = group.group.entity_keys, group.group.features
    columns = {f.name: pa.array([row.key[i] for row in rows], arrow_type(f)) for i, f in enumerate(keys)}
    columns["event_time"] = pa.array([row.event_time_us for row in rows], pa.timestamp("us", "UTC"))
    columns["commit"] = pa.array([row.commit for row in rows], pa.int64())
    columns["deleted"] = pa.array([row.deleted for row in rows], pa.bool_())
    columns |= {f.name: pa.array([row.values[i] for row in rows], arrow_type(f)) for i, f in enumerate(features)}
    return pa.table(columns)


def committed(group: StoredGroup, rows: Sequence[Row]) -> CommittedRows:
    """Rows for a store."""
    return CommittedRows(group, TableRows(table(group, rows)))


def query(group: StoredGroup, entities: Sequence[Key]) -> KeyQuery:
    """The look-up of entities; parts may be NULL."""
    fields = group.group.entity_keys
    return KeyQuery(
        group, tuple(Column.build(f.name, f.type, [entity[i] for entity in entities]) for i, f in enumerate(fields))
    )


def widened(stored: StoredGroup, addition: Field, default: Any) -> StoredGroup:
    """The group with one more feature."""
    group = stored.group
    defaults = dict(group.defaults)
    if default is not None:
        defaults[addition.name] = Column.build(addition.name, addition.type, [default], addition.dimension)
    return replace(stored, group=replace(group, features=(*group.features, addition), defaults=defaults))


class _Torn:
    """Rows whose reading fails after the first ones."""

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows
        self.schema = rows.schema
        self.num_rows = rows.num_rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        """See RowSource."""
        yield from self._rows.slice(0, max(1, self.num_rows // 2)).to_batches()
        raise OSError("torn")


class OnlineStoreMachine(RuleBasedStateMachine):
    """Commits, erasures and rebuilds, in any order, against the rows of all commits."""

    def open(self) -> AbstractAsyncContextManager[OnlineStore]:
        """Opens the store of this machine; the same one each time."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._opened: AbstractAsyncContextManager[OnlineStore] | None = None
        self.groups = list(GROUPS)
        self.commits: list[Written] = []
        self.applied = 0
        # A batch that broke off may have come so far.
        self.torn_until = 0
        self.erasure = 0

    @initialize()
    def begin(self) -> None:
        """Opens the store."""
        self._opened = self.open()
        self.store = self._run(self._opened.__aenter__())

    def teardown(self) -> None:
        """Closes it."""
        if self._opened is not None:
            self._run(self._opened.__aexit__(None, None, None))
        self._runner.close()

    def _run(self, work: Any) -> Any:
        return self._runner.run(work)

    @rule(data=st.data(), index=st.integers(0, len(GROUPS) - 1))
    def write(self, data: st.DataObject, index: int) -> None:
        """A commit is published."""
        stored = self.groups[index]
        features = [st.none() | VALUES[f.type] for f in stored.group.features]
        content = st.dictionaries(
            st.tuples(simple if index == 2 else composite, times),
            st.tuples(st.booleans(), st.tuples(*features)),
            max_size=5,
        )
        number = len(self.commits) + 1
        written = Written(number, stored)
        for (key, time), (deleted, values) in data.draw(content).items():
            written.rows.append(Row(key, time, number, deleted, values))
        self.commits.append(written)

    @precondition(lambda self: self.applied < len(self.commits))
    @rule(data=st.data(), n=st.integers(1, 4))
    def apply_next(self, data: st.DataObject, n: int) -> None:
        """The next commits are applied at once, group by group."""
        last = min(len(self.commits), max(self.applied + n, self.torn_until))
        self._run(self.store.apply(last, self._batches(data, self.applied, last)))
        self.applied = last

    @rule(data=st.data(), first=st.integers(0, 5), n=st.integers(1, 4))
    def apply_again(self, data: st.DataObject, first: int, n: int) -> None:
        """An applier that does not know better applies old commits once more."""
        start = max(0, self.applied - first)
        last = min(self.applied, start + n)
        self._run(self.store.apply(last, self._batches(data, start, last)))

    @precondition(lambda self: self.applied < len(self.commits))
    @rule(data=st.data(), n=st.integers(1, 3))
    def break_off(self, data: st.DataObject, n: int) -> None:
        """An applier ends in the middle of a batch: nothing of it counts."""
        last = min(len(self.commits), max(self.applied + n, self.torn_until))
        batches = self._batches(data, self.applied, last)
        if not batches or not batches[-1].rows.num_rows:
            return
        torn = replace(batches[-1], rows=_Torn(table_of(batches[-1])))
        with pytest.raises(OSError, match="torn"):
            self._run(self.store.apply(last, [*batches[:-1], torn]))
        self.torn_until = last

    @rule(data=st.data(), index=st.integers(0, len(GROUPS) - 1))
    def erase(self, data: st.DataObject, index: int) -> None:
        """Entities are erased everywhere."""
        known = sorted({row.key for c in self.commits if c.group.id == index + 1 for row in c.rows}, key=repr)
        some = st.lists(st.sampled_from(known), max_size=3, unique=True) if known else st.just([])
        gone = [*data.draw(some), (99,) if index == 2 else ("absent", 1, True)]
        there = sum(self._latest(index, key, self.applied) is not None for key in gone)
        removed = self._run(self.store.remove(self.groups[index], query(self.groups[index], gone).keys))
        # Also what a batch that broke off has brought.
        assert there <= removed <= len(gone) - 1
        for written in self.commits:
            if written.group.id == index + 1:
                written.rows = [row for row in written.rows if row.key not in gone]
        self.erasure += 1
        self._run(self.store.erased(self.erasure))
        self._run(self.store.erased(self.erasure - 1))

    @rule(index=st.integers(0, len(GROUPS) - 1), data=st.data())
    def add_feature(self, index: int, data: st.DataObject) -> None:
        """A group gains a feature in place."""
        group = self.groups[index].group
        known = {f.name for f in group.features}
        missing = [addition for addition in ADDITIONS if addition[0].name not in known]
        if missing:
            self.groups[index] = widened(self.groups[index], *data.draw(st.sampled_from(missing)))

    @rule()
    def reopen(self) -> None:
        """The process starts again."""
        assert self._opened is not None
        self._run(self._opened.__aexit__(None, None, None))
        self._opened = None
        self.begin()

    @rule(data=st.data())
    def rebuild(self, data: st.DataObject) -> None:
        """A new store takes the place of this one."""
        start = data.draw(st.integers(0, self.applied))

        async def run() -> None:
            async with self.store.replacement() as made:
                with pytest.raises(FailedPrecondition):
                    async with self.store.replacement():
                        raise AssertionError
                await made.apply(0, self._batches(data, 0, start))
                await made.erased(self.erasure)

                async def catch_up() -> None:
                    await made.apply(self.applied, self._batches(None, start, self.applied))

                keys = await made.take_over(catch_up)
                assert keys == sum(len(self._keys(index, self.applied)) for index in range(len(GROUPS)))

        self._run(run())
        self.torn_until = 0

    @rule(data=st.data())
    def begin_to_rebuild(self, data: st.DataObject) -> None:
        """A rebuild that is given up changes nothing."""

        async def run() -> None:
            async with self.store.replacement() as made:
                await made.apply(self.applied, self._batches(data, 0, self.applied))

        self._run(run())

    @invariant()
    def lookups_are_those_of_the_applied_commit(self) -> None:
        """Every key that was ever written, absent ones, and keys with a NULL, over all groups at once."""
        if self._opened is None:
            return
        asked: list[list[Key]] = []
        for index in range(len(GROUPS)):
            keys = self._keys(index, len(self.commits))
            asked.append(
                [*keys, (98,) if index == 2 else ("absent", 0, True), (None,) if index == 2 else (None, 0, True)]
            )
        queries = [query(self.groups[i], keys) for i, keys in enumerate(asked)]
        lookup = self._run(self.store.lookup(queries))
        assert lookup.applied_commit == self.applied
        for index, keys in enumerate(asked):
            assert lookup.found[index] == [self._latest(index, key, self.applied) for key in keys]
        assert tuple(self._run(self.store.progress())) == (self.applied, self.erasure)
        assert self._run(self.store.applied_commit()) == self.applied

    def _batches(self, data: st.DataObject | None, after: int, last: int) -> list[CommittedRows]:
        """One batch per state of a group, as an applier reads them, in any order."""
        rows: dict[tuple[int, int], list[Row]] = {}
        groups: dict[tuple[int, int], StoredGroup] = {}
        for written in self.commits[after:last]:
            state = written.group.id, len(written.group.group.features)
            groups[state] = written.group
            rows.setdefault(state, []).extend(written.rows)
        made = [committed(groups[state], found) for state, found in rows.items()]
        return made if data is None else list(data.draw(st.permutations(made)))

    def _keys(self, index: int, last: int) -> list[Key]:
        rows = (row for c in self.commits[:last] if c.group.id == index + 1 for row in c.rows)
        return list(dict.fromkeys(row.key for row in rows))

    def _latest(self, index: int, key: Key, last: int) -> FoundRow | None:
        rows = [row for c in self.commits[:last] if c.group.id == index + 1 for row in c.rows if row.key == key]
        if not rows:
            return None
        latest = max(rows, key=lambda row: (row.event_time_us, row.commit))
        group = self.groups[index].group
        values = list(latest.values)
        for feature in group.features[len(values) :]:
            default = group.defaults.get(feature.name)
            values.append(None if default is None else default.values.tolist()[0])
        return FoundRow(latest.event_time_us, latest.commit, latest.deleted, tuple(values))


def table_of(batch: CommittedRows) -> pa.Table:
    """The rows of a batch that is in memory."""
    assert isinstance(batch.rows, TableRows)
    return batch.rows.table


class OnlineLaws:
    """Laws beside the machine. A subclass has the fixture `store`, and `again`, which opens the same store once more
    where one process can do that."""

    async def test_a_null_in_a_key_finds_nothing(self, store: OnlineStore) -> None:
        """Not even a row whose key holds the zero that stands for it."""
        await store.apply(1, [committed(GROUPS[0], [Row(("", 0, False), 1, 1, False, EMPTY)])])
        asked = query(GROUPS[0], [(None, 0, False), ("", None, False), ("", 0, None), ("", 0, False)])
        (found,) = (await store.lookup([asked])).found
        assert [row is not None for row in found] == [False, False, False, True]

    @pytest.mark.parametrize("first", ["1", LONG])
    async def test_composite_keys_stay_apart_also_when_they_are_digested(self, store: OnlineStore, first: str) -> None:
        """('1', '23') is not ('12', '3'); a key longer than the store takes is found by its digest, compared whole."""
        rows = [Row((first, 23, True), 1, 1, False, EMPTY), Row((first + "2", 3, True), 2, 1, False, EMPTY)]
        await store.apply(1, [committed(GROUPS[0], rows)])
        asked = query(GROUPS[0], [(first, 23, True), (first + "2", 3, True), (first + "2", 23, True)])
        (found,) = (await store.lookup([asked])).found
        assert [row and row.event_time_us for row in found] == [1, 2, None]

    async def test_an_hour_old_late_batch_does_not_overwrite_the_newer_row(self, store: OnlineStore) -> None:
        """It counts as applied; a correction of the same time by a later commit does overwrite."""
        hour = 3_600_000_000
        group, key = GROUPS[2], (1,)
        for commit, time in ((1, 2 * hour), (2, hour), (3, 2 * hour)):
            await store.apply(commit, [committed(group, [Row(key, time, commit, False, (float(commit), commit))])])
            lookup = await store.lookup([query(group, [key])])
            expected = {1: (2 * hour, 1), 2: (2 * hour, 1), 3: (2 * hour, 3)}[commit]
            row = lookup.found[0][0]
            assert row is not None
            assert (lookup.applied_commit, (row.event_time_us, row.commit)) == (commit, expected)

    async def test_a_process_that_knows_an_older_state_of_a_group_reads_what_it_knows(self, store: OnlineStore) -> None:
        """A text after which another one was added, too."""
        newer = widened(widened(GROUPS[0], *ADDITIONS[0]), *ADDITIONS[2])
        values = (1.0, 2, True, "words", 3, [1.0, 2.0], "remark")
        row = Row((LONG, 1, True), 1, 1, False, (*values, "added", [3.0, 4.0]))
        await store.apply(1, [committed(newer, [row])])
        lookup = await store.lookup([query(group, [row.key]) for group in (GROUPS[0], newer)])
        assert [found[0] and found[0].values for found in lookup.found] == [values, row.values]

    async def test_a_commit_without_rows_counts(self, store: OnlineStore) -> None:
        """And the applied commit never goes back."""
        await store.apply(3, [])
        await store.apply(2, [committed(GROUPS[2], [])])
        assert await store.applied_commit() == 3

    async def test_what_was_removed_is_gone_and_may_come_again(self, store: OnlineStore) -> None:
        """Long keys too; a key without a row, or with a NULL, is no fault."""
        rows = [Row((LONG, 1, True), 5, 1, False, EMPTY), Row(("b", 1, True), 5, 1, False, EMPTY)]
        await store.apply(1, [committed(GROUPS[0], rows)])
        asked = query(GROUPS[0], [(LONG, 1, True), ("absent", 1, True), ("b", None, True)])
        assert await store.remove(GROUPS[0], asked.keys) == 1
        assert await store.remove(GROUPS[0], asked.keys) == 0
        everything = query(GROUPS[0], [(LONG, 1, True), ("b", 1, True)])
        lookup = await store.lookup([everything])
        assert [row is not None for row in lookup.found[0]] == [False, True]
        await store.apply(2, [committed(GROUPS[0], [Row((LONG, 1, True), 3, 2, False, EMPTY)])])
        assert (await store.lookup([everything])).found[0][0] == FoundRow(3, 2, False, EMPTY)

    async def test_the_keys_of_a_group_are_told_whole_and_once(self, store: OnlineStore) -> None:
        """Also those that are stored as digests, and none of another group."""
        entities = [(LONG, 1, True), (LONG + "1", -(2**63), False), ("", 0, False), ("é", 23, True)]
        values = (None, None, None, LONG, None, None, "x")
        for group in GROUPS[:2]:
            mine = entities if group is GROUPS[0] else entities[:1]
            await store.apply(1, [committed(group, [Row(entity, 5, 1, False, values) for entity in mine])])
        await store.apply(2, [committed(GROUPS[0], [Row(entities[0], 6, 2, True, EMPTY)])])
        for group, wanted in zip(GROUPS, (entities, entities[:1], []), strict=True):
            told = [
                entity
                async for columns in store.keys(group)
                for entity in zip(*(column.to_list() for column in columns), strict=True)
            ]
            assert sorted(map(repr, told)) == sorted(map(repr, wanted))

    async def test_lookups_beside_an_applier_are_those_of_one_commit(
        self, store: OnlineStore, again: Callable[[], AsyncIterator[OnlineStore]]
    ) -> None:
        """Every commit rewrites every key of two groups: all rows of an answer are of its applied commit. Two appliers,
        each with its own batches, and a rebuild in the middle change nothing about that."""
        n, commits = 120, 40
        keys = [(str(i), i, True) for i in range(n)]
        queries = [query(group, keys) for group in GROUPS[:2]]
        done = asyncio.Event()

        def batches(first: int, last: int) -> list[CommittedRows]:
            return [
                committed(group, [Row(key, number, number, False, EMPTY) for key in keys])
                for group in GROUPS[:2]
                for number in range(first, last + 1)
            ]

        async def apply(to: OnlineStore, step: int) -> None:
            applied = 1
            while applied < commits:
                last = min(commits, applied + step)
                await to.apply(last, batches(applied + 1, last))
                applied = last
                await asyncio.sleep(0)

        async def look(at: OnlineStore) -> int:
            looks = 0
            before = 0
            while not done.is_set():
                lookup = await at.lookup(queries)
                assert lookup.applied_commit >= before
                before = lookup.applied_commit
                seen = {row and row.commit for found in lookup.found for row in found}
                assert seen == {lookup.applied_commit}
                looks += 1
                await asyncio.sleep(0)
            return looks

        async def rebuild() -> None:
            async with store.replacement() as made:

                async def catch_up() -> None:
                    applied, now = (await made.progress()).commit, await store.applied_commit()
                    if now > applied:
                        await made.apply(now, batches(applied + 1, now))

                await made.apply(1, batches(1, 1))
                assert await made.take_over(catch_up) == 2 * n

        await store.apply(1, batches(1, 1))
        async with asyncio.TaskGroup() as tasks:
            other = await anext(again())
            looks = [tasks.create_task(look(at)) for at in (store, other)]
            async with asyncio.TaskGroup() as appliers:
                appliers.create_task(apply(store, 1))
                appliers.create_task(apply(other, 3))
                appliers.create_task(rebuild())
            done.set()
        assert all(task.result() > 3 for task in looks)
        assert await store.applied_commit() == commits
