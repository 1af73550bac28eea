"""Scoring with a model artifact, the same way in training, in batch and online."""

from foresight.scoring.examples import EXAMPLE_KEY, Example, decode_example, encode_example, example_rows
from foresight.scoring.onnx_model import ModelTask, OnnxModel, Signature, model_input, takes

__all__ = [
    "EXAMPLE_KEY",
    "Example",
    "ModelTask",
    "OnnxModel",
    "Signature",
    "decode_example",
    "encode_example",
    "example_rows",
    "model_input",
    "takes",
]
