"""Answers predictions, in stages on columns of n rows.

    check -> look up -> policies -> transforms -> score -> record -> spool -> answer

Where the caller gives the features that the model takes, look-up, policies and transforms are left out.

The stages share nothing but their arguments. A request keeps the deployment's version that it began with. Whatever
fails before the spool leaves nothing behind; after it, the answer is sent. The event loop does the work for a few
rows, which takes less than a hop to a thread; more rows go to a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import numpy as np
import structlog

from foresight.transforms import TransformSet, Untrusted
from foresight.values import Column
from services.predictor.plans import ViewPlan
from services.predictor.policies import Missing, ResolvedFeature, apply_policies, missing_of
from services.predictor.questions import Question, check_given, check_question
from services.predictor.records import PredictionRecord
from services.predictor.serving import Served
from services.predictor.spool import Spool
from services.predictor.telemetry import Telemetry
from services.predictor.vectors import NO_VECTORS, Vectors, VectorSource
from services.predictor.versions import VersionRef
from services.runtime.clock import Clock
from services.runtime.errors import FailedPrecondition, LimitExceeded, TransformMismatch
from services.runtime.ids import new_id

LOOKUP_TIMEOUT_MAX_S = 5.0
# The layer that knows the cause should report it: the look-up gives up before the caller does.
LOOKUP_DEADLINE_SHARE = 0.9
ROWS_ON_LOOP_MAX = 64
# The logger takes at most 4 MiB in one message.
RECORD_BYTES_MAX = 3 << 20

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What a client asks; `remaining_s` is the time that it still waits, None: forever.

    `served`: the version that must answer, as the columns were read for it; None: whichever serves. `given`: the
    columns are the features that the model takes, see `check_given`.
    """

    deployment: str
    columns: Mapping[str, Column]
    event_time: datetime | None
    caller: str
    request_id: str
    remaining_s: float | None
    served: Served | None = None
    given: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the client gets."""

    prediction_ids: tuple[str, ...]
    outputs: tuple[Column, ...]
    model: VersionRef
    event_time: datetime
    missing: list[Missing]


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    answer: Answer
    payload: bytes


class ServingTable(Protocol):
    """Which version answers for a deployment."""

    def serving(self, name: str) -> Served:
        """The version that answers. Raises NotFound and ModelNotReady."""
        ...


class Predictor:
    """The stages, put one after the other."""

    def __init__(
        self,
        table: ServingTable,
        vectors: VectorSource,
        transforms: TransformSet,
        spool: Spool,
        encode: Callable[[PredictionRecord], bytes],
        telemetry: Telemetry,
        clock: Clock,
        *,
        fsync: bool = False,
    ) -> None:
        self._table = table
        self._vectors = vectors
        self._transforms = transforms
        self._spool = spool
        self._encode = encode
        self._telemetry = telemetry
        self._clock = clock
        self._fsync = fsync

    async def predict(self, request: Request) -> Answer:
        """The answer; its predictions are in the spool.

        Raises InvalidValue, NotFound, ModelNotReady, FeatureMissing, TransformMismatch, FailedPrecondition,
        OutOfRange, Unavailable, SpoolFull and LimitExceeded; then nothing was recorded.
        """
        started = time.perf_counter()
        served = request.served or self._table.serving(request.deployment)
        name = served.deployment.name
        try:
            question = self._check(request, served)
            vectors = await self._look_up(served.plan, question, request.remaining_s)
            if question.rows <= ROWS_ON_LOOP_MAX:
                scored = self._score(request, served, question, vectors, started)
            else:
                scored = await asyncio.to_thread(self._score, request, served, question, vectors, started)
            with self._telemetry.stage("spool"):
                self._spool.append(scored.payload, question.rows)
                if self._fsync:
                    await asyncio.to_thread(self._spool.sync)
        except BaseException as error:
            self._telemetry.failed(name, error)
            served.tally.failed(time.perf_counter() - started)
            raise
        self._telemetry.answered(name, question.rows)
        served.tally.answered(question.rows, time.perf_counter() - started, self._clock())
        return scored.answer

    def _check(self, request: Request, served: Served) -> Question:
        if request.given:
            version = served.deployment.version
            return check_given(served.plan, version, request.columns, request.event_time, self._clock())
        return check_question(served.plan, request.columns, request.event_time, self._clock())

    async def _look_up(self, plan: ViewPlan, question: Question, remaining_s: float | None) -> Vectors:
        if question.given or not plan.features:
            return NO_VECTORS
        timeout_s = LOOKUP_TIMEOUT_MAX_S
        if remaining_s is not None:
            timeout_s = min(timeout_s, remaining_s * LOOKUP_DEADLINE_SHARE)
        with self._telemetry.stage("lookup"):
            return await self._vectors.vectors(plan.ref, question.keys, question.event_time, timeout_s)

    def _score(self, request: Request, served: Served, question: Question, vectors: Vectors, started: float) -> _Scored:
        """Everything between look-up and spool; pure but for ids and clock, so that it may run in any thread."""
        plan = served.plan
        resolved = () if question.given else apply_policies(plan, vectors, question.rows)
        columns = {c.name: c for c in (*question.keys, *question.request_features)}
        columns.update((f.column.name, f.column) for f in resolved)
        with self._telemetry.stage("transform"):
            made = () if question.given else apply_transforms(self._transforms, plan, columns)
        columns.update((c.name, c) for c in made)
        with self._telemetry.stage("score"):
            outputs = served.model.score(columns)
        version = served.deployment.version
        ids = tuple(new_id() for _ in range(question.rows))
        record = PredictionRecord(
            prediction_ids=ids,
            request_id=request.request_id,
            caller=request.caller,
            deployment=served.deployment.name,
            model=version.model,
            model_sha256=version.artifact_sha256,
            view=plan.ref,
            transforms_sha256="" if question.given else plan.transforms_sha256,
            applied_commit=vectors.applied_commit,
            event_time=question.event_time,
            served_at=self._clock(),
            latency_us=int((time.perf_counter() - started) * 1e6),
            entity_keys=question.keys,
            request_features=question.request_features,
            features=(*resolved, *(ResolvedFeature(c) for c in made)),
            sources=vectors.sources,
            outputs=outputs,
        )
        payload = self._encode(record)
        if len(payload) > RECORD_BYTES_MAX:
            raise LimitExceeded(
                f"the record of {question.rows} rows has {len(payload)} bytes; ask for fewer rows at once",
                limit=str(RECORD_BYTES_MAX),
            )
        return _Scored(Answer(ids, outputs, version.model, question.event_time, missing_of(resolved)), payload)


def apply_transforms(transforms: TransformSet, plan: ViewPlan, columns: Mapping[str, Column]) -> tuple[Column, ...]:
    """The outputs of the view's transforms. Raises TransformMismatch, and FailedPrecondition when one fails."""
    if not plan.transforms:
        return ()
    try:
        # What a function does with odd numbers is seen in its result; warnings would only fill the log.
        with np.errstate(all="ignore"):
            return tuple(transforms.apply(plan.transforms, columns))
    except Untrusted as error:
        raise TransformMismatch(str(error), view=str(plan.ref)) from error
    except Exception as error:  # The function is the user's own and may raise anything, with anything in it.
        log.warning("transform_failed", view=str(plan.ref), exc_info=error)
        raise FailedPrecondition(
            "an on-demand transform of the view fails on these values", view=str(plan.ref)
        ) from error
