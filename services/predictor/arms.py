"""Which arm of a deployment answers which rows, for deployments that have several.

An entity always gets the same arm, see `assignment`; keys of a row that are NULL count as they are, and without any
entity keys the request features stand for the entity. Rows of one request that belong to several arms are predicted
apart and put together again in their order, with the values that requests of their own would have had; they are
recorded when all of them are there, all or none. Shadows get what was asked when the answer is there, see `shadows`.

Somebody may ask for an arm: by its name, which is for operators (testers), or by its version, which everybody may name
when the arm has a weight. Whoever gives the features that the model takes is answered by the first arm, as others may
take other features. All these are recorded as forced.

A deployment with one arm goes straight through, and its answers and records name none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Protocol

import numpy as np

from foresight.values import Column, DataType
from foresight.values.errors import quoted
from services.predictor.explaining import Explanation, check_explainable
from services.predictor.prediction import ROWS_ON_LOOP_MAX
from services.predictor.questions import Question, check_question
from services.predictor.records import RecordedArm
from services.predictor.requests import Answer, AnsweredRows, Predicting, Request
from services.predictor.serving import ServedArm, ServedArms
from services.predictor.shadows import AGE_S, Shadows
from services.runtime.clock import Clock
from services.runtime.errors import ModelNotReady, NotFound, PermissionDenied, ServiceError
from services.runtime.identity import is_operator

# The metadata that forces an arm.
ARM_HEADER = "x-foresight-arm"


class ArmsTable(Protocol):
    """Which arms answer for a deployment."""

    def arms(self, name: str) -> ServedArms:
        """The arms that answer. Raises NotFound and ModelNotReady."""
        ...


class Recording(Predicting, Protocol):
    """Predicts; answers that were asked to be left unrecorded are recorded together."""

    async def record(self, parts: Sequence[Answer]) -> None:
        """Writes the records of answers, all or none. Raises SpoolFull."""
        ...


class Arms:
    """Shares rows out among the arms that answer."""

    def __init__(self, table: ArmsTable, predictor: Recording, shadows: Shadows, clock: Clock) -> None:
        self._table = table
        self._predictor = predictor
        self._shadows = shadows
        self._clock = clock

    async def predict(self, request: Request) -> Answer:
        """The answer, its predictions in the spool.

        Raises what `Predictor.predict` raises; NotFound for an arm that there is not, PermissionDenied for one that
        the caller may not ask for, ModelNotReady for one that is not loaded.
        """
        serving = request.serving or self._table.arms(request.deployment)
        if not serving.several and not request.forced_arm:
            return await self._predictor.predict(request)
        forced = _forced(serving, request)
        if forced is not None:
            its = RecordedArm(forced.name, forced.probability, forced=True, shadow=False)
            answer = await self._ask(replace(request, served=forced.served, arm=its), forced)
        else:
            answer = await self._share_out(serving, request)
        for shadow in serving.shadows:
            if shadow is not forced and not request.given:
                self._shadows.add(_for_shadow(request, shadow, answer))
        return answer

    async def _share_out(self, serving: ServedArms, request: Request) -> Answer:
        question = check_question(serving.first.plan, request.columns, request.event_time, self._clock())
        if request.explain:
            check_explainable(question.rows)
        # All parts, and the shadows, at the same time.
        request = replace(request, event_time=question.event_time)
        chosen = await _choose(serving, question)
        parts = [(_part(request, arm, rows, question.rows), arm, rows) for arm, rows in chosen]
        if len(parts) == 1:
            return await self._ask(*parts[0][:2])
        if request.explain:
            # One after the other, as explanations are made: a request takes one of their few places however many arms.
            answers = [await self._ask_part(*part) for part in parts]
        else:
            answers = await self._ask_all(parts)
        await self._predictor.record(answers)
        return merged(answers, [rows for _, _, rows in parts])

    async def _ask_all(self, parts: Sequence[tuple[Request, ServedArm, Sequence[int]]]) -> list[Answer]:
        tasks = [asyncio.ensure_future(self._ask_part(*part)) for part in parts]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            raise

    async def _ask(self, request: Request, arm: ServedArm) -> Answer:
        answer = await self._predictor.predict(request)
        rows = tuple(range(len(answer.prediction_ids)))
        return replace(answer, arms=(AnsweredRows(arm.name, answer.model, rows),))

    async def _ask_part(self, part: Request, arm: ServedArm, rows: Sequence[int]) -> Answer:
        try:
            answer = await self._predictor.predict(part)
        except ServiceError as error:
            raise _of_whole(error, rows) from error
        return replace(answer, arms=(AnsweredRows(arm.name, answer.model, tuple(rows)),))


def find_arm(serving: ServedArms, caller: str, name: str, version: str = "") -> ServedArm | None:
    """The arm that is asked for by its name, or by a version of its model; None: neither is given.

    Raises NotFound, PermissionDenied and ModelNotReady.
    """
    if name and not is_operator(caller):
        raise PermissionDenied("only operators force an arm")
    deployment = serving.deployment.name
    chosen = [a for a in serving.deployment.arms if name in ("", a.name)]
    if not chosen:
        raise NotFound("arm", f"{quoted(name)} of {deployment}")
    if version:
        chosen = [a for a in chosen if str(a.version.model.version) == version]
        if not chosen:
            raise NotFound("version", f"{quoted(version)} of {deployment} that serves")
    elif not name:
        return None
    # One version may have several arms, and those that everybody gets come first.
    arm = max(chosen, key=lambda a: a.weight > 0)
    if not arm.weight and not is_operator(caller):
        raise PermissionDenied(f"only operators ask for the arm {arm.name}, which has no weight")
    loaded = serving.named(arm.name)
    if loaded is None:
        raise ModelNotReady(f"the shadow {arm.name} of {deployment} is not loaded", deployment=deployment)
    return loaded


def merged(answers: Sequence[Answer], rows: Sequence[Sequence[int]]) -> Answer:
    """One answer of those for parts of the rows, in the order of the rows."""
    order = list(chain.from_iterable(rows))
    # Where each row stands when the parts are put one after the other.
    places = sorted(range(len(order)), key=order.__getitem__)
    ids = tuple(chain.from_iterable(a.prediction_ids for a in answers))
    outputs = zip(*(a.outputs for a in answers), strict=True)
    missing = [replace(m, row=its[m.row]) for a, its in zip(answers, rows, strict=True) for m in a.missing]
    first = next(a for a, its in zip(answers, rows, strict=True) if 0 in its)
    return replace(
        first,
        prediction_ids=tuple(ids[place] for place in places),
        outputs=tuple(Column.joined(parts).take(places) for parts in outputs),
        missing=sorted(missing, key=lambda m: m.row),
        explanation=_merged_explanation([a.explanation for a in answers], places),
        arms=tuple(chain.from_iterable(a.arms for a in answers)),
        unrecorded=None,
    )


def _merged_explanation(parts: Sequence[Explanation | None], places: Sequence[int]) -> Explanation | None:
    """One explanation; what an arm's model does not take adds nothing there. None if a part has none."""
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    inputs = dict.fromkeys(c.name for part in found for c in part.contributions)

    def joined(columns: Sequence[Column]) -> Column:
        return Column.joined(columns).take(places)

    def contribution(part: Explanation, name: str) -> Column:
        made = next((c for c in part.contributions if c.name == name), None)
        return made if made is not None else Column(name, DataType.FLOAT64, np.zeros(len(part.score)))

    return Explanation(
        output=found[0].output,
        base=joined([part.base for part in found]),
        score=joined([part.score for part in found]),
        contributions=tuple(joined([contribution(part, name) for part in found]) for name in inputs),
    )


def _forced(serving: ServedArms, request: Request) -> ServedArm | None:
    """The arm that has to answer all rows; None: it depends on the entity."""
    if request.served is not None:
        return next(arm for arm in serving.arms if arm.served is request.served)
    return find_arm(serving, request.caller, request.forced_arm)


async def _choose(serving: ServedArms, question: Question) -> list[tuple[ServedArm, list[int]]]:
    """The arms in their order, each with its rows."""
    entities = question.keys or question.request_features
    if question.rows <= ROWS_ON_LOOP_MAX:
        places = serving.assignment.choose(entities)
    else:
        places = await asyncio.to_thread(serving.assignment.choose, entities)
    rows: dict[int, list[int]] = {}
    for row, place in enumerate(places):
        rows.setdefault(place, []).append(row)
    return [(serving.arms[place], rows[place]) for place in sorted(rows)]


def _part(request: Request, arm: ServedArm, rows: Sequence[int], n: int) -> Request:
    """The request for some of the rows, which is recorded with the others."""
    its = RecordedArm(arm.name, arm.probability, forced=False, shadow=False)
    if len(rows) == n:
        return replace(request, served=arm.served, arm=its)
    columns: Mapping[str, Column] = {name: column.take(rows) for name, column in request.columns.items()}
    return replace(request, columns=columns, served=arm.served, arm=its, held=True)


def _for_shadow(request: Request, shadow: ServedArm, answer: Answer) -> Request:
    its = RecordedArm(shadow.name, 0.0, forced=False, shadow=True)
    # Not under the caller's name of the request: nobody gets this answer, so that it repeats none.
    return replace(
        request,
        served=shadow.served,
        arm=its,
        event_time=answer.event_time,
        remaining_s=AGE_S,
        client_request_id="",
        explain=False,
    )


def _of_whole(error: ServiceError, rows: Sequence[int]) -> ServiceError:
    """The error of a part, whose row is counted in the whole request."""
    row = error.metadata.get("row", "")
    if not row.isdecimal() or int(row) >= len(rows):
        return error
    whole = str(rows[int(row)])
    error.message = error.message.replace(f"row {row}", f"row {whole}")
    error.args = (error.message,)
    error.metadata = error.metadata | {"row": whole}
    return error
