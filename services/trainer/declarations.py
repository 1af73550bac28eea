"""What models and deployments use, as the feature store is told, so that it drops none of it.

A model version is declared before it is there, and a deployment before it changes: while the feature store is away,
neither comes into being. At the start everything is declared again, as the feature store's database may have been
restored from an earlier state.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from services.runtime.backoff import backoff_s
from services.runtime.errors import FailedPrecondition, NotFound, ServiceError
from services.trainer.feature_store import Thing, ThingKind, Uses
from services.trainer.models import VersionRef

log = structlog.get_logger()

BACKOFF_FIRST_S = 0.2
BACKOFF_S_MAX = 30.0


class Declarations:
    """Declares models and deployments."""

    def __init__(self, uses: Uses) -> None:
        self._uses = uses

    async def model(self, ref: VersionRef, view: VersionRef, dataset_ids: Sequence[str]) -> None:
        """Declares a version that is about to be registered. Raises NotFound for what it uses, Unavailable."""
        await self._uses.declare(_model(ref), _used(view, dataset_ids))

    async def known_model(self, ref: VersionRef, view: VersionRef, dataset_ids: Sequence[str]) -> None:
        """Declares a version that is registered, with what is left of the things that it uses.

        A feature store that was restored may lack some of them. Raises FailedPrecondition when it lacks all of them,
        Unavailable.
        """
        used = _used(view, dataset_ids)
        while used:
            try:
                await self._uses.declare(_model(ref), used)
            except NotFound as error:
                left = [thing for thing in used if not _is_named(thing, error)]
                log.warning("used_thing_is_missing", model=str(ref), **error.metadata)
                used = left if len(left) < len(used) else []
            else:
                return
        raise FailedPrecondition(f"the feature store has nothing of what {ref} was made of", model=str(ref))

    async def deployment(self, name: str, refs: Sequence[VersionRef]) -> None:
        """Declares a deployment of declared versions, those of all arms. Raises Unavailable."""
        await self._uses.declare(Thing(ThingKind.DEPLOYMENT, name), [_model(ref) for ref in dict.fromkeys(refs)])


async def declare_again(declare: Callable[[], Coroutine[Any, Any, int]]) -> None:
    """Declares everything once, trying again until the feature store answers."""
    failures = 0
    while True:
        try:
            declared = await declare()
        except Exception as error:
            failures += 1
            expected = isinstance(error, ServiceError)
            log.warning("not_declared_again", failures=failures, reason=str(error)[:300], exc_info=not expected)
            # Jitter: several replicas start at once.
            jitter = random.uniform(0.5, 1.0)  # noqa: S311 - no secret
            await asyncio.sleep(backoff_s(failures, BACKOFF_FIRST_S, BACKOFF_S_MAX) * jitter)
        else:
            log.info("declared_again", things=declared)
            return


def _model(ref: VersionRef) -> Thing:
    return Thing(ThingKind.MODEL, ref.name, ref.version)


def _used(view: VersionRef, dataset_ids: Sequence[str]) -> list[Thing]:
    datasets = [Thing(ThingKind.TRAINING_DATASET, id) for id in dict.fromkeys(dataset_ids)]
    return [Thing(ThingKind.FEATURE_VIEW, view.name, view.version), *datasets]


def _is_named(thing: Thing, error: NotFound) -> bool:
    """Whether the error is about the thing; it names a version with it."""
    named = error.metadata.get("name", "")
    return error.metadata.get("kind") == thing.kind.value and named.partition(" ")[0] == thing.name
