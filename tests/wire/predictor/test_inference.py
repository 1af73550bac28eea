"""What a client of the Open Inference Protocol gets from ModelInfer, and what the log has of it."""

from __future__ import annotations

import dataclasses
import math
import struct
import unicodedata
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foresight.feature_store.v1 import online_pb2
from foresight.predictor.v1 import prediction_pb2
from foresight.trainer.v1 import model_registry_pb2
from foresight.values import Column, DataType, Field
from foresight.wire import decode_column, decode_instant, encode_column
from inference import grpc_service_pb2 as messages
from tests.wire.predictor.inference_requests import Sent, features_of, infer, keys_of, values_of
from tests.wire.predictor.onnx_models import linear_model
from tests.wire.predictor.rig import NOW, Replica, Rig, ask, model_version, request_view, until

ON_THE_WIRE = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def bits(values: list[float]) -> list[bytes]:
    return [struct.pack("<d", value) for value in values]


async def verified(rig: Rig, replica: Replica, response: messages.ModelInferResponse) -> bool:
    """Whether every prediction of an answer is logged and verifies."""
    ids = response.parameters["prediction_ids"].string_param.split(",")
    await until(lambda: ids[-1] in rig.logger.records)
    asked = [prediction_pb2.VerifyPredictionRequest(prediction_id=prediction_id) for prediction_id in ids]
    return all([(await replica.stub.VerifyPrediction(one)).verified for one in asked])


@pytest.mark.parametrize("raw", [False, True])
async def test_keys_and_request_features_answer_what_predict_answers(rig: Rig, replica: Replica, raw: bool) -> None:
    """Outputs, ids, version, event time and missing features; contents of the kind that was sent."""
    at = NOW - timedelta(minutes=3)
    native = await replica.stub.Predict(ask(2, event_time=at))
    request = infer(keys_of(2), raw=raw, id="mine-1", parameters={"event_time": "2026-03-01T12:57:00+01:00"})
    response = await replica.inference.ModelInfer(request)
    assert (response.model_name, response.model_version, response.id) == ("late_flights", "1", "mine-1")
    assert [(o.name, o.datatype, list(o.shape)) for o in response.outputs] == [
        ("probability", "FP64", [2, 1]),
        ("label", "BOOL", [2, 1]),
    ]
    assert bool(response.raw_output_contents) is raw
    assert any(o.HasField("contents") for o in response.outputs) is not raw
    assert bits(values_of(response, "probability")) == bits(list(native.outputs[0].float64_values.values))
    assert values_of(response, "label") == list(native.outputs[1].bool_values.values)
    parameters = response.parameters
    assert parameters["event_time"].string_param == "2026-03-01T11:57:00.000000Z"
    assert parameters["model"].string_param == "late"
    assert parameters["missing_count"].int64_param == 1
    assert parameters["missing"].string_param == "1:flights:NULL:DEFAULT"
    ids = parameters["prediction_ids"].string_param.split(",")
    await until(lambda: ids[1] in rig.logger.records)
    record, row = rig.logger.records[ids[1]]
    assert (row, record.request_id, record.deployment, decode_instant(record.event_time)) == (
        *(1, "mine-1", "late_flights"),
        at,
    )
    assert [c.name for c in record.entity_keys] == ["carrier", "origin"]
    assert record.features[1].statuses == bytes([online_pb2.FEATURE_STATUS_PRESENT, online_pb2.FEATURE_STATUS_NULL])
    assert await verified(rig, replica, response)


HOURS = {
    "FP64": st.floats(allow_nan=False, allow_infinity=False),
    "FP32": st.floats(allow_nan=False, allow_infinity=False, width=32),
    "INT8": st.integers(-(2**7), 2**7 - 1),
    "INT16": st.integers(-(2**15), 2**15 - 1),
    "INT32": st.integers(-(2**31), 2**31 - 1),
    "INT64": st.integers(-(2**53), 2**53),
    "UINT8": st.integers(0, 2**8 - 1),
    "UINT16": st.integers(0, 2**16 - 1),
    "UINT32": st.integers(0, 2**32 - 1),
    "UINT64": st.integers(0, 2**53),
}
TEXTS = st.text(st.characters(min_codepoint=1, max_codepoint=0x2FF, categories=("L", "N", "P", "Zs")), max_size=20)


@ON_THE_WIRE
@given(st.data())
async def test_raw_typed_and_native_answers_are_the_same_bit_for_bit(replica: Replica, data: st.DataObject) -> None:
    """For every datatype that goes for a feature, in either shape."""
    datatype = data.draw(st.sampled_from(sorted(HOURS)))
    hours = data.draw(st.lists(HOURS[datatype], min_size=1, max_size=5))
    n = len(hours)
    routes = [unicodedata.normalize("NFC", data.draw(TEXTS)) for _ in range(n)]
    shape = data.draw(st.sampled_from([[n], [n, 1]]))
    inputs = keys_of(
        n, hour=Sent(datatype, hours, shape), route=Sent("BYTES", [route.encode() for route in routes], shape)
    )
    native = await replica.stub.Predict(
        ask(
            n,
            hour=Column.build("hour", DataType.FLOAT64, hours),
            route=Column.build("route", DataType.STRING, routes),
        )
    )
    expected = bits(list(native.outputs[0].float64_values.values))
    for raw in (False, True):
        response = await replica.inference.ModelInfer(infer(inputs, raw=raw))
        assert bits(values_of(response, "probability")) == expected
        assert values_of(response, "label") == list(native.outputs[1].bool_values.values)


@ON_THE_WIRE
@given(
    rows=st.lists(
        st.tuples(
            st.one_of(st.just(math.nan), st.floats(-1e6, 1e6, width=32)),
            st.integers(-(2**24), 2**24),
            st.floats(-1e6, 1e6, width=32),
            st.floats(-1e6, 1e6, width=32),
            st.one_of(st.just(math.nan), st.floats(-1e6, 1e6, width=32)),
        ),
        min_size=1,
        max_size=4,
    )
)
async def test_the_features_themselves_answer_the_same_in_every_form(
    replica: Replica, rows: list[tuple[float, ...]]
) -> None:
    """One input per feature or one tensor of all, raw or typed, of 32 or 64 bits."""
    n = len(rows)
    answers = set()
    named = {
        name: Sent("INT64" if name == "flights" else "FP32", [row[i] for row in rows])
        for i, name in enumerate(("delay", "flights", "wind", "hour", "total_delay"))
    }
    flat = [float(value) for row in rows for value in row]
    for inputs in (named, {"features": Sent("FP32", flat, [n, 5])}, {"features": Sent("FP64", flat, [n, 5])}):
        for raw in (False, True):
            response = await replica.inference.ModelInfer(infer(inputs, raw=raw))
            answers.add(tuple(bits(values_of(response, "probability"))))
    assert len(answers) == 1


async def test_given_features_answer_as_the_looked_up_ones_and_say_so_in_the_log(rig: Rig, replica: Replica) -> None:
    """Nothing is asked of the feature store; the record has them as the request's, and it verifies."""
    looked_up = await replica.inference.ModelInfer(infer(keys_of()))
    lookups = rig.features.lookups
    response = await replica.inference.ModelInfer(infer(features_of()))
    assert rig.features.lookups == lookups
    assert bits(values_of(response, "probability")) == bits(values_of(looked_up, "probability"))
    assert response.parameters["missing_count"].int64_param == 0
    assert await verified(rig, replica, response)
    record, _ = rig.logger.records[response.parameters["prediction_ids"].string_param]
    assert [(c.name, decode_column(c).python(0)) for c in record.request_features] == [
        *(("delay", 5.0), ("flights", 100), ("wind", 12.0), ("hour", 0.0), ("total_delay", 5.0)),
    ]
    assert not record.entity_keys
    assert not record.features
    assert not record.sources
    assert (record.applied_commit, record.transforms_sha256) == (0, "")


async def test_keys_may_come_with_given_features(rig: Rig, replica: Replica) -> None:
    """They say in the log whom it was about, and nothing is looked up."""
    keys = {name: sent for name, sent in keys_of().items() if name in ("carrier", "origin")}
    matrix = {"features": Sent("FP32", [5.0, math.nan, 12.0, 0.0, 5.0], [1, 5])}
    for inputs in (keys | features_of(flights=Sent("FP32", [math.nan])), keys | matrix):
        response = await replica.inference.ModelInfer(infer(inputs, raw=True))
        assert await verified(rig, replica, response)
        record, _ = rig.logger.records[response.parameters["prediction_ids"].string_param]
        assert [decode_column(c).python(0) for c in record.entity_keys] == ["AA", "JFK"]
        assert [decode_column(c).python(0) for c in record.request_features] == [5.0, None, 12.0, 0.0, 5.0]
    assert rig.features.lookups == 0


async def test_a_tampered_record_of_given_features_does_not_verify(rig: Rig, replica: Replica) -> None:
    """The model's answer to the recorded features is replayed."""
    response = await replica.inference.ModelInfer(infer(features_of()))
    prediction_id = response.parameters["prediction_ids"].string_param
    await until(lambda: prediction_id in rig.logger.records)
    record, _ = rig.logger.records[prediction_id]
    record.request_features[0].float64_values.values[0] = 500.0
    answer = await replica.stub.VerifyPrediction(prediction_pb2.VerifyPredictionRequest(prediction_id=prediction_id))
    assert [(m.name, m.cause) for m in answer.mismatches] == [("probability", prediction_pb2.MISMATCH_CAUSE_MODEL)]


@pytest.mark.parametrize("wanted", [["label"], ["probability"], ["label", "probability"]])
@pytest.mark.parametrize("raw", [False, True])
async def test_requested_outputs_come_in_the_order_asked_for(replica: Replica, wanted: list[str], raw: bool) -> None:
    response = await replica.inference.ModelInfer(infer(keys_of(2), raw=raw, outputs=wanted))
    assert [o.name for o in response.outputs] == wanted
    assert len(response.raw_output_contents) == (len(wanted) if raw else 0)
    assert values_of(response, wanted[0])


@pytest.mark.parametrize("raw", [False, True])
async def test_texts_and_vectors_come_out_as_bytes_and_floats(rig: Rig, replica: Replica, raw: bool) -> None:
    """A classifier of three classes with text labels, over a view without groups."""
    view = dataclasses.replace(request_view(), label=Field("kind", DataType.STRING))
    rig.features.views[(view.name, view.version)] = view
    version = model_version(5, view=view, inputs=("hour",))
    version.task = model_registry_pb2.MODEL_TASK_MULTICLASS_CLASSIFICATION
    version.ClearField("classes")
    version.classes.CopyFrom(encode_column(Column.build("classes", DataType.STRING, ["früh", "late"])))
    rig.trainer.register(version, linear_model(("hour",), [0.5], 0.0, classifier=True))
    await rig.trainer.deploy("kinds", "late", 5)
    await until(lambda: any(s.deployment == "kinds" and s.model for s in replica.deployments.listing()))
    request = infer({"hour": Sent("INT32", [-3, 3])}, raw=raw, model="kinds")
    response = await replica.inference.ModelInfer(request)
    assert [(o.name, o.datatype, list(o.shape)) for o in response.outputs] == [
        ("probabilities", "FP32", [2, 2]),
        ("label", "BYTES", [2, 1]),
    ]
    assert values_of(response, "label") == ["früh".encode(), b"late"]
    assert len(values_of(response, "probabilities")) == 4
    assert await verified(rig, replica, response)


async def test_most_rows_at_once(rig: Rig, replica: Replica) -> None:
    """1,024 rows; the first thousand of the missing features are shown, all are counted."""
    rig.features.rows.pop("carriers")
    response = await replica.inference.ModelInfer(infer(keys_of(1_024), raw=True))
    assert list(response.outputs[0].shape) == [1_024, 1]
    assert response.parameters["missing_count"].int64_param == 2_048
    assert len(response.parameters["missing"].string_param.split(",")) == 1_000


@pytest.mark.parametrize("id", ["", "x" * 65, "späť", "a\nb"])
async def test_an_id_that_does_not_fit_comes_back_and_the_gateways_is_logged(
    rig: Rig, replica: Replica, id: str
) -> None:
    response = await replica.inference.ModelInfer(infer(keys_of(), id=id), metadata=[("x-request-id", "gateway-1")])
    assert response.id == id
    await until(lambda: bool(rig.logger.records))
    record, _ = rig.logger.records[response.parameters["prediction_ids"].string_param]
    assert record.request_id == "gateway-1"


async def test_parameters_without_a_meaning_here_change_nothing(replica: Replica) -> None:
    """Zeroes of what is refused otherwise, a timeout, and what clients for HTTP leave at tensors."""
    parameters = {
        "sequence_id": 0,
        "sequence_start": False,
        "sequence_end": False,
        "priority": 0,
        "timeout": 5_000_000,
        "own": "text",
        "binary_data_output": True,
    }
    request = infer(keys_of(), raw=True, parameters=parameters, outputs=["label"])
    request.inputs[0].parameters["binary_data_size"].int64_param = 6
    request.outputs[0].parameters["binary_data"].bool_param = True
    assert (await replica.inference.ModelInfer(request)).outputs


async def test_a_stream_answers_in_order_and_goes_on_after_an_error(replica: Replica) -> None:
    """Each answer is final; an error names its message, its code and its reason."""

    async def sent() -> AsyncIterator[messages.ModelInferRequest]:
        yield infer(keys_of(), id="a", raw=True)
        yield infer(keys_of(hour=None), id="b")
        yield infer(keys_of(), id="c", version="9")
        yield infer(features_of(), id="d")

    answers = [answer async for answer in replica.inference.ModelStreamInfer(sent())]
    assert [a.infer_response.id for a in answers] == ["a", "b", "c", "d"]
    assert [bool(a.error_message) for a in answers] == [False, True, True, False]
    assert "inputs[hour]: is missing" in answers[1].error_message
    codes = [a.infer_response.parameters["code"].string_param for a in answers[1:3]]
    reasons = [a.infer_response.parameters["reason"].string_param for a in answers[1:3]]
    assert (codes, reasons) == (["INVALID_ARGUMENT", "NOT_FOUND"], ["INVALID_FIELD", "NOT_FOUND"])
    assert all(a.infer_response.parameters["triton_final_response"].bool_param for a in answers)
    assert answers[0].infer_response.raw_output_contents
    assert not answers[3].infer_response.raw_output_contents
