"""Which version answers: swaps under load, versions that cannot be loaded, and restarts without a trainer."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest

from foresight.predictor.v1 import prediction_pb2
from foresight.values import Column, DataType, Field, Transform
from services.predictor.serving_file import ServingFile
from services.runtime.status import error_metadata
from tests.wire.predictor.rig import (
    TRANSFORMS,
    Replica,
    Rig,
    artifact,
    ask,
    flight_view,
    model_version,
    request_view,
    until,
)


def states(replica: Replica) -> dict[str, tuple[int | None, str]]:
    return {s.deployment: (s.model.version if s.model else None, s.cause) for s in replica.deployments.listing()}


def hour(value: float) -> Column:
    return Column.build("hour", DataType.FLOAT64, [value])


def serves(replica: Replica, version: int) -> bool:
    return states(replica)["late_flights"] == (version, "")


async def test_a_version_that_cannot_be_loaded_leaves_the_old_one_serving(rig: Rig, replica: Replica) -> None:
    """The artifact's bytes do not match the digest."""
    version = model_version(2)
    version.artifact_sha256 = hashlib.sha256(b"other").hexdigest()
    rig.trainer.register(version, artifact(1.0))
    await rig.trainer.deploy("late_flights", "late", 2)
    await until(lambda: "digest" in states(replica)["late_flights"][1])
    assert states(replica)["late_flights"][0] == 1
    assert (await replica.stub.Predict(ask())).model.version == 1
    assert replica.deployments.ready
    # Back to the version that serves: nothing is wrong any more.
    await rig.trainer.deploy("late_flights", "late", 1)
    await until(lambda: states(replica)["late_flights"] == (1, ""))


async def test_a_transform_whose_source_differs_makes_only_its_deployment_unready(rig: Rig, replica: Replica) -> None:
    """The other deployment answers, and the cause is told."""
    field = Field("total_delay", DataType.FLOAT64)
    changed = Transform(field, f"{TRANSFORMS}:total_delay", "0" * 64, ("delay", "hour"))
    view = flight_view(version=9, transforms=(changed,))
    rig.features.views[("flights", 9)] = view
    rig.trainer.register(model_version(2, view=view), artifact(0.0))
    await rig.trainer.deploy("changed", "late", 2)
    await until(lambda: "source" in states(replica).get("changed", (None, ""))[1])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replica.stub.Predict(ask(deployment="changed"))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "register the view again" in error_metadata(caught.value)["cause"]
    await replica.stub.Predict(ask())
    assert replica.deployments.ready
    listing = await replica.stub.ListServing(prediction_pb2.ListServingRequest())
    assert [(d.deployment, d.ready, bool(d.cause)) for d in listing.deployments] == [
        ("changed", False, True),
        ("late_flights", True, False),
    ]


async def test_an_untrusted_module_is_not_imported(rig: Rig) -> None:
    """The predictor was told to trust none."""
    async with rig.predictor(modules=()) as replica:
        await until(lambda: replica.deployments.ready)
        assert states(replica)["late_flights"][0] is None
        assert "not among the trusted" in states(replica)["late_flights"][1]


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x80\x04\x95pickle"])
async def test_an_artifact_that_is_no_model_is_refused(rig: Rig, replica: Replica, content: bytes) -> None:
    """Bytes of any kind do not take the process down."""
    rig.trainer.register(model_version(2), content)
    await rig.trainer.deploy("broken", "late", 2)
    await until(lambda: "does not load" in states(replica).get("broken", (None, ""))[1])
    await replica.stub.Predict(ask())


async def test_a_withdrawn_deployment_is_not_found(rig: Rig, replica: Replica) -> None:
    """As soon as the watch has told."""
    await rig.trainer.withdraw("late_flights")
    await until(lambda: not states(replica))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replica.stub.Predict(ask())
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_deployments_of_one_artifact_share_the_model(rig: Rig, replica: Replica) -> None:
    """It is downloaded and loaded once."""
    await rig.trainer.deploy("again", "late", 1)
    await until(lambda: states(replica).get("again") == (1, ""))
    assert replica.deployments.serving("again").model is replica.deployments.serving("late_flights").model
    assert rig.trainer.downloads == 1


async def test_a_view_without_sources_needs_no_look_up(rig: Rig, replica: Replica) -> None:
    """Request features only."""
    view = request_view()
    rig.features.views[("plain", 1)] = view
    rig.trainer.register(model_version(1, model="plain", view=view, inputs=("hour",)), artifact(0.0, ("hour",)))
    await rig.trainer.deploy("plain", "plain", 1)
    await until(lambda: states(replica).get("plain") == (1, ""))
    request = prediction_pb2.PredictRequest(deployment="plain", columns=[c for c in ask().columns if c.name == "hour"])
    response = await replica.stub.Predict(request)
    assert rig.features.lookups == 0
    await until(lambda: bool(rig.logger.records))
    verified = await replica.stub.VerifyPrediction(
        prediction_pb2.VerifyPredictionRequest(prediction_id=response.prediction_ids[0])
    )
    assert verified.verified


async def test_a_restarted_predictor_serves_without_trainer_and_registry(rig: Rig) -> None:
    """From its folder: table, views and artifacts; and it follows the trainer once that is back."""
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        await replica.stub.Predict(ask())
    await rig.stop("trainer")
    views, rig.features.views = rig.features.views, {}
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        rig.features.views = views
        assert (await replica.stub.Predict(ask())).model.version == 1
        await rig.deploy_flights(2, bias=1.0)
        await rig.start("trainer")
        await until(lambda: states(replica)["late_flights"] == (2, ""))


class SlowFile(ServingFile):
    """Takes as long over one of its writes as it is told to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.to_hold = 0
        self.held, self.go_on = threading.Event(), threading.Event()

    def write(self, sections: Sequence[bytes]) -> None:
        self.to_hold -= 1
        if not self.to_hold:
            self.held.set()
            assert self.go_on.wait(20)
        super().write(sections)


async def test_a_table_that_was_given_up_while_it_was_written_does_not_come_back(rig: Rig) -> None:
    """What was wanted later is kept later, though the disk is slow: a restart serves that."""
    files: list[SlowFile] = []

    def slow_file(path: Path) -> SlowFile:
        files.append(SlowFile(path))
        return files[0]

    async with rig.predictor(serving_file=slow_file) as replica:
        await until(lambda: replica.deployments.ready)
        # The first one of a change says what serves meanwhile, the second one what is loaded.
        files[0].to_hold = 2
        await rig.deploy_flights(2, bias=1.0)
        await until(files[0].held.is_set)
        await rig.deploy_flights(3, bias=2.0)
        for _ in range(300):
            if (await replica.stub.Predict(ask())).model.version == 3:
                break
        files[0].go_on.set()
        await until(lambda: serves(replica, 3))
    await rig.stop("trainer")
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        assert (await replica.stub.Predict(ask())).model.version == 3


async def test_a_restart_that_is_cut_off_loses_no_view(rig: Rig) -> None:
    """The next one serves without trainer and registry all the same."""
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
    await rig.stop("trainer")
    views, rig.features.views = rig.features.views, {}
    file = rig.folder / "cache/serving"
    first, written = file.read_bytes(), file.stat().st_mtime_ns
    # Nothing can be loaded in this life: its artifact is gone for the moment.
    (rig.folder / "cache/artifacts").rename(rig.folder / "elsewhere")
    async with rig.predictor() as replica:
        await until(lambda: file.stat().st_mtime_ns > written)
        assert states(replica)["late_flights"][0] is None
    assert file.read_bytes() == first
    shutil.rmtree(rig.folder / "cache/artifacts")
    (rig.folder / "elsewhere").rename(rig.folder / "cache/artifacts")
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        rig.features.views = views
        await replica.stub.Predict(ask())


async def test_a_damaged_serving_table_or_artifact_is_fetched_anew(rig: Rig) -> None:
    """What is on disk is only a cache."""
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        await replica.stub.Predict(ask())
        await until(lambda: (rig.folder / "cache/serving").exists())
    for path in (rig.folder / "cache/serving", *Path(rig.folder / "cache/artifacts").glob("*.onnx")):
        damage(path)
    async with rig.predictor() as replica:
        await until(lambda: states(replica).get("late_flights") == (1, ""))
        await replica.stub.Predict(ask())
    assert rig.trainer.downloads == 2


async def test_before_the_first_table_the_deployments_are_unavailable(rig: Rig) -> None:
    """A client may retry; NOT_FOUND would be a lie."""
    await rig.stop("trainer")
    async with rig.predictor() as replica:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await replica.stub.Predict(ask())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not replica.deployments.ready


async def test_not_ready_while_the_feature_store_is_away(rig: Rig) -> None:
    """A replica that starts is UNAVAILABLE, so that clients try again, and says why; it loads when the view comes."""
    rig.features.away = True
    async with rig.predictor() as replica:
        await until(lambda: "does not answer" in states(replica).get("late_flights", (None, ""))[1])
        assert not replica.deployments.ready
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await replica.stub.Predict(ask())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert error_metadata(caught.value)["cause"] == "the feature store does not answer"
        rig.features.away = False
        await until(lambda: replica.deployments.ready)
        await replica.stub.Predict(ask())


async def test_not_ready_without_a_required_model(rig: Rig) -> None:
    """Not deployed, without its artifact for good, or unloaded by an operator; the others answer."""
    async with rig.predictor(required=("other",)) as replica:
        await until(lambda: states(replica).get("late_flights") == (1, ""))
        assert not replica.deployments.ready
        rig.trainer.register(model_version(2), artifact(1.0))
        digest = rig.trainer.versions[("late", 2)].artifact_sha256
        gone = rig.trainer.artifacts.pop(digest)
        await rig.trainer.deploy("other", "late", 2)
        await until(lambda: states(replica).get("other", (None, ""))[1].startswith("no artifact"))
        assert not replica.deployments.ready
        await replica.stub.Predict(ask())
        rig.trainer.artifacts[digest] = gone
        await until(lambda: replica.deployments.ready)
        replica.deployments.unload("other")
        assert not replica.deployments.ready
        await replica.deployments.load("other")
        assert replica.deployments.ready


async def test_a_new_deployment_that_cannot_be_loaded_yet_is_not_ready(rig: Rig) -> None:
    """A replica that has started says MODEL_NOT_READY with the cause: the caller deployed, and may look why."""
    await rig.trainer.withdraw("late_flights")
    async with rig.predictor() as replica:
        await until(lambda: replica.deployments.ready)
        rig.features.away = True
        await rig.deploy_flights()
        await until(lambda: "does not answer" in states(replica).get("late_flights", (None, ""))[1])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await replica.stub.Predict(ask())
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert error_metadata(caught.value)["cause"] == "the feature store does not answer"


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
