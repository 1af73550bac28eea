"""On-demand transforms: which are run, what they see, and what becomes of what they give."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foresight.transforms import TransformSet, Untrusted, source_sha256
from foresight.transforms.functions import as_array, as_column
from foresight.values import Column, DataType, Field, InvalidValue, Transform
from tests.unit.values import trusted_transforms

MODULE = trusted_transforms.__name__


def a_transform(name: str, output: Field, *inputs: str) -> Transform:
    function = getattr(trusted_transforms, name, None)
    digest = source_sha256(function) if callable(function) else "0" * 64
    return Transform(output, f"{MODULE}:{name}", digest, inputs)


def run(name: str, output: Field, column: Column) -> list[Any]:
    transform = a_transform(name, output, column.name)
    return TransformSet([MODULE]).apply([transform], {column.name: column})[0].to_list()


def column(type: DataType, values: list[Any], dimension: int = 0) -> Column:
    return Column.build("x", type, values, dimension)


def out(type: DataType, dimension: int = 0) -> Field:
    return Field("y", type, dimension)


def test_numbers_arrive_with_nan_for_null_and_nan_becomes_null_again() -> None:
    for type in (DataType.INT64, DataType.FLOAT64):
        assert run("twice", out(DataType.FLOAT64), column(type, [1, None, 3])) == [2.0, None, 6.0]
    assert run("twice", out(DataType.INT64), column(DataType.INT64, [1, None])) == [2, None]
    assert run("is_rush_hour", out(DataType.BOOL), column(DataType.INT64, [15, 16, None])) == [False, True, False]


def test_texts_instants_and_vectors_arrive_in_types_of_their_own() -> None:
    assert run("shout", out(DataType.STRING), column(DataType.STRING, ["jfk", None])) == ["JFK", None]
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    later = run("next_day", out(DataType.TIMESTAMP), column(DataType.TIMESTAMP, [noon, None]))
    assert later == [noon.replace(day=2), None]
    vectors = column(DataType.FLOAT_VECTOR, [[1.0, 2.0], None], dimension=2)
    assert run("total", out(DataType.FLOAT64), vectors) == [3.0, None]


def test_a_transform_sees_the_outputs_before_it() -> None:
    steps = [
        a_transform("twice", Field("y", DataType.FLOAT64), "x"),
        a_transform("thrice", Field("z", DataType.FLOAT64), "y"),
    ]
    outputs = TransformSet([MODULE]).apply(steps, {"x": column(DataType.INT64, [3])})
    assert [o.to_list() for o in outputs] == [[6.0], [18.0]]


def test_a_transform_cannot_change_what_it_is_given() -> None:
    original = column(DataType.STRING, ["a"])
    as_array(original)[0] = "b"
    assert original.to_list() == ["a"]


@pytest.mark.parametrize(
    ("name", "type", "words"),
    [
        ("too_few", DataType.FLOAT64, "shape"),
        ("infinite", DataType.FLOAT64, "infinity"),
        ("halves", DataType.INT64, "fraction"),
        ("halves", DataType.BOOL, "neither 0 nor 1"),
        ("words", DataType.FLOAT64, "no number"),
        ("words", DataType.INT64, "no number"),
        ("twice", DataType.STRING, "string"),
        ("twice", DataType.FLOAT_VECTOR, "shape"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_result_of_another_shape_or_type_is_refused(name: str, type: DataType, words: str) -> None:
    dimension = 2 if type is DataType.FLOAT_VECTOR else 0
    with pytest.raises(ValueError, match=words):
        run(name, out(type, dimension), column(DataType.FLOAT64, [1.0, 2.0]))


def test_integers_keep_all_their_digits() -> None:
    assert run("large", out(DataType.INT64), column(DataType.INT64, [1])) == [2**53 + 1]
    with pytest.raises(ValueError, match="64 bits"):
        as_column(np.array([2**63], dtype=np.uint64), out(DataType.INT64), 1)
    with pytest.raises(ValueError, match="64 bits"):
        as_column(np.array([2.0**63]), out(DataType.INT64), 1)


def test_missing_texts_may_be_none_or_nan() -> None:
    given = np.array(["a", None, float("nan")], dtype=object)
    assert as_column(given, out(DataType.STRING), 3).to_list() == ["a", None, None]


def test_instants_outside_of_the_calendar_are_refused() -> None:
    given = np.array(["-5000-01-01"], dtype="datetime64[us]")
    with pytest.raises(ValueError, match="years 1 to 9999"):
        as_column(given, out(DataType.TIMESTAMP), 1)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("os:system", "trusted"),
        (f"{MODULE}:absent", "does not exist"),
        (f"{MODULE}:NOT_A_FUNCTION", "not a function"),
        (f"{MODULE}:twice", "source"),
    ],
)
def test_only_trusted_functions_with_the_registered_source_are_run(function: str, words: str) -> None:
    transform = Transform(out(DataType.FLOAT64), function, "0" * 64, ("x",))
    with pytest.raises(Untrusted, match=words):
        TransformSet([MODULE]).check([transform])


def test_modules_that_do_not_load_are_untrusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fs_broken_syntax.py").write_text("def f(:\n")
    (tmp_path / "fs_broken_import.py").write_text("raise RuntimeError('at import')\n")
    monkeypatch.syspath_prepend(tmp_path)
    trusted = TransformSet(["fs_broken_syntax", "fs_broken_import", "fs_absent_module"])
    for module in ("fs_broken_syntax", "fs_broken_import", "fs_absent_module"):
        with pytest.raises(Untrusted):
            trusted.check([Transform(out(DataType.FLOAT64), f"{module}:f", "0" * 64, ("x",))])


@pytest.mark.parametrize(
    "function", ["os.system", "a:b:c", ":f", "a:", "a b:c", "a:__import__('os')", "a" * 255 + ":f"]
)
def test_a_function_is_named_by_module_and_name(function: str) -> None:
    with pytest.raises(InvalidValue, match="function"):
        Transform(out(DataType.FLOAT64), function, "0" * 64, ("x",))


@pytest.mark.parametrize(
    ("name", "input", "output", "row_wise"),
    [
        ("twice", DataType.FLOAT64, DataType.FLOAT64, True),
        ("is_rush_hour", DataType.INT64, DataType.BOOL, True),
        ("shout", DataType.STRING, DataType.STRING, True),
        ("next_day", DataType.TIMESTAMP, DataType.TIMESTAMP, True),
        ("total", DataType.FLOAT_VECTOR, DataType.FLOAT64, True),
        ("ranks", DataType.FLOAT64, DataType.INT64, False),
        ("first_letter", DataType.STRING, DataType.STRING, False),
        ("infinite", DataType.FLOAT64, DataType.FLOAT64, False),
    ],
)
def test_it_is_tried_whether_rows_are_treated_by_themselves(
    name: str, input: DataType, output: DataType, *, row_wise: bool
) -> None:
    """What cannot be tried, as it refuses NULLs or gives an infinity, is not believed."""
    taken = Field("x", input, 3 if input is DataType.FLOAT_VECTOR else 0)
    chained = [a_transform(name, Field("y", output), "x")]
    if output is DataType.FLOAT64:
        chained.append(a_transform("thrice", Field("z", DataType.FLOAT64), "y"))
    assert TransformSet([MODULE]).are_row_wise(chained, [taken, Field("other", DataType.BOOL)]) is row_wise


def test_without_transforms_there_is_nothing_to_try() -> None:
    assert TransformSet([]).are_row_wise([], [])
    with pytest.raises(Untrusted):
        TransformSet([]).are_row_wise([a_transform("twice", out(DataType.FLOAT64), "x")], [])
