"""Scoring with a model artifact, the same way in training, in batch and online."""

from foresight.scoring.onnx_model import ModelTask, OnnxModel, Signature, model_input, takes

__all__ = ["ModelTask", "OnnxModel", "Signature", "model_input", "takes"]
