"""Folders of a store that is sometimes built anew: numbered, the lowest one that has no successor is live.

    <folder>/lock        held while somebody looks for the live generation, or removes another one
    <folder>/building    held by whoever builds the next one
    <folder>/<number>/   a generation

A generation says itself, inside, which one took its place. So the change is one transaction of its file, and whoever
still has it open sees it with the next thing read. Removing a folder that others have open costs them nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from services.runtime.errors import FailedPrecondition

G = TypeVar("G")


class Generations:
    """The generations in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def open_live(self, open: Callable[[Path], G], successor: Callable[[G], int], close: Callable[[G], None]) -> G:
        """Opens the live generation, made if there is none; removes those it replaced and what a crash left."""
        with self._locked("lock", wait=True):
            numbers = self._numbers()
            number = numbers[0] if numbers else 1
            while True:
                self._path(number).mkdir(mode=0o700, exist_ok=True)
                opened = open(self._path(number))
                following = successor(opened)
                if not following:
                    break
                close(opened)
                self._remove(self._path(number))
                number = following
            with contextlib.suppress(FailedPrecondition), self._locked("building", wait=False):
                self._remove_others(number)
            return opened

    @contextlib.contextmanager
    def building(self) -> Iterator[tuple[int, Path]]:
        """A new, empty generation, gone at the end unless it is the live one's successor by then (see `open_live`).

        Raises FailedPrecondition while another process, or this one, builds.
        """
        with self._locked("building", wait=False):
            with self._locked("lock", wait=True):
                live = self._numbers()[0]
                self._remove_others(live)
                number, path = live + 1, self._path(live + 1)
                path.mkdir(mode=0o700)
            yield number, path

    def discard(self, number: int) -> None:
        """Removes a generation that was not finished."""
        with self._locked("lock", wait=True):
            self._remove(self._path(number))

    def _numbers(self) -> list[int]:
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())

    def _path(self, number: int) -> Path:
        return self._folder / str(number)

    def _remove_others(self, live: int) -> None:
        for path in self._folder.iterdir():
            if path.is_dir() and path != self._path(live):
                self._remove(path)

    def _remove(self, path: Path) -> None:
        if path.name.isdigit():
            # In one step, so that no crash leaves a generation without its file.
            path = path.rename(path.with_name(f"{path.name}.gone"))
        shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self, name: str, *, wait: bool) -> Iterator[None]:
        file = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise FailedPrecondition("the online store is being rebuilt already") from None
            yield
        finally:
            os.close(file)
