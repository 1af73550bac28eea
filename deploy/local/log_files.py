"""The programs' output: one file each, bounded.

Programs append to their file themselves, so nothing is lost when the supervisor is busy or gone. A file that has
grown over the bound is copied aside and emptied in place: what is written in the microseconds between is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path

LOG_BYTES_MAX = 10 << 20
# Besides the current one.
LOGS_KEPT = 2
CHECK_PERIOD_S = 2.0
FOLLOW_PERIOD_S = 0.2
TAIL_BYTES_MAX = 1 << 20


def open_log(folder: Path, name: str) -> int:
    """A descriptor that appends to a program's log; the caller closes it."""
    return os.open(folder / f"{name}.log", os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)


def rotate(folder: Path, bytes_max: int = LOG_BYTES_MAX) -> None:
    """Moves the content of every log that is too long to `<name>.log.1`, that of `.1` to `.2`."""
    for log in folder.glob("*.log"):
        if log.stat().st_size <= bytes_max:
            continue
        for number in range(LOGS_KEPT, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                older(log, number - 1).replace(older(log, number))
        shutil.copyfile(log, older(log, 1))
        os.truncate(log, 0)


def older(log: Path, number: int) -> Path:
    """The name of an earlier part of a log."""
    return log.with_name(f"{log.name}.{number}")


async def keep_bounded(folder: Path) -> None:
    """Rotates until it is cancelled."""
    while True:
        await asyncio.sleep(CHECK_PERIOD_S)
        with contextlib.suppress(OSError):
            # A full disk must not end the stack; programs notice it themselves.
            await asyncio.to_thread(rotate, folder)


def tail(log: Path, lines: int) -> list[str]:
    """The last lines of a log; none when there is no such file."""
    if lines == 0:
        return []
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES_MAX))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []


async def follow(logs: dict[str, Path]) -> AsyncGenerator[tuple[str, str], None]:
    """New lines of several logs as they come, with the name of their program; goes on until it is closed."""
    places = {name: log.stat().st_size if log.exists() else 0 for name, log in logs.items()}
    while True:
        for name, log in logs.items():
            if not log.exists():
                continue
            # Emptied meanwhile: start over.
            start = places[name] if places[name] <= log.stat().st_size else 0
            with log.open("rb") as file:
                file.seek(start)
                # Whole lines only; the rest is read once its end is there.
                data = file.read(TAIL_BYTES_MAX)
            whole = data[: data.rfind(b"\n") + 1] or (data if len(data) == TAIL_BYTES_MAX else b"")
            places[name] = start + len(whole)
            for line in whole.decode(errors="replace").splitlines():
                yield name, line
        await asyncio.sleep(FOLLOW_PERIOD_S)
