"""Messages of the Open Inference Protocol: requests to tensors and parameters, answers to messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from foresight.values import InvalidValue, instant_from_micros, micros_from_instant
from foresight.values.errors import quoted
from foresight.values.features import FEATURES_MAX, REQUEST_FEATURES_MAX, VIEW_KEYS_MAX
from foresight.values.names import NAME_BYTES_MAX, check_text
from inference import grpc_service_pb2 as messages
from services.predictor.inference import choose_outputs
from services.predictor.policies import Missing
from services.predictor.questions import ROWS_MAX
from services.predictor.requests import Answer
from services.predictor.streams import size_of_rows
from services.predictor.tensor_columns import tensor_of
from services.predictor.tensors import Tensor, from_elements, from_raw, to_raw
from services.runtime.boundary import REQUEST_ID_BYTES_MAX

# No view and no model has more.
INPUTS_MAX = VIEW_KEYS_MAX + REQUEST_FEATURES_MAX + FEATURES_MAX
OUTPUTS_MAX = 64
# Those of the log have no bound; an answer must fit into a message.
MISSING_SHOWN_MAX = 1_000
TIMEOUT_US_MAX = 2**53
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_ALL_CONTENTS = tuple(dict.fromkeys(_CONTENTS.values()))
_SHARED_MEMORY = "shared_memory_"
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
_RFC_3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|[+-]\d\d:\d\d)\Z", re.ASCII)

Parameters = Mapping[str, messages.InferParameter]


@dataclass(frozen=True, slots=True, eq=False)
class InferRequest:
    """A request whose tensors are well-formed. `raw`: they came as raw buffers, and so go the answer's.

    `timeout_s`: the time that the caller gives besides the call's deadline; None: all of it.
    """

    model_name: str
    model_version: str
    id: str
    tensors: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    event_time: datetime | None
    timeout_s: float | None
    raw: bool

    @property
    def request_id(self) -> str:
        """The id as a request's id for the log; empty where it does not go for one."""
        fits = self.id.isascii() and self.id.isprintable() and len(self.id) <= REQUEST_ID_BYTES_MAX
        return self.id if fits else ""


def size_of_request(message: messages.ModelInferRequest) -> int:
    """The size of a request of a stream, before it is decoded."""
    shape = message.inputs[0].shape if message.inputs else ()
    return size_of_rows(min(shape[0], ROWS_MAX) if shape else 0, message.ByteSize())


def decode_request(message: messages.ModelInferRequest) -> InferRequest:
    """The request of a message. Raises InvalidValue, which names the field."""
    check_text(message.id, "id")
    parameters = message.parameters
    _check_unsupported(parameters)
    raw = len(message.raw_input_contents) > 0
    return InferRequest(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        tensors=_decode_inputs(message, raw),
        outputs=_decode_outputs(message.outputs),
        event_time=_decode_event_time(parameters),
        timeout_s=_decode_timeout(parameters),
        raw=raw,
    )


def _decode_inputs(message: messages.ModelInferRequest, raw: bool) -> tuple[Tensor, ...]:
    inputs, buffers = message.inputs, message.raw_input_contents
    if len(inputs) > INPUTS_MAX:
        raise InvalidValue("inputs", f"are {len(inputs)}, more than {INPUTS_MAX:,}")
    names: set[str] = set()
    for position, sent in enumerate(inputs):
        where = f"inputs[{_checked_name(sent.name, f'inputs[{position}].name')}]"
        if sent.name in names:
            raise InvalidValue(where, "is given twice")
        names.add(sent.name)
        if raw and sent.contents.ByteSize():
            raise InvalidValue(
                f"{where}.contents", "are given besides raw_input_contents; a request is all of one kind"
            )
        for key in sent.parameters:
            if key.startswith(_SHARED_MEMORY):
                raise InvalidValue(f"{where}.parameters[{quoted(key)}]", "is for shared memory, which there is not")
    if not raw:
        return tuple(_typed_tensor(sent) for sent in inputs)
    if len(buffers) != len(inputs):
        raise InvalidValue("raw_input_contents", f"are {len(buffers)} for {len(inputs)} inputs")
    return tuple(
        from_raw(
            sent.name, sent.datatype, sent.shape, buffer, f"inputs[{sent.name}]", f"raw_input_contents[{position}]"
        )
        for position, (sent, buffer) in enumerate(zip(inputs, buffers, strict=True))
    )


def _typed_tensor(sent: messages.ModelInferRequest.InferInputTensor) -> Tensor:
    where = f"inputs[{sent.name}]"
    contents = sent.contents
    arm = _CONTENTS.get(sent.datatype, "")
    for other in _ALL_CONTENTS:
        if other != arm and arm and len(getattr(contents, other)):
            raise InvalidValue(f"{where}.contents", f"hold {other}, and those of {sent.datatype} are {arm}")
    elements: Sequence[Any] = getattr(contents, arm) if arm else ()
    return from_elements(sent.name, sent.datatype, sent.shape, elements, where)


def _decode_outputs(outputs: Sequence[messages.ModelInferRequest.InferRequestedOutputTensor]) -> tuple[str, ...]:
    if len(outputs) > OUTPUTS_MAX:
        raise InvalidValue("outputs", f"are {len(outputs)}, more than {OUTPUTS_MAX}")
    for position, wanted in enumerate(outputs):
        where = f"outputs[{_checked_name(wanted.name, f'outputs[{position}].name')}].parameters"
        for key, value in wanted.parameters.items():
            if key.startswith(_SHARED_MEMORY):
                raise InvalidValue(f"{where}[{quoted(key)}]", "is for shared memory, which there is not")
            if key == "classification" and _number_of(value):
                raise InvalidValue(f"{where}[classification]", "is not supported: outputs come as they are")
    return tuple(wanted.name for wanted in outputs)


def _checked_name(name: str, field: str) -> str:
    """A name that may stand in messages."""
    if not name:
        raise InvalidValue(field, "is required")
    if len(name) > NAME_BYTES_MAX or not name.isascii() or not name.isprintable():
        raise InvalidValue(field, f"{quoted(name)} is not 1 to {NAME_BYTES_MAX} printable ASCII characters")
    return name


def _check_unsupported(parameters: Parameters) -> None:
    """Refuses what would change an answer's meaning if it were left out of account."""
    for key in _SEQUENCE:
        if key in parameters and (_number_of(parameters[key]) or parameters[key].string_param):
            raise InvalidValue(f"parameters[{key}]", "is for sequences; every prediction here stands for itself")
    if "priority" in parameters and _number_of(parameters["priority"]):
        raise InvalidValue("parameters[priority]", "is not supported: there are no priorities")


def _number_of(value: messages.InferParameter) -> float:
    """The number or flag of a parameter; 0 for others."""
    return value.bool_param or value.int64_param or value.uint64_param or value.double_param


def _decode_event_time(parameters: Parameters) -> datetime | None:
    if "event_time" not in parameters:
        return None
    field = "parameters[event_time]"
    text = parameters["event_time"].string_param
    matched = _RFC_3339.match(text)
    if matched is None:
        raise InvalidValue(field, f"{quoted(text)} is not a time of RFC 3339, as 2026-03-01T12:00:00Z")
    seconds, fraction, zone = matched.groups()
    try:
        # Nanoseconds below a microsecond are cut off.
        instant = datetime.fromisoformat(seconds + (fraction or "")[:7] + zone)
    except ValueError:
        raise InvalidValue(field, f"{quoted(text)} is not a time that exists") from None
    return instant_from_micros(micros_from_instant(instant, field), field)


def _decode_timeout(parameters: Parameters) -> float | None:
    if "timeout" not in parameters:
        return None
    value = parameters["timeout"]
    if value.WhichOneof("parameter_choice") not in ("int64_param", "uint64_param"):
        raise InvalidValue("parameters[timeout]", "is not an integer of microseconds")
    micros = value.int64_param or value.uint64_param
    if not 0 <= micros <= TIMEOUT_US_MAX:
        raise InvalidValue("parameters[timeout]", "is not 0 to 2^53 microseconds")
    return micros / 1e6 if micros else None


def encode_answer(request: InferRequest, answer: Answer) -> messages.ModelInferResponse:
    """The message of an answer, with the outputs that the request wants."""
    response = messages.ModelInferResponse(
        model_name=request.model_name, model_version=str(answer.model.version), id=request.id
    )
    for column in choose_outputs(answer.outputs, request.outputs):
        tensor = tensor_of(column)
        output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.values.shape)
        if request.raw:
            response.raw_output_contents.append(to_raw(tensor))
        else:
            getattr(output.contents, _CONTENTS[tensor.datatype]).extend(tensor.values.ravel().tolist())
    parameters = response.parameters
    parameters["prediction_ids"].string_param = ",".join(answer.prediction_ids)
    parameters["event_time"].string_param = _rfc_3339(answer.event_time)
    parameters["model"].string_param = answer.model.name
    parameters["missing_count"].int64_param = len(answer.missing)
    if answer.missing:
        parameters["missing"].string_param = ",".join(map(_missing_text, answer.missing[:MISSING_SHOWN_MAX]))
    if answer.arms:
        parameters["arms"].string_param = ",".join(_arms_by_row(answer))
    return response


def encode_failure(request_id: str, code: str, reason: str, message: str) -> messages.ModelStreamInferResponse:
    """The answer to a message of a stream that got no prediction."""
    response = messages.ModelStreamInferResponse(error_message=message)
    response.infer_response.id = request_id
    response.infer_response.parameters["code"].string_param = code
    response.infer_response.parameters["reason"].string_param = reason
    return response


def _arms_by_row(answer: Answer) -> list[str]:
    arms = [""] * len(answer.prediction_ids)
    for arm in answer.arms:
        for row in arm.rows:
            arms[row] = arm.arm
    return arms


def _missing_text(missing: Missing) -> str:
    return f"{missing.row}:{missing.feature}:{missing.status.name}:{missing.policy.name}"


def _rfc_3339(instant: datetime) -> str:
    # A year below 1000 keeps its zeros this way, which strftime would drop.
    return instant.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
