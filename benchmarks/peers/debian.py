"""Programs of Debian that a measurement needs: unpacked into a folder, not installed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from benchmarks.peers.environments import FOLDER

# Redis and the libraries that a small system lacks.
REDIS = ("redis-tools", "liblzf1", "libjemalloc2", "liblua5.1-0", "lua-cjson", "lua-bitop", "libhiredis0.14")

# The load generator, of which a system may have its libraries already, and those that a small one lacks.
H2LOAD = ("nghttp2-client", "libnghttp2-14", "libev4", "libjansson4", "libjemalloc2", "libxml2", "libicu72")


def unpacked(name: str, *packages: str) -> Path:
    """The folder with what is in the packages. Raises CalledProcessError where there is no apt or no way to Debian."""
    folder = FOLDER / name
    if (folder / ".unpacked").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        subprocess.run(["apt-get", "-o", "Acquire::Retries=3", "update", "-qq"], check=True)
    subprocess.run(["apt-get", "-o", "Acquire::Retries=3", "download", "-qq", *packages], check=True, cwd=folder)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder], check=True)
    (folder / ".unpacked").touch()
    return folder


def libraries(folder: Path) -> Mapping[str, str]:
    """The environment in which programs of the folder find their libraries."""
    found = sorted({str(path.parent) for path in (folder / "usr" / "lib").rglob("*.so*")})
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(found)}
