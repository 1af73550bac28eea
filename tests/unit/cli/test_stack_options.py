"""What `foresight up` refuses before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from foresight.cli.app import app


@pytest.mark.parametrize("option", ["--transforms", "--pipelines"])
@pytest.mark.parametrize("module", ["nowhere_to_be_found", "json.nowhere", "a b", "nowhere.at.all"])
def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path, module: str, option: str) -> None:
    state = tmp_path / "state"
    result = CliRunner().invoke(app, ["up", "--detach", "--state", str(state), option, module])
    assert result.exit_code == 2
    assert f"{option}: no module {module}" in " ".join(result.output.replace("│", " ").split())
    assert not state.exists()


def test_logs_of_a_service_are_those_of_its_processes(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    for name in ("predictor-0", "predictor-1", "predictor-10", "gateway", "gateway-access"):
        (logs / f"{name}.log").write_text(f"a line of {name}\n")

    def lines(*arguments: str) -> list[str]:
        result = CliRunner().invoke(app, ["logs", *arguments, "--state", str(tmp_path)])
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()

    assert lines("predictor-1") == ["a line of predictor-1"]
    assert lines("gateway") == ["a line of gateway"]
    assert lines("predictor") == [
        "predictor-0  | a line of predictor-0",
        "predictor-1  | a line of predictor-1",
        "predictor-10 | a line of predictor-10",
    ]
    (logs / "predictor.log").write_text("a line of an earlier run\n")
    assert lines("predictor")[0] == "predictor    | a line of an earlier run"
    assert len(lines("predictor")) == 4
    unknown = CliRunner().invoke(app, ["logs", "predict", "--state", str(tmp_path)])
    assert unknown.exit_code == 1
    assert "there is no log of 'predict'" in unknown.stderr
