"""The Python client of Foresight: define features, train, deploy, predict, and learn from what happened.

from foresight.client import Client, DataType, FeatureGroup, Field

with Client() as client:
    client.apply(FeatureGroup("weather", (Field("origin", DataType.STRING),), (Field("wind", DataType.FLOAT64),)))
    client.write("weather", frame)
    answer = client.predict("delays", [{"origin": "JFK", "hour": 17}])
"""

from foresight.client.batch import BatchRun
from foresight.client.client import Client
from foresight.client.connection import Connection, Retry, Target
from foresight.client.datasets import HashSplit, Logged, TrainingDataset
from foresight.client.erasure import Erasure
from foresight.client.errors import (
    Aborted,
    AlreadyExists,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    ForesightError,
    Internal,
    InvalidArgument,
    NotConnected,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from foresight.client.estimators import Estimator
from foresight.client.explanations import Explanation
from foresight.client.features import Registration, VersionRef, transform
from foresight.client.flywheel import Decision
from foresight.client.ledger import IngestionStatus, LedgerRow
from foresight.client.lineage import Lineage, LineageThing, ThingKind, Use
from foresight.client.models import Arm, Deployment, ModelMetrics, ModelVersion
from foresight.client.online import RebuiltStore
from foresight.client.outcomes import OutcomeCounts
from foresight.client.predictions import (
    ArmAnswer,
    FeatureUse,
    LoggedPrediction,
    Mismatch,
    MissingFeature,
    Outcome,
    Predictions,
    Verification,
)
from foresight.client.queries import RowsOf, rows_of
from foresight.client.registry import Found, FoundKind
from foresight.client.statistics import DatasetRows, GroupRows, LogRows, StatisticsRows
from foresight.client.writes import BrokenExpectation, Commit
from foresight.values import (
    Column,
    DataType,
    Expectation,
    FailurePolicy,
    FeatureGroup,
    FeatureStatus,
    FeatureView,
    Field,
    Fresh,
    InvalidValue,
    MissingPolicy,
    NotNull,
    OneOf,
    Range,
    Transform,
    Unique,
    ViewFeature,
    ViewSource,
    Violation,
)
from foresight.values.pipelines import PipelineRun, PipelineStatus, PositionMove, RunState, Trigger

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Arm",
    "ArmAnswer",
    "BatchRun",
    "BrokenExpectation",
    "Client",
    "Column",
    "Commit",
    "Connection",
    "DataLoss",
    "DataType",
    "DatasetRows",
    "DeadlineExceeded",
    "Decision",
    "Deployment",
    "Erasure",
    "Estimator",
    "Expectation",
    "Explanation",
    "FailedPrecondition",
    "FailurePolicy",
    "FeatureGroup",
    "FeatureStatus",
    "FeatureUse",
    "FeatureView",
    "Field",
    "ForesightError",
    "Found",
    "FoundKind",
    "Fresh",
    "GroupRows",
    "HashSplit",
    "IngestionStatus",
    "Internal",
    "InvalidArgument",
    "InvalidValue",
    "LedgerRow",
    "Lineage",
    "LineageThing",
    "LogRows",
    "Logged",
    "LoggedPrediction",
    "Mismatch",
    "MissingFeature",
    "MissingPolicy",
    "ModelMetrics",
    "ModelVersion",
    "NotConnected",
    "NotFound",
    "NotNull",
    "OneOf",
    "OutOfRange",
    "Outcome",
    "OutcomeCounts",
    "PermissionDenied",
    "PipelineRun",
    "PipelineStatus",
    "PositionMove",
    "Predictions",
    "Range",
    "RebuiltStore",
    "Registration",
    "ResourceExhausted",
    "Retry",
    "RowsOf",
    "RunState",
    "StatisticsRows",
    "Target",
    "ThingKind",
    "TrainingDataset",
    "Transform",
    "Trigger",
    "Unavailable",
    "Unimplemented",
    "Unique",
    "Use",
    "Verification",
    "VersionRef",
    "ViewFeature",
    "ViewSource",
    "Violation",
    "rows_of",
    "transform",
]
