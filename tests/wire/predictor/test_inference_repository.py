"""The server and its models over the Open Inference Protocol: described, counted, unloaded and loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import grpc
import pytest

from foresight.values import DataType, Field
from inference import grpc_service_pb2 as messages
from inference import model_config_pb2
from services.predictor.deployments import UNLOADED
from tests.wire.predictor.inference_requests import Sent, features_of, infer, keys_of
from tests.wire.predictor.onnx_models import linear_model
from tests.wire.predictor.rig import NOW, Replica, Rig, artifact, ask, flight_view, model_version, until
from tests.wire.predictor.test_predictor_refusals import details

APPLICATION = [("x-forwarded-client-cert", "URI=spiffe://foresight/application/shop")]
OPERATOR = [("x-forwarded-client-cert", "URI=spiffe://foresight/operator/admin")]


async def failure(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def indexed(replica: Replica, *, ready: bool = False) -> list[tuple[str, str, str, str]]:
    answer = await replica.inference.RepositoryIndex(messages.RepositoryIndexRequest(ready=ready))
    return [(m.name, m.version, m.state, m.reason) for m in answer.models]


def load(replica: Replica, name: str = "late_flights", **options: Any) -> Awaitable[Any]:
    return replica.inference.RepositoryModelLoad(messages.RepositoryModelLoadRequest(model_name=name), **options)


def unload(replica: Replica, name: str = "late_flights", **options: Any) -> Awaitable[Any]:
    return replica.inference.RepositoryModelUnload(messages.RepositoryModelUnloadRequest(model_name=name), **options)


async def is_ready(replica: Replica, version: str = "") -> bool:
    request = messages.ModelReadyRequest(name="late_flights", version=version)
    return (await replica.inference.ModelReady(request)).ready


async def test_the_server_is_live_ready_and_named(replica: Replica) -> None:
    assert (await replica.inference.ServerLive(messages.ServerLiveRequest())).live
    assert (await replica.inference.ServerReady(messages.ServerReadyRequest())).ready
    metadata = await replica.inference.ServerMetadata(messages.ServerMetadataRequest())
    assert (metadata.name, metadata.version) == ("foresight", "1.2.3")
    assert list(metadata.extensions) == ["model_configuration", "model_repository", "statistics"]


async def test_the_server_is_not_ready_before_its_models_are(rig: Rig) -> None:
    """As its health."""
    rig.features.away = True
    async with rig.predictor() as replica:
        assert not (await replica.inference.ServerReady(messages.ServerReadyRequest())).ready
        error = await failure(replica.inference.ModelInfer(infer(keys_of())))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        rig.features.away = False
        await until(lambda: replica.deployments.ready)
        assert (await replica.inference.ServerReady(messages.ServerReadyRequest())).ready


async def test_metadata_names_what_a_client_sends_and_gets(replica: Replica) -> None:
    metadata = await replica.inference.ModelMetadata(messages.ModelMetadataRequest(name="late_flights"))
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("late_flights", ["1"], "foresight")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("carrier", "BYTES", [-1, 1]),
        ("origin", "BYTES", [-1, 1]),
        ("hour", "FP64", [-1, 1]),
        ("route", "BYTES", [-1, 1]),
    ]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [
        ("probability", "FP64", [-1, 1]),
        ("label", "BOOL", [-1, 1]),
    ]


async def test_the_configuration_also_has_the_features_themselves(replica: Replica) -> None:
    config = (await replica.inference.ModelConfig(messages.ModelConfigRequest(name="late_flights"))).config
    assert (config.name, config.max_batch_size, config.platform) == ("late_flights", 1_024, "foresight")
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [
        ("carrier", model_config_pb2.TYPE_STRING, [1]),
        ("origin", model_config_pb2.TYPE_STRING, [1]),
        ("hour", model_config_pb2.TYPE_FP64, [1]),
        ("route", model_config_pb2.TYPE_STRING, [1]),
    ]
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "model": "late",
        "model_version": "1",
        "view": "flights",
        "view_version": "3",
        "feature_inputs": "delay:FP64,flights:INT64,wind:FP64,hour:FP64,total_delay:FP64",
        "features_shape": "FP32[-1,5]",
    }


async def test_every_type_of_request_feature_has_a_tensor(rig: Rig, replica: Replica) -> None:
    """Instants as microseconds, vectors with their dimension; a view may name a feature `features`."""
    requested = (
        *(Field("at", DataType.TIMESTAMP), Field("embedding", DataType.FLOAT_VECTOR, 3)),
        *(Field("features", DataType.FLOAT64), Field("rain", DataType.BOOL), Field("count", DataType.INT64)),
    )
    changes = {"sources": (), "transforms": (), "entity_keys": (), "request_features": requested, "features": requested}
    view = flight_view(version=7, **changes)
    rig.features.views[(view.name, 7)] = view
    inputs = ("features", "rain", "count")
    rig.trainer.register(
        model_version(7, view=view, inputs=inputs), linear_model(inputs, [1.0] * 3, 0.0, classifier=True)
    )
    await rig.trainer.deploy("typed", "late", 7)
    await until(lambda: len(replica.deployments.all_serving()) == 2)
    metadata = await replica.inference.ModelMetadata(messages.ModelMetadataRequest(name="typed"))
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        *(("at", "INT64", [-1, 1]), ("embedding", "FP32", [-1, 3]), ("features", "FP64", [-1, 1])),
        *(("rain", "BOOL", [-1, 1]), ("count", "INT64", [-1, 1])),
    ]
    config = (await replica.inference.ModelConfig(messages.ModelConfigRequest(name="typed"))).config
    assert "features_shape" not in config.parameters
    whole = {
        "at": Sent("INT64", [1_772_366_400_000_000]),
        "embedding": Sent("FP32", [0.5, 1.0, -2.0], [1, 3]),
        "features": Sent("FP32", [0.25]),
        "rain": Sent("BOOL", [True]),
        "count": Sent("INT8", [-3]),
    }
    only_taken = {name: whole[name] for name in inputs}
    seen = []
    for sent, raw in ((whole, True), (whole, False), (only_taken, True), (only_taken, False)):
        response = await replica.inference.ModelInfer(infer(sent, raw=raw, model="typed", outputs=["probability"]))
        seen.append(response.raw_output_contents[0] if raw else response.outputs[0].contents.fp64_contents[0])
    assert seen[0] == seen[2]
    assert seen[1] == seen[3] == pytest.approx(0.1480472, abs=1e-6)
    for name, bad in (
        ("at", Sent("INT64", [2**62])),
        ("embedding", Sent("FP32", [1.0, 2.0], [1, 2])),
        ("embedding", Sent("FP64", [1.0, 2.0, 3.0], [1, 3])),
        ("embedding", Sent("FP32", [1.0, float("nan"), 3.0], [1, 3])),
    ):
        error = await failure(replica.inference.ModelInfer(infer(whole | {name: bad}, model="typed")))
        assert details(error)[1][0].startswith(f"inputs[{name}]")
    request = infer(only_taken, raw=True, model="typed")
    request.raw_input_contents[1] = b"\2"
    assert details(await failure(replica.inference.ModelInfer(request)))[1] == ["raw_input_contents[1]"]


async def test_statistics_count_requests_of_either_protocol(rig: Rig, replica: Replica) -> None:
    """Predictions, requests and failures of the version that serves; the next version begins at 0."""
    await replica.stub.Predict(ask(3))
    await replica.inference.ModelInfer(infer(features_of(2)))
    await failure(replica.stub.Predict(ask(without="hour")))
    request = messages.ModelStatisticsRequest(name="late_flights", version="1")
    (counted,) = (await replica.inference.ModelStatistics(request)).model_stats
    assert (counted.name, counted.version) == ("late_flights", "1")
    assert (counted.inference_count, counted.execution_count) == (5, 2)
    assert counted.last_inference == int(NOW.timestamp() * 1_000)
    assert (counted.inference_stats.success.count, counted.inference_stats.fail.count) == (2, 1)
    assert counted.inference_stats.success.ns > 0
    await rig.deploy_flights(2)
    await until(lambda: replica.deployments.all_serving()[0].deployment.version.model.version == 2)
    (counted,) = (await replica.inference.ModelStatistics(messages.ModelStatisticsRequest())).model_stats
    assert (counted.version, counted.execution_count, counted.last_inference) == ("2", 0, 0)
    error = await failure(replica.inference.ModelStatistics(messages.ModelStatisticsRequest(version="2")))
    assert details(error)[1] == ["version"]


async def test_the_index_tells_states_and_reasons(rig: Rig, replica: Replica) -> None:
    """A version that cannot be loaded, beside the one that serves instead."""
    assert await indexed(replica) == [("late_flights", "1", "READY", "")]
    rig.trainer.register(model_version(2), b"no model")
    await rig.trainer.deploy("late_flights", "late", 2)
    await until(lambda: replica.deployments.state("late_flights").failed)
    reason = "the artifact of late version 2 does not load"
    assert await indexed(replica) == [
        ("late_flights", "1", "READY", ""),
        ("late_flights", "2", "UNAVAILABLE", reason),
    ]
    assert await indexed(replica, ready=True) == [("late_flights", "1", "READY", "")]
    assert (await is_ready(replica), await is_ready(replica, "1"), await is_ready(replica, "2")) == (True, True, False)
    error = await failure(load(replica))
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
    # It goes on being tried, and the old version goes on answering.
    assert (await replica.inference.ModelInfer(infer(keys_of()))).model_version == "1"
    named = messages.RepositoryIndexRequest(repository_name="other")
    assert details(await failure(replica.inference.RepositoryIndex(named)))[1] == ["repository_name"]


async def test_an_unloaded_model_does_not_answer_until_it_is_loaded(rig: Rig, replica: Replica) -> None:
    """By no protocol; health stays as it is, and other changes of the trainer go on."""
    await unload(replica)
    await unload(replica)
    for call in (replica.stub.Predict(ask()), replica.inference.ModelInfer(infer(keys_of()))):
        error = await failure(call)
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert details(error)[0] == "MODEL_NOT_READY"
    assert await indexed(replica) == [("late_flights", "1", "UNAVAILABLE", UNLOADED)]
    assert not await is_ready(replica)
    assert replica.deployments.ready
    await rig.deploy_flights(2, bias=1.0)
    await rig.trainer.deploy("other", "late", 2)
    await until(lambda: len(replica.deployments.all_serving()) == 1)
    assert [entry[:3] for entry in await indexed(replica)] == [
        ("late_flights", "2", "UNAVAILABLE"),
        ("other", "2", "READY"),
    ]
    await load(replica)
    assert (await replica.inference.ModelInfer(infer(keys_of()))).model_version == "2"
    await load(replica)


async def test_a_restart_serves_what_was_unloaded(rig: Rig) -> None:
    """Unloading is for this life of the replica."""
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        await unload(replica)
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        assert await is_ready(replica)


async def test_a_withdrawn_deployment_is_forgotten_although_it_was_unloaded(rig: Rig, replica: Replica) -> None:
    """When it comes back, it serves."""
    await unload(replica)
    await rig.trainer.withdraw("late_flights")
    await until(lambda: not replica.deployments.listing())
    assert (await failure(load(replica))).code() is grpc.StatusCode.NOT_FOUND
    await rig.trainer.deploy("late_flights", "late", 1)
    await until(lambda: bool(replica.deployments.all_serving()))


async def test_a_request_that_has_begun_is_answered_after_an_unload(rig: Rig, replica: Replica) -> None:
    """It keeps its version."""
    rig.features.hold = asyncio.Event()
    call = replica.inference.ModelInfer(infer(keys_of()))
    await until(lambda: rig.features.waiting == 1)
    await unload(replica)
    rig.features.hold.set()
    assert (await call).model_version == "1"


async def test_loading_tries_at_once_what_waits_for_its_next_try(rig: Rig, replica: Replica) -> None:
    """The artifact was damaged and is whole again."""
    version = model_version(2)
    rig.trainer.register(version, artifact(1.0))
    whole, rig.trainer.artifacts[version.artifact_sha256] = rig.trainer.artifacts[version.artifact_sha256], b"damaged"
    await rig.trainer.deploy("late_flights", "late", 2)
    await until(lambda: replica.deployments.state("late_flights").failed)
    rig.trainer.artifacts[version.artifact_sha256] = whole
    await load(replica)
    assert await is_ready(replica, "2")


async def test_a_load_that_is_overtaken_says_so(rig: Rig, replica: Replica) -> None:
    """Unloaded again before it was loaded; nobody waits forever."""
    await unload(replica)
    loading = asyncio.ensure_future(replica.deployments.load("late_flights"))
    await asyncio.sleep(0)
    replica.deployments.unload("late_flights")
    async with asyncio.timeout(5):
        results = await asyncio.gather(loading, return_exceptions=True)
    assert "changed while it was being loaded" in str(results[0])
    assert not await is_ready(replica)


@pytest.mark.parametrize("name", ["", "../x", "nobody"])
async def test_models_that_are_not_there(replica: Replica, name: str) -> None:
    """INVALID_ARGUMENT for what is no name, NOT_FOUND for what is one."""
    code = grpc.StatusCode.NOT_FOUND if name == "nobody" else grpc.StatusCode.INVALID_ARGUMENT
    for call in (
        load(replica, name),
        unload(replica, name),
        replica.inference.ModelReady(messages.ModelReadyRequest(name=name)),
        replica.inference.ModelMetadata(messages.ModelMetadataRequest(name=name)),
        replica.inference.ModelConfig(messages.ModelConfigRequest(name=name)),
    ):
        assert (await failure(call)).code() is code


async def test_applications_neither_load_nor_unload(replica: Replica) -> None:
    """They ask what there is, and operators do the rest."""
    for call in (load(replica, metadata=APPLICATION), unload(replica, metadata=APPLICATION)):
        error = await failure(call)
        assert (error.code(), details(error)[0]) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    assert (await replica.inference.ModelInfer(infer(keys_of()), metadata=APPLICATION)).model_version == "1"
    await unload(replica, metadata=OPERATOR)
    await load(replica, metadata=OPERATOR)


async def test_parameters_and_names_of_repositories_are_refused(replica: Replica) -> None:
    """A caller brings no model and no configuration; what clients always send with an unload is let through."""
    request = messages.RepositoryModelLoadRequest(model_name="late_flights")
    request.parameters["file:1/model.onnx"].bytes_param = b"\x80\x04pickle"
    assert details(await failure(replica.inference.RepositoryModelLoad(request)))[1] == ["parameters"]
    request = messages.RepositoryModelLoadRequest(repository_name="late_flights")
    assert details(await failure(replica.inference.RepositoryModelLoad(request)))[1] == ["repository_name"]
    last = messages.RepositoryModelUnloadRequest(model_name="late_flights")
    last.parameters["unload_dependents"].bool_param = True
    await replica.inference.RepositoryModelUnload(last)


async def test_the_look_up_gives_up_with_the_requests_own_timeout(rig: Rig, replica: Replica) -> None:
    """Microseconds, besides the deadline of the call."""
    rig.features.hold = asyncio.Event()
    started = asyncio.get_running_loop().time()
    request = infer(keys_of(), parameters={"timeout": 200_000})
    error = await failure(replica.inference.ModelInfer(request, timeout=20))
    rig.features.hold.set()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert asyncio.get_running_loop().time() - started < timedelta(seconds=10).total_seconds()
