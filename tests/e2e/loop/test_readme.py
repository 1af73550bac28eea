"""The README's first ten minutes, and what else a deployment does, as they are printed there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from deploy.local import LocalStack
from foresight.client import Client, MissingPolicy, NotFound, ViewFeature
from tests.e2e.local_stack.calls import eventually

ROOT = Path(__file__).parents[3]


FIRST, ELSE = "## The first ten minutes", "## What else a deployment does"


def _section(title: str) -> str:
    return (ROOT / "README.md").read_text().split(title)[1].split("\n## ")[0]


def _blocks(title: str, language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", _section(title), re.DOTALL | re.MULTILINE)
    return [block for its_language, block in found if its_language == language]


def _python(title: str = FIRST) -> str:
    """The Python of a section."""
    (block,) = _blocks(title, "python")
    return block


def _commands(title: str = FIRST) -> list[str]:
    """The shell lines of a section, without those that start the stack."""
    lines = "\n".join(_blocks(title)).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("foresight ")]


def _run(stack: LocalStack, *command: str) -> str:
    """What a command prints that finds the stack in the environment."""
    environment = {
        **os.environ,
        "FORESIGHT_STATE": str(stack.state),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert done.stdout.strip(), f"{command} says nothing"
    return done.stdout


def _logged(stack: LocalStack) -> int:
    """How many predictions are in the log: they come a moment after their answers."""
    try:
        with Client(state=stack.state) as client:
            return len(client.predictions(view="late_orders"))
    except NotFound:
        return 0


def test_every_command_of_the_first_ten_minutes_works(empty_stack: LocalStack) -> None:
    commands = _commands()
    assert [c.split()[1] for c in commands] == [
        *("apply", "ingest", "train", "deploy", "predict", "predictions", "verify", "ledger")
    ]
    for command in commands:
        if command == "foresight predictions late_orders":
            eventually(lambda: _logged(empty_stack))
        _run(empty_stack, "bash", "-c", command)
    for program in (["-c", _python()], ["examples/first_steps/service.py"]):
        _run(empty_stack, sys.executable, *program)


def test_what_else_a_deployment_does(stack: LocalStack) -> None:
    """Arms, a shadow, explanations, streams, and a caller without the client; another version is there before."""
    (train,) = (command for command in _commands() if command.startswith("foresight train"))
    _run(stack, "bash", "-c", train)
    deploy, predict = _commands(ELSE)
    try:
        assert "next: late_orders v2 (shadow)" in _run(stack, "bash", "-c", deploy)
        predicted = _run(stack, "bash", "-c", predict)
        assert "challenger" in predicted
        assert "base " in predicted
        streamed = [line.split() for line in _run(stack, sys.executable, "-c", _python(ELSE)).splitlines()]
        assert len(streamed) == 99
        assert {arm for _, _, arm in streamed} <= {"champion", "challenger"}
        (curl,) = (block for block in _blocks(ELSE) if block.startswith("buf curl"))
        port = stack.connection["gateway"].rpartition(":")[2]
        curl = curl.replace("var/foresight", str(stack.state)).replace("8443", port)
        (row,) = json.loads(_run(stack, "bash", "-c", curl))["rows"]
        assert 0 < row["outputs"]["probability"] < 1
    finally:
        _run(stack, "foresight", "deploy", "late_orders", "late_orders", "--version", "1")
    (features,) = (block for block in _blocks(ELSE) if block.startswith("ViewFeature"))
    names = {"ViewFeature": ViewFeature, "MissingPolicy": MissingPolicy, "timedelta": timedelta}
    defaults = [feature.default for feature in eval(f"[{features}]", names)]
    assert [default and default.to_list() for default in defaults] == [None, [12.0], [12.0], None]
