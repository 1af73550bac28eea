"""Small ONNX models made by hand: they score like a trained one and are made in a millisecond."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from foresight.scoring import EXAMPLE_KEY, Example, OnnxModel, Signature, encode_example


def linear_model(inputs: Sequence[str], weights: Sequence[float], bias: float, *, classifier: bool) -> bytes:
    """`sigmoid(x w + b)` as two probabilities, or `x w + b`; a NaN among the inputs counts as 0."""
    constants = {
        "w": np.array(weights, np.float32).reshape(-1, 1),
        "b": np.array([bias], np.float32),
        "zero": np.zeros((1,), np.float32),
        "one": np.ones((1,), np.float32),
    }
    nodes = [
        helper.make_node("Concat", list(inputs), ["x"], axis=1),
        helper.make_node("IsNaN", ["x"], ["absent"]),
        helper.make_node("Where", ["absent", "zero", "x"], ["filled"]),
        helper.make_node("MatMul", ["filled", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["value"]),
    ]
    output: Any = helper.make_tensor_value_info("value", TensorProto.FLOAT, [None, 1])
    if classifier:
        nodes += [
            helper.make_node("Sigmoid", ["value"], ["positive"]),
            helper.make_node("Sub", ["one", "positive"], ["negative"]),
            helper.make_node("Concat", ["negative", "positive"], ["probabilities"], axis=1),
        ]
        output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in inputs],
        [output],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    serialized: bytes = model.SerializeToString()
    return serialized


def crowd_model(inputs: Sequence[str]) -> bytes:
    """A classifier whose scores depend on all rows that are scored together: `sigmoid(x + the sum of all x)`."""
    nodes = [
        helper.make_node("Concat", list(inputs), ["x"], axis=1),
        helper.make_node("ReduceSum", ["x"], ["crowd"], keepdims=1),
        helper.make_node("ReduceSum", ["x", "across"], ["row"], keepdims=1),
        helper.make_node("Add", ["row", "crowd"], ["sum"]),
        helper.make_node("Mul", ["sum", "scale"], ["value"]),
        helper.make_node("Sigmoid", ["value"], ["positive"]),
        helper.make_node("Sub", ["one", "positive"], ["negative"]),
        helper.make_node("Concat", ["negative", "positive"], ["probabilities"], axis=1),
    ]
    constants: dict[str, np.ndarray[Any, Any]] = {
        "one": np.ones((1,), np.float32),
        "scale": np.array([0.01], np.float32),
        "across": np.array([1], np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "crowd",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in inputs],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    serialized: bytes = model.SerializeToString()
    return serialized


def with_example(
    artifact: bytes, signature: Signature, rows: Mapping[str, Sequence[Any]], *, shift: float = 0.0
) -> bytes:
    """The artifact with these rows as its example; what it is said to score them is its own score plus `shift`."""
    inputs: dict[str, np.ndarray[Any, Any]] = {
        name: np.array(values, object if isinstance(values[0], str) else np.float32) for name, values in rows.items()
    }
    outputs = OnnxModel(artifact, signature).score_raw(inputs) + np.float32(shift)
    return with_metadata(artifact, EXAMPLE_KEY, encode_example(Example(inputs, outputs)) or "")


def with_metadata(artifact: bytes, key: str, value: str) -> bytes:
    """The artifact with an entry in its metadata."""
    model = ModelProto.FromString(artifact)
    model.metadata_props.add(key=key, value=value)
    serialized: bytes = model.SerializeToString()
    return serialized
