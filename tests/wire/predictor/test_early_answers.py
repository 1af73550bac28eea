"""A caller who is answered early, without the feature store, while the others of his batch still wait for it: he has
one answer, one record and the explanation of that answer, whatever the batch does later."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

from foresight.predictor.v1 import prediction_pb2
from foresight.wire import decode_column
from services.predictor.explaining import Explanations
from tests.wire.predictor.careful import CAREFUL, ask_carefully, careful_view, deploy_careful, shown
from tests.wire.predictor.onnx_models import with_example
from tests.wire.predictor.rig import MODEL_INPUTS, Replica, Rig, artifact, model_version, until
from tests.wire.predictor.test_degradation import GONE, back, silent
from tests.wire.predictor.test_explanations import EXAMPLE, Held
from tests.wire.predictor.test_model_life import signature


async def one_batch(rig: Rig, replica: Replica, *, explain: bool) -> tuple[Any, Any]:
    """Calls of somebody patient and of somebody hurried, in one batch whose look-up the feature store keeps."""
    await silent(rig)
    first = rig.features.hold
    assert first is not None
    ahead = asyncio.ensure_future(replica.stub.Predict(ask_carefully("AA")))
    await until(lambda: rig.features.waiting == 1)
    # What is looked up from now on waits for another event, whenever it comes.
    await silent(rig)
    request = ask_carefully("AA")
    request.explain = explain
    patient = asyncio.ensure_future(replica.stub.Predict(ask_carefully("AA")))
    hurried = asyncio.ensure_future(replica.stub.Predict(request, timeout=3))
    await until(lambda: replica.predictor.admitted_rows == 3)
    first.set()
    await ahead
    return patient, hurried


async def test_nobody_is_recorded_early_and_again_with_his_batch(rig: Rig) -> None:
    """With fsync, whose wait the batch may overtake."""
    synced, go_on = threading.Event(), threading.Event()
    go_on.set()

    def datasync(fd: int) -> None:
        if not go_on.is_set():
            synced.set()
            go_on.wait(20)
        os.fdatasync(fd)

    await deploy_careful(rig)
    async with rig.predictor(fsync=True, datasync=datasync) as replica:
        await until(lambda: replica.deployments.ready)
        await replica.stub.Predict(ask_carefully("AA"))
        patient, hurried = await one_batch(rig, replica, explain=False)
        go_on.clear()
        try:
            await until(synced.is_set)
            await back(rig)
            # Meanwhile the batch goes on, as far as it can.
            for _ in range(50):
                await replica.stub.GetSpool(prediction_pb2.GetSpoolRequest())
        finally:
            go_on.set()
        await asyncio.gather(patient, hurried, return_exceptions=True)
        await until(lambda: replica.predictor.idle)
        assert replica.spool.incarnations()[0].highest_sequence == 4


async def test_whoever_is_answered_early_is_explained_that_answer(rig: Rig) -> None:
    """Not the one that he would have had with the others, which is there before his explanation is made."""
    held = Held()
    await deploy_careful(rig)
    carrying = with_example(artifact(0.0, MODEL_INPUTS), signature(*MODEL_INPUTS), EXAMPLE)
    rig.trainer.register(model_version(10, view=careful_view()), carrying)
    await rig.trainer.deploy(CAREFUL, "late", 10)
    async with rig.predictor(explanations=Explanations(held)) as replica:
        await until(lambda: replica.deployments.ready)
        await replica.stub.Predict(ask_carefully("AA"))
        patient, hurried = await one_batch(rig, replica, explain=True)
        await until(lambda: bool(held.waiting))
        await back(rig)
        await patient
        held.release()
        answer = await hurried
        assert shown(answer) == GONE
        assert decode_column(answer.explanation.score).to_list() == decode_column(answer.outputs[0]).to_list()
