"""A small program for the supervisor's tests: `stand_in.py NAME FOLDER BEHAVIOUR...`.

It notes its start and its stop in FOLDER/events, and is ready once FOLDER/NAME.ready holds its process id.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

NAME, FOLDER, *BEHAVIOUR = sys.argv[1:]


def note(event: str) -> None:
    """One whole line, whoever else writes."""
    descriptor = os.open(Path(FOLDER, "events"), os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, f"{event} {NAME}\n".encode())
    os.close(descriptor)


def stop(number: int, frame: FrameType | None) -> None:
    """What an orderly program does at SIGTERM."""
    note("stopped")
    sys.exit(0)


note("started")
sys.stderr.write(f"{NAME} runs with {os.environ.get('GREETING')}\n")
sys.stderr.flush()
for word in BEHAVIOUR:
    if word.startswith("exit="):
        sys.exit(int(word.removeprefix("exit=")))
signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in BEHAVIOUR else stop)
if "parent" in BEHAVIOUR:
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"])
    Path(FOLDER, f"{NAME}.child").write_text(str(child.pid))
if "silent" not in BEHAVIOUR:
    fresh = Path(FOLDER, f"{NAME}.{os.getpid()}")
    fresh.write_text(str(os.getpid()))
    fresh.replace(Path(FOLDER, f"{NAME}.ready"))
while True:
    signal.pause()
