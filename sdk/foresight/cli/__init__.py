"""The command line: `foresight …`. `foresight --help` lists the commands; docs are in each command's help."""


def main() -> None:
    """Runs the command that the process was started with."""
    # Here, so that importing this package costs nothing.
    from foresight.cli.app import app

    app()


__all__ = ["main"]
