"""Ids are UUIDs of version 7, however many are made at once."""

from __future__ import annotations

import time
import uuid

import pytest

from services.runtime.ids import FEW_IDS_MAX, new_ids


@pytest.mark.parametrize("count", [0, 1, FEW_IDS_MAX, FEW_IDS_MAX + 1, 1_024])
def test_ids_are_different_uuids_of_now(count: int) -> None:
    """Version, variant and time are where RFC 9562 has them, and all other bits are random."""
    before = time.time_ns() // 1_000_000
    ids = new_ids(count)
    after = time.time_ns() // 1_000_000
    assert len(set(ids)) == len(ids) == count
    read = [uuid.UUID(made) for made in ids]
    assert [str(made) for made in read] == list(ids)
    assert all(made.version == 7 and made.variant == uuid.RFC_4122 for made in read)
    assert all(before <= made.int >> 80 <= after for made in read)
    if count > 1_000:
        fixed = (1 << 128) - 1 & ~(0xF << 76) & ~(0x3 << 62)
        random = fixed & ((1 << 80) - 1)
        ones = zeros = 0
        for made in read:
            ones, zeros = ones | made.int, zeros | ~made.int
        assert ones & random == zeros & random == random
