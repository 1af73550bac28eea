"""A deployment that serves, how it stands, and what the serving table needs of others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from foresight.values import FeatureView
from services.predictor.models import LoadedModel
from services.predictor.plans import ViewPlan
from services.predictor.tallies import Tally
from services.predictor.versions import Deployment, VersionRef


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A deployment that answers: everything that a request needs, unchanged as long as it runs, and its counts.

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


@dataclass(frozen=True, slots=True)
class ServingState:
    """A deployment as this replica sees it: the version that answers and the one that should.

    `cause` says why the wanted version does not answer; `failed`: it was tried in vain, or unloaded.
    """

    deployment: str
    model: VersionRef | None
    cause: str
    wanted: VersionRef
    failed: bool


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
