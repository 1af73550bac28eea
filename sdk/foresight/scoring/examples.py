"""Rows that a model carries with it: what it was given when it was registered, and what it answered.

The trainer writes them into the artifact, as text under EXAMPLE_KEY in the ONNX file's metadata; whoever loads the
artifact can see that it scores here as it did there, and has rows to compare others with. Inputs are as
`model_input` makes them, outputs as the graph gave them, both to the bit.

The text is JSON: `version`, `rows`, `inputs` (by name: a list of texts, or little-endian float32 in base64) and
`outputs` (`width`, 0 for one value a row, and float32 in base64).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foresight.values import InvalidValue

EXAMPLE_KEY = "foresight.example"
EXAMPLE_ROWS_MAX = 32
# Of the text; rows are left out until it fits.
EXAMPLE_BYTES_MAX = 512 << 10
# A row with a longer text is left out: what is that long was written by somebody.
EXAMPLE_TEXT_BYTES_MAX = 256
_VERSION = 1
_FLOATS = np.dtype("<f4")


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """n rows of a model's inputs, each (n,) float32 or (n,) object (str), and its outputs for them, (n,) or
    (n, classes) float32."""

    inputs: Mapping[str, NDArray[Any]]
    outputs: NDArray[np.float32]

    @property
    def rows(self) -> int:
        """How many rows."""
        return len(self.outputs)

    def take(self, rows: NDArray[Any]) -> Example:
        """The rows at these positions, or where a mask is true."""
        return Example({name: values[rows] for name, values in self.inputs.items()}, self.outputs[rows])


def example_rows(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.intp]:
    """Positions of at most EXAMPLE_ROWS_MAX rows, evenly spread over these, without those that hold a long text."""
    n = len(next(iter(inputs.values())))
    rows = np.linspace(0, n - 1, min(n, EXAMPLE_ROWS_MAX)).astype(np.intp)
    for values in inputs.values():
        if values.dtype == object:
            short = [len(text.encode()) <= EXAMPLE_TEXT_BYTES_MAX for text in values[rows]]
            rows = rows[np.array(short, np.bool_)]
    return rows


def encode_example(example: Example) -> str | None:
    """The text, of every second row as often as it takes to fit into EXAMPLE_BYTES_MAX; None when no row does."""
    while example.rows:
        text = json.dumps(_document(example), separators=(",", ":"))
        # It is ASCII.
        if len(text) <= EXAMPLE_BYTES_MAX:
            return text
        if example.rows == 1:
            break
        example = example.take(np.arange(0, example.rows, 2))
    return None


def decode_example(text: str) -> Example:
    """The example in a text. Raises InvalidValue for one that `encode_example` does not write."""
    if len(text) > EXAMPLE_BYTES_MAX:
        raise InvalidValue("example", f"has more than {EXAMPLE_BYTES_MAX} bytes")
    try:
        document = json.loads(text)
        version, rows = document["version"], document["rows"]
        if version != _VERSION:
            raise InvalidValue("example", "is of a version that is not known here")
        if not isinstance(rows, int) or not 1 <= rows <= EXAMPLE_ROWS_MAX:
            raise InvalidValue("example", f"has not 1 to {EXAMPLE_ROWS_MAX} rows")
        inputs = {str(name): _decode_input(values, rows) for name, values in document["inputs"].items()}
        width = document["outputs"]["width"]
        if not isinstance(width, int) or width < 0:
            raise ValueError
        shape = (rows, width) if width else (rows,)
        outputs = _floats(document["outputs"]["values"]).reshape(shape)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        if isinstance(error, InvalidValue):
            raise
        raise InvalidValue("example", "is damaged") from error
    return Example(inputs, outputs)


def _document(example: Example) -> dict[str, Any]:
    width = example.outputs.shape[1] if example.outputs.ndim == 2 else 0
    return {
        "version": _VERSION,
        "rows": example.rows,
        "inputs": {name: _encode_input(values) for name, values in example.inputs.items()},
        "outputs": {"width": width, "values": _base64(example.outputs)},
    }


def _encode_input(values: NDArray[Any]) -> list[str] | str:
    return values.tolist() if values.dtype == object else _base64(values)


def _decode_input(values: list[str] | str, rows: int) -> NDArray[Any]:
    if isinstance(values, str):
        return _floats(values).reshape((rows,))
    if len(values) != rows or not all(isinstance(text, str) for text in values):
        raise ValueError
    return np.array(values, dtype=object)


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values, _FLOATS).tobytes()).decode()


def _floats(text: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text, validate=True), _FLOATS).astype(np.float32)
