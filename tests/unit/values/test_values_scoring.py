"""ONNX models: what they see of columns, and that a row scores the same alone as in company."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from foresight.scoring import ModelTask, OnnxModel, Signature, model_input
from foresight.values import Column, DataType, Field, InvalidValue

PROBABILITIES = Signature(
    ModelTask.BINARY_CLASSIFICATION,
    (Field("a", DataType.FLOAT64), Field("b", DataType.INT64)),
    Field("late", DataType.BOOL),
    Column.build("late", DataType.BOOL, [False, True]),
)


def sum_of_rows() -> bytes:
    """A regressor: a + b + number of rows in the batch, so that padding shows."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["ab"]),
        helper.make_node("Shape", ["a"], ["shape"], start=0, end=1),
        helper.make_node("Cast", ["shape"], ["rows"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["ab", "rows"], ["value"]),
    ]
    return serialized(nodes, 1)


def two_classes() -> bytes:
    """A classifier: softmax of (a, b)."""
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["ab"], axis=1),
        helper.make_node("Softmax", ["ab"], ["value"], axis=1),
    ]
    return serialized(nodes, 2)


def serialized(nodes: list[onnx.NodeProto], width: int) -> bytes:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in ("a", "b")]
    output = helper.make_tensor_value_info("value", TensorProto.FLOAT, [None, width])
    graph = helper.make_graph(nodes, "model", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


REGRESSION = Signature(ModelTask.REGRESSION, PROBABILITIES.inputs, Field("delay", DataType.FLOAT64))


def features(a: list[float | None], b: list[int | None]) -> dict[str, Column]:
    return {"a": Column.build("a", DataType.FLOAT64, a), "b": Column.build("b", DataType.INT64, b)}


def test_a_row_has_the_same_scores_whatever_its_company() -> None:
    """This graph adds up the batch's height; unmarked it shows, marked each row is scored by itself."""
    row, pair = features([1.0], [2]), features([1.0, 5.0], [2, 5])
    marked = OnnxModel(sum_of_rows(), REGRESSION, batch_invariant=False)
    plain = OnnxModel(sum_of_rows(), REGRESSION, batch_invariant=True)
    alone = marked.score(row)[0].to_list()
    assert plain.score(row)[0].to_list() == alone == [5.0]
    assert marked.score(pair)[0].to_list() == [*alone, *marked.score(features([5.0], [5]))[0].to_list()]
    three = features([1.0, 5.0, 1.0], [2, 5, 2])
    assert marked.score(three)[0].to_list()[::2] == alone * 2
    assert plain.score(three)[0].to_list()[::2] != alone * 2
    assert len(marked.score(features([], []))[0]) == 0


def test_outputs_have_the_names_and_types_of_the_signature() -> None:
    probability, label = OnnxModel(two_classes(), PROBABILITIES).score(features([0.0, 3.0], [2, 1]))
    assert [c.field for c in (probability, label)] == list(PROBABILITIES.outputs)
    assert label.to_list() == [True, False]
    assert probability.to_list() == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))])


def test_many_classes_give_a_vector_of_probabilities() -> None:
    classes = Column.build("carrier", DataType.STRING, ["AA", "UA"])
    signature = Signature(
        ModelTask.MULTICLASS_CLASSIFICATION, REGRESSION.inputs, Field("carrier", DataType.STRING), classes
    )
    vectors, label = OnnxModel(two_classes(), signature).score(features([0.0], [2]))
    assert [c.field for c in (vectors, label)] == list(signature.outputs)
    assert sum(vectors.to_list()[0]) == pytest.approx(1)
    assert label.to_list() == ["UA"]


@given(st.lists(st.none() | st.integers(-(2**53), 2**53), max_size=5))
def test_models_see_nan_for_null_numbers(values: list[int | None]) -> None:
    seen = model_input(Column.build("x", DataType.INT64, values))
    assert seen.dtype == np.float32
    assert [None if np.isnan(v) else float(v) for v in seen] == [
        None if v is None else float(np.float32(v)) for v in values
    ]


def test_models_see_an_empty_text_for_a_null_one_and_numbers_for_bools() -> None:
    assert model_input(Column.build("x", DataType.STRING, ["a", None])).tolist() == ["a", ""]
    assert model_input(Column.build("x", DataType.BOOL, [True, False])).tolist() == [1.0, 0.0]
    assert np.isnan(model_input(Column.nulls(Field("x", DataType.BOOL), 1))).all()


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)])
def test_integers_that_would_lose_digits_are_refused(value: int) -> None:
    with pytest.raises(InvalidValue, match=r"2\^53"):
        model_input(Column.build("x", DataType.INT64, [0, value]))
