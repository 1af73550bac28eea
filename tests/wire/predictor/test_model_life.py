"""The life of a model in a replica: checked before it has traffic, swapped, drained and let go; a hundred at once."""

from __future__ import annotations

import asyncio
import gc
import weakref

import grpc
import numpy as np
import pytest

from foresight.predictor.v1 import prediction_pb2
from foresight.scoring import ModelTask, Signature
from foresight.values import Column, DataType, Field
from foresight.wire import encode_column
from inference import grpc_service_pb2 as messages
from services.runtime.status import error_metadata
from tests.wire.predictor.onnx_models import with_example
from tests.wire.predictor.rig import (
    MODEL_INPUTS,
    Replica,
    Rig,
    artifact,
    ask,
    flight_view,
    model_version,
    request_view,
    until,
)

MODELS = 100
LATE = Field("late", DataType.BOOL)
CLASSES = Column.build("late", DataType.BOOL, [False, True])


def signature(*names: str) -> Signature:
    fields = {f.name: f for f in (*flight_view().features, *request_view().features)}
    return Signature(ModelTask.BINARY_CLASSIFICATION, tuple(fields[n] for n in names), LATE, CLASSES)


def checked(bias: float, *names: str, shift: float = 0.0) -> bytes:
    """A model that carries an example; with `shift` one that it does not score so."""
    rows = {name: [1.0, float("nan"), -2.5 + i] for i, name in enumerate(names)}
    return with_example(artifact(bias, names), signature(*names), rows, shift=shift)


def state(replica: Replica, name: str) -> tuple[int | None, str]:
    found = {s.deployment: (s.model.version if s.model else None, s.cause) for s in replica.deployments.listing()}
    return found.get(name, (None, ""))


async def is_ready(replica: Replica, version: str) -> bool:
    request = messages.ModelReadyRequest(name="late_flights", version=version)
    return (await replica.inference.ModelReady(request)).ready


async def test_a_version_that_fails_its_check_has_no_traffic(rig: Rig, replica: Replica) -> None:
    """The old one serves on; the listing and the model's readiness say why."""
    rig.trainer.register(model_version(2), checked(1.0, *MODEL_INPUTS, shift=0.25))
    await rig.trainer.deploy("late_flights", "late", 2)
    await until(lambda: "scores its example otherwise" in state(replica, "late_flights")[1])
    assert (await replica.stub.Predict(ask())).model.version == 1
    (listed,) = (await replica.stub.ListServing(prediction_pb2.ListServingRequest())).deployments
    assert (listed.ready, listed.model.version) == (True, 1)
    assert "scores its example otherwise" in listed.cause
    index = await replica.inference.RepositoryIndex(messages.RepositoryIndexRequest())
    assert any("scores its example otherwise" in m.reason for m in index.models)
    rig.trainer.register(model_version(3), checked(1.0, *MODEL_INPUTS))
    await rig.trainer.deploy("late_flights", "late", 3)
    await until(lambda: state(replica, "late_flights") == (3, ""))
    assert await is_ready(replica, "3")


async def test_a_first_version_that_fails_its_check_is_not_ready(rig: Rig) -> None:
    rig.trainer.register(model_version(2), checked(1.0, *MODEL_INPUTS, shift=0.25))
    await rig.trainer.deploy("late_flights", "late", 2)
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        assert "scores its example otherwise" in state(replica, "late_flights")[1]
        assert not await is_ready(replica, "")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await replica.stub.Predict(ask())
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "scores its example otherwise" in error_metadata(caught.value)["cause"]


async def test_a_replaced_model_answers_who_began_with_it_and_is_let_go(rig: Rig, replica: Replica) -> None:
    first = weakref.ref(replica.deployments.serving("late_flights").model)
    await replica.stub.Predict(ask())
    rig.features.hold = asyncio.Event()
    begun = asyncio.ensure_future(replica.stub.Predict(ask()))
    await until(lambda: rig.features.waiting == 1)
    rig.trainer.register(model_version(2), checked(1.0, *MODEL_INPUTS))
    await rig.trainer.deploy("late_flights", "late", 2)
    await until(lambda: state(replica, "late_flights") == (2, ""))
    assert first() is not None
    rig.features.hold.set()
    rig.features.hold = None
    assert (await begun).model.version == 1
    assert (await replica.stub.Predict(ask())).model.version == 2

    def gone() -> bool:
        gc.collect()
        return first() is None

    await until(gone)


async def test_an_unloaded_and_a_withdrawn_model_are_let_go(rig: Rig, replica: Replica) -> None:
    model = weakref.ref(replica.deployments.serving("late_flights").model)
    await replica.stub.Predict(ask())
    await rig.trainer.withdraw("late_flights")

    def gone() -> bool:
        gc.collect()
        return model() is None

    await until(gone)


async def test_a_hundred_models_answer_from_one_process(rig: Rig) -> None:
    """Each with its own scores, also after a restart without the trainer."""
    view = request_view()
    rig.features.views[(view.name, view.version)] = view
    await rig.trainer.withdraw("late_flights")
    for i in range(MODELS):
        described = model_version(1, model=f"model_{i}", view=view, inputs=("hour",))
        rig.trainer.register(described, checked(i / 20, "hour"))
        await rig.trainer.deploy(f"deployment_{i}", f"model_{i}", 1)
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready, seconds=20)
        first = await scores(replica)
    assert first == pytest.approx([1 / (1 + np.exp(-0.03 - i / 20)) for i in range(MODELS)], abs=1e-6)
    await rig.stop("trainer")
    rig.features.views.clear()
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready, seconds=20)
        assert await scores(replica) == first


async def scores(replica: Replica) -> list[float]:
    """Of one row, from every deployment at the same time."""
    columns = [encode_column(Column.build("hour", DataType.FLOAT64, [3.0]))]
    calls = [
        replica.stub.Predict(prediction_pb2.PredictRequest(deployment=f"deployment_{i}", columns=columns))
        for i in range(MODELS)
    ]
    answers = [await call for call in calls]
    assert [a.model.name for a in answers] == [f"model_{i}" for i in range(MODELS)]
    return [a.outputs[0].float64_values.values[0] for a in answers]
