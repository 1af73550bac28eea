"""What a request of the Open Inference Protocol asks: which columns its inputs are, and which outputs it wants.

There are two ways to ask, told apart by the names of the inputs:

- every entity key and request feature of the view: features are looked up, as for Predict;
- every feature that the model takes, each as an input of its own or all as one tensor `features` of [n, k] in the
  model's order where all are numbers: nothing is looked up. Entity keys may come along, all or none; they are logged.

The first way wins where the names fit both, as in a view without groups. `features` is an input like any other where
something in the view has that name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foresight.values import Column, Field, InvalidValue, Violation
from foresight.values.errors import quoted
from services.predictor.questions import ROWS_MAX
from services.predictor.serving import Served, ServedArms
from services.predictor.tensor_columns import NUMBERS, column_of, columns_of_matrix, place_of
from services.predictor.tensors import Tensor
from services.runtime.errors import NotFound

FEATURES = "features"


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """The columns that were asked with; `given`: they are the features that the model takes."""

    columns: Mapping[str, Column]
    given: bool


def check_version(serving: ServedArms, version: str) -> Served:
    """What serves a version, the first arm that does; '' asks for the first arm. Raises NotFound."""
    if not version:
        return serving.first
    for arm in serving.arms:
        if version == str(arm.served.deployment.version.model.version):
            return arm.served
    raise NotFound("version", f"{quoted(version)} of {serving.deployment.name} that serves")


def read_inputs(served: Served, tensors: Sequence[Tensor]) -> Inputs:
    """The columns of the inputs. Raises InvalidValue, which names the input."""
    named = {tensor.name: tensor for tensor in tensors}
    _check_rows(tensors)
    plan, taken = served.plan, served.deployment.version.inputs
    asked = (*plan.keys, *plan.request_features)
    if named.keys() == {f.name for f in asked}:
        return Inputs(_columns(named, asked, "neither an entity key nor a request feature"), given=False)
    keys = plan.keys if any(key.name in named for key in plan.keys) else ()
    stranger = "neither a feature that the model takes nor an entity key"
    if FEATURES in named and takes_matrix(served):
        matrix = named.pop(FEATURES)
        columns = _columns(named, keys, f"not an entity key, and {FEATURES} holds all that the model takes")
        return Inputs(columns | {c.name: c for c in columns_of_matrix(matrix, taken)}, given=True)
    others = {f.name for f in taken} - {f.name for f in asked}
    if named.keys() & others or named.keys() - {k.name for k in plan.keys} == {f.name for f in taken}:
        return Inputs(_columns(named, (*keys, *taken), stranger, for_model=True), given=True)
    return Inputs(_columns(named, asked, "neither an entity key nor a request feature"), given=False)


def takes_matrix(served: Served) -> bool:
    """Whether all that the model takes may come as one tensor `features`."""
    plan, taken = served.plan, served.deployment.version.inputs
    clashes = FEATURES in plan.feature_names or any(key.name == FEATURES for key in plan.keys)
    return not clashes and all(f.type in NUMBERS for f in taken)


def choose_outputs(outputs: Sequence[Column], wanted: Sequence[str]) -> list[Column]:
    """The outputs that are wanted, in that order; all without any. They are known to exist, see `check_outputs`."""
    if not wanted:
        return list(outputs)
    named = {column.name: column for column in outputs}
    return [named[name] for name in wanted]


def check_outputs(served: Served, wanted: Sequence[str]) -> None:
    """Raises InvalidValue for an output that the model does not have, and for one that is wanted twice."""
    known = {field.name for field in outputs_of(served)}
    seen: set[str] = set()
    for name in wanted:
        if name not in known:
            raise InvalidValue(f"outputs[{quoted(name)}]", f"is not an output; there are {', '.join(sorted(known))}")
        if name in seen:
            raise InvalidValue(f"outputs[{name}]", "is asked for twice")
        seen.add(name)


def outputs_of(served: Served) -> tuple[Field, ...]:
    """The outputs of a version."""
    return served.deployment.version.signature(served.plan.view.label).outputs


def _columns(
    named: Mapping[str, Tensor], fields: Sequence[Field], stranger: str, *, for_model: bool = False
) -> dict[str, Column]:
    """One column per field; every input is one of them. Raises InvalidValue with one violation per input at fault."""
    faults: list[Violation] = []
    columns: dict[str, Column] = {}
    for field in fields:
        tensor = named.get(field.name)
        if tensor is None:
            faults.append(Violation(f"inputs[{field.name}]", "is missing"))
            continue
        try:
            columns[field.name] = column_of(tensor, field, for_model=for_model)
        except InvalidValue as error:
            faults += error.violations
    expected = {field.name for field in fields}
    faults += [Violation(place_of(tensor), f"is {stranger}") for name, tensor in named.items() if name not in expected]
    if faults:
        raise InvalidValue(faults[0].field, faults[0].description, *faults[1:])
    return columns


def _check_rows(tensors: Sequence[Tensor]) -> None:
    if not tensors:
        raise InvalidValue("inputs", "are none")
    rows = len(tensors[0].values)
    for tensor in tensors:
        if not 1 <= len(tensor.values) <= ROWS_MAX:
            raise InvalidValue(f"{place_of(tensor)}.shape", f"has {len(tensor.values):,} rows, not 1 to {ROWS_MAX:,}")
        if len(tensor.values) != rows:
            raise InvalidValue(f"{place_of(tensor)}.shape", f"has {len(tensor.values)} rows, and others {rows}")
