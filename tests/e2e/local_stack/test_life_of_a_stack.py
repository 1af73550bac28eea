"""A stack comes, goes, is killed and comes back; nothing is left behind and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg

from tests.e2e.local_stack.calls import alive, eventually, family, is_answering

FORESIGHT = str(Path(sys.executable).with_name("foresight"))
FREE_PORTS = ("--gateway-port", "0", "--metrics-port", "0")


def foresight(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [FORESIGHT, *arguments, "--state", str(state)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)


def status(state: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(foresight(state, "status", "--json").stdout)
    return answer


def pids_of(seen: dict[str, Any]) -> set[int]:
    return family([seen["supervisor"], *(program["pid"] for program in seen["programs"])])


def test_ctrl_c_leaves_nothing(state: Path) -> None:
    up = subprocess.Popen(
        [FORESIGHT, "up", "--state", str(state), *FREE_PORTS, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually((state / "foresight.json").exists, within_s=90)
    seen = status(state)
    assert seen["ready"]
    assert seen["supervisor"] == up.pid
    pids = pids_of(seen)
    assert len(pids) > 7
    up.send_signal(signal.SIGINT)
    out, err = up.communicate(timeout=60)
    assert up.returncode == 0, err
    assert "did not stop in time" not in err
    assert "starts again" not in err
    assert json.loads(out) == seen["connection"]
    assert alive(pids) == []
    assert not Path(seen["connection"]["run_folder"]).exists()
    assert not (state / "foresight.json").exists()
    assert not status(state)["ready"]


async def test_a_detached_stack_survives_being_killed_with_its_state(state: Path) -> None:
    assert foresight(state, "up", "--detach", *FREE_PORTS).returncode == 0
    first = status(state)
    password = (state / "secrets" / "trainer.password").read_text()
    url = first["connection"]["sink"]["url"].replace("report@", "trainer@")
    trainer = await asyncpg.connect(url, password=password)
    await trainer.execute("CREATE TABLE sink.kept AS SELECT 42 AS answer")
    pids = pids_of(first)
    for pid in (first["supervisor"], *(program["pid"] for program in first["programs"][:3])):
        os.kill(pid, signal.SIGKILL)
    trainer.terminate()
    eventually(lambda: alive(pids) == [], within_s=15)
    assert foresight(state, "status").returncode == 1

    assert foresight(state, "up", "--detach", *FREE_PORTS).returncode == 0
    second = status(state)
    assert second["ready"]
    assert is_answering(second["connection"])
    trainer = await asyncpg.connect(
        second["connection"]["sink"]["url"].replace("report@", "trainer@"), password=password
    )
    assert await trainer.fetchval("SELECT answer FROM sink.kept") == 42
    await trainer.close()

    lines = foresight(state, "logs", "predictor", "--lines", "5").stdout.splitlines()
    assert 0 < len(lines) <= 5
    assert all(json.loads(line)["service"] == "predictor" for line in lines)
    assert foresight(state, "logs", "nobody").returncode == 1

    pids = pids_of(second)
    assert json.loads(foresight(state, "down", "--json").stdout)["stopped"] is True
    assert alive(pids) == []
    assert json.loads(foresight(state, "down", "--json").stdout)["stopped"] is False


def test_a_stack_does_not_outlive_the_process_that_started_it(state: Path) -> None:
    code = f"""
import signal
from pathlib import Path
from deploy.local import LocalStack
with LocalStack(Path({str(state)!r}), gateway_port=0, metrics_port=0) as stack:
    print(stack.supervisor_pid, flush=True)
    signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        supervisor = int(owner.stdout.readline())
        pids = family([supervisor])
        assert len(pids) > 7
        owner.kill()
    eventually(lambda: alive(pids) == [])


def test_a_state_of_another_postgresql_is_refused_and_nothing_is_left(state: Path) -> None:
    (state / "postgres").mkdir()
    (state / "postgres" / "PG_VERSION").write_text("17\n")
    for detach in ([], ["--detach"]):
        refused = foresight(state, "up", *FREE_PORTS, *detach)
        assert refused.returncode == 1
        assert "belongs to PostgreSQL 17, not 18" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert not (state / "run.json").exists()
    assert (state / "postgres" / "PG_VERSION").read_text() == "17\n"
