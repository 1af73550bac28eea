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
from foresight.client.features import Commit, Registration, VersionRef, transform
from foresight.client.flywheel import Decision
from foresight.client.ledger import IngestionStatus, LedgerRow
from foresight.client.models import Deployment, ModelMetrics, ModelVersion
from foresight.client.outcomes import OutcomeCounts
from foresight.client.predictions import (
    FeatureUse,
    LoggedPrediction,
    Mismatch,
    MissingFeature,
    Outcome,
    Predictions,
    Verification,
)
from foresight.values import (
    Column,
    DataType,
    FeatureGroup,
    FeatureStatus,
    FeatureView,
    Field,
    InvalidValue,
    MissingPolicy,
    Transform,
    ViewFeature,
    ViewSource,
    Violation,
)
from foresight.values.pipelines import PipelineRun, PipelineStatus, PositionMove, RunState, Trigger

__all__ = [
    "Aborted",
    "AlreadyExists",
    "BatchRun",
    "Client",
    "Column",
    "Commit",
    "Connection",
    "DataLoss",
    "DataType",
    "DeadlineExceeded",
    "Decision",
    "Deployment",
    "Estimator",
    "FailedPrecondition",
    "FeatureGroup",
    "FeatureStatus",
    "FeatureUse",
    "FeatureView",
    "Field",
    "ForesightError",
    "HashSplit",
    "IngestionStatus",
    "Internal",
    "InvalidArgument",
    "InvalidValue",
    "LedgerRow",
    "Logged",
    "LoggedPrediction",
    "Mismatch",
    "MissingFeature",
    "MissingPolicy",
    "ModelMetrics",
    "ModelVersion",
    "NotConnected",
    "NotFound",
    "OutOfRange",
    "Outcome",
    "OutcomeCounts",
    "PermissionDenied",
    "PipelineRun",
    "PipelineStatus",
    "PositionMove",
    "Predictions",
    "Registration",
    "ResourceExhausted",
    "Retry",
    "RunState",
    "Target",
    "TrainingDataset",
    "Transform",
    "Trigger",
    "Unavailable",
    "Unimplemented",
    "Verification",
    "VersionRef",
    "ViewFeature",
    "ViewSource",
    "Violation",
    "transform",
]
