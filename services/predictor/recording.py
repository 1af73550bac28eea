"""Answers with their records, which are in the spool before the answers leave.

Records of a batch are made together and written in one go; what does not fit into the spool or a message of the logger
fails alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from services.predictor.batching import Member
from services.predictor.explaining import Explaining
from services.predictor.policies import Missing, missing_of
from services.predictor.questions import Question
from services.predictor.records import RecordBatch, RecordedRequest
from services.predictor.requests import Answer, Request, Unrecorded
from services.predictor.scoring import Scored
from services.predictor.serving import Served
from services.predictor.spool import Spool
from services.runtime.clock import Clock
from services.runtime.errors import LimitExceeded, SpoolFull
from services.runtime.ids import new_ids

# The logger takes at most 4 MiB in one message.
RECORD_BYTES_MAX = 3 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
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


# A request on its way through a batch.
Asking = Member[Asked, Answer]


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """A member's answer, and the record that is written before it gets it."""

    member: Asking
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


class Recorder:
    """Makes records and writes them; `fsync`: what is written is on the disk before it counts as written."""

    def __init__(
        self, spool: Spool, encode: Callable[[RecordBatch], Sequence[bytes]], clock: Clock, *, fsync: bool
    ) -> None:
        self._spool = spool
        self._encode = encode
        self._clock = clock
        self._fsync = fsync

    @property
    def has_room_for_shadows(self) -> bool:
        """Whether less than half of the spool is taken: the rest is for answers."""
        return not self._spool.half_full

    def made(self, scored: Scored, members: Sequence[Asking]) -> Iterator[Recorded]:
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
            yield Recorded(member, answer, payload)

    async def write(self, records: list[Recorded]) -> list[Recorded]:
        """Writes records, all at once if they fit; answers those that were written, the others fail.

        Without fsync nothing is waited for.
        """
        written = self._append(records)
        if self._fsync:
            try:
                await asyncio.to_thread(self._spool.sync)
            except SpoolFull as error:
                # They are written and may survive: to run them again would record them twice.
                for record in written:
                    record.member.fail(error)
        return written

    async def write_all(self, payloads: Sequence[tuple[bytes, int]]) -> None:
        """Writes payloads with their counts of predictions, all or none. Raises SpoolFull."""
        self._spool.append_all(payloads)
        if self._fsync:
            await asyncio.to_thread(self._spool.sync)

    def _append(self, records: list[Recorded]) -> list[Recorded]:
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


def _recorded_request(asked: Asked, rows: range, now: float) -> RecordedRequest:
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


def _too_large(record: Recorded) -> LimitExceeded:
    return LimitExceeded(
        f"the record of {record.member.rows} rows has {len(record.payload)} bytes; ask for fewer rows at once",
        limit=str(RECORD_BYTES_MAX),
    )
