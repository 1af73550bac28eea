"""Names of versioned things, and the model versions and deployments that the trainer describes."""

from __future__ import annotations

from dataclasses import dataclass

from foresight.scoring import ModelTask, Signature
from foresight.values import Column, Field


@dataclass(frozen=True, slots=True)
class VersionRef:
    """One version of a group, view or model."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


@dataclass(frozen=True, slots=True, eq=False)
class ModelVersion:
    """An immutable model version, as far as scoring needs it."""

    model: VersionRef
    view: VersionRef
    task: ModelTask
    inputs: tuple[Field, ...]
    classes: Column | None
    artifact_sha256: str
    artifact_bytes: int
    batch_invariant: bool

    def signature(self, label: Field) -> Signature:
        """What goes in and comes out; `label` is the view's."""
        return Signature(self.task, self.inputs, label, self.classes)


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One of the versions that a deployment serves; a shadow scores for the log alone and has no weight."""

    name: str
    version: ModelVersion
    weight: int
    shadow: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Deployment:
    """What clients call, and the versions that should answer, one per arm; there is at least one.

    The first arm stands for the deployment; it is no shadow. `salt` goes into the assignment of entities to arms.
    """

    name: str
    etag: str
    arms: tuple[Arm, ...]
    salt: str = ""

    @property
    def version(self) -> ModelVersion:
        """The version of the first arm."""
        return self.arms[0].version

    def answers_like(self, other: Deployment) -> bool:
        """Whether both name the same versions with the same artifacts, shared out alike."""
        if (len(self.arms), self.salt) != (len(other.arms), other.salt):
            return False
        return all(map(_alike, self.arms, other.arms))


def is_same(mine: ModelVersion, theirs: ModelVersion) -> bool:
    """Whether both are the same version with the same artifact."""
    return (mine.model, mine.view, mine.artifact_sha256) == (theirs.model, theirs.view, theirs.artifact_sha256)


def _alike(mine: Arm, theirs: Arm) -> bool:
    same = (mine.name, mine.weight, mine.shadow) == (theirs.name, theirs.weight, theirs.shadow)
    return same and is_same(mine.version, theirs.version)
