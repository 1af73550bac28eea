"""Forgets entities: step by step, each repeatable, so that a process that stops in the middle goes on at its start.

The order matters: the keys of a group are found among its offline rows, so the online store comes first. Predictions
leave the log before the rows that came from it, so that nothing comes back; datasets and statistics go last, when
nobody can read rows any more that belong into them. Several processes may work on the same erasure.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import structlog

from foresight.values import Column, InvalidValue
from foresight.values.names import check_text
from services.feature_store.datasets.manifests import Manifest
from services.feature_store.erasure.erasures import (
    Concerned,
    Entity,
    ErasedRows,
    Erasure,
    ErasureReport,
    KeyNames,
    Step,
    WayInView,
    named_in,
    view_keys,
)
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.reads.queries import SpineQuery
from services.feature_store.registry.lineage import Thing, ThingKind
from services.runtime.backoff import backoff_s
from services.runtime.clock import Clock
from services.runtime.errors import FailedPrecondition, NotFound, PermissionDenied, ServiceError, Unavailable
from services.runtime.identity import is_operator

log = structlog.get_logger()

REQUEST_ID_BYTES_MAX = 128
# A call waits so long at most; the erasure goes on without it.
WAIT_S_MAX = 600.0
LOOK_S = 0.5
POLL_S = 5.0
# An erasure that nobody touched for so long is taken up by whoever finds it.
RESUME_AFTER_S = 15.0
BATCH = 100
BACKOFF_FIRST_S = 0.2
BACKOFF_S_MAX = 30.0
ONLINE_TIMEOUT_S = 5.0
CURSOR_LOOK_S = 0.1
# More than any number that a commit can have.
EVERY_COMMIT = 2**62
NO_PIECE = (0, -1)


class ErasureStore(Protocol):
    """Keeps erasures."""

    async def find(self, request_id: str) -> Erasure: ...
    async def get(self, number: int) -> Erasure: ...
    async def begin(self, request_id: str, entity: Entity, at: datetime) -> Erasure: ...
    async def unfinished(self, untouched_s: float, limit: int) -> list[int]: ...
    async def touch(self, number: int, log_position: int = 0, predictions: int = 0) -> None: ...
    async def advance(self, number: int, step: Step, at: datetime) -> None: ...
    async def rows(self, number: int) -> tuple[ErasedRows, ...]: ...
    async def add_dataset(self, number: int, dataset_id: str, name: str) -> None: ...
    async def datasets(self, number: int) -> tuple[tuple[str, str], ...]: ...
    async def concerned(self, names: KeyNames) -> Concerned: ...


class RowRemoval(Protocol):
    """Removes rows, a bounded part per call; 0 or None when nothing is left."""

    async def remove(self, number: int, stored: StoredGroup, entity: Entity, commit: int) -> int: ...
    async def remove_predictions(
        self,
        number: int,
        predictions: StoredGroup,
        outcomes: StoredGroup | None,
        entity: Entity,
        way: WayInView,
        served_before: datetime,
    ) -> int: ...
    async def remove_quarantined(
        self, stored: StoredGroup, entity: Entity, commit: int, after: tuple[int, int]
    ) -> tuple[int, int] | None: ...


class OnlineErasure(Protocol):
    """Carries erasures out in the online store."""

    async def erased(self, erasure: int, timeout_s: float) -> None:
        """Returns once an erasure was carried out. Raises Unavailable when that takes too long."""
        ...


class LogCursor(Protocol):
    """How far the log was reingested."""

    async def cursor(self) -> tuple[int, int, int]:
        """The cursor, and counts."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LogSelection:
    """Predictions of views whose keys have some values; `entity_keys` are the names of all keys of these views."""

    views: tuple[Reference, ...]
    keys: tuple[Column, ...]
    entity_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogProgress:
    """Predictions removed so far, how far the log is done, and how far it has to be."""

    predictions: int
    position: int
    end: int


class LogRemoval(Protocol):
    """Removes predictions from the log."""

    async def forget(
        self, request_id: str, served_before: datetime, selections: Sequence[LogSelection], after: int
    ) -> LogProgress:
        """Removes the next part after a position. Raises Unavailable."""
        ...


class DatasetRemoval(Protocol):
    """Removes datasets."""

    async def holding(
        self,
        keys_in: Callable[[Reference], Sequence[Mapping[str, Any]]],
        named_in: Callable[[SpineQuery], bool],
        lost: Mapping[Reference, int],
    ) -> list[Manifest]: ...
    async def forget(self, dataset_id: str, at: datetime) -> Manifest: ...


class StatisticsRemoval(Protocol):
    """Removes statistics."""

    async def forget(self, group_ids: Sequence[int], dataset_ids: Sequence[str]) -> int: ...


class Users(Protocol):
    """Knows what uses what."""

    async def all_users_of(self, things: Sequence[Thing]) -> list[Thing]: ...


@dataclass(frozen=True, slots=True)
class ErasedParts:
    """Everything that an erasure removes from. `log` None: there is none."""

    rows: RowRemoval
    online: OnlineErasure
    log: LogRemoval | None
    cursor: LogCursor
    datasets: DatasetRemoval
    statistics: StatisticsRemoval
    users: Users


class Eraser:
    """Forgets entities; `run` it in a task, which does the work."""

    def __init__(self, erasures: ErasureStore, parts: ErasedParts, clock: Clock) -> None:
        self._erasures = erasures
        self._parts = parts
        self._clock = clock
        self._woken = asyncio.Event()
        self._progress = asyncio.Condition()
        # What calls to this process asked for, and what failed here before.
        self._asked: set[int] = set()
        self._steps: dict[Step, Callable[[Erasure, Entity], Awaitable[None]]] = {
            Step.ONLINE: self._from_online_store,
            Step.LOG: self._from_log,
            Step.LOG_ROWS: self._from_log_groups,
            Step.ROWS: self._from_groups,
            Step.DATASETS: self._from_datasets,
            Step.STATISTICS: self._from_statistics,
        }

    async def forget(self, request_id: str, keys: Mapping[str, Column], caller: str) -> ErasureReport:
        """Forgets an entity; returns when nothing of it is left.

        Raises PermissionDenied unless the caller is an operator, InvalidValue, FailedPrecondition when no group has
        such keys, AlreadyExists for a request id that was used for another entity, Unavailable after WAIT_S_MAX: the
        erasure goes on then.
        """
        _check(request_id, caller)
        entity = Entity.of(keys)
        await self._check_known(request_id, entity)
        erasure = await self._erasures.begin(request_id, entity, self._clock())
        if erasure.step is not Step.DONE:
            self._asked.add(erasure.number)
            self._woken.set()
            erasure = await self._finished(erasure.number)
        return await self._reported(erasure)

    async def report(self, request_id: str, caller: str) -> ErasureReport:
        """How far an erasure is. Raises PermissionDenied, InvalidValue, NotFound."""
        _check(request_id, caller)
        return await self._reported(await self._erasures.find(request_id))

    async def run(self) -> None:
        """Works on erasures until it is cancelled: on those of this process's calls, and on those left by others."""
        failures, untouched_s = 0, 0.0
        while True:
            self._woken.clear()
            failed = await self._work(untouched_s)
            failures, untouched_s = failures + 1 if failed else 0, RESUME_AFTER_S
            # Jitter: several stores must not ask a logger that comes back all at once.
            jitter = random.uniform(0.5, 1.0)  # noqa: S311 - no secret
            wait_s = backoff_s(failures, BACKOFF_FIRST_S, BACKOFF_S_MAX) * jitter if failed else POLL_S
            try:
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _work(self, untouched_s: float) -> bool:
        """Carries out what is there to do; whether something failed."""
        failed = False
        try:
            left = await self._erasures.unfinished(untouched_s, BATCH)
        except ServiceError as error:
            log.warning("erasures_not_found", reason=str(error)[:300])
            return True
        for number in sorted({*self._asked, *left}):
            try:
                await self._carry_out(number)
                self._asked.discard(number)
            except Exception as error:
                failed = True
                self._asked.add(number)
                expected = isinstance(error, ServiceError)
                log.warning("erasure_waits", number=number, reason=str(error)[:300], exc_info=not expected)
        return failed

    async def _carry_out(self, number: int) -> None:
        while True:
            erasure = await self._erasures.get(number)
            if erasure.entity is not None:
                await self._steps[erasure.step](erasure, erasure.entity)
                step = Step(erasure.step + 1)
                await self._erasures.advance(number, step, self._clock())
                log.info("erasure_advanced", number=number, step=step.name.lower())
            async with self._progress:
                self._progress.notify_all()
            if erasure.entity is None:
                return

    async def _from_online_store(self, erasure: Erasure, entity: Entity) -> None:
        await self._erasures.touch(erasure.number)
        await self._parts.online.erased(erasure.number, ONLINE_TIMEOUT_S)

    async def _from_log(self, erasure: Erasure, entity: Entity) -> None:
        selections = _log_selections(await self._erasures.concerned(erasure.names), entity)
        if self._parts.log is None or not selections:
            return
        position = erasure.log_position
        while True:
            done = await self._parts.log.forget(erasure.request_id, erasure.requested_at, selections, position)
            position = done.position
            await self._erasures.touch(erasure.number, position, done.predictions)
            if position >= done.end:
                return

    async def _from_log_groups(self, erasure: Erasure, entity: Entity) -> None:
        # Pages that were read before the log forgot end there; later ones have nothing of the entity.
        while (await self._parts.cursor.cursor())[0] < erasure.log_position:
            await self._erasures.touch(erasure.number)
            await asyncio.sleep(CURSOR_LOOK_S)
        concerned = await self._erasures.concerned(erasure.names)
        for way in concerned.ways:
            stored, outcomes = concerned.predictions.get(way.view), concerned.outcomes.get(way.view)
            while stored is not None and await self._parts.rows.remove_predictions(
                erasure.number, stored, outcomes, entity, way, erasure.requested_at
            ):
                await self._erasures.touch(erasure.number)
        for stored in concerned.groups:
            while stored.group.derived and await self._parts.rows.remove(erasure.number, stored, entity, EVERY_COMMIT):
                await self._erasures.touch(erasure.number)

    async def _from_groups(self, erasure: Erasure, entity: Entity) -> None:
        for stored in (await self._erasures.concerned(erasure.names)).online():
            while await self._parts.rows.remove(erasure.number, stored, entity, erasure.commit):
                await self._erasures.touch(erasure.number)
            place: tuple[int, int] | None = NO_PIECE
            while place is not None:
                place = await self._parts.rows.remove_quarantined(stored, entity, erasure.commit, place)
                await self._erasures.touch(erasure.number)

    async def _from_datasets(self, erasure: Erasure, entity: Entity) -> None:
        concerned = await self._erasures.concerned(erasure.names)
        lost = {removed.group: removed.first_commit for removed in await self._erasures.rows(erasure.number)}
        held = await self._parts.datasets.holding(
            lambda view: concerned.columns_of(entity, view), lambda spine: named_in(entity, spine), lost
        )
        for manifest in held:
            # Noted first: once it is forgotten it is not found again.
            await self._erasures.add_dataset(erasure.number, manifest.id, manifest.name)
            await self._parts.datasets.forget(manifest.id, erasure.requested_at)
            await self._erasures.touch(erasure.number)

    async def _from_statistics(self, erasure: Erasure, entity: Entity) -> None:
        groups = [removed.group_id for removed in await self._erasures.rows(erasure.number)]
        datasets = [dataset_id for dataset_id, _ in await self._erasures.datasets(erasure.number)]
        await self._parts.statistics.forget(groups, datasets)

    async def _check_known(self, request_id: str, entity: Entity) -> None:
        """Raises FailedPrecondition for a new request about keys that nothing has, which is a mistake."""
        try:
            await self._erasures.find(request_id)
        except NotFound:
            concerned = await self._erasures.concerned(entity.names)
            if not concerned.groups and not concerned.ways:
                named = ", ".join(f"{name} ({type.value})" for name, type in entity.names)
                raise FailedPrecondition(f"no feature group has keys with these names and types: {named}") from None

    async def _finished(self, number: int) -> Erasure:
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                while (erasure := await self._erasures.get(number)).step is not Step.DONE:
                    await self._await_progress()
                return erasure
        except TimeoutError:
            erasure = await self._erasures.get(number)
            raise Unavailable(
                f"the erasure goes on, it is {erasure.step.words}; ask again with the same request id",
                request_id=erasure.request_id,
            ) from None

    async def _await_progress(self) -> None:
        """Returns after a step here, or soon: another process may be the one that works on it."""
        try:
            async with asyncio.timeout(LOOK_S), self._progress:
                await self._progress.wait()
        except TimeoutError:
            return

    async def _reported(self, erasure: Erasure) -> ErasureReport:
        datasets = await self._erasures.datasets(erasure.number)
        things = [Thing(ThingKind.TRAINING_DATASET, dataset_id) for dataset_id, _ in datasets]
        users = await self._parts.users.all_users_of(things) if things else []
        affected = tuple(user for user in users if user.kind in (ThingKind.MODEL, ThingKind.DEPLOYMENT))
        return ErasureReport(erasure, await self._erasures.rows(erasure.number), datasets, affected)


def _log_selections(concerned: Concerned, entity: Entity) -> list[LogSelection]:
    """The ways in views, those together that look for the same values of the same keys."""
    views: dict[tuple[tuple[tuple[str, str], ...], tuple[str, ...]], list[WayInView]] = {}
    for way in concerned.ways:
        views.setdefault((way.pairs, concerned.entity_keys[way.view]), []).append(way)
    return [
        LogSelection(tuple(way.view for way in ways), view_keys(entity, ways[0]), entity_keys)
        for (_, entity_keys), ways in views.items()
    ]


def _check(request_id: str, caller: str) -> None:
    if not is_operator(caller):
        raise PermissionDenied("entities are forgotten by operators only")
    if not request_id:
        raise InvalidValue("request_id", "is required")
    check_text(request_id, "request_id", REQUEST_ID_BYTES_MAX)
