"""A small service that tests describe: delays at airports, with the weather there."""

from datetime import UTC, datetime, timedelta

from foresight.client import (
    DataType,
    FeatureGroup,
    FeatureView,
    Field,
    ViewFeature,
    ViewSource,
)
from foresight.feature_store.v1 import registry_pb2
from foresight.types.v1 import types_pb2
from foresight.wire import encode_view

NOON = datetime(2013, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ORIGIN = Field("origin", DataType.STRING)
WIND = Field("wind", DataType.FLOAT64)
LATE = Field("late", DataType.BOOL)
WEATHER = FeatureGroup("weather", (ORIGIN,), (WIND,))
DELAYS = FeatureView(
    "delays",
    LATE,
    (ViewSource("weather", (ViewFeature("wind"),), max_age=HOUR),),
    request_features=(Field("hour", DataType.INT64),),
    version=3,
    entity_keys=(ORIGIN,),
)


def described_view() -> registry_pb2.GetFeatureViewResponse:
    """What the registry answers for the view."""
    return registry_pb2.GetFeatureViewResponse(view=encode_view(DELAYS))


def ref(name: str, version: int = 0) -> types_pb2.VersionRef:
    """The message of a name and a version."""
    return types_pb2.VersionRef(name=name, version=version)
