"""A feature store that is killed, cut off from its database, crowded, and left in the middle of calls."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import grpc
import pyarrow as pa
import pytest

from foresight.feature_store.v1 import offline_pb2, query_pb2
from services.feature_store.online.leases import FileLease
from services.runtime.settings import DatabaseSettings
from tests.conftest import PostgresServer
from tests.wire.feature_store.conftest import environment, wait_until_serving
from tests.wire.feature_store.test_feature_store_calls import T0, Calls, Code, rows, uploaded

Answer = TypeVar("Answer")
WRITERS = 16
WRITES = 4
OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


class Process:
    """A feature store that can be killed and started again on the same state."""

    def __init__(self, database: DatabaseSettings, folder: Path) -> None:
        self.database = database
        self.folder = folder
        self._address = f"unix:{folder}/s"
        self._exits = contextlib.ExitStack()

    def start(self) -> Calls:
        """Starts it and registers a group of its own."""
        log = self._exits.enter_context((self.folder / "log").open("ab"))
        command = [sys.executable, "-m", "services.feature_store"]
        env = environment(self._address, self.database, self.folder)
        self._process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        wait_until_serving(self._address, self._process)
        return Calls(self.channel())

    def channel(self) -> grpc.Channel:
        """A channel to it."""
        return self._exits.enter_context(
            grpc.insecure_channel(
                self._address, [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
            )
        )

    def kill(self) -> None:
        """Ends it as a crash does."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Ends everything."""
        self._exits.close()
        self.kill()

    def asked(self, statement: str) -> Any:
        """What its database answers."""

        async def ask() -> Any:
            connection = await asyncpg.connect(self.database.with_password())
            try:
                return await connection.fetchval(statement)
            finally:
                await connection.close()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, ask()).result()


@pytest.fixture(scope="module")
def process(postgres_server: PostgresServer) -> Iterator[Process]:
    """A process that is not running yet; its tests share the state."""
    with ThreadPoolExecutor(1) as pool:
        database = pool.submit(asyncio.run, postgres_server.create_database("feature_store_rough")).result()
    folder = Path(tempfile.mkdtemp(prefix="fs-rough-"))
    made = Process(database, folder)
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Returns once the condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"


def test_a_store_that_is_treated_roughly_loses_and_doubles_nothing(process: Process) -> None:
    """One life after the other: processes take a second to start."""
    calls = killed_between_the_commit_and_the_online_store(process)
    crowded_and_cut_off_from_the_database(process, calls)
    left_in_the_middle_of_calls(process, calls)


def killed_between_the_commit_and_the_online_store(process: Process) -> Calls:
    """The next process applies the commit before it is ready, and knows the write id."""
    (process.folder / "state").mkdir()
    # As long as somebody else has the lease, this process publishes and does not apply.
    lease = FileLease(process.folder / "state" / "applier.lock")
    assert asyncio.run(lease.take())
    calls = process.start()
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(calls.write, rows(7.0), "first")
        until(lambda: process.asked("SELECT last_commit FROM feature_store.commit_state") == 1)
        process.kill()
        error = writing.exception(timeout=20)
    assert isinstance(error, grpc.RpcError)
    assert error.code() is Code.UNAVAILABLE
    asyncio.run(lease.release())
    group, view = calls.group, calls.view
    calls = process.start()
    calls.group, calls.view = group, view
    vectors = calls.vectors(["a"])
    assert (vectors.applied_commit, list(vectors.features[0].column.float64_values.values)) == (1, [7.0])
    assert calls.write(rows(7.0), "first").duplicate
    return calls


def crowded_and_cut_off_from_the_database(process: Process, calls: Calls) -> None:
    """Writers who repeat what failed get every row in once, in a gapless row of commits, and online has the latest."""
    before = process.asked("SELECT last_commit FROM feature_store.commit_state")

    def write(writer: int) -> list[int]:
        return [_repeated(partial(calls.write, rows_at(writer, i), f"{writer}-{i}")).commit for i in range(WRITES)]

    with ThreadPoolExecutor(WRITERS) as pool:
        writing = [pool.submit(write, writer) for writer in range(WRITERS)]
        for share in (0.25, 0.5):
            goal = before + int(WRITERS * WRITES * share)
            until(partial(_reached, process, goal))
            process.asked(f"SELECT count(pg_terminate_backend(pid)) {OTHERS}")
        commits = sorted(number for one in writing for number in one.result(timeout=60))
    assert commits == list(range(before + 1, before + 1 + WRITERS * WRITES))
    table = _repeated(calls.read)
    assert table.num_rows == 1 + WRITERS * WRITES
    vectors = calls.vectors([f"place {writer}" for writer in range(WRITERS)], T0 + timedelta(minutes=WRITES))
    assert list(vectors.features[0].column.float64_values.values) == [float(WRITES - 1)] * WRITERS
    assert vectors.applied_commit == commits[-1]


def left_in_the_middle_of_calls(process: Process, calls: Calls) -> None:
    """Half an upload writes nothing, half a read keeps nothing, and the database sees nobody waiting."""
    last = process.asked("SELECT last_commit FROM feature_store.commit_state")
    many = pa.concat_tables([rows(*range(2_000), place=f"many {i}") for i in range(40)])
    calls.write(many, "many")
    for _ in range(10):
        reading = calls.offline.ReadFeatures(
            offline_pb2.ReadFeaturesRequest(query=query_pb2.GroupQuery(group=calls.group))
        )
        next(reading)
        reading.cancel()
        header = offline_pb2.WriteHeader(group=calls.group, write_id="half")
        writing = calls.offline.WriteFeatures.future(_stalled(header, many))
        writing.cancel()
        with pytest.raises(grpc.FutureCancelledError):
            writing.result(timeout=10)
    assert calls.write(rows(1.0, place="after"), "after").commit == last + 2
    assert calls.read(latest_only=True).num_rows > WRITERS
    until(lambda: process.asked(f"SELECT count(*) {OTHERS} AND state LIKE 'idle in transaction%'") == 0)
    assert process.asked(f"SELECT count(*) {OTHERS}") <= 12


def rows_at(writer: int, minute: int) -> pa.Table:
    """The row of a writer's place at a minute."""
    table = rows(float(minute), place=f"place {writer}")
    times = pa.array([T0 + timedelta(minutes=minute)], pa.timestamp("us", "UTC"))
    return table.set_column(table.column_names.index("event_time"), "event_time", times)


def _repeated(call: Callable[[], Answer]) -> Answer:
    """The answer to a call that is repeated while the database is away."""
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() is not Code.UNAVAILABLE:
                raise


def _reached(process: Process, commit: int) -> bool:
    return bool(process.asked("SELECT last_commit FROM feature_store.commit_state") >= commit)


def _stalled(header: offline_pb2.WriteHeader, table: pa.Table) -> Iterator[offline_pb2.WriteFeaturesRequest]:
    """An upload whose last chunk does not come."""
    messages = list(uploaded(offline_pb2.WriteFeaturesRequest, header, table))
    yield from messages[:-1]
    while True:
        yield offline_pb2.WriteFeaturesRequest()
        time.sleep(0.01)
