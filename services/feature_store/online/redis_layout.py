"""How the online store lies in a cluster of the Redis protocol. No I/O.

    <prefix>:{<prefix>}:state             hash: the live generation, and for each generation its number of buckets, its
                                          applied commit and its last erasure
    <prefix>:{<prefix>}:hold              exists while nothing may be applied to the live generation
    <prefix>:{<prefix>}:building          exists while somebody builds another generation
    <prefix>:{<prefix>.<b>}:<generation>  hash: bucket b; one field per key, and the empty field, which says that the
                                          bucket is whole

A generation is spread over buckets by a hash of the entity's keys without the group, so that rows of one entity in
several groups lie together. Whatever removes a bucket behind our back (a node that lost its memory, eviction) removes
the empty field with it, and that is noticed.

The value of a key is: floor, length of the current row, current row, previous row (both as of `row_codec`; the previous
one is empty if there was none). The current row is the latest of all that was applied so far, also of a batch that is
not all there yet. The previous one is the latest among the commits up to `floor`. Either may be what a given applied
commit has, see `row_as_of`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.feature_store.online.row_codec import version_of

GENERATION = "generation"
_VALUE = struct.Struct("<QI")
WHOLE = b""


class Unsettled(Exception):
    """The value does not tell what an applied commit has; a later applied commit will."""


class Names:
    """Names of the keys of one store."""

    def __init__(self, prefix: str) -> None:
        common = f"{prefix}:{{{prefix}}}"
        self.state = f"{common}:state"
        self.hold = f"{common}:hold"
        self.building = f"{common}:building"
        self._prefix = prefix

    def bucket(self, generation: str, number: int) -> str:
        """Name of a bucket; all generations of it lie in one slot."""
        return f"{self._prefix}:{{{self._prefix}.{number}}}:{generation}"


@dataclass(frozen=True, slots=True)
class State:
    """What the state says about one generation."""

    generation: str
    buckets: int
    applied: int
    erasure: int

    @classmethod
    def of(cls, fields: Mapping[bytes, bytes], generation: str | None = None) -> State | None:
        """The state of a generation, or of the live one; None when there is none."""
        name = generation or fields.get(GENERATION.encode(), b"").decode()
        buckets = fields.get(f"buckets:{name}".encode())
        if not name or buckets is None:
            return None
        applied, erasure = (int(fields.get(f"{field}:{name}".encode(), 0)) for field in ("applied", "erasure"))
        return cls(name, int(buckets), applied, erasure)


def generations_of(fields: Iterable[bytes]) -> list[str]:
    """The generations that a state knows."""
    return [name.decode().partition(":")[2] for name in fields if name.startswith(b"buckets:")]


def bucket_of(entity: bytes, buckets: int) -> int:
    """The bucket of an entity, as `RowCodec.entities` has it."""
    return zlib.crc32(entity) % buckets


def current_row(value: bytes) -> bytes:
    """The latest row of all that was applied so far."""
    _, size = _VALUE.unpack_from(value)
    return value[_VALUE.size : _VALUE.size + size]


def row_as_of(value: bytes, applied_commit: int) -> bytes | None:
    """The row that the commits up to `applied_commit` have for a key; None for none. Raises Unsettled.

    `applied_commit` was the applied one before the value was read, so rows of all its commits were taken into account:
    a current row that is not later than it is the answer, and so is a previous row if it is known to be the latest up
    to a commit that is not earlier.
    """
    floor, size = _VALUE.unpack_from(value)
    end = _VALUE.size + size
    current = value[_VALUE.size : end]
    if version_of(current)[1] <= applied_commit:
        return current
    if applied_commit <= floor:
        previous = value[end:]
        if not previous:
            return None
        if version_of(previous)[1] <= applied_commit:
            return previous
    raise Unsettled


# Takes rows of one bucket: ARGV is the applied commit, then fields and rows in turn. A row's event time and commit are
# compared as pairs of 32-bit halves, as a number in Lua has 53 bits.
UPSERT = """
local key = KEYS[1]
if redis.call('HEXISTS', key, '') == 0 then return redis.error_reply('NOTWHOLE the bucket is gone') end
local floor = tonumber(ARGV[1])
local function version(row)
  local time_low, time_high, commit_low, commit_high = struct.unpack('<I4i4I4I4', row, 3)
  return time_high, time_low, commit_high * 4294967296 + commit_low
end
for i = 2, #ARGV, 2 do
  local row = ARGV[i + 1]
  local there = redis.call('HGET', key, ARGV[i])
  if not there then
    redis.call('HSET', key, ARGV[i], struct.pack('<I8I4', floor, #row) .. row)
  else
    local old_floor, size = struct.unpack('<I8I4', there)
    local current = string.sub(there, 13, 12 + size)
    local new_high, new_low, new_commit = version(row)
    local high, low, commit = version(current)
    local later = new_high > high or (new_high == high and (new_low > low or (new_low == low and new_commit > commit)))
    if later then
      local previous = current
      local new_floor = floor
      if commit > floor then
        previous = string.sub(there, 13 + size)
        new_floor = old_floor
      end
      redis.call('HSET', key, ARGV[i], struct.pack('<I8I4', new_floor, #row) .. row .. previous)
    end
  end
end
return 'OK'
"""

# Notes progress of a generation, never backwards: ARGV is the generation, applied commit, erasure, and '1' if it has to
# be the live one.
ADVANCE = """
if ARGV[4] == '1' then
  if redis.call('HGET', KEYS[1], 'generation') ~= ARGV[1] then return 'REPLACED' end
  if redis.call('EXISTS', KEYS[2]) == 1 then return 'HELD' end
end
for i, name in ipairs({'applied:', 'erasure:'}) do
  local field = name .. ARGV[1]
  if tonumber(ARGV[i + 1]) > tonumber(redis.call('HGET', KEYS[1], field) or '0') then
    redis.call('HSET', KEYS[1], field, ARGV[i + 1])
  end
end
return 'OK'
"""

# Makes ARGV[2] the live generation in place of ARGV[1] ('' where there is none) unless it is behind.
REPLACE = """
local live = redis.call('HGET', KEYS[1], 'generation') or ''
if live ~= ARGV[1] then return 'REPLACED' end
local function number(name) return tonumber(redis.call('HGET', KEYS[1], name) or '0') end
if number('applied:' .. ARGV[2]) < number('applied:' .. live) then return 'BEHIND' end
if number('erasure:' .. ARGV[2]) < number('erasure:' .. live) then return 'BEHIND' end
redis.call('HSET', KEYS[1], 'generation', ARGV[2])
redis.call('DEL', KEYS[2])
return 'OK'
"""
