"""Connections to a database that fails, is restarted, or serves callers who go away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pyarrow as pa
import pytest

from services.runtime.database import ARROW_CONNECTIONS, Database
from services.runtime.errors import Unavailable
from services.runtime.settings import DatabaseSettings
from tests.conftest import MakeDatabase

SEEN = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
OPEN = f"{SEEN} AND state LIKE 'idle in transaction%'"
KILL = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


@pytest.fixture
def settings(postgres_url: MakeDatabase) -> DatabaseSettings:
    return postgres_url("connections")


@pytest.fixture
async def database(settings: DatabaseSettings) -> AsyncIterator[Database]:
    made = Database(settings, "public")
    await made.in_arrow(execute, "CREATE TABLE things (id bigint)", commit=True)
    yield made
    await made.close()


def execute(connection: Any, statement: str, *, commit: bool = False) -> Any:
    """Runs a statement and answers its first row, if it has rows."""
    with connection.cursor() as cursor:
        cursor.execute(statement)
        row = cursor.fetchone()
    if commit:
        connection.commit()
    return row


async def asked(settings: DatabaseSettings, statement: str) -> Any:
    """The answer to a question from outside."""
    connection = await asyncpg.connect(settings.with_password())
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_what_was_not_committed_is_rolled_back(database: Database, settings: DatabaseSettings) -> None:
    """And the connection at rest holds no transaction open."""
    await database.in_arrow(execute, "INSERT INTO things VALUES (1)")
    assert await asked(settings, "SELECT count(*) FROM things") == 0
    assert await asked(settings, OPEN) == 0
    await database.in_arrow(execute, "INSERT INTO things VALUES (1)", commit=True)
    assert await asked(settings, "SELECT count(*) FROM things") == 1


async def test_a_failed_call_leaves_a_database_that_works(database: Database, settings: DatabaseSettings) -> None:
    """Its connection, in an unknown state, is not used again."""
    for _ in range(ARROW_CONNECTIONS + 1):
        with pytest.raises(Exception, match="nowhere"):
            await database.in_arrow(execute, "SELECT * FROM nowhere")
    assert await database.in_arrow(execute, "SELECT 7") == (7,)
    assert await asked(settings, SEEN) == 1


async def test_after_a_restart_calls_fail_as_unavailable_at_most_once_per_connection(
    database: Database, settings: DatabaseSettings
) -> None:
    """Whatever kind of connection it was, also one that was used a moment ago."""
    await asyncio.gather(*(database.in_arrow(execute, "SELECT pg_sleep(0.05)") for _ in range(ARROW_CONNECTIONS)))
    await database.ping()
    await asked(settings, KILL)
    for _ in range(ARROW_CONNECTIONS):
        try:
            assert await database.in_arrow(execute, "SELECT 7") == (7,)
        except Unavailable:
            continue
    try:
        await database.ping()
    except Unavailable:
        await database.ping()
    assert await database.in_arrow(execute, "SELECT 7") == (7,)
    assert await database.ping()


async def test_a_caller_who_goes_away_leaves_no_connection_behind(
    database: Database, settings: DatabaseSettings
) -> None:
    """The thread ends what it does, and the connection serves the next caller."""
    for _ in range(ARROW_CONNECTIONS + 1):
        entered, leave = threading.Event(), threading.Event()

        def work(connection: Any, entered: threading.Event = entered, leave: threading.Event = leave) -> None:
            entered.set()
            leave.wait(10)
            execute(connection, "SELECT 1")

        call = asyncio.create_task(database.in_arrow(work))
        await asyncio.to_thread(entered.wait, 10)
        call.cancel()
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert await asked(settings, SEEN) == 1
    assert await asked(settings, OPEN) == 0
    assert await database.in_arrow(execute, "SELECT 7") == (7,)


async def test_a_statement_alone_is_its_own_transaction(database: Database, settings: DatabaseSettings) -> None:
    """It is there for others at once, and nothing stays open."""
    async with database.statements() as connection:
        await connection.exec_driver_sql("INSERT INTO things VALUES (2)")
        assert await asked(settings, "SELECT count(*) FROM things") == 1
        assert await asked(settings, OPEN) == 0
    async with database.transaction() as connection:
        await connection.exec_driver_sql("INSERT INTO things VALUES (3)")
        assert await asked(settings, "SELECT count(*) FROM things") == 1


async def test_columns_come_as_arrow(database: Database) -> None:
    """In steps, by a connection that is borrowed for longer."""
    async with database.arrow() as connection:
        with connection.cursor() as cursor:
            table = await asyncio.to_thread(lambda: cursor.execute("SELECT 1::bigint AS one").fetch_arrow_table())
    assert table.column("one").equals(pa.chunked_array([[1]]))
