"""The local stack: what runs, with which settings, and what clients are told about it.

    postgres → logger, feature_store, trainer → predictor → gateway → pipelines

The three in the middle start at once and wait for the database by themselves, because loading their libraries takes
longer than starting it; the predictor and the gateway start when what they need is ready. The worker of feature
pipelines, of a stack that has some, loads their modules at once and goes to work when the stack is ready. All stop in
the opposite order. The feature store and the predictor may run in several processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from deploy.local.database import StackDatabase
from deploy.local.database_roles import JOBS_ROLE, REPORT_ROLE, ROLES
from deploy.local.environment import made_folder, program_environment
from deploy.local.gateway_processes import GatewayProcesses
from deploy.local.health_client import service_is_serving
from deploy.local.leftovers import Birth, end_leftovers
from deploy.local.log_files import keep_bounded
from deploy.local.ports import DEFAULT_GATEWAY_PORT, DEFAULT_METRICS_PORT, LOOPBACK, Ports, choose_ports
from deploy.local.processes import GATEWAY, ServiceProcess, service_processes, with_metrics
from deploy.local.programs import Program, Status
from deploy.local.scraping import scrape_targets
from deploy.local.state import ENVIRONMENT_VARIABLE, Json, StateFolder, write_atomically, write_json
from deploy.local.supervisor import Supervisor
from gateway.certificates import CertificateFolder, ensure_certificates
from gateway.envoy import Gateway
from gateway.policy import ROLES as CALLER_ROLES

PIPELINES = "pipelines"
# The name of the identities that the stack makes: spiffe://foresight/operator/local and .../application/local.
IDENTITY_NAME = "local"
CERTIFICATES_CHECKED_EVERY_S = 86_400

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What a user chooses. Ports: 0 takes free ones; `metrics_port` is the first of five, and of one more for each
    further process. Predictors and feature stores: processes, 1 to PROCESSES_MAX."""

    state: StateFolder
    gateway_port: int = DEFAULT_GATEWAY_PORT
    metrics_port: int = DEFAULT_METRICS_PORT
    transform_modules: Sequence[str] = ()
    pipeline_modules: Sequence[str] = ()
    predictors: int = 1
    feature_stores: int = 1


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
            processes = service_processes({"predictor": options.predictors, "feature_store": options.feature_stores})
            ports = choose_ports(options.gateway_port, options.metrics_port, with_metrics(processes))
            stack = Stack(options, ports, run_folder, processes)
            chores = [lambda: keep_bounded(state.logs), stack.keep_certificates]
            supervisor = Supervisor(stack.programs(), state.logs, report, stack.record, chores)
            await supervisor.start()
            try:
                write_json(state.connection, stack.connection())
                write_atomically(state.scrape_targets, json.dumps(stack.scrape_targets(), indent=1))
                yield supervisor
            finally:
                state.connection.unlink(missing_ok=True)
                state.scrape_targets.unlink(missing_ok=True)
                await supervisor.stop()
        finally:
            state.run.unlink(missing_ok=True)
            shutil.rmtree(run_folder, ignore_errors=True)


def _empty_run_folder(state: StateFolder) -> Path:
    shutil.rmtree(state.run_folder(), ignore_errors=True)
    return state.run_folder()


class Stack:
    """The programs of one stack and what they are told."""

    def __init__(
        self,
        options: StackOptions,
        ports: Ports,
        run_folder: Path,
        processes: dict[str, tuple[ServiceProcess, ...]],
    ) -> None:
        self._options = options
        self._state = options.state
        self._ports = ports
        self._run_folder = run_folder
        for role in ROLES:
            self._state.ensure_password(role)
        self._database = StackDatabase(self._state, run_folder)
        sockets = run_folder / "services"
        sockets.mkdir(mode=0o700)
        self._processes = processes
        self._sockets = {each.name: sockets / f"{each.name}.sock" for each in self._each_process()}
        self._certificates = CertificateFolder(self._state.certificates)
        self._gateway = GatewayProcesses(run_folder / "gateway", self._gateway_in)

    def programs(self) -> list[Program]:
        """Everything that runs, in the order in which it is shown."""
        database = self._database.program()
        storage = [
            self._service(process, needs=[database.name])
            for service in ("logger", "feature_store", "trainer")
            for process in self._processes[service]
        ]
        stored = [program.name for program in storage]
        predictors = [self._service(process, needs=stored, wait=True) for process in self._processes["predictor"]]
        services = [program.name for program in (*storage, *predictors)]
        gateway = Program(
            name=GATEWAY,
            command=self._gateway.command,
            environment=program_environment(),
            is_ready=self._gateway.is_ready,
            needs=services,
            waits_for=services,
            before_start=self._prepare_gateway,
            hand_over=self._gateway.hand_over,
        )
        worker = [self._worker(needs=[database.name, GATEWAY])] if self._options.pipeline_modules else []
        return [database, *storage, *predictors, gateway, *worker]

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
            "sockets": {each.name: self._address(each) for each in self._each_process()},
            "processes": {service: [each.name for each in found] for service, found in self._processes.items()},
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

    def scrape_targets(self) -> list[Json]:
        """What Prometheus scrapes."""
        services = {each.name: each.service for each in self._each_process()}
        return scrape_targets(LOOPBACK, self._ports.metrics, services)

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
        await asyncio.to_thread(self._gateway.prepare)

    def _gateway_in(self, folder: Path) -> Gateway:
        return Gateway(
            port=self._ports.gateway,
            metrics_port=self._ports.metrics[GATEWAY],
            certificates=self._certificates,
            sockets={
                service: {process.name: self._sockets[process.name] for process in processes}
                for service, processes in self._processes.items()
            },
            folder=folder,
            access_log=self._state.logs / "gateway-access.log",
        )

    def _each_process(self) -> Iterable[ServiceProcess]:
        return (process for processes in self._processes.values() for process in processes)

    def _address(self, process: ServiceProcess) -> str:
        return f"unix:{self._sockets[process.name]}"

    def _addresses(self, service: str) -> str:
        """Of all processes of a service, as services take them."""
        return ",".join(self._address(process) for process in self._processes[service])

    def _service(self, process: ServiceProcess, needs: Sequence[str], wait: bool = False) -> Program:
        socket, service = self._sockets[process.name], process.service

        async def forget_socket() -> None:
            socket.unlink(missing_ok=True)

        settings = {f"FORESIGHT_{service.upper()}_{key}": value for key, value in self._settings(process).items()}
        return Program(
            name=process.name,
            command=lambda: [sys.executable, "-m", f"services.{service}"],
            environment={**program_environment(), **settings, ENVIRONMENT_VARIABLE: str(self._state.path)},
            is_ready=lambda: service_is_serving(socket),
            needs=needs,
            waits_for=needs if wait else (),
            before_start=forget_socket,
            # Nobody looks any more: the gateway, and whoever else calls it, has ended before.
            stop_signal=signal.SIGINT,
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
            environment={**program_environment(), **settings, ENVIRONMENT_VARIABLE: str(self._state.path)},
            is_ready=is_loaded,
            needs=needs,
            before_start=forget_loaded,
        )

    def _former_replicas(self, process: ServiceProcess, spools: Path) -> list[str]:
        """Those that an earlier run with more processes had; the first process ships what they left."""
        if process.number or not spools.is_dir():
            return []
        names = {each.replica for each in self._processes[process.service]}
        return sorted(path.name for path in spools.iterdir() if path.is_dir() and path.name not in names)

    def _settings(self, process: ServiceProcess) -> dict[str, str]:
        """The settings of a service's process, without the prefix of their names."""
        name = process.service
        folder = self._state.path / name
        common = {"LISTEN": self._address(process), "METRICS_PORT": str(self._ports.metrics[process.name])}
        modules = {"TRANSFORM_MODULES": json.dumps(list(self._options.transform_modules))}
        if name == "predictor":
            return {
                **common,
                **modules,
                "REPLICA": process.replica,
                "FORMER_REPLICAS": json.dumps(self._former_replicas(process, folder / "spool")),
                "SPOOL_FOLDER": made_folder(folder / "spool"),
                "CACHE_FOLDER": made_folder(folder / (f"cache-{process.number}" if process.number else "cache")),
                "FEATURE_STORE": self._addresses("feature_store"),
                "TRAINER": self._addresses("trainer"),
                "LOGGER": self._addresses("logger"),
            }
        url, password_file = self._database.url(name), str(self._state.password(name))
        common |= {"DATABASE__URL": url, "DATABASE__PASSWORD_FILE": password_file}
        if name == "feature_store":
            return {**common, **modules, "STATE_FOLDER": made_folder(folder), "LOGGER": self._addresses("logger")}
        if name == "trainer":
            sink = {"SINK__URL": url, "SINK__PASSWORD_FILE": password_file}
            return {
                **common,
                **sink,
                "STATE_FOLDER": made_folder(folder),
                "FEATURE_STORE": self._addresses("feature_store"),
            }
        return common
