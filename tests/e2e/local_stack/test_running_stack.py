"""A stack that runs: who reaches it, what reports may read, and what happens when a part is killed."""

from __future__ import annotations

import http.client
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import asyncpg
import grpc
import psutil
import pytest

from deploy.local import LocalStack
from tests.e2e.local_stack.calls import eventually, is_answering, list_models
from tests.e2e.local_stack.conftest import TRANSFORMS

PROGRAMS = ("postgres", "logger", "feature_store", "trainer", "predictor", "gateway", "pipelines")
FORESIGHT = str(Path(sys.executable).with_name("foresight"))


def test_clients_find_everything_in_one_file(stack: LocalStack) -> None:
    connection = stack.connection
    assert connection["version"] == 1
    assert set(connection["metrics"]) == {"feature_store", "trainer", "predictor", "logger", "gateway"}
    for address in connection["sockets"].values():
        assert Path(address.removeprefix("unix:")).is_socket()
    for folder in (Path(connection["run_folder"]) / "services", Path(connection["ca"]).parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_operator_gets_through_and_an_application_does_not(stack: LocalStack) -> None:
    assert list(list_models(stack.connection, "operator").versions) == []
    with pytest.raises(grpc.RpcError) as denied:
        list_models(stack.connection, "application")
    assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_every_program_has_a_metrics_page(stack: LocalStack) -> None:
    for name, port in stack.metrics_ports.items():
        page = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        page.request("GET", "/stats/prometheus" if name == "gateway" else "/metrics")
        answer = page.getresponse()
        assert answer.status == 200, name
        assert b"# TYPE" in answer.read()
        page.close()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_killed_program_comes_back_and_calls_go_on(stack: LocalStack, name: str) -> None:
    before = {other: stack.pid(other) for other in PROGRAMS}
    os.kill(before[name], signal.SIGKILL)
    stack.wait_restarted(name, before[name])
    after = {other: stack.pid(other) for other in PROGRAMS}
    assert {other for other in PROGRAMS if before[other] != after[other]} == {name}
    eventually(lambda: is_answering(stack.connection))
    eventually(lambda: all(stack.program(other)["state"] == "ready" for other in PROGRAMS))


async def test_reports_read_the_sink_and_nothing_else(stack: LocalStack) -> None:
    password = (stack.state / "secrets" / "trainer.password").read_text()
    url = stack.connection["sink"]["url"]
    trainer = await asyncpg.connect(url.replace("report@", "trainer@"), password=password)
    await trainer.execute("CREATE TABLE sink.late_flights AS SELECT 1 AS flight")
    await trainer.close()
    report = await asyncpg.connect(url, password=Path(stack.connection["sink"]["password_file"]).read_text())
    try:
        assert await report.fetchval("SELECT flight FROM late_flights") == 1
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await report.execute("INSERT INTO late_flights VALUES (2)")
        await report.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE")
        for statement in (
            "INSERT INTO late_flights VALUES (2)",
            "CREATE TABLE sink.mine (a int)",
            "CREATE TABLE public.mine (a int)",
            "CREATE SCHEMA mine",
            "SELECT * FROM logger.alembic_version",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await report.execute(statement)
    finally:
        await report.close()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(url, password="guess")


def test_a_second_one_on_the_same_state_says_who_runs_it(stack: LocalStack) -> None:
    second = subprocess.run(
        [FORESIGHT, "up", "--state", str(stack.state), "--gateway-port", "0", "--metrics-port", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert f"running already (process {stack.supervisor_pid})" in second.stderr
    assert is_answering(stack.connection)


def test_a_taken_port_is_named_and_nothing_is_left(stack: LocalStack, state: Path) -> None:
    port = stack.connection["gateway"].rpartition(":")[2]
    for detach in ([], ["--detach"]):
        refused = subprocess.run(
            [FORESIGHT, "up", "--state", str(state), "--gateway-port", port, "--metrics-port", "0", *detach],
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode == 1
        assert f"port {port} is taken by another program; choose another one with --gateway-port" in refused.stderr
    assert not (state / "run.json").exists()
    assert not (state / "postgres").exists()


def test_services_find_transforms_where_the_user_stands_and_get_nothing_else_of_ours(stack: LocalStack) -> None:
    for name in ("predictor", "feature_store"):
        environment = psutil.Process(stack.pid(name)).environ()
        assert environment[f"FORESIGHT_{name.upper()}_TRANSFORM_MODULES"] == json.dumps([TRANSFORMS])
        assert environment["PYTHONPATH"].split(os.pathsep)[0] == os.getcwd()
        assert "PYTEST_VERSION" not in environment
