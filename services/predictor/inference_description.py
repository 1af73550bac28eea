"""What a deployment takes and gives, in the words of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foresight.values import Field
from foresight.values.errors import quoted
from services.predictor.inference import outputs_of, takes_matrix
from services.predictor.serving import Served, ServingState
from services.predictor.tensor_columns import DATATYPES, row_shape
from services.runtime.errors import NotFound

PLATFORM = "foresight"
READY, LOADING, UNAVAILABLE = "READY", "LOADING", "UNAVAILABLE"
EXTENSIONS = ("model_configuration", "model_repository", "statistics")


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor: name, datatype and elements per row."""

    name: str
    datatype: str
    row: int


@dataclass(frozen=True, slots=True)
class Description:
    """A deployment's inputs (entity keys, request features), outputs, and what else is to know about it."""

    name: str
    version: str
    inputs: tuple[Described, ...]
    outputs: tuple[Described, ...]
    parameters: dict[str, str]


@dataclass(frozen=True, slots=True)
class Indexed:
    """A version in the repository's index."""

    name: str
    version: str
    state: str
    reason: str


def describe(served: Served) -> Description:
    """What the version that serves takes and gives."""
    plan, version = served.plan, served.deployment.version
    parameters = {
        "model": version.model.name,
        "model_version": str(version.model.version),
        "view": plan.ref.name,
        "view_version": str(plan.ref.version),
        "feature_inputs": ",".join(f"{f.name}:{DATATYPES[f.type]}" for f in version.inputs),
    }
    if takes_matrix(served):
        parameters["features_shape"] = f"FP32[-1,{len(version.inputs)}]"
    return Description(
        name=served.deployment.name,
        version=str(version.model.version),
        inputs=_described((*plan.keys, *plan.request_features)),
        outputs=_described(outputs_of(served)),
        parameters=parameters,
    )


def index(states: Sequence[ServingState], *, ready_only: bool) -> list[Indexed]:
    """The version that serves of each deployment, then the one that should."""
    entries = []
    for state in states:
        if state.model is not None:
            entries.append(Indexed(state.deployment, str(state.model.version), READY, ""))
        if state.cause and not ready_only:
            how = UNAVAILABLE if state.failed else LOADING
            entries.append(Indexed(state.deployment, str(state.wanted.version), how, state.cause))
    return entries


def is_ready(state: ServingState, version: str) -> bool:
    """Whether a version answers; '' asks for whichever. Raises NotFound for one that neither serves nor should."""
    if state.model is not None and version in ("", str(state.model.version)):
        return True
    if version in ("", str(state.wanted.version)):
        return False
    raise NotFound("version", f"{quoted(version)} of {state.deployment}")


def _described(fields: Sequence[Field]) -> tuple[Described, ...]:
    return tuple(Described(f.name, DATATYPES[f.type], row_shape(f)) for f in fields)
