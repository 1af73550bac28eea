"""What the flights service is made of: feature groups, the view, and the model's pipeline."""

from __future__ import annotations

from datetime import timedelta

from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline

from examples.flights.data import WEATHER_COLUMNS
from examples.flights.delays import STATISTICS
from examples.flights.transforms import plane_age
from foresight.client import (
    DataType,
    FeatureGroup,
    FeatureView,
    Field,
    MissingPolicy,
    ViewFeature,
    ViewSource,
    transform,
)

MODEL = "flight_delay"
DEPLOYMENT = "flight_delay"
VIEW = "flight_delay"
SINK_TABLE = "tomorrow"
TRANSFORM_MODULE = "examples.flights.transforms"

STRING, INT64, FLOAT64 = DataType.STRING, DataType.INT64, DataType.FLOAT64


def _statistic(key: str, name: str) -> ViewFeature:
    """A feature that may be missing, but for one that an airport always has.

    Much of the data is missing at times, and the model is to get NULL then. But flights are asked about hours ahead:
    while the feature store is away it is better to ask again than to predict, and later learn, from nothing. One
    feature that must have a value makes such a call UNAVAILABLE, which clients repeat.
    """
    required = (key, name) == ("origin", "flights_24h")
    return ViewFeature(name, missing=MissingPolicy.FAIL if required else MissingPolicy.NULL)


def _delays(key: str) -> FeatureGroup:
    features = tuple(Field(name, INT64 if name == "flights_24h" else FLOAT64) for name in STATISTICS)
    return FeatureGroup(
        name=f"{key}_delays",
        entity_keys=(Field(key, STRING),),
        features=features,
        description=f"Punctuality of the flights of one {key} that landed lately",
    )


weather = FeatureGroup(
    name="weather",
    entity_keys=(Field("origin", STRING),),
    features=tuple(Field(name, FLOAT64) for name in WEATHER_COLUMNS),
    description="Hourly weather at the airport of departure",
)
planes = FeatureGroup(
    name="planes",
    entity_keys=(Field("tailnum", STRING),),
    features=(
        Field("year_built", FLOAT64),
        Field("seats", INT64),
        Field("engines", INT64),
        Field("jet", DataType.BOOL),
    ),
    description="What is known of the plane",
)
carrier_delays, origin_delays, dest_delays = _delays("carrier"), _delays("origin"), _delays("dest")

REQUEST_FEATURES = (
    Field("scheduled_hour", FLOAT64, description="Local hour of the scheduled departure, minutes as a fraction"),
    Field("day_of_week", INT64, description="0 is Monday"),
    Field("distance", FLOAT64, description="Miles"),
    Field("scheduled_minutes", FLOAT64, description="Between the clock readings of departure and arrival"),
    Field("scheduled_departure", DataType.TIMESTAMP),
)
KEYS = ("carrier", "origin", "dest", "tailnum")

flight_schedule = FeatureGroup(
    name="flight_schedule",
    entity_keys=(Field("flight_id", STRING),),
    features=(*(Field(key, STRING) for key in KEYS), *REQUEST_FEATURES),
    description="The schedule as published the evening before; the event time is the scheduled departure",
)

GROUPS = (weather, planes, carrier_delays, origin_delays, dest_delays, flight_schedule)

view = FeatureView(
    name=VIEW,
    description="Asked 6 to 12 hours before departure: will the flight arrive 15 or more minutes late?",
    sources=(
        ViewSource("weather", tuple(ViewFeature(name) for name in WEATHER_COLUMNS), max_age=timedelta(hours=3)),
        ViewSource("planes", tuple(ViewFeature(name) for name in ("year_built", "seats", "engines", "jet"))),
        *(
            ViewSource(
                f"{key}_delays",
                tuple(_statistic(key, name) for name in STATISTICS),
                max_age=timedelta(days=days),
                prefix=f"{key}_",
            )
            for key, days in (("carrier", 3), ("origin", 1), ("dest", 7))
        ),
    ),
    request_features=REQUEST_FEATURES,
    transforms=(
        transform(plane_age, inputs=("scheduled_departure", "year_built"), output=Field("plane_age", FLOAT64)),
    ),
    label=Field("late", DataType.BOOL),
)

MODEL_FEATURES = [
    *WEATHER_COLUMNS,
    *(f"{key}_{name}" for key in ("carrier", "origin", "dest") for name in STATISTICS),
    *("seats", "engines", "jet", "plane_age"),
    *("scheduled_hour", "day_of_week", "distance", "scheduled_minutes"),
]

pipeline = Pipeline(
    [
        ("take", ColumnTransformer([("features", "passthrough", MODEL_FEATURES)], remainder="drop")),
        (
            "classify",
            HistGradientBoostingClassifier(
                max_iter=100, learning_rate=0.05, max_leaf_nodes=15, min_samples_leaf=50, early_stopping=False
            ),
        ),
    ]
)
