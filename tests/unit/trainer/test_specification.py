"""Specifications: what is allowed, and that nothing else gets through."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.trainer.v1 import training_pb2
from foresight.types.v1 import types_pb2
from foresight.values import InvalidValue
from services.trainer import codec
from services.trainer.specification import (
    DEPTH_MAX,
    VALUES_MAX,
    Estimator,
    Listed,
    Value,
    check,
    columns_used,
    from_json,
    selects_columns,
    to_json,
)
from tests.unit.trainer.specifications import LOGISTIC, by_column, pipeline, spec

SCALER = spec("preprocessing.StandardScaler")


def _deep(levels: int) -> Value:
    value: Value = 1
    for _ in range(levels):
        value = Listed((value,))
    return value


@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "builtins.eval", "pickle.loads", "sklearn.linear_model", "LogisticRegression", ""),
        *("sklearn.preprocessing.FunctionTransformer", "sklearn.feature_extraction.text.TfidfVectorizer"),
        *("sklearn.linear_model._logistic.LogisticRegression", "sklearn.linear_model.LogisticRegression\0"),
        *("sklearn.utils.Bunch", "joblib.load", "../../etc/passwd", "\x80\x04cos\nsystem\n"),
    ],
)
def test_a_class_that_is_not_in_the_table_is_refused_by_its_name(name: str) -> None:
    for estimator in (Estimator(name), pipeline(("model", Estimator(name)))):
        with pytest.raises(InvalidValue, match="not an estimator allowed"):
            check(estimator)


@pytest.mark.parametrize(
    ("estimator", "says"),
    [
        (Estimator(LOGISTIC.class_name, (("C", 1.0), ("C", 2.0))), "given twice"),
        (spec("linear_model.LogisticRegression", __class__="x"), "not the name of a parameter"),
        (spec("linear_model.LogisticRegression", **{"c p": 1}), "not the name of a parameter"),
        (spec("linear_model.LogisticRegression", penalty="l2\0"), "NUL"),
        (spec("linear_model.LogisticRegression", penalty="x" * 5_000), "longer than"),
        (spec("pipeline.Pipeline", steps=Listed((("m", LOGISTIC),)), memory="/tmp/cache"), "not allowed"),
        (spec("pipeline.Pipeline"), "not a list with at least one part"),
        (spec("pipeline.Pipeline", steps="steps"), "not a list"),
        (pipeline(("m", LOGISTIC), ("m", LOGISTIC)), "used twice"),
        (pipeline(("a__b", LOGISTIC)), "contains '__'"),
        (pipeline(("m", "os.system")), "not an estimator"),
        (pipeline(("m", Listed((1,)))), "not an estimator"),
        (spec("pipeline.Pipeline", steps=Listed((("m", LOGISTIC, 3),))), "tuple of 2"),
        (by_column(("n", "keep", ["a"])), "not an estimator"),
        (
            spec("compose.ColumnTransformer", transformers=Listed((("n", SCALER, "a"),))),
            "not a list of names",
        ),
        (spec("compose.ColumnTransformer", transformers=Listed((("n", SCALER, Listed((1,))),))), "list of names"),
        (spec("neural_network.MLPClassifier", hidden_layer_sizes=_deep(DEPTH_MAX + 1)), "levels deep"),
        (spec("linear_model.RidgeCV", alphas=Listed((1.0,) * (VALUES_MAX + 1))), "more than 10000 values"),
    ],
)
def test_a_bad_specification_is_refused(estimator: Estimator, says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        check(estimator)


def test_parameters_that_only_repeat_a_harmless_default_are_allowed() -> None:
    check(spec("pipeline.Pipeline", steps=Listed((("m", LOGISTIC),)), memory=None))
    check(spec("ensemble.HistGradientBoostingClassifier", categorical_features="from_dtype"))


def test_the_inputs_are_those_that_a_leading_column_transformer_takes() -> None:
    first = by_column(("n", SCALER, ["b", "a"]), ("gone", "drop", ["c"]), ("t", "passthrough", ["s", "a"]))
    assert columns_used(pipeline(("first", first), ("m", LOGISTIC))) == ["b", "a", "s"]
    assert columns_used(pipeline(("outer", pipeline(("first", first))), ("m", LOGISTIC))) == ["b", "a", "s"]
    assert selects_columns(pipeline(("first", first), ("m", LOGISTIC)))


def test_without_one_or_when_it_keeps_the_rest_all_features_are_inputs() -> None:
    keeps = Estimator("sklearn.compose.ColumnTransformer", (*by_column(("n", SCALER, ["a"])).parameters,))
    keeps = Estimator(keeps.class_name, (*keeps.parameters, ("remainder", "passthrough")))
    assert columns_used(pipeline(("first", keeps), ("m", LOGISTIC))) is None
    assert columns_used(pipeline(("first", SCALER), ("m", LOGISTIC))) is None
    assert not selects_columns(pipeline(("first", SCALER), ("m", LOGISTIC)))


PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda v: Listed(tuple(v)))
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(["a", "float", "list", "class"]), inner, max_size=3).map(
            lambda d: Estimator("sklearn.x.Y", tuple(d.items()))
        )
    ),
    max_leaves=10,
)


def _same(one: Value, other: Value) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, Listed) and isinstance(other, Listed):
        one, other = one.values, other.values
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Estimator) and isinstance(other, Estimator):
        names = [n for n, _ in one.parameters] == [n for n, _ in other.parameters]
        return names and all(_same(a, b) for (_, a), (_, b) in zip(one.parameters, other.parameters, strict=True))
    return type(one) is type(other) and one == other


@given(VALUES)
def test_json_keeps_every_value_and_its_type(value: Value) -> None:
    assert _same(from_json(to_json(value)), value)


def _message(value: Value) -> training_pb2.ParameterValue:
    match value:
        case bool():
            return training_pb2.ParameterValue(bool_value=value)
        case None:
            return training_pb2.ParameterValue(null_value=True)
        case int():
            return training_pb2.ParameterValue(int_value=value)
        case float():
            return training_pb2.ParameterValue(float_value=value)
        case str():
            return training_pb2.ParameterValue(string_value=value)
        case Listed():
            values = [_message(v) for v in value.values]
            return training_pb2.ParameterValue(list_value=training_pb2.ParameterList(values=values))
        case tuple():
            values = [_message(v) for v in value]
            return training_pb2.ParameterValue(tuple_value=training_pb2.ParameterList(values=values))
        case Estimator():
            return training_pb2.ParameterValue(estimator_value=_estimator(value))


def _estimator(value: Estimator) -> training_pb2.Estimator:
    parameters = [training_pb2.Parameter(name=n, value=_message(v)) for n, v in value.parameters]
    return training_pb2.Estimator(class_name=value.class_name, parameters=parameters)


def _request(estimator: training_pb2.Estimator) -> training_pb2.TrainRequest:
    selection = training_pb2.DatasetSelection(dataset_id="d")
    return training_pb2.TrainRequest(model="m", train=[selection], pipeline=estimator)


def test_a_specification_comes_off_the_wire_as_it_was_sent() -> None:
    sent = pipeline(
        ("first", by_column(("n", SCALER, ["a"]))),
        ("m", spec("neural_network.MLPClassifier", hidden_layer_sizes=(5, 3), alpha=1e-3, random_state=None)),
    )
    assert codec.decode_training(_request(_estimator(sent))).pipeline == sent


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (training_pb2.ParameterValue(), "has no value"),
        (training_pb2.ParameterValue(null_value=False), "null_value is false"),
        (_message(Listed((1,) * (VALUES_MAX + 1))), "more than 10000 values"),
    ],
)
def test_a_malformed_parameter_is_refused_with_its_place(value: training_pb2.ParameterValue, says: str) -> None:
    parameter = training_pb2.Parameter(name="C", value=value)
    estimator = training_pb2.Estimator(class_name=LOGISTIC.class_name, parameters=[parameter])
    with pytest.raises(InvalidValue, match=says):
        codec.decode_training(_request(estimator))


def test_a_version_beyond_the_database_is_refused() -> None:
    with pytest.raises(InvalidValue, match=r"model\.version"):
        codec.decode_ref(types_pb2.VersionRef(name="m", version=2**32 - 1), "model")
