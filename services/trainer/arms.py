"""What a deployment is to serve: one version, or several side by side.

The first arm stands for the deployment (alias `champion`, batch predictions, judgements), so it is no shadow and has a
weight. What can be said of arms without looking at versions is checked when they are built, the rest by `check_alike`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from foresight.scoring import Signature
from foresight.values import FeatureView, Field, InvalidValue, check_name
from services.runtime.errors import FailedPrecondition
from services.trainer.models import Arm, ModelVersion, VersionRef

ARMS_MAX = 16
SHADOWS_MAX = 4
WEIGHT_MAX = 10_000
SALT_BYTES_MAX = 64
# Of a deployment that is set with a model alone.
PRIMARY = "primary"


@dataclass(frozen=True, slots=True)
class WantedArm:
    """An arm that somebody asks for; version 0 of the model is the latest."""

    name: str
    model: VersionRef
    weight: int
    shadow: bool = False

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        if not 0 <= self.weight <= WEIGHT_MAX:
            raise InvalidValue("weight", f"is not between 0 and {WEIGHT_MAX:,}")
        if self.shadow and self.weight:
            raise InvalidValue("weight", "is not 0, and the arm is a shadow")


def alone(model: VersionRef) -> tuple[WantedArm, ...]:
    """The arms of a deployment that serves one version."""
    return (WantedArm(PRIMARY, model, 1),)


def check_arms(arms: Sequence[WantedArm]) -> tuple[WantedArm, ...]:
    """The arms, when a deployment can have them together. Raises InvalidValue."""
    if not 1 <= len(arms) <= ARMS_MAX:
        raise InvalidValue("arms", f"are {len(arms)}, not 1 to {ARMS_MAX}")
    if sum(arm.shadow for arm in arms) > SHADOWS_MAX:
        raise InvalidValue("arms", f"have more than {SHADOWS_MAX} shadows")
    seen: set[str] = set()
    for i, arm in enumerate(arms):
        if arm.name in seen:
            raise InvalidValue(f"arms[{i}].name", f"{arm.name} is the name of an arm before it, too")
        seen.add(arm.name)
    if arms[0].shadow or not arms[0].weight:
        raise InvalidValue("arms[0]", "is a shadow or has no weight; the first arm stands for the deployment")
    return tuple(arms)


async def check_alike(arms: Sequence[Arm], view: Callable[[VersionRef], Awaitable[FeatureView]]) -> None:
    """Checks that callers need not know which arm answers them: what goes in and what comes out is the same.

    `view` finds a view version; it is asked for none when all arms have the same one. Raises FailedPrecondition, which
    names the arm, and what `view` raises.
    """
    first = arms[0]
    for arm in arms[1:]:
        what = _other_answer(first.version.signature, arm.version.signature)
        if what:
            raise _unlike(arm, first, what)
    refs = dict.fromkeys(arm.version.view for arm in arms)
    if len(refs) == 1:
        return
    views = {ref: await view(ref) for ref in refs}
    mine = views[first.version.view]
    for arm in arms[1:]:
        other = views[arm.version.view]
        if _shapes(other.entity_keys) != _shapes(mine.entity_keys):
            raise _unlike(arm, first, "entity keys")
        if _shapes(other.request_features) != _shapes(mine.request_features):
            raise _unlike(arm, first, "request features")


def serve_alike(mine: Sequence[Arm], others: Sequence[Arm]) -> bool:
    """Whether two deployments have the same arms in the same order."""
    return [_content(arm) for arm in mine] == [_content(arm) for arm in others]


def _content(arm: Arm) -> tuple[str, VersionRef, int, bool]:
    return arm.name, arm.version.ref, arm.weight, arm.shadow


def _other_answer(mine: Signature, other: Signature) -> str:
    if mine.task != other.task:
        return "a task"
    if (mine.label.name, mine.label.type) != (other.label.name, other.label.type):
        return "a label"
    if _classes(mine) != _classes(other):
        return "classes"
    return ""


def _classes(signature: Signature) -> list[object] | None:
    return None if signature.classes is None else list(signature.classes.to_list())


def _shapes(fields: Sequence[Field]) -> set[tuple[str, str, int]]:
    return {(f.name, f.type.value, f.dimension) for f in fields}


def _unlike(arm: Arm, first: Arm, what: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{arm.version.ref} of the arm {arm.name} has {what} other than {first.version.ref} of the arm {first.name}",
        arm=arm.name,
    )


def resolved(wanted: Sequence[WantedArm], versions: Sequence[ModelVersion]) -> tuple[Arm, ...]:
    """The arms with the versions that were found for them."""
    return tuple(Arm(w.name, v, w.weight, w.shadow) for w, v in zip(wanted, versions, strict=True))
