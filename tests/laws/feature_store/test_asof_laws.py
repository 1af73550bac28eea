"""The point-in-time join against an oracle that looks at every row for every spine row, in plain Python."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foresight.transforms import TransformSet
from foresight.values import Column, DataType, FeatureGroup, FeatureView, Field, ViewFeature, ViewSource
from services.feature_store.groups import StoredGroup
from services.feature_store.reads.asof import AsOfEngine, DuckDbAsOf, NumpyAsOf, SizedAsOf
from services.feature_store.reads.histories import BatchStream, EventTimes, Histories
from services.feature_store.reads.large_join import JoinBounds
from services.feature_store.reads.spine import check_spine
from services.feature_store.reads.view_join import ViewJoin
from services.feature_store.registry.derivation import derive_view
from services.feature_store.registry.view_plan import ViewPlan, plan_view
from services.feature_store.tables.row_source import TableRows, read_all
from services.feature_store.tables.spill import SpillFolder

UTC_MICROS = pa.timestamp("us", "UTC")
# Pairs that a concatenation would confuse.
FIRST_KEYS = ["1", "12", "1,2"]
SECOND_KEYS = ["23", "3", ",3"]


@dataclass(frozen=True)
class Row:
    """A row of the group; times are small integers of microseconds."""

    keys: tuple[str, ...]
    event_time: int
    commit: int
    known_at: int
    deleted: bool
    value: float | None


@dataclass(frozen=True)
class Asked:
    """A row of the spine."""

    keys: tuple[str | None, ...]
    at: int


@dataclass(frozen=True)
class Rule:
    """How to join."""

    strict: bool
    known_by: bool
    max_age: int | None
    watermark: int


def oracle(rows: Sequence[Row], asked: Asked, rule: Rule) -> float | None:
    """What a spine row sees."""
    seen: Row | None = None
    for row in rows:
        if row.commit > rule.watermark or row.keys != asked.keys:
            continue
        if row.event_time > asked.at or (rule.strict and row.event_time == asked.at):
            continue
        if rule.known_by and row.known_at > asked.at:
            continue
        if seen is None or (row.event_time, row.commit) > (seen.event_time, seen.commit):
            seen = row
    if seen is None or seen.deleted:
        return None
    if rule.max_age is not None and asked.at - seen.event_time > rule.max_age:
        return None
    return seen.value


class RowsInMemory:
    """Histories out of a list, filtered as the database does."""

    def __init__(self, rows: Mapping[str, Sequence[Row]]) -> None:
        self._rows = rows

    async def history_within(
        self,
        stored: StoredGroup,
        features: Sequence[str],
        watermark: int,
        times: EventTimes,
        *,
        rows_max: int,
        bytes_max: int,
        keys: tuple[Column, ...] = (),
    ) -> pa.Table | None:
        """See `Histories.history_within`."""
        table = self._table(stored, watermark, times)
        if keys:
            asked = set(zip(*(column.to_list() for column in keys), strict=True))
            found = zip(*(table[key.name].to_pylist() for key in stored.group.entity_keys), strict=True)
            table = table.filter(pa.array([key in asked for key in found], pa.bool_()))
        return None if table.num_rows > rows_max or table.nbytes > bytes_max else table

    @contextlib.asynccontextmanager
    async def history_stream(
        self, stored: StoredGroup, features: Sequence[str], watermark: int, times: EventTimes
    ) -> AsyncIterator[BatchStream]:
        """See `Histories.history_stream`."""
        table = self._table(stored, watermark, times)
        batches = iter(table.to_batches(3))
        yield BatchStream(table.schema, lambda: next(batches, None))

    async def size_bytes(self, stored: StoredGroup) -> int:
        """See `Histories.size_bytes`: so much that keys are looked up."""
        return 1 << 40

    async def count(self, stored: StoredGroup, watermark: int) -> int:
        """See `Histories.count`."""
        return sum(row.commit <= watermark for row in self._rows[stored.group.name])

    def _table(self, stored: StoredGroup, watermark: int, times: EventTimes) -> pa.Table:
        rows = [row for row in self._rows[stored.group.name] if row.commit <= watermark]
        columns: dict[str, Any] = {
            key.name: pa.array([row.keys[i] for row in rows], pa.string())
            for i, key in enumerate(stored.group.entity_keys)
        }
        columns |= {
            "event_time": pa.array([row.event_time for row in rows], UTC_MICROS),
            "known_at": pa.array([row.known_at for row in rows], UTC_MICROS),
            "commit": pa.array([row.commit for row in rows], pa.int64()),
            "deleted": pa.array([row.deleted for row in rows], pa.bool_()),
            "value": pa.array([row.value for row in rows], pa.float64()),
        }
        table = pa.table(columns)
        if times.first is not None:
            table = table.filter(pc.greater_equal(table["event_time"], pa.scalar(times.first, UTC_MICROS)))
        if times.end is not None:
            below = pc.less_equal if times.inclusive else pc.less
            table = table.filter(below(table["event_time"], pa.scalar(times.end, UTC_MICROS)))
        return table


def plan(*rules: Rule) -> ViewPlan:
    """A view of a group with two keys; of three groups, when there are three rules: the other two have one key each."""
    named = (("readings", {"first": "one", "second": "two"}), ("firsts", {"first": "one"}), ("seconds", {"key": "two"}))
    groups, sources = [], []
    for (name, keys), rule in zip(named, rules, strict=False):
        group = FeatureGroup(
            name=name,
            entity_keys=tuple(Field(key, DataType.STRING) for key in keys),
            features=(Field("value", DataType.FLOAT64),),
            strict_event_time=rule.strict,
            version=1,
        )
        age = None if rule.max_age is None else timedelta(microseconds=rule.max_age)
        prefix = "" if name == "readings" else f"{name}_"
        groups.append(group)
        sources.append(ViewSource(name, (ViewFeature("value"),), max_age=age, keys=keys, prefix=prefix))
    view = derive_view(FeatureView("judged", Field("label", DataType.BOOL), tuple(sources)), groups)
    return plan_view(view, [StoredGroup(i, group) for i, group in enumerate(groups, 1)])


class Way:
    """A way to join: with an engine, holding so much in memory at once."""

    def __init__(self, folder: Path, engine: AsOfEngine, bounds: JoinBounds | None = None) -> None:
        self.folder = folder
        self.engine = engine
        self.bounds = bounds

    def with_parts(self, rows: int) -> Way:
        """The same way with larger parts, where it has some."""
        bounds = None if self.bounds is None else replace(self.bounds, part_rows=rows, part_bytes=rows * 40)
        return Way(self.folder, self.engine, bounds)

    def table(self, histories: Histories, view: ViewPlan, spine: pa.Table, rule: Rule) -> pa.Table:
        """A spine joined with a view; nothing may be left on the disk."""

        async def rows_of_join() -> pa.Table:
            spills = SpillFolder(self.folder, reserve_bytes=0)
            join = ViewJoin(histories, self.engine, TransformSet(()), spills, self.bounds)
            checked = check_spine(TableRows(spine), view.view, labelled=False)
            try:
                async with join.join(view, checked, rule.watermark, known_by=rule.known_by) as result:
                    table = read_all(result)
                    assert result.num_rows == table.num_rows
                    assert result.schema == table.schema
                assert not [path for path in self.folder.rglob("*") if path.is_file()]
            finally:
                spills.close()
            return table

        return asyncio.run(rows_of_join())


def spine_table(spine: Sequence[Asked]) -> pa.Table:
    """A spine, with a column that is nobody's business."""
    return pa.table(
        {
            "position": pa.array(range(len(spine)), pa.int64()),
            "one": pa.array([asked.keys[0] for asked in spine], pa.string()),
            "two": pa.array([asked.keys[1] for asked in spine], pa.string()),
            "event_time": pa.array([asked.at for asked in spine], UTC_MICROS),
        }
    )


def joined(way: Way, rows: Sequence[Row], spine: Sequence[Asked], rule: Rule) -> list[float | None]:
    """The feature of each spine row; the spine's other columns have to come back as they were."""
    table = spine_table(spine)
    result = way.table(RowsInMemory({"readings": rows}), plan(rule), table, rule)
    assert result.select(table.column_names).equals(table)
    assert result.column_names == [*table.column_names, "value"]
    found: list[float | None] = result["value"].to_pylist()
    return found


keys = st.tuples(st.sampled_from(FIRST_KEYS), st.sampled_from(SECOND_KEYS))
rows_of_keys = st.lists(
    st.builds(
        Row,
        keys=keys,
        event_time=st.integers(0, 8),
        commit=st.integers(1, 4),
        known_at=st.integers(0, 12),
        deleted=st.booleans(),
        value=st.none() | st.integers(0, 99).map(float),
    ),
    max_size=25,
    # One write says one thing about a key at a time.
    unique_by=lambda row: (row.keys, row.event_time, row.commit),
)
spines = st.lists(
    st.builds(
        Asked,
        keys=st.tuples(st.none() | st.sampled_from(FIRST_KEYS), st.none() | st.sampled_from(SECOND_KEYS)),
        at=st.integers(0, 12),
    ),
    max_size=25,
)
rules = st.builds(
    Rule,
    strict=st.booleans(),
    known_by=st.booleans(),
    max_age=st.none() | st.integers(1, 6),
    watermark=st.integers(0, 4),
)


# Everything goes through files, in parts of a few rows, which are cut along time as well.
TINY = JoinBounds(table_rows=0, table_bytes=0, part_rows=3, part_bytes=400, range_rows=4, buffer_bytes=100)
# Small histories are joined whole, a piece of the spine at a time; the others in parts.
PIECES = JoinBounds(table_rows=5, table_bytes=1 << 20, part_rows=4, part_bytes=1 << 20, range_rows=7, buffer_bytes=300)


@pytest.fixture(scope="module", params=["duckdb", "numpy", "sized", "parts", "parts_duckdb", "pieces"])
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    """Every engine and every way through memory or files, under the same laws."""
    with tempfile.TemporaryDirectory() as folder:
        duckdb, numpy = DuckDbAsOf(Path(folder) / "duckdb"), NumpyAsOf()
        spill = Path(folder) / "spill"
        ways = {
            "duckdb": Way(spill, duckdb),
            "numpy": Way(spill, numpy),
            "sized": Way(spill, SizedAsOf(numpy, duckdb, 20)),
            "parts": Way(spill, numpy, TINY),
            "parts_duckdb": Way(spill, duckdb, TINY),
            "pieces": Way(spill, numpy, PIECES),
        }
        yield ways[request.param]
        duckdb.close()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=rows_of_keys, spine=spines, rule=rules, data=st.data())
def test_every_spine_row_sees_what_the_oracle_sees(
    way: Way, rows: list[Row], spine: list[Asked], rule: Rule, data: st.DataObject
) -> None:
    """Ties, duplicates, NULL keys and values, late rows, tombstones, ages and watermarks, in any order of rows."""
    shuffled = data.draw(st.permutations(rows))
    assert joined(way, shuffled, spine, rule) == [oracle(rows, asked, rule) for asked in spine]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.tuples(rows_of_keys, rows_of_keys, rows_of_keys),
    spine=spines,
    rule=rules,
    others=st.tuples(rules, rules),
)
def test_sources_do_not_disturb_each_other(
    way: Way, rows: tuple[list[Row], ...], spine: list[Asked], rule: Rule, others: tuple[Rule, Rule]
) -> None:
    """Three groups with other keys, ages and strictness; each row sees of each what it would see of it alone."""
    all_rules = [rule, *(replace(other, known_by=rule.known_by, watermark=rule.watermark) for other in others)]
    positions = [(0, 1), (0,), (1,)]
    made: dict[str, list[Row]] = {}
    for name, given_rows, used in zip(("readings", "firsts", "seconds"), rows, positions, strict=True):
        narrowed = [replace(row, keys=tuple(row.keys[i] for i in used)) for row in given_rows]
        # One write says one thing about a key at a time.
        made[name] = list({(row.keys, row.event_time, row.commit): row for row in narrowed}.values())
    result = way.table(RowsInMemory(made), plan(*all_rules), spine_table(spine), rule)
    columns = {"readings": "value", "firsts": "firsts_value", "seconds": "seconds_value"}
    for (name, column), used, own in zip(columns.items(), positions, all_rules, strict=True):
        asked = [Asked(tuple(a.keys[i] for i in used), a.at) for a in spine]
        assert result[column].to_pylist() == [oracle(made[name], one, own) for one in asked]


def many_rows(keys: Sequence[tuple[str, str]], times: int, known: int) -> list[Row]:
    """3,000 rows of these keys; some are tombstones, many are corrected."""
    random = np.random.default_rng(5)
    made = {}
    for _ in range(3_000):
        pair, event, commit = (
            keys[int(random.integers(len(keys)))],
            int(random.integers(times)),
            int(random.integers(1, 40)),
        )
        known_at = int(random.integers(known))
        made[pair, event, commit] = Row(
            pair, event, commit, known_at, bool(random.random() < 0.1), float(random.integers(99))
        )
    return list(made.values())


ALL_KEYS = [(first, second) for first in FIRST_KEYS for second in SECOND_KEYS]


@pytest.mark.parametrize("known_by", [False, True])
@pytest.mark.parametrize(
    ("keys", "times", "known"),
    [(ALL_KEYS, 400, 500), (ALL_KEYS[:1], 400, 500), (ALL_KEYS[:2], 3, 2), (ALL_KEYS[:2], 400, 1)],
    ids=["spread", "one_key", "few_times", "known_at_once"],
)
def test_many_rows_agree_with_the_oracle(
    way: Way, keys: Sequence[tuple[str, str]], times: int, known: int, known_by: bool
) -> None:
    """Enough rows for an engine to work in parallel and in several blocks, whatever they have in common."""
    random = np.random.default_rng(6)
    rows = many_rows(keys, times, known)
    asked = [*keys, ALL_KEYS[-1]]
    spine = [Asked(asked[int(random.integers(len(asked)))], int(random.integers(0, 500))) for _ in range(300)]
    # Known only from time 250 on, all of them at once.
    rows = [replace(row, known_at=250) if known == 1 else row for row in rows]
    rule = Rule(strict=known_by, known_by=known_by, max_age=300, watermark=30)
    expected = [oracle(rows, one, rule) for one in spine]
    assert joined(way.with_parts(150), rows, spine, rule) == expected


PAIR = ("1", "23")
ANY = Rule(strict=False, known_by=False, max_age=None, watermark=9)


def row(event_time: int, commit: int, value: float | None, known_at: int = 0, keys: tuple[str, str] = PAIR) -> Row:
    """A row that is no tombstone."""
    return Row(keys, event_time, commit, known_at, False, value)


def test_composite_keys_stay_apart(way: Way) -> None:
    """('1', '23') and ('12', '3') are different entities."""
    rows = [row(1, 1, 5.0), row(1, 1, 6.0, keys=("12", "3"))]
    spine = [Asked(("1", "23"), 2), Asked(("12", "3"), 2), Asked(("12", "23"), 2)]
    assert joined(way, rows, spine, ANY) == [5.0, 6.0, None]


@pytest.mark.parametrize(("strict", "expected"), [(False, [None, 5.0, 5.0]), (True, [None, None, 5.0])])
def test_a_row_at_the_very_time(way: Way, strict: bool, expected: list[float | None]) -> None:
    """Visible at its event time, unless the group is strict."""
    spine = [Asked(PAIR, 4), Asked(PAIR, 5), Asked(PAIR, 6)]
    rule = Rule(strict=strict, known_by=False, max_age=None, watermark=9)
    assert joined(way, [row(5, 1, 5.0)], spine, rule) == expected


def test_a_correction_after_the_prediction_is_seen_only_without_known_by(way: Way) -> None:
    """The later commit wins, but a live system could not have known it."""
    rows = [row(1, 1, 5.0, known_at=2), row(1, 2, 7.0, known_at=9)]
    spine = [Asked(PAIR, 4), Asked(PAIR, 9)]
    assert joined(way, rows, spine, ANY) == [7.0, 7.0]
    known = Rule(strict=False, known_by=True, max_age=None, watermark=9)
    assert joined(way, rows, spine, known) == [5.0, 7.0]


def test_a_null_value_is_a_value_and_hides_an_older_row(way: Way) -> None:
    """NULL in the latest row does not fall back to the row before."""
    assert joined(way, [row(1, 1, 5.0), row(2, 1, None)], [Asked(PAIR, 3)], ANY) == [None]


def test_a_tombstone_hides_what_came_before_it(way: Way) -> None:
    """Until a later row comes."""
    rows = [row(1, 1, 5.0), Row(PAIR, 2, 1, 0, True, None), row(4, 1, 6.0)]
    assert joined(way, rows, [Asked(PAIR, at) for at in (1, 2, 3, 4)], ANY) == [5.0, None, None, 6.0]


def test_an_age_equal_to_the_maximum_is_fresh(way: Way) -> None:
    """One microsecond more is not."""
    rule = Rule(strict=False, known_by=False, max_age=3, watermark=9)
    assert joined(way, [row(1, 1, 5.0)], [Asked(PAIR, at) for at in (4, 5)], rule) == [5.0, None]


def test_a_late_batch_does_not_hide_a_newer_row(way: Way) -> None:
    """Event time decides before the commit does."""
    assert joined(way, [row(5, 1, 5.0), row(4, 2, 4.0)], [Asked(PAIR, 6)], ANY) == [5.0]
