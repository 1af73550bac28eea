"""The state folder, its lock, and files that are never half-written."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.state import StackError, StateFolder, read_json, state_folder, write_json


def test_folders_and_passwords_are_closed_to_others(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    state.make()
    password = state.ensure_password("report")
    assert stat.S_IMODE(password.stat().st_mode) == 0o600
    assert {stat.S_IMODE(f.stat().st_mode) for f in (state.path, state.logs, password.parent)} == {0o700}
    assert state.ensure_password("report").read_text() == password.read_text()
    assert len(password.read_text()) >= 24


def test_one_process_at_a_time_and_the_other_one_learns_which(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    assert state.holder() is None
    with state.locked():
        assert state.holder() == os.getpid()
        with pytest.raises(StackError, match=rf"running already \(process {os.getpid()}\)"), state.locked():
            pass
    assert state.holder() is None
    with state.locked():
        pass


def test_a_killed_holder_leaves_the_lock_free(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    code = (
        "import sys, pathlib; from deploy.local.state import StateFolder\n"
        f"with StateFolder(pathlib.Path({str(tmp_path)!r})).locked(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert state.holder() == holder.pid
        holder.kill()
    with state.locked():
        pass


def test_the_run_folder_is_short_private_and_the_same_every_time(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / ("long" * 30))
    folder = state.run_folder()
    try:
        assert folder == state.run_folder() != StateFolder(tmp_path).run_folder()
        assert len(os.fsencode(folder)) <= 60
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    finally:
        folder.rmdir()
        StateFolder(tmp_path).run_folder().rmdir()


def test_a_run_folder_that_somebody_else_put_there_is_refused(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    folder = state.run_folder()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    try:
        with pytest.raises(StackError, match="not ours"):
            state.run_folder()
    finally:
        folder.unlink()


def test_damaged_files_read_as_absent(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    assert read_json(file) is None
    for content in ("", "{", "[]", "\0"):
        file.write_text(content)
        assert read_json(file) is None
    write_json(file, {"a": 1})
    assert read_json(file) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_the_folder_is_the_given_one_or_of_the_environment_or_the_default(tmp_path: Path) -> None:
    assert state_folder(tmp_path).path == tmp_path
    with pytest.raises(ValueError, match="absolute"):
        StateFolder(Path("relative"))
    code = "from deploy.local.state import state_folder; print(state_folder().path)"
    for environment, expected in (({"FORESIGHT_STATE": "/x/y"}, "/x/y"), ({}, str(tmp_path / "var/foresight"))):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.stdout.strip() == expected
