"""Estimators travel as class names and plain parameters; what has no plain form is refused by name."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from foresight.client.estimators import Estimator, decode_estimator, encode_estimator, public_name, specify
from foresight.values import InvalidValue

leaves = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20)
)
names = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)


def _estimators(values: st.SearchStrategy[object]) -> st.SearchStrategy[Estimator]:
    return st.builds(Estimator, names, st.dictionaries(names, values, max_size=3))


plain_values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | _estimators(inner),
    max_leaves=12,
)


def _types(value: object) -> object:
    """The value with the type of every part, because 1 == 1.0 == True."""
    if isinstance(value, Estimator):
        return value.class_name, {name: _types(inner) for name, inner in value.parameters.items()}
    if isinstance(value, list | tuple):
        return type(value), [_types(inner) for inner in value]
    return type(value), value


@given(_estimators(plain_values))
def test_a_specification_survives_the_wire_with_every_type(spec: Estimator) -> None:
    assert _types(decode_estimator(encode_estimator(spec))) == _types(spec)


@given(_estimators(plain_values))
def test_a_specification_is_its_own_specification(spec: Estimator) -> None:
    assert _types(specify(spec)) == _types(spec)


def test_only_parameters_that_differ_from_the_defaults_travel() -> None:
    assert specify(LogisticRegression()) == Estimator("sklearn.linear_model.LogisticRegression")
    assert specify(LogisticRegression(C=0.5)) == Estimator("sklearn.linear_model.LogisticRegression", {"C": 0.5})


def test_a_default_of_another_type_travels() -> None:
    """1 is equal to 1.0 and True, and not the same parameter."""
    assert specify(LogisticRegression(C=1)).parameters == {"C": 1}


def test_nested_pipelines_keep_lists_tuples_and_column_names() -> None:
    pipeline = Pipeline(
        [
            ("columns", ColumnTransformer([("n", make_pipeline(SimpleImputer(add_indicator=True)), ["distance"])])),
            ("model", HistGradientBoostingClassifier(max_iter=50, categorical_features=None)),
        ]
    )
    spec = specify(pipeline)
    assert spec.class_name == "sklearn.pipeline.Pipeline"
    (_, columns), (_, model) = spec.parameters["steps"]
    [(name, inner, used)] = columns.parameters["transformers"]
    assert (name, used) == ("n", ["distance"])
    assert inner.parameters["steps"] == [
        ("simpleimputer", Estimator("sklearn.impute.SimpleImputer", {"add_indicator": True}))
    ]
    assert model.parameters == {"max_iter": 50, "categorical_features": None}
    assert decode_estimator(encode_estimator(spec)) == spec


def test_numpy_scalars_become_plain_numbers() -> None:
    spec = specify(LogisticRegression(C=np.float64(0.5), max_iter=np.int64(7), fit_intercept=np.bool_(False)))
    assert _types(spec) == _types(
        Estimator("sklearn.linear_model.LogisticRegression", {"C": 0.5, "fit_intercept": False, "max_iter": 7})
    )


def test_nan_that_is_the_default_does_not_travel() -> None:
    assert specify(SimpleImputer(missing_values=math.nan)).parameters == {}


@pytest.mark.parametrize(
    ("estimator", "field", "says"),
    [
        (FunctionTransformer(func=np.log1p), "pipeline.func", "function log1p"),
        (make_pipeline(FunctionTransformer(func=lambda x: x)), "pipeline.steps[0][1].func", "function <lambda>"),
        (LogisticRegression(class_weight={0: 1.0}), "pipeline.class_weight", "a dict"),
        (LogisticRegression(random_state=np.random.RandomState(0)), "pipeline.random_state", "a RandomState"),
        (OneHotEncoder(categories=np.array(["a"])), "pipeline.categories", "pass a list"),
        (OneHotEncoder(dtype=np.float32), "pipeline.dtype", "the class float32"),
        (TfidfVectorizer(stop_words={"a"}), "pipeline.stop_words", "a set"),
        (LogisticRegression(max_iter=2**70), "pipeline.max_iter", "64 bits"),
        (LogisticRegression, "pipeline", "give an instance: LogisticRegression()"),
        ("sklearn.svm.SVC", "pipeline", "is of type str"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_the_name_of_the_parameter(
    estimator: object, field: str, says: str
) -> None:
    with pytest.raises(InvalidValue) as caught:
        specify(estimator)
    [violation] = caught.value.violations
    assert violation.field == field
    assert says in violation.description


def test_a_fitted_estimator_is_refused_also_inside_a_pipeline() -> None:
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    pipeline.fit(np.array([[0.0], [1.0]]), [0, 1])
    with pytest.raises(InvalidValue, match=r"steps\[0\]\[1\]: is fitted"):
        specify(pipeline)


def test_class_names_are_those_that_people_import() -> None:
    assert public_name(HistGradientBoostingClassifier) == "sklearn.ensemble.HistGradientBoostingClassifier"
    assert public_name(TfidfVectorizer) == "sklearn.feature_extraction.text.TfidfVectorizer"
    assert public_name(Pipeline) == "sklearn.pipeline.Pipeline"
