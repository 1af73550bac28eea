"""The README's first ten minutes, as they are printed there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from deploy.local import LocalStack

ROOT = Path(__file__).parents[3]


def _section() -> str:
    return (ROOT / "README.md").read_text().split("## The first ten minutes")[1].split("\n## ")[0]


def _python() -> str:
    """The Python of the section."""
    (block,) = re.findall(r"```python\n(.*?)```", _section(), re.DOTALL)
    return str(block)


def _commands() -> list[str]:
    """The shell lines of the section, without those that start the stack."""
    blocks = re.findall(r"```\n(.*?)```", _section(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("foresight ")]


def test_every_command_of_the_first_ten_minutes_works(empty_stack: LocalStack) -> None:
    commands = _commands()
    assert [c.split()[1] for c in commands] == [
        *("apply", "ingest", "train", "deploy", "predict", "predictions", "verify", "ledger")
    ]
    environment = {
        **os.environ,
        "FORESIGHT_STATE": str(empty_stack.state),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), f"{command} says nothing"
    for program in (["-c", _python()], ["examples/first_steps/service.py"]):
        done = subprocess.run(
            [sys.executable, *program],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{program}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), f"{program} says nothing"
