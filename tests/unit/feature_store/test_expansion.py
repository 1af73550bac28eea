"""Tables that are small on the wire and would be enormous in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from foresight.values import InvalidValue
from services.feature_store.tables.arrow_stream import MESSAGE_BYTES_MAX
from services.feature_store.tables.expansion import declared_by, expanded_bytes
from services.feature_store.tables.row_source import read_all
from services.feature_store.tables.transit import TablesInTransit
from services.runtime.errors import LimitExceeded

ROWS = 1_000_000


def stream(table: pa.Table, compression: str | None = None, repeated: int = 1) -> bytes:
    """An Arrow IPC stream with the table's rows several times."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        for _ in range(repeated):
            writer.write_table(table)
    return bytes(sink.getvalue())


async def received(folder: Path, data: bytes) -> pa.Table:
    """The table of an upload."""
    transit = TablesInTransit(folder)
    async with transit.upload() as upload:
        await upload.add(data)
        return read_all(await upload.rows())


@pytest.mark.parametrize("compression", ["zstd", "lz4", None])
def test_what_a_stream_declares_is_what_it_unpacks_to(compression: str | None) -> None:
    """Dictionaries, NULLs and texts among it."""
    table = pa.table(
        {
            "number": np.zeros(50_000),
            "text": pa.array(["x", None] * 25_000),
            "named": pa.array(["x", "y"] * 25_000).dictionary_encode(),
        }
    )
    unpacked = sum(message.bytes for message in declared_by(stream(table, compression)))
    assert table.nbytes <= unpacked <= table.nbytes + 1_000


async def test_a_compressed_batch_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """A few kilobytes that stand for more than a batch may have."""
    table = pa.table({"number": np.zeros(MESSAGE_BYTES_MAX // 8 + 8)})
    data = stream(table, "zstd")
    assert len(data) < MESSAGE_BYTES_MAX / 100
    del table
    before = pa.total_allocated_bytes()
    with pytest.raises(LimitExceeded, match="once unpacked"):
        await received(tmp_path, data)
    assert pa.total_allocated_bytes() - before < MESSAGE_BYTES_MAX / 10


async def test_a_compressed_stream_counts_as_what_it_unpacks_to(tmp_path: Path) -> None:
    """Beside all other tables that are being sent, and until the upload ends."""
    table = pa.table({"number": np.zeros(10_000)})
    transit = TablesInTransit(tmp_path, memory_bytes_max=25 * table.nbytes)
    data = stream(table, "zstd", repeated=10)
    async with transit.upload() as first, transit.upload() as second, transit.upload() as third:
        for upload in (first, second, third):
            await upload.add(data)
        assert (await first.rows()).num_rows == table.num_rows * 10
        await second.rows()
        with pytest.raises(LimitExceeded, match="at once"):
            await third.rows()
    async with transit.upload() as later:
        await later.add(data)
        assert (await later.rows()).num_rows == table.num_rows * 10


@pytest.mark.parametrize("cut", [0, 1, 4, 7, 8, 60, 200, -1, -9])
@pytest.mark.parametrize("compression", ["zstd", None])
async def test_a_cut_stream_is_refused(cut: int, compression: str | None, tmp_path: Path) -> None:
    """Wherever it is cut."""
    data = stream(pa.table({"number": np.arange(10.0)}), compression)
    with pytest.raises(InvalidValue):
        await received(tmp_path, data[:cut])


async def test_a_stream_whose_bytes_were_changed_never_does_harm(tmp_path: Path) -> None:
    """It is refused, or it is a valid table of other content."""
    data = stream(pa.table({"number": np.arange(10.0), "text": list("abcdefghij")}), "zstd")
    random = np.random.default_rng(7)
    transit = TablesInTransit(tmp_path)
    for _ in range(400):
        changed = bytearray(data)
        changed[random.integers(len(data))] ^= 1 << int(random.integers(8))
        try:
            async with transit.upload() as upload:
                await upload.add(bytes(changed))
                await upload.rows()
        except (InvalidValue, LimitExceeded):
            continue


def one_long_text() -> str:
    """A text of which a few thousand are too many."""
    return "x" * (MESSAGE_BYTES_MAX // ROWS + 1)


def views_of_one_text() -> pa.Array:
    """A million views of the same text."""
    _, view, text = pa.array([one_long_text()], pa.string_view()).buffers()
    return pa.Array.from_buffers(pa.string_view(), ROWS, [None, pa.py_buffer(bytes(view)[:16] * ROWS), text])


ENORMOUS: dict[str, Callable[[], pa.Array]] = {
    "dictionary": lambda: pa.DictionaryArray.from_arrays(np.zeros(ROWS, np.int8), [one_long_text()]),
    "views": views_of_one_text,
    "lists of dictionary": lambda: pa.ListArray.from_arrays(
        pa.array(np.arange(ROWS + 1), pa.int32()),
        pa.DictionaryArray.from_arrays(np.zeros(ROWS, np.int8), [one_long_text()]),
    ),
    "lists of nothing": lambda: pa.array([None] * 1_000, pa.list_(pa.null(), 1 << 20)),
    "nothing": lambda: pa.nulls(1 << 30),
}


@pytest.mark.parametrize("kind", ENORMOUS)
async def test_a_column_that_would_be_enormous_written_out_is_refused(kind: str, tmp_path: Path) -> None:
    """Though it has few bytes."""
    data = stream(pa.table({"column": ENORMOUS[kind]()}))
    before = pa.total_allocated_bytes()
    with pytest.raises(LimitExceeded):
        await received(tmp_path, data)
    assert pa.total_allocated_bytes() - before < MESSAGE_BYTES_MAX / 10


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", None, "b"]).dictionary_encode(),
        pa.array([1, None, 1]).dictionary_encode(),
        pa.array(["a", None, "b"], pa.string_view()),
        pa.array([[1.0], None, [2.0]]),
        pa.array([[1.0], None, [2.0]], pa.list_(pa.float32(), 1)),
        pa.nulls(3),
        pa.array([{"a": 1}, None, {"a": 2}]),
        pa.array([True, None, False]),
    ],
)
def test_ordinary_columns_are_counted_as_little(column: pa.Array) -> None:
    """Every layout, NULLs among it."""
    assert 3 <= expanded_bytes(pa.table({"column": column})) <= 200
