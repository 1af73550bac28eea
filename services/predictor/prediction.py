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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from foresight.transforms import TransformSet
from foresight.values import Column
from services.predictor.admission import Admission
from services.predictor.batching import WINDOW_S, Batcher, Expired, Member
from services.predictor.early import TOGETHER_S, EarlyAnswers
from services.predictor.explaining import Explaining, Explanation, Explanations
from services.predictor.lookup import Lookup, patience_s
from services.predictor.policies import Missing, missing_of
from services.predictor.questions import Question, check_given, check_question
from services.predictor.records import RecordBatch, RecordedArm, RecordedRequest
from services.predictor.scoring import Outcomes, Questions, Scored, Scoring
from services.predictor.serving import Served, ServedArms
from services.predictor.spool import Spool
from services.predictor.telemetry import Telemetry
from services.predictor.vectors import NO_VECTORS, Vectors
from services.predictor.versions import VersionRef
from services.runtime.clock import Clock
from services.runtime.errors import LimitExceeded, Overloaded, SpoolFull, Unavailable
from services.runtime.ids import new_ids
from services.runtime.status import code_name_of

# The layer that knows the cause should report it: a prediction is given up before its caller gives it up.
DEADLINE_SHARE = 0.9
ROWS_ON_LOOP_MAX = 64
SECONDS_ON_LOOP_MAX = 0.001
# Those behind a batch do not wait any longer for its look-up; the first where they can do without the feature store. A
# look-up has a longest time (`lookup`), so that at most 20 of one view and model are out.
LATE_WITHOUT_S = 0.1
LATE_S = 0.5
# The logger takes at most 4 MiB in one message.
RECORD_BYTES_MAX = 3 << 20
# Batchers of models that do not serve any more are dropped at this number; an idle one is a few hundred bytes.
BATCHERS_MAX = 4_096


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What a client asks; `remaining_s` is the time that it still waits, None: forever.

    `served`: the version that must answer, as the columns were read for it; None: whichever serves. `given`: the
    columns are the features that the model takes, see `check_given`. `client_request_id`: the caller's own name of the
    request, '' without one. `explain`: the answer is to have an explanation.
    """

    deployment: str
    columns: Mapping[str, Column]
    event_time: datetime | None
    caller: str
    request_id: str
    remaining_s: float | None
    served: Served | None = None
    given: bool = False
    client_request_id: str = ""
    explain: bool = False
    # The arm that the caller asks for; and the arms that may answer, as the columns were read for them. See `arms`.
    forced_arm: str = ""
    serving: ServedArms | None = None
    # What is recorded of the arm, None: the deployment has one only; and whether to leave the record to the caller.
    arm: RecordedArm | None = None
    held: bool = False


@dataclass(frozen=True, slots=True)
class AnsweredRows:
    """The rows of a request that one arm answered, ascending."""

    arm: str
    model: VersionRef
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Unrecorded:
    """The record of an answer that its caller has yet to have written; what it counts for then. `started` as below."""

    payload: bytes
    served: Served
    started: float


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the client gets; `repeated`: it was given before, to an earlier request of the same name.

    `explanation`: None when none was asked for, or the model has no score for a mix of a row and its example. `arms`
    are empty where the deployment has one only; `unrecorded` is the record of an answer to a request that is `held`.
    """

    prediction_ids: tuple[str, ...]
    outputs: tuple[Column, ...]
    model: VersionRef
    event_time: datetime
    missing: list[Missing]
    repeated: bool = False
    explanation: Explanation | None = None
    arms: tuple[AnsweredRows, ...] = ()
    unrecorded: Unrecorded | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A request that was checked, and what answers it; `started` is of `time.perf_counter`."""

    request: Request
    served: Served
    question: Question
    started: float
    explaining: Explaining | None = None

    @property
    def is_shadow(self) -> bool:
        """Whether nobody waits for the answer."""
        return self.request.arm is not None and self.request.arm.shadow

    @property
    def together(self) -> str:
        """Equal for requests that may share a batch: their questions have the same columns."""
        if self.question.given:
            return f"{self.served.together}, given with {len(self.question.keys)} keys"
        if self.is_shadow:
            # Nobody who waits for an answer waits for shadows.
            return f"{self.served.together}, shadows"
        return self.served.together


_Member = Member[_Asked, Answer]


class ServingTable(Protocol):
    """Which version answers for a deployment."""

    def serving(self, name: str) -> Served:
        """The version that answers. Raises NotFound and ModelNotReady."""
        ...


class Predicting(Protocol):
    """Whatever answers requests: the `Predictor`, or what stands around it."""

    async def predict(self, request: Request) -> Answer:
        """The answer; its predictions are in the spool. Raises what `Predictor.predict` raises."""
        ...


class Predictor:
    """The stages, put one after the other."""

    def __init__(
        self,
        table: ServingTable,
        lookup: Lookup,
        transforms: TransformSet,
        spool: Spool,
        encode: Callable[[RecordBatch], Sequence[bytes]],
        telemetry: Telemetry,
        clock: Clock,
        *,
        fsync: bool = False,
        admission: Admission | None = None,
        window_s: float = WINDOW_S,
        explanations: Explanations | None = None,
        late_s: float = LATE_S,
    ) -> None:
        self._table = table
        self._lookup = lookup
        self._scoring = Scoring(transforms, telemetry)
        self._spool = spool
        self._encode = encode
        self._telemetry = telemetry
        self._clock = clock
        self._fsync = fsync
        self._admission = admission or Admission()
        self._window_s = window_s
        self._explanations = explanations or Explanations()
        self._late_s = late_s
        # By `_Asked.together`.
        self._batchers: dict[str, Batcher[_Asked, Answer]] = {}
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
            asked = _Asked(request, served, self._check(request, served), started)
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
                self._spool.append_all([(left.payload, len(answer.prediction_ids)) for answer, left in unrecorded])
                if self._fsync:
                    await asyncio.to_thread(self._spool.sync)
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
        if self._spool.half_full:
            raise SpoolFull("the spool is half full, and the rest is for answers", limit="shadows")
        served = request.served or self._table.serving(request.deployment)
        asked = _Asked(request, served, self._check(request, served), time.perf_counter())
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

    async def _answer_explained(self, asked: _Asked) -> Answer:
        """The answer as without an explanation, then the explanation. Raises what `Explanations.begin` raises, too."""
        with self._explanations.begin(asked.served.model, asked.question.rows, asked.request.remaining_s) as explaining:
            answer = await self._answer(replace(asked, explaining=explaining))
            return replace(answer, explanation=await explaining.made())

    async def _answer(self, asked: _Asked) -> Answer:
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

    def _batcher(self, together: str) -> Batcher[_Asked, Answer]:
        batcher = self._batchers.get(together)
        if batcher is None:
            if len(self._batchers) >= BATCHERS_MAX:
                self._batchers = {key: b for key, b in self._batchers.items() if not b.idle}
            batcher = self._batchers[together] = Batcher(
                self._run, window_s=self._window_s, shared=(Unavailable,), observe=self._observe
            )
        return batcher

    def _observe(self, batch: Sequence[_Member], now: float) -> None:
        self._telemetry.batch(sum(m.rows for m in batch), [now - m.joined for m in batch])

    async def _run(self, batch: Sequence[_Member]) -> None:
        """Everything in brackets, see the module; members get their answers or errors."""
        questions = Questions.joined([m.work.question for m in batch])
        await self._finish(batch, questions, await self._look_up(batch, questions))

    async def _finish(self, batch: Sequence[_Member], questions: Questions, vectors: Vectors) -> None:
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
            kept = self._append(kept)
            if self._fsync:
                try:
                    await asyncio.to_thread(self._spool.sync)
                except SpoolFull as error:
                    # They are written and may survive: to run them again would record them twice.
                    for record in kept:
                        record.member.fail(error)
        for record in kept:
            record.member.answer(record.answer)

    async def _look_up(self, batch: Sequence[_Member], questions: Questions) -> Vectors:
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

    async def _looked_up(self, batch: Sequence[_Member], questions: Questions) -> Vectors:
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

    async def _answer_early(self, members: list[_Member]) -> None:
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
        self, batch: Sequence[_Member], questions: Questions, vectors: Vectors
    ) -> tuple[Outcomes, list[_Recorded]]:
        """Everything between look-up and spool; pure but for ids and clock, so that it may run in any thread.

        Nothing for a batch that waited for its thread until nobody waits for it: others wait for the thread.
        """
        if not any(member.waits for member in batch):
            return Outcomes((), {}), []
        outcomes = self._scoring.score_apart(batch[0].work.served, questions, vectors)
        records: list[_Recorded] = []
        for scored, positions in outcomes.scored:
            records += self._record(scored, [batch[i] for i in positions])
        return outcomes, records

    def _record(self, scored: Scored, members: Sequence[_Member]) -> Iterator[_Recorded]:
        """The answer and the record of each request that was scored."""
        served = members[0].work.served
        version, plan = served.deployment.version, served.plan
        now = time.perf_counter()
        requests = tuple(
            _recorded_request(member.work, scored.questions.rows_of(i), now) for i, member in enumerate(members)
        )
        payloads = self._encode(
            RecordBatch(
                requests=requests,
                model=version.model,
                model_sha256=version.artifact_sha256,
                view=plan.ref,
                transforms_sha256="" if scored.questions.given else plan.transforms_sha256,
                applied_commit=scored.vectors.applied_commit,
                served_at=self._clock(),
                entity_keys=scored.questions.keys,
                request_features=scored.questions.request_features,
                features=scored.recorded_features,
                sources=scored.vectors.sources,
                outputs=scored.outputs,
            )
        )
        whole = len(members) == 1
        missing = missing_of(scored.features)
        for member, request, payload in zip(members, requests, payloads, strict=True):
            outputs = scored.outputs if whole else tuple(c.part(request.start, request.stop) for c in scored.outputs)
            its_missing = missing if whole or not missing else _missing_between(missing, request.start, request.stop)
            answer = Answer(request.prediction_ids, outputs, version.model, request.event_time, its_missing)
            # Whoever was answered early is explained that answer.
            if member.work.explaining is not None and member.waits:
                member.work.explaining.take(scored.columns, range(request.start, request.stop), outputs)
            yield _Recorded(member, answer, payload)

    def _append(self, records: list[_Recorded]) -> list[_Recorded]:
        """Writes records to the spool, all at once if they fit; answers those that were written, the others fail."""
        fitting = [r for r in records if len(r.payload) <= RECORD_BYTES_MAX]
        for record in records:
            if len(record.payload) > RECORD_BYTES_MAX:
                record.member.fail(_too_large(record))
        try:
            if fitting:
                self._spool.append_all([(r.payload, r.member.rows) for r in fitting])
        except SpoolFull as error:
            if len(fitting) == 1:
                fitting[0].member.fail(error)
                return []
            return [written for record in fitting for written in self._append([record])]
        return fitting


@dataclass(frozen=True, slots=True, eq=False)
class _Recorded:
    """A member's answer, and the record that is written before it gets it."""

    member: _Member
    answer: Answer
    payload: bytes

    def given_back(self) -> bool:
        """Gives the record of a request that is `held` to its caller; answers whether it is one."""
        if not self.member.work.request.held:
            return False
        if len(self.payload) > RECORD_BYTES_MAX:
            self.member.fail(_too_large(self))
        else:
            asked = self.member.work
            self.member.answer(replace(self.answer, unrecorded=Unrecorded(self.payload, asked.served, asked.started)))
        return True


def _recorded_request(asked: _Asked, rows: range, now: float) -> RecordedRequest:
    return RecordedRequest(
        start=rows.start,
        stop=rows.stop,
        prediction_ids=new_ids(len(rows)),
        request_id=asked.request.request_id,
        client_request_id=asked.request.client_request_id,
        caller=asked.request.caller,
        deployment=asked.served.deployment.name,
        event_time=asked.question.event_time,
        latency_us=int((now - asked.started) * 1e6),
        arm=asked.request.arm,
    )


def _missing_between(missing: Sequence[Missing], start: int, stop: int) -> list[Missing]:
    return [replace(m, row=m.row - start) for m in missing if start <= m.row < stop]


def _too_large(record: _Recorded) -> LimitExceeded:
    return LimitExceeded(
        f"the record of {record.member.rows} rows has {len(record.payload)} bytes; ask for fewer rows at once",
        limit=str(RECORD_BYTES_MAX),
    )
