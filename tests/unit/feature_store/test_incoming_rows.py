"""Rows of a write, checked in one pass: the digest depends on their content only, memory does not depend on them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.values import DataType, FeatureGroup, Field, InvalidValue
from services.feature_store.groups import StoredGroup
from services.feature_store.tables.row_source import TableRows
from services.feature_store.tables.workspace import Workspace
from services.feature_store.writes.incoming_rows import IncomingRows

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
GROUP = StoredGroup(
    1,
    FeatureGroup(
        "readings",
        (Field("id", DataType.INT64), Field("place", DataType.STRING)),
        (Field("x", DataType.FLOAT64), Field("pair", DataType.FLOAT_VECTOR, 2), Field("seen", DataType.TIMESTAMP)),
    ),
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("workspace"))


def table(n: int) -> pa.Table:
    return pa.table(
        {
            "id": pa.array(range(n), pa.int32()),
            "place": pa.array([f"p{i % 3}" for i in range(n)]).dictionary_encode(),
            "event_time": pa.array([1_700_000_000 + i for i in range(n)], pa.timestamp("s", "Europe/Paris")),
            "x": pa.array([None if i % 4 == 0 else i / 3 for i in range(n)], pa.float64()),
            "pair": pa.array([None if i % 5 == 0 else [i, -i] for i in range(n)], pa.list_(pa.float64())),
            "seen": pa.nulls(n),
            "deleted": pa.array([None if i % 2 else i % 3 == 0 for i in range(n)], pa.bool_()),
        }
    )


class CutRows:
    """A table in pieces."""

    def __init__(self, rows: pa.Table, sizes: list[int]) -> None:
        self._rows = rows
        self._sizes = sizes
        self.schema = rows.schema
        self.num_rows = rows.num_rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        start = 0
        for size in [*self._sizes, self.num_rows]:
            for batch in self._rows.slice(start, size).to_batches():
                if batch.num_rows:
                    yield batch
            start += size


def outcome(rows: Any, workspace: Workspace) -> tuple[list[dict[str, Any]], str, int]:
    """The rows as they are stored, the digest, the number."""
    incoming = IncomingRows(GROUP, rows, NOW, workspace, digested=True)
    accepted = list(incoming.accepted())
    found = incoming.finish()
    stored = pa.Table.from_batches(accepted, incoming.schema)
    assert pa.Table.from_batches(incoming.stored_rows().batches(), incoming.schema).equals(stored)
    again = IncomingRows(GROUP, rows, NOW, workspace, digested=True)
    assert again.content() == found.content
    for each in (incoming, again):
        each.close()
    return stored.to_pylist(), found.content, found.rows


@given(n=st.integers(1, 40), sizes=st.lists(st.integers(0, 15), max_size=6))
def test_cuts_do_not_matter(n: int, sizes: list[int], workspace: Workspace) -> None:
    """Neither for the rows nor for their digest; another row makes another digest."""
    rows = table(n)
    whole = outcome(TableRows(rows), workspace)
    assert outcome(CutRows(rows, sizes), workspace) == whole
    assert whole[2] == n
    assert outcome(CutRows(table(n + 1), sizes), workspace)[1] != whole[1]


def test_a_fault_of_any_batch_is_found_once(workspace: Workspace) -> None:
    """Columns that fit in no batch are named once; NULL keys are counted over all."""
    rows = table(20).set_column(3, "x", pa.array(["no"] * 20))
    rows = rows.set_column(1, "place", pa.array([None, "a", None, "b"] * 5))
    incoming = IncomingRows(GROUP, CutRows(rows, [3, 3, 3]), NOW, workspace, digested=True)
    assert list(incoming.accepted()) == []
    with pytest.raises(InvalidValue) as refused:
        incoming.finish()
    incoming.close()
    assert {(v.field, v.description) for v in refused.value.violations} == {
        ("arrow.place", "is NULL in 10 rows"),
        ("arrow.x", "is string, not float64"),
    }


PROGRAM = """
import pathlib, resource, sys
from datetime import UTC, datetime, timedelta
import numpy as np, pyarrow as pa
from foresight.values import DataType, Expectation, FailurePolicy, FeatureGroup, Field, Range, Unique
from services.feature_store.groups import StoredGroup
from services.feature_store.writes.incoming_rows import IncomingRows
from services.feature_store.tables.row_source import write_rows
from services.feature_store.tables.workspace import Workspace

folder = pathlib.Path(sys.argv[1])
names = [f"x{i}" for i in range(10)]
rules = (Expectation(Range(max=0.5), "x1"), Expectation(Unique(), "x0"))
group = FeatureGroup("g", (Field("id", DataType.INT64),), tuple(Field(n, DataType.FLOAT64) for n in names),
                     expectations=rules, failure_policy=FailurePolicy.QUARANTINE)

def batches():
    for start in range(0, 100 * 65_536, 65_536):
        ids = np.arange(start, start + 65_536)
        columns = {"id": ids % 5_000, "event_time": pa.array(ids * 1_000_000, pa.timestamp("us", "UTC"))}
        yield pa.record_batch(columns | {n: ids / 7 if n == "x0" else (ids % 100) / 100 for n in names})

rows = write_rows(folder / "rows", next(batches()).schema, batches())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
incoming = IncomingRows(StoredGroup(1, group), rows, datetime(2026, 3, 1, tzinfo=UTC), Workspace(folder / "w"),
                        digested=True)
assert sum(batch.num_rows for batch in incoming.accepted()) == incoming.finish().rows
assert incoming.finish().quarantined_rows > 3_000_000
incoming.close()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_is_bounded_whatever_the_number_of_rows(tmp_path: Path) -> None:
    """630 MB are checked, for repetitions too, and half of them kept apart, in a process that grows by far less."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, check=False, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300
