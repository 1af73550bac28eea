"""A lease for processes of several machines: an advisory lock that ends with its session."""

from __future__ import annotations

import time
import zlib

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import Database
from services.runtime.errors import Unavailable

# The session is asked whether it still stands when it rested longer.
TRUSTED_S = 1.0


class SessionLease:
    """A `Lease` on a name, among the processes that use one schema. Holds a connection of the pool while it is held."""

    # As a rule there are several, each with writers that wait.
    poll_s = 0.05

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        # Two numbers of 32 bits, so that it meets no lock of one number of 64, as migrations take.
        self._key = (_int32(database.schema), _int32(name))
        self._session: AsyncConnection | None = None
        self._asked_at = 0.0

    async def take(self) -> bool:
        """See `Lease.take`."""
        if self._session is not None:
            return await self._still_held(self._session)
        session = await self._connect()
        try:
            locked = await session.exec_driver_sql("SELECT pg_try_advisory_lock($1, $2)", self._key)
            held = bool(locked.scalar_one())
        except (SQLAlchemyError, OSError) as error:
            await session.invalidate()
            await session.close()
            raise Unavailable("the database does not answer") from error
        if not held:
            await session.close()
            return False
        self._session, self._asked_at = session, time.monotonic()
        return True

    async def release(self) -> None:
        """See `Lease.release`."""
        session, self._session = self._session, None
        if session is not None:
            # The lock goes with the session; given back to the pool it would go on.
            await session.invalidate()
            await session.close()

    async def _connect(self) -> AsyncConnection:
        try:
            connection = await self._database.engine.connect()
            return await connection.execution_options(isolation_level="AUTOCOMMIT")
        except (SQLAlchemyError, OSError) as error:
            raise Unavailable("the database does not answer") from error

    async def _still_held(self, session: AsyncConnection) -> bool:
        now = time.monotonic()
        if now - self._asked_at < TRUSTED_S:
            return True
        try:
            await session.exec_driver_sql("SELECT 1")
        except (SQLAlchemyError, OSError):
            await self.release()
            return False
        self._asked_at = now
        return True


def _int32(text: str) -> int:
    value = zlib.crc32(text.encode())
    return value - (1 << 32) if value >= 1 << 31 else value
