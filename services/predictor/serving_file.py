"""The last known serving table on disk, so that a restarted predictor serves while the trainer is down.

One file: a SHA-256 over all that follows, then sections, each a length (u32, little-endian) and its bytes. It is
replaced by an atomic rename; one that does not match its digest is treated as absent.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

import structlog

from services.predictor.artifacts import make_cache_folder, write_atomically

log = structlog.get_logger()

_LENGTH = struct.Struct("<I")
_DIGEST_BYTES = 32


class ServingFile:
    """Sections of bytes under one name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        make_cache_folder(path.parent)

    def write(self, sections: Sequence[bytes]) -> None:
        """Replaces the file; a full disk is logged and leaves the old one."""
        body = b"".join(_LENGTH.pack(len(section)) + section for section in sections)
        try:
            write_atomically(self._path, hashlib.sha256(body).digest() + body)
        except OSError as error:
            log.warning("serving_table_not_kept", error=error.strerror)

    def read(self) -> list[bytes]:
        """The sections; none when there is no file or it is damaged."""
        try:
            data = self._path.read_bytes()
        except OSError:
            return []
        body = data[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != data[:_DIGEST_BYTES]:
            log.error("serving_table_damaged")
            return []
        sections = []
        position = 0
        while position < len(body):
            (length,) = _LENGTH.unpack_from(body, position)
            position += _LENGTH.size
            sections.append(body[position : position + length])
            position += length
        return sections
