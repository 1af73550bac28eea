"""Messages between the trainer and its worker: JSON and blobs over a pipe. Nothing is pickled.

A frame is the length of the head (4 bytes, big-endian), the head (a JSON object whose `blobs` lists the lengths of
the blobs), and the blobs.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO

_LENGTH = struct.Struct(">I")


def write_frame(file: BinaryIO, head: dict[str, Any], blobs: Sequence[bytes | memoryview] = ()) -> None:
    """Writes one frame. Raises BrokenPipeError when nobody reads any more."""
    text = json.dumps({**head, "blobs": [len(memoryview(b)) for b in blobs]}).encode()
    file.write(_LENGTH.pack(len(text)))
    file.write(text)
    for blob in blobs:
        file.write(blob)
    file.flush()


def read_frame(file: BinaryIO) -> tuple[dict[str, Any], list[bytes]]:
    """Reads one frame. Raises EOFError when the other side has gone."""
    (size,) = _LENGTH.unpack(_exactly(file, _LENGTH.size))
    head: dict[str, Any] = json.loads(_exactly(file, size))
    return head, [_exactly(file, length) for length in head.pop("blobs")]


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data
