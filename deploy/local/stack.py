"""The local stack: what runs, with which settings, and what clients are told about it.

    postgres → logger, feature_store, trainer → predictor → gateway → pipelines

The three in the middle start at once and wait for the database by themselves, because loading their libraries takes
longer than starting it; the predictor and the gateway start when what they need is ready. The worker of feature
pipelines, of a stack that has some, loads their modules at once and goes to work when the stack is ready. All stop in
the opposite order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from deploy.local.database import StackDatabase
from deploy.local.database_roles import JOBS_ROLE, REPORT_ROLE, ROLES
from deploy.local.health_client import envoy_is_ready, service_is_serving
from deploy.local.leftovers import Birth, end_leftovers
from deploy.local.log_files import keep_bounded
from deploy.local.ports import DEFAULT_GATEWAY_PORT, DEFAULT_METRICS_PORT, LOOPBACK, Ports, choose_ports
from deploy.local.programs import Program, Status
from deploy.local.state import ENVIRONMENT_VARIABLE, Json, StateFolder, write_json
from deploy.local.supervisor import Supervisor
from gateway.certificates import CertificateFolder, ensure_certificates
from gateway.envoy import Gateway
from gateway.policy import ROLES as CALLER_ROLES

SERVICES = ("feature_store", "trainer", "predictor", "logger")
GATEWAY = "gateway"
PIPELINES = "pipelines"
METRICS = (*SERVICES, GATEWAY)
# The name of the identities that the stack makes: spiffe://foresight/operator/local and .../application/local.
IDENTITY_NAME = "local"
CERTIFICATES_CHECKED_EVERY_S = 86_400
# What programs get of our environment; everything else stays with us.
PASSED_THROUGH = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ", "VIRTUAL_ENV")

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What a user chooses. Ports: 0 takes free ones; `metrics_port` is the first of five."""

    state: StateFolder
    gateway_port: int = DEFAULT_GATEWAY_PORT
    metrics_port: int = DEFAULT_METRICS_PORT
    transform_modules: Sequence[str] = ()
    pipeline_modules: Sequence[str] = ()


@contextlib.asynccontextmanager
async def running_stack(options: StackOptions, report: Report) -> AsyncIterator[Supervisor]:
    """Runs the stack: ready inside of the block, gone after it. Raises StackError when it cannot start."""
    state = options.state
    state.make()
    with state.locked():
        state.connection.unlink(missing_ok=True)
        if ended := await asyncio.to_thread(end_leftovers, state):
            report(f"{ended} processes of an earlier run were left; they have been ended")
        run_folder = _empty_run_folder(state)
        try:
            ports = choose_ports(options.gateway_port, options.metrics_port, METRICS)
            stack = Stack(options, ports, run_folder)
            chores = [lambda: keep_bounded(state.logs), stack.keep_certificates]
            supervisor = Supervisor(stack.programs(), state.logs, report, stack.record, chores)
            await supervisor.start()
            try:
                write_json(state.connection, stack.connection())
                yield supervisor
            finally:
                state.connection.unlink(missing_ok=True)
                await supervisor.stop()
        finally:
            state.run.unlink(missing_ok=True)
            shutil.rmtree(run_folder, ignore_errors=True)


def _empty_run_folder(state: StateFolder) -> Path:
    shutil.rmtree(state.run_folder(), ignore_errors=True)
    return state.run_folder()


class Stack:
    """The programs of one stack and what they are told."""

    def __init__(self, options: StackOptions, ports: Ports, run_folder: Path) -> None:
        self._options = options
        self._state = options.state
        self._ports = ports
        self._run_folder = run_folder
        for role in ROLES:
            self._state.ensure_password(role)
        self._database = StackDatabase(self._state, run_folder)
        sockets = run_folder / "services"
        sockets.mkdir(mode=0o700)
        self._sockets = {name: sockets / f"{name}.sock" for name in SERVICES}
        self._certificates = CertificateFolder(self._state.certificates)
        self._gateway = Gateway(
            port=ports.gateway,
            metrics_port=ports.metrics[GATEWAY],
            certificates=self._certificates,
            sockets=self._sockets,
            folder=run_folder / "gateway",
            access_log=self._state.logs / "gateway-access.log",
        )

    def programs(self) -> list[Program]:
        """Everything that runs, in the order in which it is shown."""
        database = self._database.program()
        storage = [self._service(name, needs=[database.name]) for name in ("logger", "feature_store", "trainer")]
        predictor = self._service("predictor", needs=[program.name for program in storage], wait=True)
        gateway = Program(
            name=GATEWAY,
            command=self._gateway.command,
            environment=_environment(),
            is_ready=lambda: envoy_is_ready(self._gateway.admin_socket),
            needs=SERVICES,
            waits_for=SERVICES,
            before_start=self._prepare_gateway,
        )
        worker = [self._worker(needs=[database.name, GATEWAY])] if self._options.pipeline_modules else []
        return [database, *storage, predictor, gateway, *worker]

    def connection(self) -> Json:
        """The content of foresight.json."""
        clients = {role.name: str(self._certificates.client(role.name)) for role in CALLER_ROLES}
        return {
            "version": 1,
            "gateway": f"{LOOPBACK}:{self._ports.gateway}",
            "ca": str(self._certificates.authority),
            # One file holds both, so that a renewal changes both at once.
            "identities": {name: {"certificate": file, "key": file} for name, file in clients.items()},
            "metrics": self._ports.metrics,
            "sockets": {name: self._address(name) for name in SERVICES},
            "sink": {
                "url": self._database.url(REPORT_ROLE),
                "password_file": str(self._state.password(REPORT_ROLE)),
            },
            "jobs": {
                "url": self._database.url(JOBS_ROLE),
                "password_file": str(self._state.password(JOBS_ROLE)),
            },
            "run_folder": str(self._run_folder),
        }

    def record(self, statuses: Sequence[Status]) -> None:
        """Writes run.json, from which `status` reads and the next start cleans up."""
        ourselves = Birth.of(os.getpid())
        programs = {
            status.name: {
                "state": status.state.value,
                "pid": status.pid,
                "created": status.created,
                "restarts": status.restarts,
                "since": status.since,
            }
            for status in statuses
        }
        supervisor = {"pid": ourselves.pid, "created": ourselves.created}
        write_json(self._state.run, {"version": 1, "supervisor": supervisor, "programs": programs})

    async def keep_certificates(self) -> None:
        """Renews certificates in time for as long as the stack runs; the gateway takes them up by itself."""
        while True:
            await asyncio.sleep(CERTIFICATES_CHECKED_EVERY_S)
            await asyncio.to_thread(self._ensure_certificates)

    def _ensure_certificates(self) -> None:
        clients = {role.name: role.identity(IDENTITY_NAME) for role in CALLER_ROLES}
        ensure_certificates(self._certificates, clients, datetime.now(UTC))

    async def _prepare_gateway(self) -> None:
        await asyncio.to_thread(self._ensure_certificates)
        self._gateway.write()

    def _address(self, name: str) -> str:
        return f"unix:{self._sockets[name]}"

    def _service(self, name: str, needs: Sequence[str], wait: bool = False) -> Program:
        socket = self._sockets[name]

        async def forget_socket() -> None:
            socket.unlink(missing_ok=True)

        settings = {f"FORESIGHT_{name.upper()}_{key}": value for key, value in self._settings(name).items()}
        return Program(
            name=name,
            command=lambda: [sys.executable, "-m", f"services.{name}"],
            environment={**_environment(), **settings, ENVIRONMENT_VARIABLE: str(self._state.path)},
            is_ready=lambda: service_is_serving(socket),
            needs=needs,
            waits_for=needs if wait else (),
            before_start=forget_socket,
        )

    def _worker(self, needs: Sequence[str]) -> Program:
        loaded = self._run_folder / "pipelines.loaded"

        async def forget_loaded() -> None:
            loaded.unlink(missing_ok=True)

        async def is_loaded() -> bool:
            return loaded.exists()

        settings = {
            "FORESIGHT_JOBS_URL": self._database.url(JOBS_ROLE),
            "FORESIGHT_JOBS_PASSWORD_FILE": str(self._state.password(JOBS_ROLE)),
        }
        worker = [sys.executable, "-m", "foresight.cli", "pipelines", "worker", *self._options.pipeline_modules]
        return Program(
            name=PIPELINES,
            command=lambda: [*worker, "--ready-file", str(loaded)],
            environment={**_environment(), **settings, ENVIRONMENT_VARIABLE: str(self._state.path)},
            is_ready=is_loaded,
            needs=needs,
            before_start=forget_loaded,
        )

    def _settings(self, name: str) -> dict[str, str]:
        """A service's settings, without the prefix of their names."""
        folder = self._state.path / name
        common = {"LISTEN": self._address(name), "METRICS_PORT": str(self._ports.metrics[name])}
        modules = {"TRANSFORM_MODULES": json.dumps(list(self._options.transform_modules))}
        if name == "predictor":
            return {
                **common,
                **modules,
                "SPOOL_FOLDER": _made(folder / "spool"),
                "CACHE_FOLDER": _made(folder / "cache"),
                "FEATURE_STORE": self._address("feature_store"),
                "TRAINER": self._address("trainer"),
                "LOGGER": self._address("logger"),
            }
        url, password_file = self._database.url(name), str(self._state.password(name))
        common |= {"DATABASE__URL": url, "DATABASE__PASSWORD_FILE": password_file}
        if name == "feature_store":
            return {**common, **modules, "STATE_FOLDER": _made(folder), "LOGGER": self._address("logger")}
        if name == "trainer":
            sink = {"SINK__URL": url, "SINK__PASSWORD_FILE": password_file}
            return {**common, **sink, "STATE_FOLDER": _made(folder), "FEATURE_STORE": self._address("feature_store")}
        return common


def _environment() -> dict[str, str]:
    passed = {name: os.environ[name] for name in PASSED_THROUGH if name in os.environ}
    # Where the user stands, so that the modules of the user's transforms are found.
    path = os.pathsep.join(part for part in (os.getcwd(), os.environ.get("PYTHONPATH", "")) if part)
    # One row at a time gains nothing from more threads, and loses its tail latency; the trainer sets its worker's own.
    return {**passed, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def _made(folder: Path) -> str:
    # The mode of `mkdir` is not for parents that it makes.
    for each in (folder.parent, folder):
        each.mkdir(mode=0o700, exist_ok=True)
    return str(folder)
