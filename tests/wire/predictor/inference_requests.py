"""Requests of the Open Inference Protocol, encoded by hand as the protocol says it, apart from the code under test."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference import grpc_service_pb2 as messages

CONTENTS = {
    "BOOL": ("bool_contents", "?"),
    "INT8": ("int_contents", "b"),
    "INT16": ("int_contents", "h"),
    "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"),
    "UINT8": ("uint_contents", "B"),
    "UINT16": ("uint_contents", "H"),
    "UINT32": ("uint_contents", "I"),
    "UINT64": ("uint64_contents", "Q"),
    "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"),
}


@dataclass(frozen=True)
class Sent:
    """One input: datatype, elements in row-major order, and the shape; None: [n, 1]."""

    datatype: str
    elements: Sequence[Any]
    shape: Sequence[int] | None = None

    @property
    def dims(self) -> list[int]:
        return [len(self.elements), 1] if self.shape is None else list(self.shape)


def raw_of(sent: Sent) -> bytes:
    if sent.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(e)) + e for e in sent.elements)
    return struct.pack(f"<{len(sent.elements)}{CONTENTS[sent.datatype][1]}", *sent.elements)


def values_of(response: messages.ModelInferResponse, name: str) -> list[Any]:
    """The elements of an output, raw or typed."""
    position = [o.name for o in response.outputs].index(name)
    output = response.outputs[position]
    if not response.raw_output_contents:
        arm = "bytes_contents" if output.datatype == "BYTES" else CONTENTS[output.datatype][0]
        return list(getattr(output.contents, arm))
    raw = response.raw_output_contents[position]
    if output.datatype != "BYTES":
        size = struct.calcsize("<" + CONTENTS[output.datatype][1])
        return list(struct.unpack(f"<{len(raw) // size}{CONTENTS[output.datatype][1]}", raw))
    texts, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        texts.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    return texts


def infer(
    inputs: Mapping[str, Sent],
    *,
    raw: bool = False,
    model: str = "late_flights",
    version: str = "",
    id: str = "",
    outputs: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
) -> messages.ModelInferRequest:
    """A request with all inputs raw, or all typed."""
    request = messages.ModelInferRequest(model_name=model, model_version=version, id=id)
    for name, sent in inputs.items():
        message = request.inputs.add(name=name, datatype=sent.datatype, shape=sent.dims)
        if raw:
            request.raw_input_contents.append(raw_of(sent))
        else:
            arm = "bytes_contents" if sent.datatype == "BYTES" else CONTENTS[sent.datatype][0]
            getattr(message.contents, arm).extend(sent.elements)
    for output in outputs:
        request.outputs.add(name=output)
    for key, value in (parameters or {}).items():
        set_parameter(request.parameters[key], value)
    return request


def set_parameter(parameter: messages.InferParameter, value: Any) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value


def keys_of(n: int = 1, **changes: Sent | None) -> dict[str, Sent]:
    """The valid inputs that the rig's `ask` has as columns; None leaves one out."""
    given: dict[str, Sent | None] = {
        "carrier": Sent("BYTES", [(b"AA", b"UA")[i % 2] for i in range(n)]),
        "origin": Sent("BYTES", [b"JFK"] * n),
        "hour": Sent("FP64", [float(i % 24) for i in range(n)]),
        "route": Sent("BYTES", [b"jfk-lax"] * n),
    }
    return {name: sent for name, sent in (given | changes).items() if sent is not None}


def features_of(n: int = 1, **changes: Sent | None) -> dict[str, Sent]:
    """What the model takes of the first carrier, per row."""
    given: dict[str, Sent | None] = {
        "delay": Sent("FP64", [5.0] * n),
        "flights": Sent("INT64", [100] * n),
        "wind": Sent("FP64", [12.0] * n),
        "hour": Sent("FP64", [0.0] * n),
        "total_delay": Sent("FP64", [5.0] * n),
    }
    return {name: sent for name, sent in (given | changes).items() if sent is not None}
