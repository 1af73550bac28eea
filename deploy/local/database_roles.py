"""The database of the local stack: one role per owner of a schema, one for reports, and what each may do.

    feature_store, trainer, logger   make and own the schema of their name
    jobs                             the same, for the job library of feature pipelines
    trainer                          owns the schema `sink` as well
    report                           reads the schema `sink`, and nothing else

Every statement can be repeated; a start with everything in place changes nothing but the passwords' salts.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

import asyncpg

from deploy.local.postgres import SUPERUSER

DATABASE = "foresight"
JOBS_ROLE = "jobs"
OWNER_ROLES = ("feature_store", "trainer", "logger", JOBS_ROLE)
REPORT_ROLE = "report"
ROLES = (*OWNER_ROLES, REPORT_ROLE)
SINK_SCHEMA = "sink"
CONNECT_TIMEOUT_S = 5.0


_NOT_ANSWERING = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)


async def is_accepting(url: str, password: str) -> bool:
    """Whether the server takes connections."""
    try:
        connection = await _connect(url, password, "postgres")
    except (*_NOT_ANSWERING, asyncpg.PostgresError):
        return False
    await connection.close()
    return True


async def ensure_roles(url: str, password: str, passwords: Mapping[str, str]) -> bool:
    """Makes the database, the roles and their rights. `passwords` has one of ROLES' each.

    Returns False when the server went away meanwhile.
    """
    try:
        await _ensure_database(url, password)
        await _ensure_rights(url, password, passwords)
    except (*_NOT_ANSWERING, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError):
        return False
    return True


async def _ensure_database(url: str, password: str) -> None:
    connection = await _connect(url, password, "postgres")
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
            # Templates are small: writing them to the log is faster than two checkpoints.
            await connection.execute(f"CREATE DATABASE {DATABASE} STRATEGY wal_log")
    finally:
        await connection.close()


async def _ensure_rights(url: str, password: str, passwords: Mapping[str, str]) -> None:
    connection = await _connect(url, password, DATABASE)
    try:
        async with connection.transaction():
            for role in ROLES:
                if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
                    await connection.execute(f"CREATE ROLE {role}")
                # Utility statements take no parameters; the server itself quotes the text.
                quoted = await connection.fetchval("SELECT quote_literal($1::text)", passwords[role])
                await connection.execute(f"ALTER ROLE {role} LOGIN PASSWORD {quoted}")
            await connection.execute(_RIGHTS)
    finally:
        await connection.close()


_RIGHTS = f"""
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT CREATE ON DATABASE {DATABASE} TO {", ".join(OWNER_ROLES)};
CREATE SCHEMA IF NOT EXISTS {SINK_SCHEMA} AUTHORIZATION trainer;
GRANT USAGE ON SCHEMA {SINK_SCHEMA} TO {REPORT_ROLE};
GRANT SELECT ON ALL TABLES IN SCHEMA {SINK_SCHEMA} TO {REPORT_ROLE};
ALTER DEFAULT PRIVILEGES FOR ROLE trainer IN SCHEMA {SINK_SCHEMA} GRANT SELECT ON TABLES TO {REPORT_ROLE};
ALTER ROLE {REPORT_ROLE} SET default_transaction_read_only = on;
ALTER ROLE {REPORT_ROLE} SET search_path = {SINK_SCHEMA};
"""


async def _connect(url: str, password: str, database: str) -> asyncpg.Connection:
    [host] = parse_qs(urlsplit(url).query)["host"]
    return await asyncpg.connect(
        host=host, user=SUPERUSER, password=password, database=database, timeout=CONNECT_TIMEOUT_S, ssl=False
    )
