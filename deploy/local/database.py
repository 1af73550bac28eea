"""The stack's PostgreSQL: made at the first start, ready once its roles are there.

Services are told a path that appears only then: until it does, they wait for the database by themselves, so that
they can load their libraries while the database is being made.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
from pathlib import Path

from deploy.local.database_roles import DATABASE, ROLES, ensure_roles, is_accepting
from deploy.local.postgres import STOP_SIGNAL, EmbeddedPostgres, EmbeddedPostgresError
from deploy.local.programs import Program
from deploy.local.state import StackError, StateFolder


class StackDatabase:
    """The server of one stack, with its sockets below `run_folder`."""

    name = "postgres"

    def __init__(self, state: StateFolder, run_folder: Path) -> None:
        self._state = state
        self._sockets = run_folder / "postgres"
        self._sockets.mkdir(mode=0o700, exist_ok=True)
        self._public = run_folder / "database"
        self._server = EmbeddedPostgres(state.postgres, self._sockets, state.password("postgres"))
        self._roles_are_there = False
        self.identity = _numeric(self._server.identity())
        if self.identity is not None:
            # The other user has to get through to the sockets and the data; what lies beside them stays closed.
            for folder in (state.path, run_folder):
                folder.chmod(0o711)

    def url(self, role: str) -> str:
        """The URL of the database for a role, without its password."""
        return f"postgresql://{role}@/{DATABASE}?host={self._public}"

    def program(self) -> Program:
        """The server."""
        return Program(
            name=self.name,
            command=self._server.command,
            environment={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            is_ready=self._is_ready,
            before_start=self._before_start,
            stop_signal=STOP_SIGNAL,
            # Ends at once, with all its processes; what was committed is recovered.
            death_signal=signal.SIGQUIT,
            user_and_group=self.identity,
        )

    async def _before_start(self) -> None:
        try:
            await asyncio.to_thread(self._server.initialise)
        except EmbeddedPostgresError as error:
            raise StackError(str(error)) from error
        password = self._state.password("postgres")
        if not password.exists():
            raise StackError(
                f"{password} is missing, and the database was made with it; put it back, or remove"
                f" {self._state.path} to start with nothing"
            )
        # The lock of a killed server names a process id that may belong to somebody else by now.
        for file in self._sockets.glob(".s.PGSQL.*"):
            file.unlink(missing_ok=True)

    async def _is_ready(self) -> bool:
        url, password = self._server.url(), self._state.password("postgres").read_text().strip()
        if not await is_accepting(url, password):
            return False
        if not self._roles_are_there:
            passwords = {role: self._state.password(role).read_text().strip() for role in ROLES}
            if not await ensure_roles(url, password, passwords):
                return False
            self._public.symlink_to(self._sockets)
            self._roles_are_there = True
        return True


def _numeric(identity: dict[str, str | list[str]]) -> tuple[int, int] | None:
    """User and group that the server's process must have, when it cannot run as we are."""
    if "user" not in identity:
        return None
    return pwd.getpwnam(str(identity["user"])).pw_uid, int(str(identity["group"]))
