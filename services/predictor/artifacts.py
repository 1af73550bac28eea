"""Model artifacts on this replica's disk, by digest, so that a restart needs no trainer."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import structlog

from services.runtime.errors import DataLoss, LimitExceeded

log = structlog.get_logger()

ARTIFACT_BYTES_MAX = 512 << 20
ARTIFACTS_MAX = 256
LEFTOVER_AGE_S = 3_600
_SUFFIX = ".onnx"
_TEMPORARY = ".new-"
_HEX = frozenset("0123456789abcdef")


class ArtifactSource(Protocol):
    """Where artifacts come from."""

    def download(self, sha256: str) -> AsyncIterator[bytes]:
        """The artifact's bytes in chunks. Raises NotFound, DataLoss and Unavailable."""
        ...


class ArtifactCache:
    """A folder of at most ARTIFACTS_MAX artifacts; those used longest ago go first."""

    def __init__(self, folder: Path, source: ArtifactSource) -> None:
        self._folder = folder
        self._source = source
        make_cache_folder(folder)

    async def fetch(self, sha256: str) -> bytes:
        """The artifact with this digest, from the folder or else from the source.

        Raises DataLoss when the source's bytes do not match the digest, LimitExceeded for more than
        ARTIFACT_BYTES_MAX, and whatever the source raises.
        """
        if len(sha256) != 64 or not _HEX.issuperset(sha256):
            # The digest becomes a file's name.
            raise DataLoss("the artifact's digest is not 64 lower-case hex digits")
        cached = await asyncio.to_thread(self._read, sha256)
        if cached is not None:
            return cached
        received = bytearray()
        async for chunk in self._source.download(sha256):
            received += chunk
            if len(received) > ARTIFACT_BYTES_MAX:
                raise LimitExceeded("the artifact is too large", limit=str(ARTIFACT_BYTES_MAX))
        artifact = bytes(received)
        await asyncio.to_thread(self._store, sha256, artifact)
        return artifact

    def _read(self, sha256: str) -> bytes | None:
        path = self._folder / (sha256 + _SUFFIX)
        try:
            artifact = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(artifact).hexdigest() != sha256:
            log.error("cached_artifact_damaged", sha256=sha256)
            path.unlink(missing_ok=True)
            return None
        os.utime(path)
        return artifact

    def _store(self, sha256: str, artifact: bytes) -> None:
        if hashlib.sha256(artifact).hexdigest() != sha256:
            raise DataLoss(f"the artifact {sha256[:12]} does not match its digest", sha256=sha256)
        try:
            write_atomically(self._folder / (sha256 + _SUFFIX), artifact)
            self._prune()
        except OSError as error:
            # It is in memory and will serve; only a restart without a trainer misses it.
            log.warning("artifact_not_cached", error=error.strerror)

    def _prune(self) -> None:
        kept = sorted(self._folder.glob(f"*{_SUFFIX}"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
        for path in kept[ARTIFACTS_MAX:]:
            path.unlink(missing_ok=True)


def make_cache_folder(folder: Path) -> None:
    """Makes the folder, and clears what a process that died in `write_atomically` left in it. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in folder.glob(f"{_TEMPORARY}*"):
        # Another replica may be writing a fresh one at this moment.
        if time.time() - path.stat().st_mtime > LEFTOVER_AGE_S:
            path.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a file by one of mode 0600; readers see the old or the new bytes, whole. Raises OSError."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
