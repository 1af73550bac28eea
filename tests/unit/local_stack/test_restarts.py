"""What can be restarted, and what is said when it cannot."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from deploy.local.leftovers import Birth
from deploy.local.restarts import program_pid, restart, wait_in_use, wait_restarted
from deploy.local.state import StackError, StateFolder, write_json

PROCESSES = {"feature_store": ["feature_store"], "trainer": ["trainer"], "logger": ["logger"]}


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    made = StateFolder(tmp_path)
    made.make()
    return made


def ready(state: StateFolder, **programs: dict[str, Any]) -> None:
    """A stack that says so of itself."""
    processes = {**PROCESSES, "predictor": ["predictor-0", "predictor-1"]}
    write_json(state.connection, {"processes": processes, "metrics": {}})
    write_json(state.run, {"version": 1, "programs": programs})


def test_nothing_is_restarted_where_nothing_runs(state: StateFolder) -> None:
    with pytest.raises(StackError, match="no stack is ready"):
        restart(state)
    with pytest.raises(StackError, match="does not run"):
        program_pid(state, "predictor-0")


@pytest.mark.parametrize("name", ["postgres", "predictor-2", "nobody", ""])
def test_what_cannot_be_restarted_is_named_with_what_can(state: StateFolder, name: str) -> None:
    ready(state)
    with pytest.raises(StackError, match=r"these can: .*trainer, predictor, logger, predictor-0, predictor-1, gateway"):
        restart(state, [name])


def test_a_process_id_is_that_of_a_process_that_there_is(state: StateFolder) -> None:
    ourselves = Birth.of(os.getpid())
    ready(
        state,
        one={"state": "ready", "pid": ourselves.pid, "created": ourselves.created},
        other={"state": "ready", "pid": ourselves.pid, "created": ourselves.created - 60},
        waiting={"state": "waiting", "pid": None, "created": None},
    )
    assert program_pid(state, "one") == ourselves.pid
    # Somebody else has the number by now.
    for name in ("other", "waiting"):
        with pytest.raises(StackError, match=f"{name} is not running"):
            program_pid(state, name)
    with pytest.raises(StackError, match="no program nobody, only one, other, waiting"):
        program_pid(state, "nobody")


def test_only_another_process_that_is_ready_counts_as_restarted(state: StateFolder) -> None:
    ready(
        state, one={"state": "ready", "pid": 7, "created": 1.0}, other={"state": "starting", "pid": 8, "created": 1.0}
    )
    assert wait_restarted(state, "one", 6) == 7
    for name, pid in (("one", 7), ("other", 7)):
        with pytest.raises(StackError, match=f"{name} was not ready again"):
            wait_restarted(state, name, pid, timeout_s=0.01)


def test_a_page_of_the_gateway_that_breaks_off_is_asked_for_again() -> None:
    """As one is that ends while it answers: first half a page, then a whole one."""
    page = "".join(
        f'envoy_cluster_membership_healthy{{envoy_cluster_name="{name}"}} 1\n' for name in (*PROCESSES, "predictor")
    )
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(page)}\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for text in (head + page[:20], head + page):
                connection, _ = server.accept()
                with connection:
                    connection.recv(65_536)
                    connection.sendall(text.encode())

        thread = threading.Thread(target=answer)
        thread.start()
        wait_in_use(
            {"processes": {**PROCESSES, "predictor": ["predictor"]}, "metrics": {"gateway": server.getsockname()[1]}}
        )
        thread.join()
