"""Model artifacts, named by the SHA-256 of their bytes. What is stored once never changes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Protocol

import structlog

from foresight.values import InvalidValue
from services.runtime.errors import DataLoss, LimitExceeded, NotFound

log = structlog.get_logger()

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class ArtifactStore(Protocol):
    """Where artifacts live."""

    async def put(self, artifact: bytes) -> str:
        """Stores the bytes durably and answers their SHA-256; storing the same bytes again changes nothing.

        Raises LimitExceeded when there is no room for them.
        """
        ...

    async def get(self, sha256: str) -> bytes:
        """The bytes. Raises InvalidValue for what is no digest, NotFound, and DataLoss when they do not match."""
        ...


class FolderArtifacts:
    """Artifacts as files `<folder>/<first two digits>/<digest>.onnx`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, artifact: bytes) -> str:
        """See ArtifactStore; the file appears whole or not at all."""
        try:
            return await asyncio.to_thread(self._put, artifact)
        except OSError as error:
            log.error("artifact_not_stored", error=error.strerror)
            raise LimitExceeded("the disk of the model artifacts is full or failing", limit="disk") from error

    async def get(self, sha256: str) -> bytes:
        """See ArtifactStore."""
        check_sha256(sha256)
        return await asyncio.to_thread(self._get, sha256)

    def _put(self, artifact: bytes) -> str:
        sha256 = hashlib.sha256(artifact).hexdigest()
        path = self._path(sha256)
        try:
            if path.read_bytes() == artifact:
                return sha256
        except FileNotFoundError:
            pass
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            try:
                file.write(artifact)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return sha256

    def _get(self, sha256: str) -> bytes:
        try:
            artifact = self._path(sha256).read_bytes()
        except FileNotFoundError:
            raise NotFound("artifact", sha256) from None
        if hashlib.sha256(artifact).hexdigest() != sha256:
            raise DataLoss("the stored artifact does not match its digest", sha256=sha256)
        return artifact

    def _path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / f"{sha256}.onnx"


def check_sha256(sha256: str, field: str = "sha256") -> str:
    """Returns the digest. Raises InvalidValue unless it is 64 lower-case hex digits, so it is never a path."""
    if not _SHA256.match(sha256):
        raise InvalidValue(field, "is not 64 lower-case hex digits")
    return sha256
