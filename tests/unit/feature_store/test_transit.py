"""Tables of any size that are being sent: whole, in order, in bounded memory, and nothing left behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.tables import decode_table, encode_table
from foresight.values import InvalidValue
from services.feature_store.tables.arrow_stream import StreamDecoder
from services.feature_store.tables.row_source import BATCH_ROWS_MAX, FileRows, TableRows, read_all
from services.feature_store.tables.scratch import ScratchFolder
from services.feature_store.tables.transit import TablesInTransit, chunks_of_rows
from services.runtime.errors import LimitExceeded

LARGE = 2_000_000


def stream(batches: list[pa.RecordBatch], schema: pa.Schema, **options: object) -> bytes:
    """The Arrow IPC stream of batches, as they are cut."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """The bytes in chunks."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def sent(transit: TablesInTransit, chunks: Iterable[bytes]) -> pa.Table:
    """What comes out of an upload."""
    async with transit.upload() as upload:
        for chunk in chunks:
            await upload.add(chunk)
        return read_all(await upload.rows())


def left_in(folder: Path) -> list[Path]:
    """Files that are there."""
    return [path for path in folder.rglob("*") if path.is_file()]


@given(
    cuts=st.lists(st.integers(0, 50), max_size=8),
    chunk=st.integers(1, 3_000),
    compression=st.sampled_from([None, "zstd", "lz4"]),
    legacy=st.booleans(),
)
def test_rows_come_out_as_they_went_in(cuts: list[int], chunk: int, compression: str | None, legacy: bool) -> None:
    """Whatever the batches, the chunks, the compression and the framing; dictionaries that change among it."""
    whole = [
        pa.record_batch(
            {
                "number": pa.array(range(n), pa.int64()),
                "text": pa.array([None if i % 3 else f"é{i}" for i in range(n)], pa.string()),
                "named": pa.array([f"{n}-{i % 2}" for i in range(n)], pa.string()).dictionary_encode(),
                "listed": pa.array([[float(i)] for i in range(n)], pa.list_(pa.float32())),
                "viewed": pa.array([f"{i}" * 20 for i in range(n)], pa.string_view()),
            }
        )
        for n in cuts or [0]
    ]
    data = stream(whole, whole[0].schema, compression=compression, use_legacy_format=legacy)
    decoder = StreamDecoder()
    batches = [batch for piece in pieces(data, chunk) for batch in decoder.feed(piece)]
    decoded = pa.Table.from_batches(batches, decoder.schema())
    expected = pa.Table.from_batches(whole)
    assert decoded.to_pylist() == expected.to_pylist()
    assert decoded.schema.field("named").type == decoded.schema.field("viewed").type == pa.string()


async def test_a_small_table_never_touches_the_disk(tmp_path: Path) -> None:
    """A large one does, and comes back in batches that can be read one by one; its file goes with the upload."""
    transit = TablesInTransit(tmp_path)
    for rows, kind in ((300_000, TableRows), (LARGE, FileRows)):
        table = pa.table({"number": np.arange(float(rows)), "text": pa.repeat("x", rows)})
        async with transit.upload() as upload:
            for chunk in encode_table(table):
                await upload.add(chunk)
            found = await upload.rows()
            assert isinstance(found, kind)
            assert bool(left_in(tmp_path)) == (kind is FileRows)
            assert found.num_rows == rows
            assert all(0 < batch.num_rows <= BATCH_ROWS_MAX for batch in found.batches())
            assert read_all(found).equals(table)
            sent_on = [chunk async for chunk in chunks_of_rows(found)]
            assert decode_table(sent_on).equals(table)
        assert not left_in(tmp_path)


async def test_many_tiny_batches_become_few(tmp_path: Path) -> None:
    """A stream of a row per batch would cost whoever reads it more than its rows."""
    batches = [pa.record_batch({"text": [f"{i:04}" * 1_000]}) for i in range(4_000)]
    async with TablesInTransit(tmp_path).upload() as upload:
        for piece in pieces(stream(batches, batches[0].schema), 1 << 20):
            await upload.add(piece)
        found = await upload.rows()
        assert isinstance(found, FileRows)
        assert len(list(found.batches())) < 10
        assert read_all(found).equals(pa.Table.from_batches(batches))


async def test_an_upload_that_was_left_gives_everything_back(tmp_path: Path) -> None:
    """Midway, in a batch, while some of it is being decoded."""
    data = b"".join(encode_table(pa.table({"n": np.arange(float(LARGE))})))
    transit = TablesInTransit(tmp_path, memory_bytes_max=len(data) * 2, disk_bytes_max=len(data) * 2)
    for _ in range(5):

        async def send() -> None:
            async with transit.upload() as upload:
                for piece in pieces(data[: -len(data) // 4], 1 << 20):
                    await upload.add(piece)
                await asyncio.Event().wait()

        task = asyncio.create_task(send())
        async with asyncio.timeout(20):
            while not left_in(tmp_path):
                await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not left_in(tmp_path)
    async with transit.upload() as upload:
        await upload.add(data)
        assert (await upload.rows()).num_rows == LARGE


async def test_uploads_share_the_room_on_disk(tmp_path: Path) -> None:
    """One that finds none is refused and leaves nothing; the others go on."""
    table = pa.table({"number": np.arange(float(LARGE))})
    transit = TablesInTransit(tmp_path, disk_bytes_max=int(table.nbytes * 1.5))
    data = list(encode_table(table))
    async with transit.upload() as first:
        for chunk in data:
            await first.add(chunk)
        found = await first.rows()
        with pytest.raises(LimitExceeded) as refused:
            await sent(transit, data)
        assert refused.value.metadata["limit"] == "bytes_on_disk"
        assert len(left_in(tmp_path)) == 1
        assert read_all(found).equals(table)
    assert (await sent(transit, data)).equals(table)


async def test_a_disk_without_room_is_a_limit_and_keeps_its_reserve(tmp_path: Path) -> None:
    """Nothing is left of what was written before."""
    transit = TablesInTransit(tmp_path, disk_reserve_bytes=1 << 60)
    with pytest.raises(LimitExceeded) as refused:
        await sent(transit, encode_table(pa.table({"number": np.arange(float(LARGE))})))
    assert refused.value.metadata["limit"] == "disk"
    assert not left_in(tmp_path)


@pytest.mark.parametrize("extra", [b"x", b"\0" * 8, b"\xff\xff\xff\xff\0\0\0\0"])
async def test_nothing_may_follow_the_end_of_a_stream(extra: bytes, tmp_path: Path) -> None:
    """Else a second table would go unnoticed."""
    data = stream(pa.table({"n": [1]}).to_batches(), pa.schema({"n": pa.int64()}))
    async with TablesInTransit(tmp_path).upload() as upload:
        await upload.add(data + extra)
        with pytest.raises(InvalidValue, match="not a whole"):
            await upload.rows()


@pytest.mark.parametrize("damage", ["cut early", "cut late", "schema", "metadata"])
async def test_a_damaged_large_stream_is_refused(damage: str, tmp_path: Path) -> None:
    """And leaves nothing."""
    data = b"".join(encode_table(pa.table({"n": np.arange(float(LARGE))})))
    nonsense = b"\xff" * 24
    second = data.index(b"\xff\xff\xff\xff", 1_000_000)
    damaged = {
        "cut early": data[:30_000],
        "cut late": data[:-9],
        "schema": data[:40] + nonsense + data[64:],
        "metadata": data[: second + 8] + nonsense + data[second + 32 :],
    }[damage]
    with pytest.raises(InvalidValue):
        await sent(TablesInTransit(tmp_path), pieces(damaged, 1 << 20))
    assert not left_in(tmp_path)


def test_what_a_killed_process_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    """What a living one has stays."""
    program = (
        "import os, pathlib, signal, sys\n"
        "from services.feature_store.tables.scratch import ScratchFolder\n"
        "ScratchFolder(pathlib.Path(sys.argv[1])).new_path().write_text('rows')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=60)
    assert len(left_in(tmp_path)) == 1
    first = ScratchFolder(tmp_path)
    assert not left_in(tmp_path)
    first.new_path().write_text("rows")
    second = ScratchFolder(tmp_path)
    assert len(left_in(tmp_path)) == 1
    second.close()
    first.close()
    assert not left_in(tmp_path)


MEMORY_PROGRAM = """
import asyncio, pathlib, resource, sys
import numpy as np, pyarrow as pa
from services.feature_store.tables.transit import TablesInTransit

class Sink:
    closed = False
    def __init__(self): self.data = bytearray()
    def write(self, data): self.data += memoryview(data); return len(data)
    def flush(self): pass

async def main():
    batch = pa.record_batch({f"c{i}": np.arange(65_536.0) for i in range(12)})
    async with TablesInTransit(pathlib.Path(sys.argv[1])).upload() as upload:
        sink = Sink()
        with pa.ipc.new_stream(pa.PythonFile(sink, "w"), batch.schema) as writer:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for _ in range(100):
                writer.write_batch(batch)
                await upload.add(bytes(sink.data))
                sink.data.clear()
        await upload.add(bytes(sink.data))
        rows = await upload.rows()
        assert sum(b.num_rows for b in rows.batches()) == 6_553_600
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)

asyncio.run(main())
"""


def test_memory_is_bounded_whatever_the_size(tmp_path: Path) -> None:
    """630 MB pass through a process that grows by far less."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_PROGRAM, str(tmp_path)], check=True, timeout=120, capture_output=True, text=True
    )
    assert int(done.stdout) < 200


FULL_PROGRAM = """
import asyncio, pathlib, resource, sys
import numpy as np, pyarrow as pa
from foresight.tables import encode_table
from services.feature_store.tables.transit import TablesInTransit
from services.runtime.errors import LimitExceeded

async def main():
    folder = pathlib.Path(sys.argv[1])
    transit = TablesInTransit(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12 << 20, resource.RLIM_INFINITY))
    try:
        async with transit.upload() as upload:
            for chunk in encode_table(pa.table({"number": np.arange(4_000_000.0)})):
                await upload.add(chunk)
            await upload.rows()
    except LimitExceeded as error:
        print(error.metadata["limit"], sum(path.is_file() for path in folder.rglob("*")))
    async with transit.upload() as upload:
        for chunk in encode_table(pa.table({"number": np.arange(1_000.0)})):
            await upload.add(chunk)
        print((await upload.rows()).num_rows)

asyncio.run(main())
"""


def test_a_file_that_cannot_grow_is_a_limit(tmp_path: Path) -> None:
    """The system refuses the write itself; nothing is left, and small tables go on."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_PROGRAM, str(tmp_path)], check=False, timeout=60, capture_output=True, text=True
    )
    assert done.stdout.split() == ["disk", "0", "1000"], done.stderr
