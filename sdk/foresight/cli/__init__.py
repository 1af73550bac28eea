"""The command line: `foresight …`. `foresight --help` lists the commands; docs are in each command's help."""

import sys

_INTERRUPTED = 130


def main() -> None:
    """Runs the command that the process was started with."""
    try:
        # Here, so that importing this package costs nothing.
        from foresight.cli.app import app

        app()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


__all__ = ["main"]
