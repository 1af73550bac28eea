"""Files of datasets: every type and bit comes back, damage never goes unnoticed, and nothing is left of what failed."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from foresight.values import InvalidValue
from services.feature_store.datasets.dataset_files import DatasetFiles, SplitRows
from services.feature_store.tables.content import content_sha256
from services.feature_store.tables.row_source import BATCH_BYTES_MAX, BATCH_ROWS_MAX
from services.runtime.errors import DataLoss, LimitExceeded

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
VECTOR = st.lists(st.floats(width=32), min_size=3, max_size=3)


def _signed(width: int) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (width - 1)), 2 ** (width - 1) - 1)


# Types with what makes values for them; temporal ones are made of the integers that they are stored as.
PLAIN: list[tuple[pa.DataType, Any]] = [
    *((pa.timestamp(unit, zone), INT64) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "Asia/Kolkata")),
    *((pa.duration(unit), INT64) for unit in ("s", "ms", "us", "ns")),
    (pa.date32(), _signed(32)),
    (pa.date64(), INT64),
    (pa.time32("s"), st.integers(0, 86_399)),
    (pa.time32("ms"), st.integers(0, 86_399_999)),
    (pa.time64("us"), st.integers(0, 86_399_999_999)),
    (pa.time64("ns"), st.integers(0, 86_399_999_999_999)),
    *((getattr(pa, f"int{width}")(), _signed(width)) for width in (8, 16, 32, 64)),
    *((getattr(pa, f"uint{width}")(), st.integers(0, 2**width - 1)) for width in (8, 16, 32, 64)),
    (pa.float16(), st.floats(width=16)),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), st.floats()),
    (pa.bool_(), st.booleans()),
    (pa.string(), TEXTS),
    (pa.large_string(), TEXTS),
]
NESTED: list[tuple[pa.DataType, Any]] = [
    *((pa.list_(type), st.lists(st.none() | values, max_size=3)) for type, values in PLAIN),
    *((pa.large_list(type), st.lists(st.none() | values, max_size=3)) for type, values in PLAIN),
    *((pa.list_(type, 2), st.lists(st.none() | values, min_size=2, max_size=2)) for type, values in PLAIN),
    (pa.list_(pa.dictionary(pa.int8(), pa.string())), st.lists(st.none() | TEXTS, max_size=3)),
    (pa.list_(pa.float32(), 3), VECTOR),
    (pa.list_(pa.float32(), 0), st.just([])),
]
ENCODED: list[tuple[pa.DataType, Any]] = [
    (pa.null(), st.none()),
    (pa.string_view(), TEXTS),
    (pa.dictionary(pa.int8(), pa.string()), TEXTS),
    (pa.dictionary(pa.int32(), pa.int64()), INT64),
    (pa.dictionary(pa.int16(), pa.timestamp("s", "UTC")), INT64),
]


@st.composite
def _arrays(draw: st.DrawFn) -> pa.Array:
    type, values = draw(st.sampled_from(PLAIN + NESTED + ENCODED))
    items = draw(st.lists(st.none() | values, max_size=12))
    return _array(items, type).slice(draw(st.integers(0, len(items))))


def _array(items: list[Any], type: pa.DataType) -> pa.Array:
    """Values of a type; of temporal ones their integers, at any depth."""
    if pa.types.is_dictionary(type):
        return _array(items, type.value_type).dictionary_encode().cast(type)
    if pa.types.is_string_view(type):
        return pa.array(items, pa.string()).cast(type)
    return pa.array(items, _as_integers(type)).cast(type)


def _as_integers(type: pa.DataType) -> pa.DataType:
    if pa.types.is_fixed_size_list(type):
        return pa.list_(_as_integers(type.value_type), type.list_size)
    if pa.types.is_list(type):
        return pa.list_(_as_integers(type.value_type))
    if pa.types.is_large_list(type):
        return pa.large_list(_as_integers(type.value_type))
    if pa.types.is_dictionary(type):
        return _as_integers(type.value_type)
    if pa.types.is_temporal(type):
        return pa.int32() if type.bit_width == 32 else pa.int64()
    return type


@pytest.fixture
def files(tmp_path: Path) -> Iterator[DatasetFiles]:
    """An empty folder of files."""
    made = DatasetFiles(tmp_path)
    yield made
    made.close()


async def stored(files: DatasetFiles, table: pa.Table) -> str:
    """The digest of a table that has got its name."""
    async with files.written(table.schema, table.to_batches()) as written:
        assert written.rows == table.num_rows
        files.name(written)
    return written.sha256


def read(files: DatasetFiles, sha256: str) -> pa.Table:
    """All rows of a digest."""
    with files.opened(sha256) as rows:
        return pa.Table.from_batches(list(rows.batches()), rows.schema)


@settings(max_examples=150)
@given(column=_arrays())
async def test_every_type_comes_back_to_the_bit(column: pa.Array, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Instants of every unit and zone, dates, durations, half floats, vectors, NULLs within lists, texts, NaN."""
    files = DatasetFiles(tmp_path_factory.mktemp("f"))
    try:
        table = pa.table({"a": column, "ä.b": pa.array(range(len(column)), pa.int64())})
        found = read(files, await stored(files, table))
        assert content_sha256(found) == content_sha256(table)
        if "dictionary" not in str(column.type):
            assert found.schema.field("a").type == column.type
    finally:
        files.close()


async def test_what_cannot_be_carried_is_refused(files: DatasetFiles, tmp_path: Path) -> None:
    """With the column's name, before anything is written."""
    lists = (pa.array([["x"]], pa.list_(pa.string_view())), pa.array([[None]], pa.list_(pa.null())))
    for values in ([{"a": 1}], [[[1]]], [b"x"], *lists):
        table = pa.table({"odd": values})
        with pytest.raises(InvalidValue, match=r"arrow\.odd"):
            await stored(files, table)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


async def test_rows_are_grouped_by_number_and_by_size(files: DatasetFiles, tmp_path: Path) -> None:
    """So that reading takes memory for one group, however wide its rows are and however they came."""
    narrow = pa.table({"n": pa.array(range(200_000))})
    pieces = [batch for start in range(0, 200_000, 1_000) for batch in narrow.slice(start, 1_000).to_batches()]
    async with files.written(narrow.schema, pieces) as written:
        groups = parquet.ParquetFile(written.path).metadata
        assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [65_000] * 3 + [5_000]
    wide = pa.table({"w": pa.array(["x" * 100_000] * 700)})
    async with files.written(wide.schema, wide.to_batches()) as written:
        metadata = parquet.ParquetFile(written.path).metadata
        assert metadata.num_row_groups == 3
        assert max(metadata.row_group(i).num_rows for i in range(3)) * 100_000 <= BATCH_BYTES_MAX
        files.name(written)
    with files.opened(written.sha256) as rows:
        assert all(batch.num_rows <= BATCH_ROWS_MAX for batch in rows.batches())
        assert rows.num_rows == 700


async def test_a_split_has_its_rows_only(files: DatasetFiles) -> None:
    """In order."""
    digest = await stored(files, pa.table({"n": [1, 2, 3], "split": ["test", "train", "test"]}))
    with files.opened(digest) as rows:
        chosen = SplitRows(rows, "test", 2)
        assert [batch.column("n").to_pylist() for batch in chosen.batches()] == [[1, 3]]
        assert [batch.column("n").to_pylist() for batch in chosen.batches()] == [[1, 3]]
        assert chosen.schema == rows.schema


async def test_no_changed_byte_goes_unnoticed(files: DatasetFiles, tmp_path: Path) -> None:
    """Wherever a byte changes, the rows are refused or the very same ones; so they are when the file is cut."""
    table = pa.table({"text": [f"row {i}" for i in range(200)], "number": [i / 7 for i in range(200)]})
    digest = await stored(files, table)
    path = tmp_path / f"{digest}.parquet"
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            assert read(files, digest).equals(table)
        except DataLoss:
            refused += 1
    assert refused > len(whole) // 6
    for length in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataLoss):
            read(files, digest)
    path.unlink()
    with pytest.raises(DataLoss):
        read(files, digest)


async def test_what_leaves_before_damage_is_right(files: DatasetFiles, tmp_path: Path) -> None:
    """Damage of rows is noticed before any of them is handed out."""
    rows = 150_000
    table = pa.table({"n": pa.array(range(rows)), "t": pa.array([str(i % 1_000) for i in range(rows)])})
    digest = await stored(files, table)
    path = tmp_path / f"{digest}.parquet"
    whole = path.read_bytes()
    described = parquet.ParquetFile(path).metadata.serialized_size
    lengths = set()
    for position in range(10, len(whole) - described - 10, len(whole) // 40):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        found: list[pa.RecordBatch] = []
        try:
            with files.opened(digest) as source:
                found.extend(source.batches())
        except DataLoss:
            pass
        seen = pa.Table.from_batches(found, table.schema)
        assert seen.equals(table.slice(0, seen.num_rows))
        lengths.add(seen.num_rows)
    assert {0, 65_536, 131_072} <= lengths


async def test_rows_of_another_content_end_with_data_loss(files: DatasetFiles, tmp_path: Path) -> None:
    """A whole file under a wrong name is noticed at its end."""
    one = await stored(files, pa.table({"n": [1, 2]}))
    other = await stored(files, pa.table({"n": [1, 3]}))
    (tmp_path / f"{other}.parquet").rename(tmp_path / f"{one}.parquet")
    with files.opened(one) as rows:
        batches = rows.batches()
        next(batches)
        with pytest.raises(DataLoss, match="do not match"):
            next(batches)


async def test_a_full_disk_leaves_nothing(files: DatasetFiles, tmp_path: Path) -> None:
    """Wherever it fills up: in the rows, or in what ends the file."""
    table = pa.table({"n": pa.array(range(50_000))})
    async with files.written(table.schema, table.to_batches()) as written:
        needed = written.bytes
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for room in (0, 10_000, needed - 10):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
            with pytest.raises(LimitExceeded):
                await stored(files, table)
            assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert read(files, await stored(files, table)).equals(table)


async def test_a_file_stays_readable_for_those_who_opened_it(files: DatasetFiles) -> None:
    """And what it took is told when it goes."""
    table = pa.table({"n": pa.array(range(100_000))})
    digest = await stored(files, table)
    with files.opened(digest) as rows:
        batches = rows.batches()
        first = next(batches)
        assert files.has(digest)
        assert files.remove(digest) > 0
        assert files.remove(digest) == 0
        assert not files.has(digest)
        assert pa.Table.from_batches([first, *batches]).equals(table)


async def test_what_was_left_unfinished_goes_at_the_next_start(tmp_path: Path) -> None:
    """Files that have their names stay."""
    left = tmp_path / "unfinished" / "left"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"PAR1")
    files = DatasetFiles(tmp_path)
    try:
        assert not left.exists()
        digest = await stored(files, pa.table({"n": [1]}))
        other = DatasetFiles(tmp_path)
        async with files.written(pa.schema({"n": pa.int64()}), []) as written:
            # Another process that starts meanwhile leaves it alone.
            DatasetFiles(tmp_path).close()
            assert written.path.exists()
        other.close()
        assert read(files, digest).num_rows == 1
    finally:
        files.close()


async def test_rows_with_given_keys_are_found(files: DatasetFiles) -> None:
    """All values in one row; NULL, other types and other columns are no hit."""
    table = pa.table(
        {
            "place": pa.array(["a", "b", None, "a"]).dictionary_encode(),
            "small": pa.array([1, 2, 3, None], pa.int8()),
            "flag": [True, None, False, True],
            "view": pa.array(["x", "y", "z", None], pa.string_view()),
            "place.of": ["b"] * 4,
        }
    )
    digest = await stored(files, table)
    cases: list[tuple[dict[str, Any], bool]] = [
        ({"place": "a"}, True),
        ({"place": "c"}, False),
        ({"place": "a", "small": 1}, True),
        ({"place": "a", "small": 2}, False),
        ({"small": 1_000}, False),
        ({"small": True}, False),
        ({"small": "1"}, False),
        ({"flag": False}, True),
        ({"flag": 1}, False),
        ({"flag": True, "view": "x"}, True),
        ({"view": "w"}, False),
        ({"absent": 1}, False),
        ({"place": "a", "absent": 1}, False),
    ]
    with files.opened(digest) as rows:
        for values, there in cases:
            assert rows.holds(values) is there, values
