"""State folders that cannot be used are refused with a reason, and looking never leaves anything behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.background import stop_running
from deploy.local.state import StackError, StateFolder


def test_a_folder_that_never_had_a_stack_stays_as_it_is(tmp_path: Path) -> None:
    assert not stop_running(StateFolder(tmp_path))
    assert not stop_running(StateFolder(tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_folder_is_said(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    state = StateFolder(file)
    with pytest.raises(StackError, match=r"cannot make the state folder .*: File exists"):
        state.make()
    with pytest.raises(StackError, match=r"cannot look into the state folder .*: Not a directory"):
        state.holder()
    with pytest.raises(StackError, match=r"cannot use the state folder .*: Not a directory"), state.locked():
        pass


def test_the_lock_names_its_holder(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    assert state.holder() is None
    with state.locked():
        pid = state.holder()
        assert pid is not None
        with pytest.raises(StackError, match=f"running already \\(process {pid}\\)"), state.locked():
            pass
    assert state.holder() is None
