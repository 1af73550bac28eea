"""What a deployment takes and gives, in the words of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foresight.values import Field
from foresight.values.errors import quoted
from services.predictor.inference import outputs_of, takes_matrix
from services.predictor.serving import Served, ServedArms, ServingState
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
    """The versions that serve of each deployment, then those that should."""
    entries = []
    for state in states:
        ready = _ready(state)
        entries += [Indexed(state.deployment, version, READY, "") for version in ready]
        if not ready_only:
            entries += [
                Indexed(state.deployment, version, UNAVAILABLE if failed else LOADING, cause)
                for version, (cause, failed) in _lacking(state).items()
            ]
    return entries


def is_ready(state: ServingState, version: str) -> bool:
    """Whether a version answers; '' asks for whichever. Raises NotFound for one that neither serves nor should."""
    ready = _ready(state)
    if version in ready or (not version and ready):
        return True
    if not version or version in _lacking(state):
        return False
    raise NotFound("version", f"{quoted(version)} of {state.deployment}")


def versions_of(serving: ServedArms) -> list[str]:
    """The versions that serve, each once."""
    return list(dict.fromkeys(str(arm.served.deployment.version.model.version) for arm in serving.arms))


def _ready(state: ServingState) -> list[str]:
    """The versions that serve, each once: that of the first arm, then those of others."""
    models = [state.model, *(arm.model for arm in state.arms if arm.ready)]
    return list(dict.fromkeys(str(model.version) for model in models if model is not None))


def _lacking(state: ServingState) -> dict[str, tuple[str, bool]]:
    """The versions that should serve and do not, each with the cause and whether it was tried in vain."""
    lacking = {str(state.wanted.version): (state.cause, state.failed)} if state.cause else {}
    return lacking | {str(arm.model.version): (arm.cause, arm.failed) for arm in state.arms if arm.cause}


def _described(fields: Sequence[Field]) -> tuple[Described, ...]:
    return tuple(Described(f.name, DATATYPES[f.type], row_shape(f)) for f in fields)
