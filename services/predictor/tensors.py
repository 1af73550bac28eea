"""Tensors of the Open Inference Protocol: datatypes, shapes, and elements as raw little-endian bytes.

A tensor that exists has as many elements as its shape says, all of its datatype.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foresight.values import InvalidValue
from foresight.values.errors import quoted

BYTES = "BYTES"
# FP16 and BF16 are left out: no feature is of these types, and they have no typed contents.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    BYTES: np.dtype(np.object_),
}
DIMENSIONS_MAX = 8
# A message has at most 16 MiB, and an element at least a byte in it.
ELEMENTS_MAX = 16 << 20
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """`values` has the shape of the tensor; those of BYTES are bytes objects."""

    name: str
    datatype: str
    values: NDArray[Any]


def check_shape(shape: Sequence[int], where: str) -> int:
    """The number of elements of a shape that a client sent. Raises InvalidValue naming `where.shape`."""
    field = f"{where}.shape"
    if not 1 <= len(shape) <= DIMENSIONS_MAX:
        raise InvalidValue(field, f"has {len(shape)} dimensions, not 1 to {DIMENSIONS_MAX}")
    if min(shape) < 1:
        # Nothing is asked with no elements, and beside a 0 the others could be of any size.
        raise InvalidValue(field, f"has the dimension {min(shape)}, which is not 1 or more")
    elements = math.prod(shape)
    if elements > ELEMENTS_MAX:
        raise InvalidValue(field, f"has {elements:,} elements, more than {ELEMENTS_MAX:,}")
    return elements


def check_datatype(datatype: str, where: str) -> np.dtype[Any]:
    """NumPy's type of a datatype that a client sent. Raises InvalidValue naming `where.datatype`."""
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise InvalidValue(f"{where}.datatype", f"{quoted(datatype)} is none of {', '.join(DTYPES)}")
    return dtype


def from_raw(name: str, datatype: str, shape: Sequence[int], raw: bytes, where: str, buffer: str) -> Tensor:
    """The tensor of a raw buffer. Raises InvalidValue naming a part of `where`, or `buffer` for the bytes."""
    dtype = check_datatype(datatype, where)
    elements = check_shape(shape, where)
    if datatype == BYTES:
        values: NDArray[Any] = np.empty(elements, np.object_)
        values[:] = _texts(raw, elements, buffer)
    else:
        size = elements * dtype.itemsize
        if len(raw) != size:
            raise InvalidValue(buffer, f"has {len(raw):,} bytes, not the {size:,} of {elements:,} {datatype}")
        if datatype == "BOOL" and raw and max(raw) > 1:
            raise InvalidValue(buffer, "holds a BOOL that is neither 0 nor 1")
        values = np.frombuffer(raw, dtype)
    return Tensor(name, datatype, values.reshape(tuple(shape)))


def from_elements(name: str, datatype: str, shape: Sequence[int], elements: Sequence[Any], where: str) -> Tensor:
    """The tensor of typed contents, in row-major order. Raises InvalidValue naming a part of `where`."""
    dtype = check_datatype(datatype, where)
    count = check_shape(shape, where)
    if len(elements) != count:
        raise InvalidValue(f"{where}.contents", f"hold {len(elements):,} elements, not the {count:,} of the shape")
    if dtype.kind in "iu" and count:
        # The field of the contents is wider than small datatypes.
        limits = np.iinfo(dtype)
        if min(elements) < limits.min or max(elements) > limits.max:
            raise InvalidValue(f"{where}.contents", f"hold a number that does not fit into {datatype}")
    values = np.empty(count, dtype)
    values[:] = elements
    return Tensor(name, datatype, values.reshape(tuple(shape)))


def to_raw(tensor: Tensor) -> bytes:
    """The raw buffer of a tensor."""
    if tensor.datatype != BYTES:
        return tensor.values.astype(DTYPES[tensor.datatype], copy=False).tobytes()
    parts: list[bytes] = []
    for text in tensor.values.ravel():
        parts += (_LENGTH.pack(len(text)), text)
    return b"".join(parts)


def _texts(raw: bytes, elements: int, buffer: str) -> list[bytes]:
    """Elements of BYTES, each after its length in 4 bytes."""
    texts: list[bytes] = []
    at, end = 0, len(raw)
    for _ in range(elements):
        start = at + _LENGTH.size
        if start > end:
            raise InvalidValue(buffer, f"ends after {len(texts):,} of {elements:,} elements")
        at = start + _LENGTH.unpack_from(raw, at)[0]
        if at > end:
            raise InvalidValue(buffer, f"ends within element {len(texts):,}")
        texts.append(raw[start:at])
    if at != end:
        raise InvalidValue(buffer, f"goes on for {end - at:,} bytes after its {elements:,} elements")
    return texts
