"""Answers predictions.

    check -> admit -> join -> ( look up -> policies -> transforms -> score -> records -> spool ) -> answer

What is in brackets is done once for a batch: the requests for one model version over one view that are there at the
same time, see `batching`. Where the callers give the features that the model takes, look-up, policies and transforms
are left out; where the feature store does not answer, the policies of the view's features say whether an answer can do
without it. A request keeps the deployment's version that it began with, and its answer and its record are to the bit
what they would be without the others. Whatever fails before the spool leaves nothing behind; after it, the answer is
sent. The event loop does the work for a few rows, which takes less than a hop to a thread; more rows, or a slow model,
go to a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from foresight.transforms import TransformSet
from services.predictor.admission import Admission
from services.predictor.batching import WINDOW_S, Batcher, Expired
from services.predictor.early import TOGETHER_S, EarlyAnswers
from services.predictor.explaining import Explanations
from services.predictor.load import Load
from services.predictor.lookup import Lookup, patience_s
from services.predictor.questions import Question, check_given, check_question
from services.predictor.recording import Asked, Asking, Recorded, Recorder
from services.predictor.requests import Answer, Request
from services.predictor.scoring import Outcomes, Questions, Scoring
from services.predictor.serving import Served
from services.predictor.telemetry import Telemetry
from services.predictor.vectors import NO_VECTORS, Vectors
from services.runtime.clock import Clock
from services.runtime.errors import Overloaded, SpoolFull, Unavailable
from services.runtime.status import code_name_of

# The layer that knows the cause should report it: a prediction is given up before its caller gives it up.
DEADLINE_SHARE = 0.9
ROWS_ON_LOOP_MAX = 64
SECONDS_ON_LOOP_MAX = 0.001
# Those behind a batch do not wait any longer for its look-up; the first where they can do without the feature store. A
# look-up has a longest time (`lookup`), so that at most 20 of one view and model are out.
LATE_WITHOUT_S = 0.1
LATE_S = 0.5
# Batchers of models that do not serve any more are dropped at this number; an idle one is a few hundred bytes.
BATCHERS_MAX = 4_096


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
        lookup: Lookup,
        transforms: TransformSet,
        recorder: Recorder,
        telemetry: Telemetry,
        clock: Clock,
        *,
        admission: Admission | None = None,
        window_s: float = WINDOW_S,
        explanations: Explanations | None = None,
        late_s: float = LATE_S,
    ) -> None:
        self._table = table
        self._lookup = lookup
        self._scoring = Scoring(transforms, telemetry)
        self._recorder = recorder
        self._telemetry = telemetry
        self._clock = clock
        self._admission = admission or Admission()
        self._window_s = window_s
        self._explanations = explanations or Explanations()
        self._late_s = late_s
        self._load = Load()
        # By `Asked.together`.
        self._batchers: dict[str, Batcher[Asked, Answer]] = {}
        self._early: set[asyncio.Task[None]] = set()

    @property
    def admitted_rows(self) -> int:
        """Rows that wait or are worked on."""
        return self._admission.rows

    @property
    def idle(self) -> bool:
        """Whether no batch forms or runs."""
        return not self._early and all(batcher.idle for batcher in self._batchers.values())

    async def predict(self, request: Request) -> Answer:
        """The answer; its predictions are in the spool.

        Raises InvalidValue, NotFound, ModelNotReady, FeatureMissing, TransformMismatch, FailedPrecondition,
        OutOfRange, Unavailable, SpoolFull, LimitExceeded and Overloaded; then nothing was recorded.
        """
        started = time.perf_counter()
        served = request.served or self._table.serving(request.deployment)
        if not served.tally.tracked:
            self._telemetry.begun(served)
        try:
            asked = Asked(request, served, self._check(request, served), started)
            answer = await (self._answer_explained(asked) if request.explain else self._answer(asked))
        except BaseException as error:
            self._count_failure(served, error, started)
            raise
        if answer.unrecorded is None:
            self._count(served, answer, started)
        return answer

    async def record(self, parts: Sequence[Answer]) -> None:
        """Writes the records of answers to requests that are `held`, all or none. Raises SpoolFull."""
        unrecorded = [(answer, answer.unrecorded) for answer in parts if answer.unrecorded is not None]
        try:
            with self._telemetry.stage("spool"):
                await self._recorder.write_all([(u.payload, len(answer.prediction_ids)) for answer, u in unrecorded])
        except BaseException as error:
            for _, left in unrecorded:
                self._count_failure(left.served, error, left.started)
            raise
        for answer, left in unrecorded:
            self._count(left.served, answer, left.started)

    async def score_beside(self, request: Request) -> None:
        """Predicts and records for a shadow: past the admission and the counts of those whom somebody waits for.

        Raises what `predict` raises, and SpoolFull from half of the spool on: the rest is for answers.
        """
        if not self._recorder.has_room_for_shadows:
            raise SpoolFull("the spool is half full, and the rest is for answers", limit="shadows")
        served = request.served or self._table.serving(request.deployment)
        asked = Asked(request, served, self._check(request, served), time.perf_counter())
        try:
            await self._batcher(asked.together).ask(asked, asked.question.rows, request.remaining_s)
        except Expired as expired:
            raise Unavailable("the shadow was not scored in time") from expired

    def _count(self, served: Served, answer: Answer, started: float) -> None:
        """Counts predictions that are recorded."""
        name, rows = served.deployment.name, len(answer.prediction_ids)
        self._telemetry.answered(name, rows)
        if answer.missing:
            self._telemetry.missing(name, answer.missing)
        served.tally.answered(rows, time.perf_counter() - started, self._clock())

    def _count_failure(self, served: Served, error: BaseException, started: float) -> None:
        self._telemetry.failed(served.deployment.name, error)
        served.tally.failed(time.perf_counter() - started, code_name_of(error))

    def _check(self, request: Request, served: Served) -> Question:
        if request.given:
            version = served.deployment.version
            return check_given(served.plan, version, request.columns, request.event_time, self._clock())
        return check_question(served.plan, request.columns, request.event_time, self._clock())

    async def _answer_explained(self, asked: Asked) -> Answer:
        """The answer as without an explanation, then the explanation. Raises what `Explanations.begin` raises, too."""
        with self._explanations.begin(asked.served.model, asked.question.rows, asked.request.remaining_s) as explaining:
            answer = await self._answer(replace(asked, explaining=explaining))
            return replace(answer, explanation=await explaining.made())

    async def _answer(self, asked: Asked) -> Answer:
        rows, remaining_s = asked.question.rows, asked.request.remaining_s
        batcher = self._batcher(asked.together)
        expected_s = batcher.expected_s(rows)
        self._admission.enter(rows, expected_s, remaining_s)
        try:
            patience_s = None if remaining_s is None else remaining_s * DEADLINE_SHARE
            # Many rows share the cost of a look-up among themselves; others would only wait for them.
            ask = batcher.ask if rows <= ROWS_ON_LOOP_MAX else batcher.ask_alone
            return await ask(asked, rows, patience_s)
        except Expired as expired:
            if expired.running:
                raise Unavailable("the feature store does not answer in time", upstream="feature store") from expired
            raise Overloaded(
                "the prediction did not get its turn within the call's deadline", max(expected_s, 0.1), limit="deadline"
            ) from expired
        finally:
            self._admission.leave(rows)

    def _batcher(self, together: str) -> Batcher[Asked, Answer]:
        batcher = self._batchers.get(together)
        if batcher is None:
            if len(self._batchers) >= BATCHERS_MAX:
                self._batchers = {key: b for key, b in self._batchers.items() if not b.idle}
            batcher = self._batchers[together] = Batcher(
                self._run, window_s=self._window_s, shared=(Unavailable,), busy=self._load.busy, observe=self._observe
            )
        return batcher

    def _observe(self, batch: Sequence[Asking], now: float) -> None:
        self._telemetry.batch(sum(m.rows for m in batch), [now - m.joined for m in batch])

    async def _run(self, batch: Sequence[Asking]) -> None:
        """Everything in brackets, see the module; members get their answers or errors."""
        questions = Questions.joined([m.work.question for m in batch])
        await self._finish(batch, questions, await self._look_up(batch, questions))

    async def _finish(self, batch: Sequence[Asking], questions: Questions, vectors: Vectors) -> None:
        """Everything after the look-up."""
        served = batch[0].work.served
        if questions.rows <= ROWS_ON_LOOP_MAX and questions.rows * served.model.row_s <= SECONDS_ON_LOOP_MAX:
            outcomes, records = self._score(batch, questions, vectors)
        else:
            outcomes, records = await asyncio.to_thread(self._score, batch, questions, vectors)
        for scored, _ in outcomes.scored:
            served.tally.inferred(scored.inference_s)
        for position, fault in outcomes.faults.items():
            batch[position].fail(fault)
        # From here to the answers nothing waits, so that whoever is recorded is answered.
        kept = [record for record in records if record.member.waits and not record.given_back()]
        if not kept:
            return
        with self._telemetry.stage("spool"):
            kept = await self._recorder.write(kept)
        for record in kept:
            record.member.answer(record.answer)

    async def _look_up(self, batch: Sequence[Asking], questions: Questions) -> Vectors:
        """The vectors; whoever comes later does not wait for a look-up that takes long."""
        first, plan = batch[0], batch[0].work.served.plan
        if questions.given or not plan.features:
            return NO_VECTORS
        late_s = self._late_s if plan.needs_feature_store else LATE_WITHOUT_S
        others = self._batcher(first.work.together).let_others
        late = asyncio.get_running_loop().call_later(late_s, others, first)
        try:
            return await self._looked_up(batch, questions)
        finally:
            late.cancel()

    async def _looked_up(self, batch: Sequence[Asking], questions: Questions) -> Vectors:
        """The vectors; without the feature store where it does not answer and the view can do without.

        Whoever has less time than the others is answered without it, or expires, alone.
        """
        plan = batch[0].work.served.plan
        now = asyncio.get_running_loop().time()
        timeout_s = patience_s(plan, max(m.deadline for m in batch) - now)
        event_times = questions.event_time_micros
        if batch[0].work.is_shadow:
            with self._telemetry.stage("lookup"):
                return await self._lookup.vectors_beside(plan, questions.keys, event_times, timeout_s)
        due = []
        if len(batch) > 1 and not plan.needs_feature_store:
            waits = ((patience_s(plan, m.deadline - now), m) for m in batch)
            due = [(now + wait_s, m) for wait_s, m in waits if wait_s < timeout_s - TOGETHER_S]
        try:
            async with EarlyAnswers(due, self._answer_early, self._early):
                with self._telemetry.stage("lookup"):
                    return await self._lookup.vectors(plan, questions.keys, event_times, timeout_s)
        except Unavailable:
            if plan.needs_feature_store:
                raise
        return self._lookup.without(plan, questions.keys, event_times)

    async def _answer_early(self, members: list[Asking]) -> None:
        """Answers members of a batch whose look-up is still out, without the feature store."""
        waiting = [member for member in members if member.waits]
        if not waiting:
            return
        questions = Questions.joined([m.work.question for m in waiting])
        plan = waiting[0].work.served.plan
        try:
            vectors = self._lookup.without(plan, questions.keys, questions.event_time_micros)
            await self._finish(waiting, questions, vectors)
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to those who wait
            for member in waiting:
                member.fail(error)

    def _score(
        self, batch: Sequence[Asking], questions: Questions, vectors: Vectors
    ) -> tuple[Outcomes, list[Recorded]]:
        """Everything between look-up and spool; pure but for ids and clock, so that it may run in any thread.

        Nothing for a batch that waited for its thread until nobody waits for it: others wait for the thread.
        """
        if not any(member.waits for member in batch):
            return Outcomes((), {}), []
        outcomes = self._scoring.score_apart(batch[0].work.served, questions, vectors)
        records: list[Recorded] = []
        for scored, positions in outcomes.scored:
            records += self._recorder.made(scored, [batch[i] for i in positions])
        return outcomes, records
