"""The trainer's parts over a real database, a real worker and a feature store in memory."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foresight.values import DataType, FeatureView, Field, ViewFeature, ViewSource
from services.runtime.database import Database, open_database
from services.runtime.errors import NotFound, Unavailable
from services.runtime.metrics import Metrics
from services.runtime.settings import DatabaseSettings
from services.trainer.__main__ import MIGRATIONS
from services.trainer.artifacts import FolderArtifacts
from services.trainer.batch import BatchPrediction
from services.trainer.declarations import Declarations
from services.trainer.evaluation import Evaluation
from services.trainer.executor import Executor
from services.trainer.feature_store import DatasetManifest, FeatureStore, Thing, ThingKind
from services.trainer.flywheel import Flywheel
from services.trainer.metrics import TrainerMetrics
from services.trainer.models import DatasetSelection, ModelVersion, VersionRef
from services.trainer.postgres.sink import Sink
from services.trainer.progress import Progress
from services.trainer.registry import Registry
from services.trainer.scorers import Scorers
from services.trainer.specification import Estimator
from services.trainer.training import Training, TrainingJob
from tests.unit.trainer.specifications import by_column, pipeline, spec

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATE = Field("late", DataType.BOOL)
FEATURES = (
    Field("wind", DataType.FLOAT64),
    Field("sky", DataType.STRING),
    Field("seen_at", DataType.TIMESTAMP),
    Field("hour", DataType.INT64),
    Field("distance", DataType.FLOAT64),
)
VIEW = FeatureView(
    name="delays",
    version=1,
    label=LATE,
    sources=(ViewSource("weather", (ViewFeature("wind"), ViewFeature("sky"), ViewFeature("seen_at"))),),
    request_features=(FEATURES[3], FEATURES[4]),
    entity_keys=(Field("origin", DataType.STRING),),
    features=FEATURES,
)
VIEW_REF = VersionRef("delays", 1)
TREES = pipeline(
    (
        "prepare",
        by_column(
            (
                "text",
                spec("preprocessing.OrdinalEncoder", handle_unknown="use_encoded_value", unknown_value=-1),
                ["sky"],
            ),
            ("numbers", "passthrough", ["wind", "distance"]),
        ),
    ),
    ("model", spec("ensemble.HistGradientBoostingClassifier", max_iter=20)),
)
# Sees nothing but noise: worse than TREES on any rows.
BLIND = pipeline(
    ("prepare", by_column(("numbers", "passthrough", ["distance"]))),
    ("model", spec("tree.DecisionTreeClassifier", max_depth=1)),
)


def flights(seed: int, n: int = 400, *, blank: bool = True) -> pa.Table:
    """Rows of a training dataset: late when the wind is strong and the sky grey, mostly."""
    rng = np.random.default_rng(seed)
    wind, sky = rng.gamma(3.0, 4.0, n), rng.choice(["clear", "grey"], n)
    score = wind / 8 + (sky == "grey") - 2 + rng.normal(size=n) * 0.3
    times = [START + timedelta(hours=int(h)) for h in range(n)]
    return pa.table(
        {
            "origin": rng.choice(["JFK", "LGA"], n),
            "event_time": pa.array(times, pa.timestamp("us", "UTC")),
            "hour": rng.integers(0, 24, n),
            "distance": rng.uniform(100, 3_000, n),
            "wind": pa.array(wind, mask=rng.random(n) < 0.05 if blank else None),
            "sky": sky,
            "seen_at": pa.array(times, pa.timestamp("us", "UTC")),
            "late": pa.array(score > 0, mask=rng.random(n) < 0.02 if blank else None),
            "split": np.where(np.arange(n) < n * 3 // 4, "train", "test"),
        }
    )


@dataclass
class MemoryStore:
    """A feature store in memory, see FeatureStore."""

    tables: dict[str, pa.Table] = field(default_factory=dict)
    views: dict[str, VersionRef] = field(default_factory=dict)
    # Views other than VIEW.
    registered: dict[VersionRef, FeatureView] = field(default_factory=dict)
    schedule: pa.Table = field(default_factory=lambda: schedule(0))
    uses: dict[Thing, set[Thing]] = field(default_factory=dict)
    away: bool = False
    # Names of what it has lost since it was read.
    lost: set[str] = field(default_factory=set)

    def add(self, dataset_id: str, table: pa.Table, view: VersionRef = VIEW_REF) -> None:
        """Adds a training dataset."""
        self.tables[dataset_id], self.views[dataset_id] = table, view

    async def manifest(self, dataset_id: str) -> DatasetManifest:
        if dataset_id not in self.tables:
            raise NotFound("training dataset", dataset_id)
        return DatasetManifest(dataset_id, self.views[dataset_id], FEATURES, LATE)

    async def dataset(self, dataset_id: str, split: str) -> pa.Table:
        table = self.tables[dataset_id]
        return table.filter(pc.equal(table["split"], split)) if split else table

    async def view(self, view: VersionRef) -> FeatureView:
        return self.registered.get(view, VIEW)

    async def latest_rows(self, group: VersionRef, start: datetime, end: datetime) -> pa.Table:
        times = self.schedule["event_time"]
        inside = pc.and_(pc.greater_equal(times, pa.scalar(start)), pc.less(times, pa.scalar(end)))
        return self.schedule.filter(inside)

    async def as_of(self, view: VersionRef, spine: pa.Table) -> pa.Table:
        n = spine.num_rows
        windy = pc.equal(spine["origin"], "JFK")
        table = spine.append_column("wind", pc.if_else(windy, pa.scalar(40.0), pa.scalar(None, pa.float64())))
        table = table.append_column("sky", pc.if_else(windy, pa.scalar("grey"), pa.scalar("clear")))
        return table.append_column("seen_at", pa.nulls(n, pa.timestamp("us", "UTC")))

    async def declare(self, user: Thing, used: Sequence[Thing]) -> None:
        if self.away:
            raise Unavailable("the feature store does not answer")
        for thing in used:
            known = thing.kind is ThingKind.FEATURE_VIEW or thing.name in self.tables or thing in self.uses
            if not known or thing.name in self.lost:
                raise NotFound(thing.kind.value, f"{thing.name} version {thing.version}")
        self.uses[user] = set(used)


def schedule(n: int) -> pa.Table:
    """Rows of a scoring group: key `flight`, and what the view needs of a request."""
    times = [NOW + timedelta(minutes=i) for i in range(n)]
    return pa.table(
        {
            "flight": pa.array([f"F{i}" for i in range(n)], pa.string()),
            "event_time": pa.array(times, pa.timestamp("us", "UTC")),
            "origin": pa.array(["JFK" if i % 2 else "LGA" for i in range(n)], pa.string()),
            "hour": pa.array([i % 24 for i in range(n)], pa.int64()),
            "distance": pa.array([100.0 + i for i in range(n)], pa.float64()),
            "codes": pa.array([[1.0, 2.0]] * n, pa.list_(pa.float32(), 2)),
            "known_at": pa.array(times, pa.timestamp("us", "UTC")),
            "commit": pa.array([1] * n, pa.int64()),
            "deleted": pa.array([False] * n, pa.bool_()),
        }
    )


@dataclass
class Trainer:
    """Everything of a trainer but its server."""

    store: MemoryStore
    database: Database
    sink_database: Database
    artifacts: FolderArtifacts
    registry: Registry
    training: Training
    evaluation: Evaluation
    flywheel: Flywheel
    batch: BatchPrediction
    metrics: Metrics
    progress: list[Progress] = field(default_factory=list)

    async def train(self, model: str, estimator: Estimator = TREES, dataset: str = "jan") -> ModelVersion:
        """Trains on the dataset's first split and tests on its second."""
        train, test = DatasetSelection(dataset, "train"), DatasetSelection(dataset, "test")
        job = TrainingJob(model, "", (train,), (test,), estimator)
        return await self.training.train(job, self.progress.append)


@contextlib.asynccontextmanager
async def running_trainer(
    settings: DatabaseSettings, folder: Path, executor: Executor, feature_store: FeatureStore | None = None
) -> AsyncIterator[Trainer]:
    """A trainer on a fresh database, which is its sink, too; its feature store is a MemoryStore if none is given."""
    async with open_database(settings, "trainer", MIGRATIONS) as database:
        metrics = Metrics("trainer")
        own = TrainerMetrics(metrics)
        store = MemoryStore()
        store.add("jan", flights(1))
        reads: FeatureStore = feature_store or store
        artifacts = FolderArtifacts(folder)
        registry = Registry(database, lambda: NOW, Declarations(reads), reads.view)
        scorers = Scorers(artifacts)
        evaluation = Evaluation(registry, scorers, reads)
        sink_database = Database(settings, "sink")
        try:
            yield Trainer(
                store=store,
                database=database,
                sink_database=sink_database,
                artifacts=artifacts,
                registry=registry,
                training=Training(registry, artifacts, executor, reads, own),
                evaluation=evaluation,
                flywheel=Flywheel(registry, evaluation, lambda: NOW, own),
                batch=BatchPrediction(database, registry, scorers, reads, Sink(sink_database), lambda: NOW, own),
                metrics=metrics,
            )
        finally:
            await sink_database.close()
