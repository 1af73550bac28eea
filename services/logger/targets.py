"""What an outcome is about: one prediction by its id, or all predictions with the same deployment, keys and event time.

A target is a short byte string that begins with its kind. That of keys is a digest over a canonical encoding in
which every part has its length or a fixed size, so that two different combinations never look the same.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Mapping, Sequence

from foresight.values import Column, DataType, InvalidValue
from foresight.values.errors import quoted
from foresight.values.features import KEY_TYPES, VIEW_KEYS_MAX
from services.logger.scalars import encode_scalar

DIGEST_BYTES = 16
_TAGS = {DataType.INT64: b"i", DataType.STRING: b"s", DataType.BOOL: b"b"}
_NULL = b"0"
_LENGTH = struct.Struct(">I")
_INSTANT = struct.Struct(">q")


def target_of_id(prediction_id: str) -> bytes:
    """The target of one prediction; the id is a canonical UUID."""
    return b"p" + uuid.UUID(prediction_id).bytes


def id_of_target(target: bytes) -> str:
    """The prediction id of `target_of_id`'s target."""
    return str(uuid.UUID(bytes=target[1:]))


def targets_of_keys(deployment: str, keys: Mapping[str, Column], event_times: Sequence[int]) -> list[bytes]:
    """The targets of n predictions: n rows of each key column and n instants in microseconds since the epoch.

    The order of the columns does not matter. NULL is a key value like any other, of no type: who has only NULLs cannot
    know the key's. Raises InvalidValue for a column that cannot be a key.
    """
    check_keys(keys)
    columns = [parts_of(keys[name]) for name in sorted(keys)]
    return [
        target_of_parts(deployment, [parts[row] for parts in columns], event_time)
        for row, event_time in enumerate(event_times)
    ]


def target_of_parts(deployment: str, parts: Sequence[bytes], event_time: int) -> bytes:
    """The target of one prediction from `parts_of` its keys, ordered by the keys' names."""
    start = _sized(deployment.encode()) + _LENGTH.pack(len(parts)) + _INSTANT.pack(event_time)
    return b"k" + hashlib.blake2b(start + b"".join(parts), digest_size=DIGEST_BYTES).digest()


def salted_hash(salt: bytes, data: bytes) -> bytes:
    """A hash that tells nothing to whom the salt is unknown."""
    return hashlib.blake2b(data, digest_size=32, key=salt).digest()


def salted_hashes(salt: bytes, keys: Mapping[str, Column]) -> list[bytes]:
    """A salted hash per row over all of some key columns."""
    columns = [parts_of(keys[name]) for name in sorted(keys)]
    return [salted_hash(salt, b"".join(parts)) for parts in zip(*columns, strict=True)]


def claim_hashes(salt: bytes, keys: Mapping[str, Column], names: Sequence[str]) -> list[list[bytes]]:
    """Per row a salted hash for each key column with its value, where all keys together are `names`."""
    start = b"".join(_sized(name.encode()) for name in sorted(names))
    columns = [parts_of(keys[name]) for name in sorted(keys)]
    return [
        [hashlib.blake2b(start + part, digest_size=DIGEST_BYTES, key=salt).digest() for part in parts]
        for parts in zip(*columns, strict=True)
    ]


def parts_of(column: Column) -> list[bytes]:
    """The canonical bytes of a key's name and value, row by row."""
    name = _sized(column.name.encode())
    values = column.values.tolist()
    valid = [True] * len(values) if column.valid is None else column.valid.tolist()
    return [
        part_of(column.name, column.type, encode_scalar(column.type, value)) if is_valid else name + _NULL
        for value, is_valid in zip(values, valid, strict=True)
    ]


def part_of(name: str, type: DataType, scalar: bytes) -> bytes:
    """The canonical bytes of a key's name and a value that is not NULL, itself as `encode_scalar` has it."""
    return _sized(name.encode()) + _TAGS[type] + _sized(scalar)


def check_keys(keys: Mapping[str, Column]) -> None:
    """Raises InvalidValue for a column that cannot be an entity key, and for too many of them."""
    if len(keys) > VIEW_KEYS_MAX:
        raise InvalidValue("entity_keys", f"are {len(keys)}, more than {VIEW_KEYS_MAX}")
    for column in keys.values():
        if column.type not in KEY_TYPES:
            raise InvalidValue(
                "entity_keys", f"{quoted(column.name)} is {column.type.value}; keys are int64, string or bool"
            )


def _sized(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data
