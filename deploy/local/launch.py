"""Starts a program that ends when its parent does: `launch.py PARENT SIGNAL USER GROUP COMMAND...`.

A tiny process of its own that becomes the command: the supervisor has threads, and running Python between fork and
exec in a process with threads can block for ever. USER and GROUP are numeric, or empty to stay who we are.
"""

import ctypes
import os
import signal
import sys

# linux/prctl.h
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Arranges the end, then becomes the command."""
    parent, death_signal, user, group, *command = sys.argv[1:]
    if user:
        os.setgroups([])
        os.setgid(int(group))
        os.setuid(int(user))
    # After the change of the user, which would clear it.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
        sys.exit(f"cannot arrange to end with the supervisor: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):
        sys.exit("the supervisor has ended already")
    # Python ignores these; the command should find them as everybody else does.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606 - what it is for
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
