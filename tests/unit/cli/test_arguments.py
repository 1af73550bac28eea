"""What arguments mean, and how Python files are imported."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from sklearn.linear_model import LogisticRegression

from foresight.cli.arguments import (
    load_module,
    load_object,
    parse_folder,
    parse_instant,
    parse_setting,
    parse_settings,
    parse_value,
)
from foresight.client import DataType, Field, InvalidValue

NOON = datetime(2013, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _imports_are_undone() -> Iterator[None]:
    before, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = before
    for name in set(sys.modules) - modules:
        if not name.startswith("sklearn"):
            del sys.modules[name]


def test_an_instant_needs_a_zone() -> None:
    assert parse_instant("2013-03-01T12:00:00Z") == parse_instant("2013-03-01T07:00-05:00") == NOON
    for text in ("2013-03-01", "2013-03-01T12:00", "noon", "1362139200"):
        with pytest.raises(typer.BadParameter):
            parse_instant(text)


def test_settings_have_the_types_of_their_fields() -> None:
    fields = {
        "hour": Field("hour", DataType.INT64),
        "wind": Field("wind", DataType.FLOAT64),
        "late": Field("late", DataType.BOOL),
        "at": Field("at", DataType.TIMESTAMP),
        "v": Field("v", DataType.FLOAT_VECTOR, 2),
        "tail": Field("tail", DataType.STRING),
    }
    texts = {"hour": "17", "wind": "2", "late": "True", "at": "2013-03-01T12:00:00Z", "v": "[1, 2.5]", "tail": "123"}
    assert parse_settings(texts, fields) == {
        "hour": 17,
        "wind": 2.0,
        "late": True,
        "at": NOON,
        "v": [1.0, 2.5],
        "tail": "123",
    }
    assert parse_settings({"tail": "", "other": "1"}, fields) == {"tail": None, "other": "1"}
    assert parse_setting("tail=a=b") == ("tail", "a=b")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1.5", DataType.INT64),
        ("x", DataType.FLOAT64),
        ("yes", DataType.BOOL),
        ("noon", DataType.TIMESTAMP),
    ],
)
def test_a_setting_of_another_type_is_refused_by_name(text: str, kind: DataType) -> None:
    with pytest.raises(InvalidValue, match=f"x: '{text}' is not of type {kind.value}"):
        parse_value(text, Field("x", kind))


def test_a_setting_has_a_name_and_a_value() -> None:
    for text in ("tail", "=1"):
        with pytest.raises(typer.BadParameter):
            parse_setting(text)


def test_a_file_is_imported_under_the_name_that_import_has_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "service_a.py").write_text("from shop import helper_a\nx = helper_a.x\n")
    (folder / "helper_a.py").write_text("x = 3\n")
    monkeypatch.chdir(tmp_path)
    module = load_module(Path("shop/service_a.py"))
    assert (module.__name__, module.x) == ("shop.service_a", 3)


def test_a_file_elsewhere_is_imported_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "service_b.py").write_text("import helper_b\nx = helper_b.x\n")
    (tmp_path / "helper_b.py").write_text("x = 4\n")
    assert load_module(tmp_path / "service_b.py").x == 4


def test_a_name_that_is_taken_or_impossible_is_said(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("")
    with pytest.raises(typer.BadParameter, match="another module is called json"):
        load_module(tmp_path / "json.py")
    (tmp_path / "my-file.py").write_text("")
    with pytest.raises(typer.BadParameter, match="not a Python identifier"):
        load_module(tmp_path / "my-file.py")


def test_what_a_file_raises_is_said_with_its_line(tmp_path: Path) -> None:
    for name, text, said in (
        ("broken_d", "x = 1\ny = x / 0\n", r"broken_d\.py cannot be imported: line 2: ZeroDivisionError: division"),
        ("broken_e", "import nowhere_e\n", "line 1: ModuleNotFoundError: No module named 'nowhere_e'"),
        ("broken_f", "x = 1\ny = (\n", "line 2: SyntaxError: '.' was never closed"),
        ("broken_g", "import json\njson.loads('x')\n", "line 2: JSONDecodeError"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(typer.BadParameter, match=said):
            load_module(tmp_path / f"{name}.py")
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(typer.BadParameter, match=r"notes\.md is not a Python file"):
        load_module(tmp_path / "notes.md")


def test_an_empty_state_folder_is_refused() -> None:
    assert parse_folder("x y") == Path("x y")
    with pytest.raises(typer.BadParameter, match="is empty"):
        parse_folder("")


def test_an_object_of_a_file_may_be_made_by_a_function(tmp_path: Path) -> None:
    file = tmp_path / "pipelines_c.py"
    file.write_text(
        "from sklearn.linear_model import LogisticRegression\n"
        "model = LogisticRegression()\n"
        "def make():\n    return LogisticRegression(C=2)\n"
    )
    assert isinstance(load_object(f"{file}:model"), LogisticRegression)
    assert load_object(f"{file}:make").C == 2
    for reference in (str(file), f"{file}:none", f"{tmp_path}/none.py:x", f"{file}:1"):
        with pytest.raises(typer.BadParameter):
            load_object(reference)
