"""A storm of requests, good and bad, on one predictor: each good one must be answered as if it had been alone.

Deployments of four kinds: a view with sources and a row-wise transform; a transform that is not row-wise; a model whose
scores depend on its batch; a view without sources. Among the good requests come malformed bytes, columns that do not
fit, entities without a required feature, values that a transform refuses, callers who go away, and deadlines of 1 to
10 ms.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import grpc

from foresight.predictor.v1 import prediction_pb2
from foresight.transforms import source_sha256
from foresight.values import Column, DataType, FeatureView, Field, Transform
from foresight.wire import encode_column, encode_instant
from tests.wire.predictor import transforms
from tests.wire.predictor.onnx_models import crowd_model
from tests.wire.predictor.rig import NOW, Rig, artifact, ask, flight_view, model_version, request_view

PREDICT = "/foresight.predictor.v1.PredictionService/Predict"
GOOD_KINDS = 150
FLIGHTS, CENTRED, CROWD, PLAIN, INVERSE = "late_flights", "centred", "crowd", "plain", "inverse"


@dataclass
class Report:
    """How a storm went: codes by kind of request, good ones that were answered otherwise, and answered ids."""

    codes: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)

    def note(self, kind: str, code: str) -> None:
        self.codes.setdefault(kind, Counter())[code] += 1


async def deploy_all(rig: Rig) -> None:
    """The deployments of the storm, beside `late_flights`."""
    rig.features.max_age_micros["carriers"] = int(timedelta(days=1).total_seconds() * 1e6)
    inverse, centred = (_view(version, name) for version, name in ((4, "fails_on_zero"), (5, "centred")))
    made = (*MODEL_INPUTS[:4], "made")
    for view in (inverse, centred, request_view()):
        rig.features.views[(view.name, view.version)] = view
    rig.trainer.register(model_version(11, view=inverse, inputs=made), artifact(0.0, made))
    rig.trainer.register(model_version(12, view=centred, inputs=made), artifact(0.5, made))
    rig.trainer.register(model_version(13, view=request_view(), inputs=("hour",)), artifact(0.1, ("hour",)))
    crowd = model_version(14, view=request_view(), inputs=("hour",))
    crowd.batch_invariant = False
    rig.trainer.register(crowd, crowd_model(["hour"]))
    for name, version in ((INVERSE, 11), (CENTRED, 12), (PLAIN, 13), (CROWD, 14)):
        await rig.trainer.deploy(name, "late", version)


MODEL_INPUTS = ("delay", "flights", "wind", "hour")


def _view(version: int, function: str) -> FeatureView:
    made = Field("made", DataType.FLOAT64)
    source = source_sha256(getattr(transforms, function))
    transform = Transform(made, f"{transforms.__name__}:{function}", source, ("hour",))
    return flight_view(version=version, transforms=(transform,), features=(*flight_view().features[:5], made))


def good_request(pick: random.Random) -> bytes:
    """A request that is answered: one to five rows, and any event time at which it can be."""
    rows = pick.choice((1, 1, 1, 2, 5))
    deployment = pick.choice((FLIGHTS, FLIGHTS, CENTRED, CROWD, PLAIN, INVERSE))
    hours = Column.build("hour", DataType.FLOAT64, [pick.choice((0.25, 1.5, 23.75, 7.1)) + i for i in range(rows)])
    # The rows of the carriers and the weather are an hour old.
    at = NOW - timedelta(minutes=pick.choice((0, 5, 59)))
    if deployment in (PLAIN, CROWD):
        request = prediction_pb2.PredictRequest(
            deployment=deployment, columns=[encode_column(hours)], event_time=encode_instant(at)
        )
        return request.SerializeToString()
    carriers = Column.build("carrier", DataType.STRING, [pick.choice(("AA", "UA")) for _ in range(rows)])
    return ask(rows, deployment=deployment, event_time=at, hour=hours, carrier=carriers).SerializeToString()


def _zero_hour() -> Column:
    return Column.build("hour", DataType.FLOAT64, [0.0])


BAD: dict[str, tuple[Callable[[random.Random], bytes], str]] = {
    "malformed": (lambda pick: b"\xff" + pick.randbytes(pick.randint(1, 200)), "INVALID_ARGUMENT"),
    "ragged": (
        lambda pick: ask(2, hour=_zero_hour()).SerializeToString(),
        "INVALID_ARGUMENT",
    ),
    "missing column": (lambda pick: ask(without="route").SerializeToString(), "INVALID_ARGUMENT"),
    "wrong type": (
        lambda pick: ask(hour=Column.build("hour", DataType.STRING, ["x"])).SerializeToString(),
        "INVALID_ARGUMENT",
    ),
    "too many rows": (lambda pick: ask(1_025).SerializeToString(), "INVALID_ARGUMENT"),
    "no deployment": (lambda pick: ask(deployment="nobody").SerializeToString(), "NOT_FOUND"),
    "no required feature": (
        lambda pick: ask(carrier=Column.build("carrier", DataType.STRING, ["ZZ"])).SerializeToString(),
        "NOT_FOUND",
    ),
    "refused by the transform": (
        lambda pick: ask(deployment=INVERSE, hour=_zero_hour()).SerializeToString(),
        "FAILED_PRECONDITION",
    ),
    "no finite score": (lambda pick: _null_hour(CROWD).SerializeToString(), "FAILED_PRECONDITION"),
}
IMPATIENT = {"OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "CANCELLED"}


def _null_hour(deployment: str) -> prediction_pb2.PredictRequest:
    nothing = Column.build("hour", DataType.FLOAT64, [None])
    return prediction_pb2.PredictRequest(deployment=deployment, columns=[encode_column(nothing)])


class Storm:
    """Calls over one channel; answers of `reference` are those of each good request by itself."""

    def __init__(self, channel: grpc.aio.Channel, seed: int) -> None:
        self._call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PREDICT)
        self._pick = random.Random(seed)
        self._good = [good_request(self._pick) for _ in range(GOOD_KINDS)]
        self._bad = {kind: [make(self._pick) for _ in range(5)] for kind, (make, _) in BAD.items()}
        self._alone: list[bytes] = []
        self.report = Report()

    async def ask_alone(self) -> None:
        """Asks each good request once while nobody else does."""
        for request in self._good:
            self._alone.append(self._judged(await self._call(request)))

    async def rage(self, requests: int, in_flight: int) -> Report:
        """So many requests, so many of them at a time."""
        left = requests

        async def caller() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await self._one()

        await asyncio.gather(*(caller() for _ in range(in_flight)))
        return self.report

    async def _one(self) -> None:
        pick, fate = self._pick, self._pick.random()
        if fate < 0.6:
            await self._good_one("good", None, None)
        elif fate < 0.7:
            await self._good_one("impatient", pick.uniform(0.001, 0.010), None)
        elif fate < 0.8:
            await self._good_one("leaving", None, pick.uniform(0, 0.005))
        else:
            kind = pick.choice(list(BAD))
            await self._bad_one(kind)

    async def _good_one(self, kind: str, deadline_s: float | None, leaves_after_s: float | None) -> None:
        position = self._pick.randrange(GOOD_KINDS)
        call = self._call(self._good[position], timeout=deadline_s)
        if leaves_after_s is not None:
            asyncio.get_running_loop().call_later(leaves_after_s, call.cancel)
        try:
            answer = await call
        except asyncio.CancelledError:
            self.report.note(kind, "CANCELLED")
            return
        except grpc.aio.AioRpcError as error:
            self.report.note(kind, error.code().name)
            if kind == "good" or error.code().name not in IMPATIENT:
                self.report.wrong.append(f"{kind}: {error.code().name} {error.details()}")
            return
        self.report.note(kind, "OK")
        if self._judged(answer) != self._alone[position]:
            self.report.wrong.append(f"{kind}: another answer than alone")

    async def _bad_one(self, kind: str) -> None:
        wanted = BAD[kind][1]
        try:
            await self._call(self._pick.choice(self._bad[kind]))
            code, details = "OK", ""
        except grpc.aio.AioRpcError as error:
            code, details = error.code().name, error.details() or ""
        self.report.note(kind, code)
        if code != wanted:
            self.report.wrong.append(f"{kind}: {code} {details}")

    def _judged(self, answer: bytes) -> bytes:
        """All of an answer but its ids, which are noted."""
        response = prediction_pb2.PredictResponse.FromString(answer)
        if not self.report.ids.isdisjoint(response.prediction_ids):
            self.report.wrong.append("an id twice")
        self.report.ids.update(response.prediction_ids)
        del response.prediction_ids[:]
        return response.SerializeToString(deterministic=True)
