"""Stored rows of training datasets: one Arrow file per content, named by its digest.

A file appears whole (written aside, then renamed) and is read only after its content was compared with its name.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pyarrow as pa

from foresight.values import InvalidValue
from services.feature_store.content import content_sha256
from services.runtime.errors import DataLoss, LimitExceeded


class DatasetFiles:
    """A folder of datasets; its methods block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def store(self, table: pa.Table) -> str:
        """Stores a table and returns the SHA-256 of its content. Raises LimitExceeded when the disk is full."""
        digest = content_sha256(table)
        if self._holds(digest):
            return digest
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=self._folder, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    with pa.ipc.new_file(file, table.schema) as writer:
                        writer.write_table(table)
                    file.flush()
                    os.fsync(file.fileno())
                Path(part).replace(self._path(digest))
            except BaseException:
                Path(part).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise LimitExceeded("the dataset cannot be stored: no room left", limit="disk") from error
        return digest

    def load(self, digest: str) -> pa.Table:
        """The table of a digest. Raises DataLoss when it is gone or differs."""
        try:
            with pa.memory_map(str(self._path(digest))) as source:
                table = pa.ipc.open_file(source).read_all()
            table.validate(full=True)
            actual = content_sha256(table)
        except (OSError, pa.ArrowException, ValueError, InvalidValue) as error:
            raise DataLoss("the stored rows of the dataset cannot be read", content_sha256=digest) from error
        if actual != digest:
            raise DataLoss("the stored rows of the dataset do not match its digest", content_sha256=digest)
        return table

    def _holds(self, digest: str) -> bool:
        try:
            self.load(digest)
        except DataLoss:
            return False
        return True

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.arrow"
