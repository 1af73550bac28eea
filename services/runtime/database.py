"""PostgreSQL: an async engine for transactions, Arrow connections for bulk columns, migrations at the start.

One schema and one role per service. Both kinds of connection find the schema on their search path.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import adbc_driver_manager as adbc
import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.runtime.errors import LimitExceeded, Unavailable
from services.runtime.settings import DatabaseSettings
from services.runtime.threads import in_thread

POOL_SIZE = 8
ARROW_CONNECTIONS = 4
CONNECT_TIMEOUT_S = 5
POOL_TIMEOUT_S = 10
# A server that is still starting is waited for up to a minute.
START_PAUSE_S = 0.1
START_ATTEMPTS = 600
# An Arrow connection that rested longer is asked whether it still stands.
TRUSTED_S = 1.0

P = ParamSpec("P")
R = TypeVar("R")


class Database:
    """One service's schema in a database."""

    def __init__(self, settings: DatabaseSettings, schema: str) -> None:
        self.schema = schema
        self._settings = settings
        url = make_url(settings.with_password()).set(drivername="postgresql+asyncpg")
        self.engine: AsyncEngine = create_async_engine(
            url,
            pool_size=POOL_SIZE,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_S,
            pool_pre_ping=False,
            connect_args={
                "timeout": CONNECT_TIMEOUT_S,
                "server_settings": {"search_path": schema, "timezone": "UTC", "application_name": schema},
            },
        )
        self._single = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        # Connections at rest, and since when.
        self._arrow: queue.LifoQueue[tuple[Any, float]] = queue.LifoQueue()
        self._broken_at = float("-inf")
        self._arrow_permits = asyncio.Semaphore(ARROW_CONNECTIONS)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction, committed at the end of the block. Raises Unavailable when the database does not answer."""
        with _translated():
            async with self.engine.begin() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def statements(self) -> AsyncIterator[AsyncConnection]:
        """A connection whose statements stand alone, each its own transaction: for reads, it saves two round trips.

        Raises Unavailable when the database does not answer.
        """
        with _translated():
            async with self._single.connect() as connection:
                yield connection

    async def in_arrow(self, work: Callable[Concatenate[Any, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs `work` with an ADBC connection in a thread, at most ARROW_CONNECTIONS at once.

        What it does not commit is rolled back. Raises Unavailable when the database does not answer.
        """
        async with self._arrow_permits:
            with _translated():
                return await in_thread(self._with_arrow, lambda connection: work(connection, *args, **kwargs))

    def _with_arrow(self, work: Callable[[Any], R]) -> R:
        connection = self._take_arrow()
        try:
            result = work(connection)
            # Asks the server only when a transaction is open.
            connection.rollback()
        except BaseException as error:
            self._discard_arrow(connection, error)
            raise
        self._return_arrow(connection)
        return result

    @contextlib.asynccontextmanager
    async def arrow(self) -> AsyncIterator[Any]:
        """An ADBC connection for work of several steps, as `in_arrow`; use it in threads, and commit."""
        async with self._arrow_permits:
            with _translated():
                connection = await self._borrow_arrow()
                try:
                    yield connection
                except BaseException as error:
                    # Its state is unknown (the thread may still be busy after a cancellation): never reuse it.
                    await in_thread(self._discard_arrow, connection, error)
                    raise
                try:
                    await in_thread(connection.rollback)
                except BaseException as error:
                    await in_thread(self._discard_arrow, connection, error)
                    raise
                self._return_arrow(connection)

    async def _borrow_arrow(self) -> Any:
        taking = asyncio.ensure_future(asyncio.to_thread(self._take_arrow))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            # The thread goes on; what it gets must not be lost unclosed.
            await asyncio.wait([taking])
            if taking.done() and not taking.cancelled() and taking.exception() is None:
                self._return_arrow(taking.result())
            raise

    def _take_arrow(self) -> Any:
        while True:
            try:
                connection, since = self._arrow.get_nowait()
            except queue.Empty:
                options = f"-csearch_path={self.schema} -ctimezone=UTC"
                # Loads pyarrow's datasets, and with them pandas: only for those who move columns.
                from adbc_driver_postgresql import dbapi

                return dbapi.connect(
                    self._settings.with_password(options=options, connect_timeout=str(CONNECT_TIMEOUT_S))
                )
            if since > self._broken_at and time.monotonic() - since < TRUSTED_S:
                return connection
            try:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT 1").fetchone()
                connection.rollback()
            except adbc.Error:
                # The server was restarted since; the next one from the queue, or a new one, will do.
                _close_quietly(connection)
                continue
            return connection

    def _discard_arrow(self, connection: Any, error: BaseException) -> None:
        if isinstance(error, adbc.OperationalError):
            # It may have been the server: whatever rests is asked before it is used.
            self._broken_at = time.monotonic()
        _close_quietly(connection)

    def _return_arrow(self, connection: Any) -> None:
        self._arrow.put((connection, time.monotonic()))

    async def ping(self) -> bool:
        """Whether the database answers."""
        async with self.statements() as connection:
            await connection.exec_driver_sql("SELECT 1")
        return True

    async def migrate(self, folder: Path) -> None:
        """Brings the schema to the newest revision of the Alembic scripts in `folder`; safe to run twice at once."""
        async with self.transaction() as connection:
            # Two starting replicas take turns; the lock goes with the transaction.
            await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:schema))"), {"schema": self.schema})
            await connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{self.schema}"'))
            await connection.run_sync(_upgrade, folder, self.schema)

    async def close(self) -> None:
        """Closes all connections."""
        while True:
            try:
                _close_quietly(self._arrow.get_nowait()[0])
            except queue.Empty:
                break
        await self.engine.dispose()


@contextlib.asynccontextmanager
async def open_database(settings: DatabaseSettings, schema: str, migrations: Path) -> AsyncIterator[Database]:
    """The database, migrated; waits up to a minute for a server that is still starting."""
    database = Database(settings, schema)
    try:
        for attempt in range(START_ATTEMPTS):
            try:
                await database.migrate(migrations)
                break
            except Unavailable:
                if attempt == START_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(START_PAUSE_S)
        yield database
    finally:
        await database.close()


def _upgrade(connection: Connection, folder: Path, schema: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.attributes.update(connection=connection, schema=schema)
    command.upgrade(config, "head")


def _close_quietly(connection: Any) -> None:
    with contextlib.suppress(adbc.Error):
        connection.close()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Faults of the connection become Unavailable, a full disk LimitExceeded; faults of SQL stay bugs."""
    try:
        yield
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, PoolTimeout, InterfaceError) as error:
        raise Unavailable("the database does not answer") from error
    except adbc.OperationalError as error:
        raise _by_state(error, getattr(error, "sqlstate", None)) from error
    except asyncpg.PostgresError as error:
        raise _by_state(error, error.sqlstate) from error
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if error.connection_invalidated or state is None:
            raise Unavailable("the database does not answer") from error
        raise _by_state(error, state) from error


def _by_state(error: Exception, state: str | None) -> Exception:
    """PostgreSQL's appendix A: 08 connection, 57P server shutdown, 53 out of disk, memory or connections."""
    if state is None or state.startswith(("08", "57P", "53300")):
        return Unavailable("the database does not answer")
    if state.startswith("53"):
        return LimitExceeded("the database has no room left", limit="disk")
    return error
