"""The model registry: versions are numbered here and never change; aliases and deployments point at them.

Each method is one transaction. Whoever wants to hear of changes of deployments asks `subscribe`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

import structlog

from foresight.values import FeatureView
from services.runtime.clock import Clock
from services.runtime.database import Database
from services.runtime.errors import FailedPrecondition, LimitExceeded, NotFound, StaleEtag
from services.runtime.ids import new_id
from services.trainer.arms import WantedArm, alone, check_alike, check_arms, resolved, serve_alike
from services.trainer.declarations import Declarations
from services.trainer.models import Arm, Decision, Deployment, Judgement, ModelVersion, NewVersion, VersionRef
from services.trainer.postgres import decisions, deployments, versions

log = structlog.get_logger()

T = TypeVar("T")
LIST_MAX = 1_000
DECLARED_AT_ONCE = 200
DEPLOYMENTS_MAX = 256
# Over all deployments: watchers get them in one message.
ARMS_IN_ALL_MAX = 1_024
CHAMPION = "champion"
CHALLENGER = "challenger"


class Registry:
    """Model versions, aliases, deployments and the decisions that moved them."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        declarations: Declarations,
        view: Callable[[VersionRef], Awaitable[FeatureView]],
    ) -> None:
        self._database = database
        self._clock = clock
        self._declarations = declarations
        self._view = view
        self._subscribers: set[asyncio.Event] = set()

    async def register(self, new: NewVersion) -> ModelVersion:
        """Stores a version under the model's next number.

        When the model's latest version has the same artifact, signature and lineage, that one is answered: a
        training that is repeated changes nothing. Raises NotFound when what it is made of is gone, Unavailable while
        the feature store cannot be told of it.
        """
        async with self._database.transaction() as connection:
            ref = await versions.add_version(connection, new, self._clock())
            await self._declarations.model(ref, new.view, new.lineage.dataset_ids)
            return await _existing(versions.find_version(connection, ref), "model", ref)

    async def version(self, ref: VersionRef, alias: str = "") -> ModelVersion:
        """A version; with version 0 the one of the alias, or the latest. Raises NotFound."""
        async with self._database.transaction() as connection:
            found = await versions.find_version(connection, ref, alias)
        if found is None:
            raise NotFound("model", f"{ref.name} with the alias {alias}" if alias else str(ref))
        return found

    async def versions(self, model: str = "") -> Sequence[ModelVersion]:
        """The newest versions of a model (or of all), newest first, at most LIST_MAX."""
        async with self._database.transaction() as connection:
            return await versions.newest_versions(connection, model, LIST_MAX)

    async def set_alias(self, ref: VersionRef, alias: str) -> ModelVersion:
        """Points an alias at a version. Raises NotFound."""
        async with self._database.transaction() as connection:
            await _existing(versions.find_version(connection, ref), "model", ref)
            await versions.point_alias(connection, ref, alias)
            return await _existing(versions.find_version(connection, ref), "model", ref)

    async def deployment(self, name: str) -> Deployment:
        """A deployment. Raises NotFound."""
        async with self._database.transaction() as connection:
            return await _existing(deployments.find_deployment(connection, name), "deployment", name)

    async def deployments(self) -> Sequence[Deployment]:
        """All deployments, by name."""
        async with self._database.transaction() as connection:
            return await deployments.all_deployments(connection)

    async def count_deployments(self) -> int:
        """How many deployments there are; the cheapest question that shows that the registry answers."""
        async with self._database.transaction() as connection:
            return await deployments.count_deployments(connection)

    async def set_deployment(
        self, name: str, wanted: VersionRef | Sequence[WantedArm], etag: str = "", salt: str = ""
    ) -> Deployment:
        """Creates or changes a deployment: one version, or arms. The alias `champion` follows the first arm.

        Without a salt it keeps the one that it has, or gets its name. A change to what is there already keeps etag and
        time. Raises InvalidValue for arms that never go together; NotFound for a model; StaleEtag when `etag` is given
        and is not the present one; FailedPrecondition for versions that cannot be asked or do not answer alike;
        LimitExceeded beyond DEPLOYMENTS_MAX deployments or ARMS_IN_ALL_MAX arms; Unavailable while the feature store
        cannot be told or asked.
        """
        asked = check_arms(alone(wanted) if isinstance(wanted, VersionRef) else wanted)
        async with self._database.transaction() as connection:
            before = await deployments.lock_deployment(connection, name)
            if etag and (before is None or before.etag != etag):
                raise _stale(name)
            found = [await _existing(versions.find_version(connection, a.model), "model", a.model) for a in asked]
            arms = resolved(asked, found)
            await check_alike(arms, self._view)
            if before is None and await deployments.count_deployments(connection) >= DEPLOYMENTS_MAX:
                raise LimitExceeded(f"there are {DEPLOYMENTS_MAX} deployments already", limit="deployments")
            if await deployments.count_arms(connection, besides=name) + len(arms) > ARMS_IN_ALL_MAX:
                raise LimitExceeded(f"all deployments would have more than {ARMS_IN_ALL_MAX} arms", limit="arms")
            salt = salt or (before.salt if before is not None else name)
            if before is None or before.salt != salt or not serve_alike(before.arms, arms):
                await self._declare(name, arms)
                await deployments.put_deployment(connection, self._changed(name, arms, salt))
            await versions.point_alias(connection, arms[0].version.ref, CHAMPION)
            after = await _existing(deployments.find_deployment(connection, name), "deployment", name)
        self._notify()
        return after

    async def decision(self, judgement: Judgement) -> Decision | None:
        """The decision on the same question, if it was made before.

        Raises FailedPrecondition when it was made with another margin.
        """
        async with self._database.transaction() as connection:
            found = await decisions.find_decision(connection, judgement)
        return _same_margin(found, judgement)

    async def decide(self, decision: Decision, etag: str) -> Decision:
        """Stores a decision and, when it promotes, moves deployment and alias in the same transaction.

        A promoted challenger answers alone: what other arms the deployment had, shadows among them, was to find out.
        `etag` is the deployment's when the champion was measured; StaleEtag when it has changed since. Somebody
        else's decision on the same question that came first is answered instead. Unavailable as for `set_deployment`.
        """
        judgement = decision.judgement
        async with self._database.transaction() as connection:
            before = await deployments.lock_deployment(connection, judgement.deployment)
            first = _same_margin(await decisions.find_decision(connection, judgement), judgement)
            if first is not None:
                return first
            if before is None or before.etag != etag:
                raise _stale(judgement.deployment)
            await decisions.add_decision(connection, decision)
            if decision.promoted:
                challenger = judgement.challenger
                version = await _existing(versions.find_version(connection, challenger), "model", challenger)
                arms = resolved(alone(challenger), [version])
                await self._declare(before.name, arms)
                await deployments.put_deployment(connection, self._changed(before.name, arms, before.salt))
                await versions.point_alias(connection, challenger, CHAMPION)
        self._notify()
        return decision

    async def decisions(self, deployment: str = "") -> Sequence[Decision]:
        """The newest decisions of a deployment (or of all), oldest first, at most LIST_MAX."""
        async with self._database.transaction() as connection:
            return await decisions.newest_decisions(connection, deployment, LIST_MAX)

    async def declare_again(self) -> int:
        """Declares all versions and deployments once more; answers how many.

        Those whose data the feature store has lost are left out, and named in the log. Raises Unavailable.
        """
        declared, last, full = 0, None, True
        while full:
            async with self._database.transaction() as connection:
                page = await versions.next_versions(connection, last, DECLARED_AT_ONCE)
            for version in page:
                declared += await _left_out_if_lost(
                    self._declarations.known_model(version.ref, version.view, version.lineage.dataset_ids)
                )
            full = len(page) == DECLARED_AT_ONCE
            last = page[-1].ref if page else last
        for deployment in await self.deployments():
            # Locked: it is not to be declared as it was before a change.
            async with self._database.transaction() as connection:
                present = await deployments.lock_deployment(connection, deployment.name)
                if present is not None:
                    declared += await _left_out_if_lost(self._declare(present.name, present.arms))
        return declared

    def _changed(self, name: str, arms: tuple[Arm, ...], salt: str) -> Deployment:
        return Deployment(name, arms, salt, new_id(), self._clock())

    async def _declare(self, deployment: str, arms: Sequence[Arm]) -> None:
        # The models, too: one that was registered by an earlier release was never declared.
        for version in {arm.version.ref: arm.version for arm in arms}.values():
            await self._declarations.known_model(version.ref, version.view, version.lineage.dataset_ids)
        await self._declarations.deployment(deployment, [arm.version.ref for arm in arms])

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[asyncio.Event]:
        """An event that is set after every change of a deployment made by this process."""
        event = asyncio.Event()
        self._subscribers.add(event)
        try:
            yield event
        finally:
            self._subscribers.discard(event)

    def _notify(self) -> None:
        for event in self._subscribers:
            event.set()


async def _existing(find: Awaitable[T | None], kind: str, name: object) -> T:
    found = await find
    if found is None:
        raise NotFound(kind, str(name))
    return found


async def _left_out_if_lost(declaring: Awaitable[None]) -> bool:
    """Whether something could be declared."""
    try:
        await declaring
    except FailedPrecondition as error:
        log.warning("not_declared", reason=error.message)
        return False
    return True


def _same_margin(decision: Decision | None, judgement: Judgement) -> Decision | None:
    if decision is not None and decision.judgement.margin != judgement.margin:
        raise FailedPrecondition("this challenger was judged for this time already, with another margin")
    return decision


def _stale(deployment: str) -> StaleEtag:
    return StaleEtag(f"the deployment {deployment} has changed since it was read", deployment=deployment)
