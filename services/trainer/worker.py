"""The worker process: fits one pipeline after the other, told through its standard input.

Started as `python -m services.trainer.worker <pid of the trainer>`; speaks `frames` on what were its standard
streams. It dies with the trainer, however that dies, and keeps nothing on disk. It is the one process that imports
scikit-learn, and does so before it is first asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

PARENT_CHECK_S = 1.0
# Serving goes first where both want the processors.
NICENESS = 5
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answers requests until the trainer goes away."""
    requests, answers = _take_streams()
    _die_with(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    # Here, not above: the parent must be watched before two seconds of imports.
    from services.trainer import tasks
    from services.trainer.frames import read_frame, write_frame

    tasks.warm_up()
    write_frame(answers, {"ready": True})
    while True:
        try:
            head, blobs = read_frame(requests)
            head, blobs = tasks.answer(head, blobs, _progress(answers))
            write_frame(answers, head, blobs)
        except (EOFError, BrokenPipeError):
            return


def _progress(answers: BinaryIO) -> Callable[[str], None]:
    from services.trainer.frames import write_frame

    return lambda stage: write_frame(answers, {"progress": stage})


def _take_streams() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output for frames; whatever a library prints goes to standard error."""
    requests = os.fdopen(os.dup(0), "rb", buffering=1 << 20)
    answers = os.fdopen(os.dup(1), "wb", buffering=1 << 20)
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), 0)
    os.dup2(2, 1)
    return requests, answers


def _die_with(parent: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        prctl: Any = ctypes.CDLL(None).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        # Where there is no prctl, and for a parent that died before it.
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
