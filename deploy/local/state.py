"""The state folder: where everything of one stack lies, who runs it, and what clients need to reach it.

One process at a time runs the stack of a folder; it holds a lock that the kernel takes back however that process
ends. Sockets lie in a short run folder apart, because their paths may have only 107 bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]

ENVIRONMENT_VARIABLE = "FORESIGHT_STATE"
DEFAULT_FOLDER = Path("var/foresight")


class StackError(Exception):
    """The stack cannot be started, or is not running; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The names of everything in the folder; an absolute path."""

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_absolute():
            raise ValueError("the state folder must be an absolute path")

    @property
    def connection(self) -> Path:
        """What clients read; there while the stack is ready."""
        return self.path / "foresight.json"

    @property
    def scrape_targets(self) -> Path:
        """What Prometheus reads, to find all metrics pages; there while the stack is ready."""
        return self.path / "prometheus.json"

    @property
    def run(self) -> Path:
        """What runs: processes, their states and restarts."""
        return self.path / "run.json"

    @property
    def lock(self) -> Path:
        """Held by the process that runs the stack, which writes its id into it."""
        return self.path / "lock"

    @property
    def logs(self) -> Path:
        """One file per program."""
        return self.path / "logs"

    @property
    def certificates(self) -> Path:
        """Keys and certificates."""
        return self.path / "certificates"

    @property
    def postgres(self) -> Path:
        """The database's data folder."""
        return self.path / "postgres"

    def password(self, role: str) -> Path:
        """The password of a database role."""
        return self.path / "secrets" / f"{role}.password"

    def make(self) -> None:
        """Makes the folders, closed to others. Raises StackError when that is not possible."""
        try:
            for folder in (self.path, self.logs, self.path / "secrets"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StackError(f"cannot make the state folder {self.path}: {error.strerror}") from error

    def ensure_password(self, role: str) -> Path:
        """The file of a role's password, made when it is not there."""
        file = self.password(role)
        if not file.exists():
            write_atomically(file, secrets.token_urlsafe(24))
        return file

    def run_folder(self) -> Path:
        """The folder for sockets that belongs to this state folder; made if needed.

        Raises StackError when somebody else has put something there.
        """
        digest = hashlib.sha256(os.fsencode(self.path.resolve())).hexdigest()[:12]
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        if runtime and os.access(runtime, os.W_OK) and len(os.fsencode(runtime)) <= 40:
            folder = Path(runtime, f"foresight-{digest}")
        else:
            folder = Path("/tmp", f"foresight-{os.geteuid()}-{digest}")  # noqa: S108 - checked below
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise StackError(f"{folder} is not ours: another user may have made it; remove it and try again")
        folder.chmod(0o700)
        return folder

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock. Raises StackError that names the process which has it, or why it cannot be taken."""
        try:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StackError(f"cannot use the state folder {self.path}: {error.strerror}") from error
        with open(descriptor, "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = file.read().strip() or "unknown"
                raise StackError(
                    f"the stack in {self.path} is running already (process {pid}); `foresight down` stops it"
                ) from None
            file.truncate()
            file.write(str(os.getpid()))
            file.flush()
            yield

    def holder(self) -> int | None:
        """The process that runs the stack, or None. Raises StackError when this user may not look."""
        try:
            descriptor = os.open(self.lock, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StackError(f"cannot look into the state folder {self.path}: {error.strerror}") from error
        with open(descriptor) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read().strip()
                return int(text) if text.isdigit() else None
        return None


def state_folder(path: Path | None = None) -> StateFolder:
    """The folder given, else of $FORESIGHT_STATE, else ./var/foresight."""
    chosen = path or Path(os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_FOLDER)
    return StateFolder(chosen.absolute())


def read_json(file: Path) -> Json | None:
    """The object in a file; None when there is no file or it is damaged."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(file: Path, content: Json) -> None:
    """Replaces a file by rename."""
    write_atomically(file, json.dumps(content, indent=1) + "\n")


def write_atomically(file: Path, text: str) -> None:
    """Replaces a file by rename, mode 0600."""
    descriptor, fresh = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with open(descriptor, "w") as writer:
            writer.write(text)
        os.replace(fresh, file)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        raise
