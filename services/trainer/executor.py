"""Where fitting happens: a protocol, and one warm process of its own.

The worker keeps scikit-learn loaded, so a small training takes tens of milliseconds. It is replaced when it dies and
when a fit is cancelled; there is at most one, and it never outlives the trainer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import structlog

from services.runtime.errors import Unavailable
from services.trainer.frames import read_frame, write_frame
from services.trainer.specification import Estimator
from services.trainer.tasks import FitResult, FitTask, decode_fit, encode_check, encode_fit, raise_error

log = structlog.get_logger()

Progress = Callable[[str], None]
# OpenMP and BLAS threads of the worker. With more, OpenMP's threads spin for each other at every step: two were 1.3
# times as fast as one on an idle machine of two processors, and up to 150 times as slow on one that serves meanwhile.
# With one, sums have one order, too, and a training repeats exactly on any machine.
POOL_THREADS = "1"
STOP_TIMEOUT_S = 5.0


class Executor(Protocol):
    """Runs the work that needs scikit-learn."""

    async def check(self, pipeline: Estimator) -> None:
        """Raises InvalidValue when the pipeline cannot be built."""
        ...

    async def fit(self, task: FitTask, progress: Progress) -> FitResult:
        """Fits, converts, compares. `progress` is told each new stage, in the event loop.

        Raises InvalidValue, FailedPrecondition, and Unavailable when the process doing it died.
        """
        ...


class WorkerLost(Exception):
    """The worker's process ended."""


class WorkerExecutor:
    """One worker process; calls take turns."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="training-worker")
        self._worker: _Worker | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the worker, if there is one."""
        return None if self._worker is None else self._worker.pid

    def start(self) -> None:
        """Starts the worker, which loads its libraries on its own time; needed once, later starts are automatic."""
        if self._worker is not None and self._worker.is_dead():
            log.warning("worker_ended", pid=self._worker.pid, code=self._worker.reap())
            self._worker = None
        if self._worker is None:
            # In the event loop's thread: the kernel kills the worker when the thread that started it ends.
            self._worker = _Worker()
            log.info("worker_started", pid=self._worker.pid)

    async def check(self, pipeline: Estimator) -> None:
        """See Executor."""
        await self._call(encode_check(pipeline), lambda _: None)

    async def fit(self, task: FitTask, progress: Progress) -> FitResult:
        """See Executor."""
        frame = await asyncio.to_thread(encode_fit, task)
        return decode_fit(*await self._call(frame, progress))

    async def _call(self, frame: tuple[dict[str, Any], list[Any]], progress: Progress) -> tuple[dict[str, Any], Any]:
        loop = asyncio.get_running_loop()
        async with self._turn:
            self.start()
            worker = self._worker
            assert worker is not None

            def report(stage: str) -> None:
                loop.call_soon_threadsafe(progress, stage)

            call = loop.run_in_executor(self._thread, worker.call, *frame, report)
            try:
                head, blobs = await asyncio.shield(call)
            except WorkerLost:
                self._replace(worker)
                raise Unavailable("the training worker ended before it had an answer; repeat the call") from None
            except asyncio.CancelledError:
                worker.kill()
                # The pipe is closed now, so the thread comes back at once.
                with contextlib.suppress(WorkerLost):
                    await call
                self._replace(worker)
                raise
        raise_error(head)
        return head, blobs

    def _replace(self, worker: _Worker) -> None:
        worker.kill()
        log.warning("worker_ended", pid=worker.pid, code=worker.reap())
        self._worker = None
        self.start()

    def close(self) -> None:
        """Ends the worker; nothing can be called afterwards."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.reap()
            self._worker = None
        self._thread.shutdown()


@contextlib.asynccontextmanager
async def open_executor() -> AsyncIterator[WorkerExecutor]:
    """An executor whose worker starts to load in the background."""
    executor = WorkerExecutor()
    try:
        executor.start()
        yield executor
    finally:
        executor.close()


class _Worker:
    """The process and its pipes; `call` blocks and is used by one thread at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.trainer.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(os.environ),
        )
        self._ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, head: dict[str, Any], blobs: list[Any], progress: Progress) -> tuple[dict[str, Any], list[bytes]]:
        """Sends a frame and waits for its answer. Raises WorkerLost."""
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        try:
            if not self._ready:
                read_frame(answers)  # type: ignore[arg-type]  # typeshed: IO[bytes], which it is a BinaryIO
                self._ready = True
            write_frame(requests, head, blobs)  # type: ignore[arg-type]
            while True:
                answer, parts = read_frame(answers)  # type: ignore[arg-type]
                if "progress" not in answer:
                    return answer, parts
                progress(answer["progress"])
        except (EOFError, OSError, ValueError) as error:
            raise WorkerLost from error

    def is_dead(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        self._process.kill()

    def reap(self) -> int:
        """Waits for the killed process and closes its pipes; answers its exit code."""
        code = self._process.wait(STOP_TIMEOUT_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return code


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The worker's environment: the trainer's without its settings, and with bounded thread pools."""
    kept = {name: value for name, value in inherited.items() if not name.startswith("FORESIGHT_")}
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return kept | dict.fromkeys(pools, POOL_THREADS)
