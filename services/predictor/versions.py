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
class Deployment:
    """What clients call, and the version that should answer."""

    name: str
    etag: str
    version: ModelVersion

    def answers_like(self, other: Deployment) -> bool:
        """Whether both name the same version with the same artifact."""
        mine, theirs = self.version, other.version
        return (mine.model, mine.view, mine.artifact_sha256) == (theirs.model, theirs.view, theirs.artifact_sha256)
