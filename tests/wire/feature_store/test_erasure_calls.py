"""ErasureService of a running feature store: what is answered, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from foresight.feature_store.v1 import erasure_pb2, erasure_pb2_grpc, registry_pb2, registry_pb2_grpc
from foresight.values import Column, DataType, FeatureGroup, Field
from foresight.wire import encode_column, encode_group

GUESTS = FeatureGroup("erasure_guests", (Field("guest", DataType.STRING),), (Field("meals", DataType.INT64),))
APPLICATION = (("x-forwarded-client-cert", "URI=spiffe://foresight/application/demo"),)


@pytest.fixture
def erasures(channel: grpc.Channel) -> erasure_pb2_grpc.ErasureServiceStub:
    registry = registry_pb2_grpc.FeatureRegistryServiceStub(channel)
    registry.RegisterFeatureGroup(registry_pb2.RegisterFeatureGroupRequest(group=encode_group(GUESTS)))
    return erasure_pb2_grpc.ErasureServiceStub(channel)


def request(
    request_id: str, values: Sequence[Any], type: DataType = DataType.STRING, name: str = "guest"
) -> erasure_pb2.ForgetEntityRequest:
    keys = [encode_column(Column.build(name, type, values))]
    return erasure_pb2.ForgetEntityRequest(request_id=request_id, entity_keys=keys)


def test_an_erasure_is_answered_when_it_is_done_and_again_with_its_id(
    erasures: erasure_pb2_grpc.ErasureServiceStub,
) -> None:
    done = erasures.ForgetEntity(request("wire", ["somebody"]), timeout=30).erasure
    assert done.HasField("finished_at")
    assert (done.request_id, done.doing, list(done.rows)) == ("wire", "", [])
    assert erasures.ForgetEntity(request("wire", ["somebody"]), timeout=30).erasure == done
    assert erasures.GetErasure(erasure_pb2.GetErasureRequest(request_id="wire")).erasure == done


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (request("", ["a"]), grpc.StatusCode.INVALID_ARGUMENT),
        (request("x" * 129, ["a"]), grpc.StatusCode.INVALID_ARGUMENT),
        (request("nul\0", ["a"]), grpc.StatusCode.INVALID_ARGUMENT),
        (erasure_pb2.ForgetEntityRequest(request_id="x"), grpc.StatusCode.INVALID_ARGUMENT),
        (request("x", []), grpc.StatusCode.INVALID_ARGUMENT),
        (request("x", ["a", "b"]), grpc.StatusCode.INVALID_ARGUMENT),
        (request("x", [None]), grpc.StatusCode.INVALID_ARGUMENT),
        (request("x", [1.5], DataType.FLOAT64), grpc.StatusCode.INVALID_ARGUMENT),
        (request("x", ["a"], name="Guest; DROP"), grpc.StatusCode.INVALID_ARGUMENT),
        (request("x", [7], DataType.INT64), grpc.StatusCode.FAILED_PRECONDITION),
        (request("x", ["a"], name="nobody_has_this"), grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
def test_what_names_no_entity_is_refused(
    erasures: erasure_pb2_grpc.ErasureServiceStub, wrong: erasure_pb2.ForgetEntityRequest, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.RpcError) as error:
        erasures.ForgetEntity(wrong, timeout=30)
    assert error.value.code() is code, error.value
    with pytest.raises(grpc.RpcError) as unknown:
        erasures.GetErasure(erasure_pb2.GetErasureRequest(request_id="x"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


def test_an_id_stands_for_one_entity_and_applications_may_not_ask(
    erasures: erasure_pb2_grpc.ErasureServiceStub,
) -> None:
    erasures.ForgetEntity(request("taken", ["one"]), timeout=30)
    with pytest.raises(grpc.RpcError) as taken:
        erasures.ForgetEntity(request("taken", ["two"]), timeout=30)
    assert taken.value.code() is grpc.StatusCode.ALREADY_EXISTS
    for call in (
        lambda: erasures.ForgetEntity(request("denied", ["one"]), metadata=APPLICATION),
        lambda: erasures.GetErasure(erasure_pb2.GetErasureRequest(request_id="taken"), metadata=APPLICATION),
    ):
        with pytest.raises(grpc.RpcError) as denied:
            call()
        assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED
