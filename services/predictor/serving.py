"""Deployments that serve, how they stand, and what the serving table needs of others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from foresight.values import FeatureView
from services.predictor.assignment import Assignment
from services.predictor.models import LoadedModel
from services.predictor.plans import ViewPlan
from services.predictor.tallies import Tally
from services.predictor.versions import Arm, Deployment, VersionRef, is_same

_LOADING = "it is being loaded"


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A version that answers for a deployment: everything that a request needs, unchanged as long as it runs, and
    its counts. `deployment` is as if it had this version alone.

    `transforms_row_wise`: the view's transforms may run on rows of several requests at once. `together` is equal for
    deployments whose requests may share a look-up and a run of the model.
    """

    deployment: Deployment
    plan: ViewPlan
    model: LoadedModel
    transforms_row_wise: bool = False
    tally: Tally = field(default_factory=Tally)
    together: str = field(init=False)

    def __post_init__(self) -> None:
        version = self.deployment.version
        object.__setattr__(self, "together", f"{version.model}, {version.artifact_sha256}, {self.plan.ref}")


@dataclass(frozen=True, slots=True, eq=False)
class ServedArm:
    """An arm that answers, or scores as a shadow; `probability`: the share of the entities that get it."""

    name: str
    served: Served
    weight: int
    probability: float
    shadow: bool


@dataclass(frozen=True, slots=True, eq=False)
class ServedArms:
    """A deployment that answers, with its arms in order: all of them, but shadows that are not loaded (yet).

    `first` answers for the deployment where an arm stands for all; `several`: the deployment has more arms than one;
    `shadows` are those of `arms`.
    `assignment` gives places in `arms`.
    """

    deployment: Deployment
    arms: tuple[ServedArm, ...]
    first: Served
    several: bool
    shadows: tuple[ServedArm, ...]
    assignment: Assignment

    @classmethod
    def of(cls, deployment: Deployment, served: Mapping[str, Served]) -> ServedArms:
        """The deployment with what is loaded, by name of the arm."""
        weights = sum(arm.weight for arm in deployment.arms)
        arms = tuple(
            ServedArm(arm.name, served[arm.name], arm.weight, arm.weight / weights, arm.shadow)
            for arm in deployment.arms
            if arm.name in served
        )
        assignment = Assignment(deployment.salt, [(arm.name, arm.weight) for arm in arms])
        shadows = tuple(arm for arm in arms if arm.shadow)
        return cls(deployment, arms, arms[0].served, len(deployment.arms) > 1, shadows, assignment)

    @property
    def complete(self) -> bool:
        """Whether every shadow is loaded, too."""
        return len(self.arms) == len(self.deployment.arms)

    def named(self, name: str) -> ServedArm | None:
        """The arm of a name, if it is loaded."""
        return next((arm for arm in self.arms if arm.name == name), None)


@dataclass(frozen=True, slots=True)
class ArmState:
    """An arm that should serve, and how it stands; `failed`: it was tried in vain."""

    name: str
    model: VersionRef
    weight: int
    shadow: bool
    ready: bool
    cause: str
    failed: bool


@dataclass(frozen=True, slots=True)
class ServingState:
    """A deployment as this replica sees it: the version that answers and the one that should, of the first arm.

    `cause` says why what is wanted does not answer; `failed`: it was tried in vain, or unloaded. `etag` is that of
    what answers; empty: nothing does. `arms` are those that are wanted, when they are several.
    """

    deployment: str
    model: VersionRef | None
    cause: str
    wanted: VersionRef
    failed: bool
    etag: str = ""
    arms: tuple[ArmState, ...] = ()


def state_of(
    wanted: Deployment, serving: ServedArms | None, cause: str | None, shadow_causes: Mapping[str, str]
) -> ServingState:
    """How a deployment stands: what serves, and why the rest does not; `cause` None: nothing was tried in vain."""
    current = serving is not None and serving.deployment.answers_like(wanted)
    failed = not current and cause is not None
    why = "" if current else cause or _LOADING

    def arm_state(arm: Arm) -> ArmState:
        loaded = serving.named(arm.name) if serving is not None else None
        ready = loaded is not None and is_same(loaded.served.deployment.version, arm.version)
        its_cause, its_failed = ("", False) if ready else (why, failed)
        if not ready and current:
            its_cause, its_failed = shadow_causes.get(arm.name, _LOADING), arm.name in shadow_causes
        return ArmState(arm.name, arm.version.model, arm.weight, arm.shadow, ready, its_cause, its_failed)

    return ServingState(
        deployment=wanted.name,
        model=serving.first.deployment.version.model if serving is not None else None,
        cause=why,
        wanted=wanted.version.model,
        failed=failed,
        etag=wanted.etag if current else serving.deployment.etag if serving is not None else "",
        arms=tuple(arm_state(arm) for arm in wanted.arms) if len(wanted.arms) > 1 else (),
    )


class DeploymentSource(Protocol):
    """Where deployments come from, and how they are kept."""

    def watch(self) -> AsyncIterator[Sequence[Deployment]]:
        """All deployments, at once and after every change. Raises Unavailable."""
        ...

    def pack(self, deployments: Sequence[Deployment]) -> bytes:
        """The bytes to keep."""
        ...

    def unpack(self, data: bytes) -> Sequence[Deployment]:
        """The deployments of kept bytes. Raises InvalidValue."""
        ...


class ViewPacker(Protocol):
    """How views are kept."""

    def pack_view(self, view: FeatureView) -> bytes:
        """The bytes to keep."""
        ...

    def unpack_view(self, data: bytes) -> FeatureView:
        """The view of kept bytes. Raises InvalidValue."""
        ...
