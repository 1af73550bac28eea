"""Environments of peers, made once from their locks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "var" / "peers"


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment, which is made when it is not there or its lock changed."""
    folder, lock = FOLDER / peer, HERE / f"{peer}.lock"
    python, done = folder / "bin" / "python", folder / ".installed"
    if done.exists() and done.read_text() == lock.read_text():
        return python
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", "3.11", folder], check=True)
    # A lock is whole; one was resolved against what a package of it asks for.
    requirements = ["--no-deps", "--require-hashes", "--requirement", str(lock)]
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *requirements], check=True)
    done.write_text(lock.read_text())
    return python


def run_peer(peer: str, program: str, *arguments: str, timeout_s: float) -> dict[str, Any]:
    """What a peer's program printed. Raises CalledProcessError, TimeoutExpired."""
    command = [str(python_of(peer)), str(HERE / f"{program}.py"), *arguments]
    finished = subprocess.run(command, check=True, timeout=timeout_s, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result
