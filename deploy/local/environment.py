"""What programs of the stack find: the variables of their environment, and folders of their own."""

from __future__ import annotations

import os
from pathlib import Path

# What programs get of our environment; everything else stays with us.
PASSED_THROUGH = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ", "VIRTUAL_ENV")


def program_environment() -> dict[str, str]:
    """The variables that every program gets."""
    passed = {name: os.environ[name] for name in PASSED_THROUGH if name in os.environ}
    # Where the user stands, so that the modules of the user's transforms are found.
    path = os.pathsep.join(part for part in (os.getcwd(), os.environ.get("PYTHONPATH", "")) if part)
    # One row at a time gains nothing from more threads, and loses its tail latency; the trainer sets its worker's own.
    return {**passed, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def made_folder(folder: Path) -> str:
    """The path of a folder that others cannot enter, made where it is not there."""
    # The mode of `mkdir` is not for parents that it makes.
    for each in (folder.parent, folder):
        each.mkdir(mode=0o700, exist_ok=True)
    return str(folder)
