"""One feature group, one view and one pipeline: will this order be delivered late?"""

from datetime import timedelta

from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from foresight.client import DataType, FeatureGroup, FeatureView, Field, MissingPolicy, ViewFeature, ViewSource

# How busy each kitchen is, written every hour.
kitchens = FeatureGroup(
    name="kitchens",
    entity_keys=(Field("restaurant", DataType.STRING),),
    features=(Field("orders_last_hour", DataType.INT64), Field("prep_minutes", DataType.FLOAT64)),
    description="How busy each kitchen is",
)

# What the model sees: the kitchen as it was in the last two hours, and what the order itself says.
late_orders = FeatureView(
    name="late_orders",
    sources=(
        ViewSource(
            "kitchens",
            (
                ViewFeature("orders_last_hour", missing=MissingPolicy.FAIL),
                ViewFeature("prep_minutes", missing=MissingPolicy.FAIL),
            ),
            max_age=timedelta(hours=2),
        ),
    ),
    request_features=(Field("distance_km", DataType.FLOAT64), Field("rain", DataType.BOOL)),
    label=Field("late", DataType.BOOL),
)

pipeline = Pipeline(
    [
        (
            "scale",
            ColumnTransformer(
                [("numbers", StandardScaler(), ["orders_last_hour", "prep_minutes", "distance_km", "rain"])]
            ),
        ),
        ("classify", LogisticRegression()),
    ]
)
