"""Leases on files: one holder, who takes over, and whether the holder is alone."""

from __future__ import annotations

from pathlib import Path

from services.feature_store.online.leases import ALONE_POLL_S, SHARED_POLL_S, FileLease


async def test_one_holds_the_lease_and_the_next_one_takes_it_over(tmp_path: Path) -> None:
    first, second = (FileLease(tmp_path / "made" / "lock") for _ in range(2))
    assert await first.take()
    assert not await second.take()
    assert await first.take()
    await first.release()
    assert await second.take()
    assert not await first.take()


async def test_the_holder_looks_often_while_others_wait_and_rarely_while_it_is_alone(tmp_path: Path) -> None:
    holder, *others = (FileLease(tmp_path / "lock") for _ in range(3))
    assert await holder.take()
    assert holder.poll_s == ALONE_POLL_S
    for other in others:
        assert not await other.take()
    assert holder.poll_s == SHARED_POLL_S
    await others[0].release()
    assert holder.poll_s == SHARED_POLL_S
    await holder.release()
    assert await others[1].take()
    assert others[1].poll_s == ALONE_POLL_S
