"""What is printed: values as JSON has them, tables that hold whole ids, progress that keeps to stages."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from rich.console import Console

from foresight.cli.terminal import plain, report_error, show, table, working
from foresight.client import (
    Column,
    DataType,
    DeadlineExceeded,
    FeatureStatus,
    Field,
    InvalidArgument,
    MissingPolicy,
    VersionRef,
    ViewFeature,
    ViewSource,
)
from foresight.values import Violation

NOON = datetime(2013, 3, 1, 12, tzinfo=UTC)


def _drawn(renderable: Any, width: int = 60) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_every_value_of_the_client_becomes_json() -> None:
    default = Column.build("wind", DataType.FLOAT64, [1.5])
    source = ViewSource(
        "weather", (ViewFeature("wind", missing=MissingPolicy.DEFAULT, default=default),), timedelta(hours=1)
    )
    assert plain(source) == {
        "group": "weather",
        "features": [
            {"feature": "wind", "name": "", "missing": "default", "default": [1.5], "last_known_max_age": None}
        ],
        "max_age_s": 3600.0,
        "keys": {},
        "prefix": "",
        "group_version": 0,
    }
    known = ViewFeature("wind", missing=MissingPolicy.LAST_KNOWN, last_known_max_age=timedelta(minutes=5))
    assert (plain(known)["missing"], plain(known)["last_known_max_age_s"]) == ("last_known", 300.0)
    assert plain(Field("a", DataType.INT64))["type"] == "int64"
    assert plain([VersionRef("m", 2), FeatureStatus.NOT_FOUND]) == [{"name": "m", "version": 2}, "not_found"]
    assert plain(NOON.astimezone(timezone(timedelta(hours=-5)))) == "2013-03-01T12:00:00Z"


def test_json_is_one_document_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    show(True, {"name": "Zürich"}, "for people")
    out = capsys.readouterr()
    assert json.loads(out.out) == {"name": "Zürich"}
    assert "Zürich" in out.out
    assert out.err == ""


def test_a_pipe_gets_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show(False, None, "x" * 150)
    assert capsys.readouterr().out == "x" * 150 + "\n"


def test_errors_call_columns_by_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    one = Violation("arrow.wnd", "is not a column of the group")
    report_error(InvalidArgument("arrow.wnd: is not a column of the group", violations=[one]))
    assert capsys.readouterr().err == "error: wnd: is not a column of the group\n"
    report_error(
        InvalidArgument("", violations=[one, Violation("columns[hour]", "is missing"), Violation("view", "x")])
    )
    assert capsys.readouterr().err.splitlines()[1:] == [
        "  wnd: is not a column of the group",
        "  hour: is missing",
        "  view: x",
    ]


def test_a_late_answer_is_not_blamed_on_an_option_that_no_command_has(capsys: pytest.CaptureFixture[str]) -> None:
    report_error(DeadlineExceeded("no answer came in time; give the call a larger timeout_s"))
    assert capsys.readouterr().err == "error: no answer came in time; `foresight status` says what runs\n"


def test_ids_and_instants_are_never_cut() -> None:
    id = "01a205ec-7a48-7cc9-9aad-8bc6e322b0df"
    row = {"prediction_id": id, "event_time": NOON, "text": "a long text that has to give way"}
    drawn = _drawn(table([row], ""), width=75)
    assert id in drawn
    assert "2013-03-01T12:00:00Z" in drawn


def test_what_does_not_fit_becomes_a_block_of_lines_per_row() -> None:
    row = {"prediction_id": "a" * 30, "probability": 0.25, "model": "delays v1"}
    rows = [{**row, "late": True}, {**row, "late": None}]
    assert len(_drawn(table(rows, ""), width=80).splitlines()) == 4
    narrow = _drawn(table(rows, ""), width=50).split("\n")
    assert [line.split() for line in narrow[:5]] == [
        ["prediction", "id", "a" * 30],
        ["probability", "0.25"],
        ["model", "delays", "v1"],
        ["late", "yes"],
        [],
    ]


def test_lists_fold_before_a_table_gives_up() -> None:
    drawn = _drawn(table([{"name": "weather", "features": ["wind float64"] * 6}], ""), width=40)
    assert drawn.splitlines()[0].split() == ["name", "features"]


def test_columns_that_only_some_rows_have_stand_where_those_have_them() -> None:
    """Predictions from before a deployment had arms beside later ones, say; a block of lines shows what is there."""
    rows: list[dict[str, Any]] = [{"id": 1, "late": True}, {"id": 2, "arm": "next", "late": False, "why": "x"}]
    for each in (rows, rows[::-1]):
        drawn = [line.split() for line in _drawn(table(each, "")).splitlines()]
        assert drawn[0] == ["id", "arm", "late", "why"]
        assert sorted(drawn[2:]) == [["1", "—", "yes", "—"], ["2", "next", "no", "x"]]
    assert [line.split() for line in _drawn(table(rows, ""), width=14).splitlines()[:3]] == [
        ["id", "1"],
        ["late", "yes"],
        [],
    ]


def test_cells_show_what_people_read() -> None:
    row = {
        "n": 1234567,
        "x": 0.123456,
        "yes": True,
        "none": None,
        "list": ["a", "b"],
        "markup": "[red]x[/]",
        "empty": [],
    }
    drawn = _drawn(table([row], ""), width=100)
    for text in ("1,234,567", "0.1235", "yes", "—", "a, b", "[red]x[/]"):
        assert text in drawn


def test_no_rows_say_what_to_do() -> None:
    assert _drawn(table([], "nothing yet; do [this]")) == "nothing yet; do [this]\n"


def test_progress_is_silent_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with working({"uploading": 10}) as progress:
        for stage, rows in (("uploading", 5), ("uploading", 10), ("fitting", 0), ("fitting", 3)):
            progress(stage, rows)
    assert capsys.readouterr() == ("", "")
