"""Model versions, deployments, decisions and batch runs as values. All are immutable; a change makes a new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from foresight.scoring import Signature
from foresight.values import InvalidValue, check_name

VERSION_MAX = 2**31 - 1
SPLITS = ("", "train", "validation", "test")


@dataclass(frozen=True, slots=True)
class VersionRef:
    """Name and version of a model or view; version 0 in a question means the latest."""

    name: str
    version: int = 0

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        if not 0 <= self.version <= VERSION_MAX:
            raise InvalidValue("version", f"is not between 0 and {VERSION_MAX}")

    def __str__(self) -> str:
        return f"{self.name} version {self.version}" if self.version else self.name


@dataclass(frozen=True, slots=True)
class DatasetSelection:
    """A training dataset, or one of its splits; '' means all rows."""

    dataset_id: str
    split: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.dataset_id) <= 128 or not self.dataset_id.isascii() or not self.dataset_id.isprintable():
            raise InvalidValue("dataset_id", "is not 1 to 128 printable ASCII characters")
        if self.split not in SPLITS:
            raise InvalidValue("split", "is not train, validation, test or empty")


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a version was made of."""

    train: tuple[DatasetSelection, ...]
    test: tuple[DatasetSelection, ...]
    # The pipeline's specification, as `specification.to_json` makes it.
    pipeline: Mapping[str, object]
    sklearn_version: str

    @property
    def dataset_ids(self) -> tuple[str, ...]:
        """The datasets it was trained and tested on, each once."""
        return tuple(dict.fromkeys(s.dataset_id for s in (*self.train, *self.test)))


@dataclass(frozen=True, slots=True)
class Quality:
    """How a version was measured when it was registered."""

    train_rows: int
    metrics: Mapping[str, float]
    parity_max_difference: float
    parity_rows: int
    batch_invariant: bool


@dataclass(frozen=True, slots=True, eq=False)
class NewVersion:
    """A model version before the registry has numbered it."""

    model: str
    description: str
    view: VersionRef
    signature: Signature
    artifact_sha256: str
    artifact_bytes: int
    lineage: Lineage
    quality: Quality


@dataclass(frozen=True, slots=True, eq=False)
class ModelVersion:
    """A registered version. `aliases` are those that point at it when it was read."""

    ref: VersionRef
    description: str
    view: VersionRef
    signature: Signature
    artifact_sha256: str
    artifact_bytes: int
    lineage: Lineage
    quality: Quality
    created_at: datetime
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """A version of a deployment with its share; a shadow scores for the log alone and has no weight."""

    name: str
    version: ModelVersion
    weight: int
    shadow: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Deployment:
    """What clients call, and the versions that answer. `etag` changes with every change of arms or salt."""

    name: str
    arms: tuple[Arm, ...]
    salt: str
    etag: str
    updated_at: datetime

    @property
    def version(self) -> ModelVersion:
        """The version of the first arm, which stands for the deployment."""
        return self.arms[0].version


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """Metrics of one version on some rows; what is not defined there is absent."""

    model: VersionRef
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Judgement:
    """The question whether a challenger is better; the same question has one answer for good."""

    deployment: str
    challenger: VersionRef
    dataset: DatasetSelection
    metric: str
    margin: float
    judged_at: datetime


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to a judgement, with the metrics of champion, challenger and references in this order."""

    id: str
    judgement: Judgement
    champion: VersionRef
    promoted: bool
    models: tuple[ModelMetrics, ...]
    rows: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class BatchRun:
    """A finished batch run."""

    run_id: str
    deployment: str
    model: VersionRef
    sink_table: str
    event_time: datetime
    rows: int
    finished_at: datetime
    duration_ms: int
