"""Which online store a process uses, and the leases on duties among the processes that share it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from services.feature_store.config import OnlineSettings
from services.feature_store.online.leases import FileLease, Lease
from services.feature_store.online.lmdb_store import LmdbOnlineStore
from services.feature_store.online.store import OnlineStore
from services.feature_store.postgres.session_lease import SessionLease
from services.runtime.database import Database


@contextlib.asynccontextmanager
async def open_online_store(
    settings: OnlineSettings, state_folder: Path, database: Database
) -> AsyncIterator[tuple[OnlineStore, Lease]]:
    """The store of the settings, and who may apply to it."""
    if settings.redis is not None:
        # Only those who use it load it.
        from services.feature_store.online.redis_store import open_redis_store

        async with open_redis_store(settings.redis) as store:
            yield store, SessionLease(database, f"online store {settings.redis.prefix}")
        return
    lmdb = LmdbOnlineStore(state_folder / "online")
    try:
        yield lmdb, FileLease(state_folder / "applier.lock")
    finally:
        lmdb.close()


def reingestion_lease(settings: OnlineSettings, state_folder: Path, database: Database) -> Lease:
    """The lease of who follows the log of predictions."""
    if settings.redis is not None:
        return SessionLease(database, "reingestion")
    return FileLease(state_folder / "reingestion.lock")
