"""A stack in a process of its own, started and stopped from Python or by `foresight up --detach`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import psutil

from deploy.local.leftovers import Birth, end_leftovers
from deploy.local.log_files import open_log, tail
from deploy.local.ports import DEFAULT_GATEWAY_PORT, DEFAULT_METRICS_PORT
from deploy.local.restarts import TIMEOUT_S, program_pid, restart, wait_restarted
from deploy.local.state import Json, StackError, StateFolder, read_json

if TYPE_CHECKING:
    from deploy.local.stack import StackOptions

READY = "ready"
STOP_TIMEOUT_S = 60.0
_POLL_S = 0.02


class LocalStack:
    """A stack that lives as long as a `with` block, and never longer than the process that started it.

    ::

        with LocalStack(Path("state"), gateway_port=0, metrics_port=0) as stack:
            client = Client(state=stack.state)
    """

    def __init__(
        self,
        state: Path,
        gateway_port: int = DEFAULT_GATEWAY_PORT,
        metrics_port: int = DEFAULT_METRICS_PORT,
        transform_modules: Sequence[str] = (),
        pipeline_modules: Sequence[str] = (),
        predictors: int = 1,
        feature_stores: int = 1,
    ) -> None:
        self.state = state.absolute()
        self._folder = StateFolder(self.state)
        # What runs the stack is loaded by who starts one: stopping it needs none of that.
        from deploy.local.stack import StackOptions

        self._arguments = _arguments(
            StackOptions(
                *(self._folder, gateway_port, metrics_port, transform_modules, pipeline_modules),
                predictors=predictors,
                feature_stores=feature_stores,
            )
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None

    def __enter__(self) -> LocalStack:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the stack and waits until it is ready. Raises StackError."""
        held, self._lifeline = os.pipe()
        try:
            self._process = _start(self._folder, self._arguments, lifeline=held)
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(held)

    def stop(self) -> None:
        """Stops the stack and waits until it is gone."""
        if self._process is not None and self._lifeline is not None:
            self._process.terminate()
            self._process.wait(STOP_TIMEOUT_S)
            os.close(self._lifeline)
            self._process = self._lifeline = None

    @property
    def connection(self) -> Json:
        """The content of foresight.json. Raises StackError when the stack is not ready."""
        content = read_json(self._folder.connection)
        if content is None:
            raise StackError(f"the stack in {self.state} is not ready")
        return content

    @property
    def metrics_ports(self) -> dict[str, int]:
        """The port of every program's metrics page."""
        return dict(self.connection["metrics"])

    @property
    def supervisor_pid(self) -> int:
        """The process id of the supervisor. Raises StackError when it does not run."""
        if self._process is None:
            raise StackError(f"the stack in {self.state} does not run")
        return self._process.pid

    def program(self, name: str) -> Json:
        """What is known of a program: state, pid, created, restarts, since."""
        content = read_json(self._folder.run)
        if content is None:
            raise StackError(f"the stack in {self.state} does not run")
        found: Json = content["programs"][name]
        return found

    def pid(self, name: str) -> int:
        """The process id of a program. Raises StackError while it has none."""
        return program_pid(self._folder, name)

    def wait_restarted(self, name: str, pid: int, timeout_s: float = TIMEOUT_S) -> int:
        """Waits until a program is ready in another process than `pid`, and answers that one's id."""
        return wait_restarted(self._folder, name, pid, timeout_s)

    def restart(self, *names: str) -> None:
        """Restarts programs one after the other, without a gap where there are several; see `restarts.restart`."""
        restart(self._folder, names)


def start_detached(options: StackOptions) -> int:
    """Starts a stack that outlives us, waits until it is ready, and answers its process id. Raises StackError."""
    return _start(options.state, _arguments(options), lifeline=None).pid


def stop_running(state: StateFolder) -> bool:
    """Stops the stack of a state folder, whoever started it, and waits. Returns whether there was anything to stop.

    Raises StackError when it does not end in time.
    """
    holder = state.holder()
    if holder is None:
        # A folder without a lock never had a stack; nothing is made in it now.
        if not state.lock.exists():
            return False
        with state.locked():
            return end_leftovers(state) > 0
    supervisor = _process(holder)
    os.kill(holder, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    # It gives the lock back shortly before it ends.
    while state.holder() == holder or (supervisor is not None and supervisor.process() is not None):
        if time.monotonic() > deadline:
            raise StackError(f"process {holder} did not stop within {STOP_TIMEOUT_S:g} s; see {state.logs}")
        time.sleep(_POLL_S)
    return True


def _process(pid: int) -> Birth | None:
    try:
        return Birth.of(pid)
    except psutil.NoSuchProcess:
        return None


def _arguments(options: StackOptions) -> list[str]:
    transforms = [part for module in options.transform_modules for part in ("--transform-module", module)]
    pipelines = [part for module in options.pipeline_modules for part in ("--pipeline-module", module)]
    ports = ["--gateway-port", str(options.gateway_port), "--metrics-port", str(options.metrics_port)]
    processes = ["--predictors", str(options.predictors), "--feature-stores", str(options.feature_stores)]
    return ["--state", str(options.state.path), *ports, *processes, *transforms, *pipelines]


def _start(state: StateFolder, arguments: Sequence[str], lifeline: int | None) -> subprocess.Popen[bytes]:
    """Starts the supervisor in a session of its own; returns when the stack is ready."""
    state.make()
    reading, writing = os.pipe()
    passed = [writing, *([lifeline] if lifeline is not None else [])]
    flags = ["--ready-fd", str(writing)]
    flags += ["--lifeline-fd", str(lifeline)] if lifeline is not None else []
    log = open_log(state.logs, "supervisor")
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.local", *arguments, *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=passed,
            start_new_session=True,
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
        os.close(log)
    with open(reading) as answer:
        try:
            text = answer.read()
        except BaseException:
            # Interrupted while waiting: it stops in order, and kills nothing that has begun to write.
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            raise
    if text == READY:
        return process
    process.wait()
    raise StackError(text or "\n".join(["the supervisor ended:", *tail(state.logs / "supervisor.log", 5)]))
