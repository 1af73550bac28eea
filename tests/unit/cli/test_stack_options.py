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
