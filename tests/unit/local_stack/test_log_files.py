"""Logs stay within their bound, and can be read while they are written."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from deploy.local.log_files import follow, older, open_log, rotate, tail


def test_a_long_log_moves_aside_and_writers_go_on(tmp_path: Path) -> None:
    log = tmp_path / "predictor.log"
    descriptor = open_log(tmp_path, "predictor")
    try:
        for content in (b"first\n", b"second\n", b"third\n", b"fourth\n"):
            os.write(descriptor, content)
            rotate(tmp_path, bytes_max=4)
        os.write(descriptor, b"now\n")
    finally:
        os.close(descriptor)
    rotate(tmp_path, bytes_max=4)
    assert log.read_bytes() == b"now\n"
    assert [older(log, n).read_bytes() for n in (1, 2)] == [b"fourth\n", b"third\n"]
    assert len(list(tmp_path.iterdir())) == 3
    assert log.stat().st_mode & 0o077 == 0


def test_the_tail_has_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert tail(log, 5) == []
    log.write_bytes(b"1\n2\n\xff3\n")
    assert tail(log, 2) == ["2", "�3"]
    assert tail(log, 0) == []


async def test_following_sees_new_whole_lines_also_after_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("old\n")
    seen = follow({"a": log, "b": tmp_path / "b.log"})
    async with asyncio.timeout(10):
        first = asyncio.ensure_future(anext(seen))
        await asyncio.sleep(0)
        with log.open("a") as file:
            file.write("new\nhal")
            file.flush()
            assert await first == ("a", "new")
            half = asyncio.ensure_future(anext(seen))
            await asyncio.sleep(0)
            file.write("f\n")
        assert await half == ("a", "half")
        rotate(tmp_path, bytes_max=1)
        (tmp_path / "b.log").write_text("b\n")
        log.write_text("a\n")
        assert {await anext(seen), await anext(seen)} == {("a", "a"), ("b", "b")}
    await seen.aclose()
