"""Which model answers for which deployment.

A watch follows the trainer. For every deployment whose version is not the one that serves, a task fetches the view,
checks the transforms, fetches and loads the artifact, warms it and then swaps it in with one assignment: a request
keeps the version that it began with, and the old version serves until the new one is ready. What cannot be loaded
shows its cause in `listing`, leaves the old version serving, and is tried again with growing pauses.

What serves is kept in a file, so that a restarted predictor serves without trainer and feature store registry.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from foresight.transforms import TransformSet, Untrusted
from foresight.values import FeatureView, InvalidValue, check_name
from services.predictor.models import LoadedModel, ModelCache
from services.predictor.plans import ViewPlan, plan_view
from services.predictor.serving_file import ServingFile
from services.predictor.versions import Deployment, VersionRef
from services.predictor.views import ViewCatalogue
from services.runtime.errors import FailedPrecondition, ModelNotReady, NotFound, ServiceError, Unavailable

log = structlog.get_logger()

DEPLOYMENTS_MAX = 1_000
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
CAUSE_CHARACTERS_MAX = 300


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A deployment that answers: everything that a request needs, unchanged as long as it runs.

    `transforms_row_wise`: the view's transforms may run on rows of several requests at once. `together` is equal for
    deployments whose requests may share a look-up and a run of the model.
    """

    deployment: Deployment
    plan: ViewPlan
    model: LoadedModel
    transforms_row_wise: bool = False
    together: str = field(init=False)

    def __post_init__(self) -> None:
        version = self.deployment.version
        object.__setattr__(self, "together", f"{version.model}, {version.artifact_sha256}, {self.plan.ref}")


@dataclass(frozen=True, slots=True)
class ServingState:
    """A deployment as this replica sees it; `cause` says why the wanted version does not answer."""

    deployment: str
    model: VersionRef | None
    cause: str


class DeploymentSource(Protocol):
    """Where deployments come from, and how they are kept."""

    def watch(self) -> AsyncIterator[Sequence[Deployment]]:
        """All deployments, at once and after every change. Raises Unavailable."""
        ...

    def pack(self, deployments: Sequence[Deployment]) -> bytes:
        """The bytes to keep."""
        ...

    def unpack(self, data: bytes) -> Sequence[Deployment]:
        """The deployments of kept bytes. Raises InvalidValue."""
        ...


class ViewPacker(Protocol):
    """How views are kept."""

    def pack_view(self, view: FeatureView) -> bytes:
        """The bytes to keep."""
        ...

    def unpack_view(self, data: bytes) -> FeatureView:
        """The view of kept bytes. Raises InvalidValue."""
        ...


class Deployments:
    """The serving table; one task runs `run`."""

    def __init__(
        self,
        source: DeploymentSource,
        packer: ViewPacker,
        views: ViewCatalogue,
        models: ModelCache,
        transforms: TransformSet,
        file: ServingFile,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._source = source
        self._packer = packer
        self._views = views
        self._models = models
        self._transforms = transforms
        self._file = file
        self._file_lock = asyncio.Lock()
        self._jitter = jitter
        self._wanted: dict[str, Deployment] = {}
        self._serving: dict[str, Served] = {}
        self._causes: dict[str, str] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._undecided: set[str] = set()
        self._delivered = False

    @property
    def ready(self) -> bool:
        """Whether the first table has come and everything in it serves, or cannot for a cause that lasts.

        A deployment that cannot be loaded answers MODEL_NOT_READY; it does not take the others down with it.
        """
        return self._delivered and not self._undecided

    def serving(self, name: str) -> Served:
        """What answers for a deployment. Raises InvalidValue, NotFound and ModelNotReady.

        A replica that has just started and has not loaded everything yet raises Unavailable: the deployment answers
        elsewhere, or in a moment.
        """
        served = self._serving.get(name)
        if served is not None:
            return served
        check_name(name, "deployment")
        if name in self._undecided:
            cause = self._causes.get(name, "it is being loaded")
            text = f"this replica is starting, and the model of {name} is not ready: {cause}"
            raise Unavailable(text, deployment=name, cause=cause)
        if name in self._wanted:
            cause = self._causes.get(name, "it is being loaded")
            raise ModelNotReady(f"the model of {name} is not ready: {cause}", deployment=name, cause=cause)
        if not self._delivered:
            raise Unavailable("the deployments are not known yet", deployment=name)
        raise NotFound("deployment", name)

    def listing(self) -> list[ServingState]:
        """Every deployment, by name."""
        states = []
        for name, wanted in sorted(self._wanted.items()):
            served = self._serving.get(name)
            current = served is not None and served.deployment.answers_like(wanted)
            cause = "" if current else self._causes.get(name, "it is being loaded")
            states.append(ServingState(name, served.deployment.version.model if served else None, cause))
        return states

    async def run(self) -> None:
        """Follows the trainer until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            kept = await asyncio.to_thread(self._restore)
            if kept:
                await self._accept(kept, tasks)
            pause = BACKOFF_MIN_S
            while True:
                try:
                    async for table in self._source.watch():
                        pause = BACKOFF_MIN_S
                        await self._accept(table, tasks)
                except (ServiceError, InvalidValue) as error:
                    log.warning("watch_interrupted", reason=str(error)[:CAUSE_CHARACTERS_MAX])
                except Exception as error:  # A supervised loop: what serves goes on serving
                    log.exception("watch_failed", exc_info=error)
                await asyncio.sleep(pause * (0.5 + self._jitter() / 2))
                pause = min(2 * pause, BACKOFF_MAX_S)

    async def _accept(self, table: Sequence[Deployment], tasks: asyncio.TaskGroup) -> None:
        """Starts to load what changed and lets go of what is gone."""
        if len(table) > DEPLOYMENTS_MAX:
            log.error("deployments_ignored", count=len(table) - DEPLOYMENTS_MAX)
        wanted = {d.name: d for d in sorted(table, key=lambda d: d.name)[:DEPLOYMENTS_MAX]}
        gone = self._wanted.keys() - wanted.keys()
        changed = [d for d in wanted.values() if not _same(self._wanted.get(d.name), d)]
        self._wanted = wanted
        for name in (*gone, *(d.name for d in changed)):
            if (task := self._loading.pop(name, None)) is not None:
                task.cancel()
            self._causes.pop(name, None)
            self._undecided.discard(name)
        if gone:
            self._serving = {name: s for name, s in self._serving.items() if name in wanted}
        for deployment in changed:
            served = self._serving.get(deployment.name)
            if served is None and not self.ready:
                self._undecided.add(deployment.name)
            if served is None or not served.deployment.answers_like(deployment):
                self._loading[deployment.name] = tasks.create_task(self._follow(deployment))
        self._delivered = True
        if gone or changed:
            await self._keep()

    async def _follow(self, deployment: Deployment) -> None:
        """Loads a deployment, as often as it takes, and swaps it in."""
        name = deployment.name
        pause = BACKOFF_MIN_S
        while True:
            try:
                served = await self._load(deployment)
                break
            except ServiceError as error:
                self._causes[name] = error.message[:CAUSE_CHARACTERS_MAX]
                if not isinstance(error, Unavailable):
                    self._undecided.discard(name)
                log.warning("deployment_not_loaded", deployment=name, cause=self._causes[name])
            except Exception as error:  # A supervised loop: one deployment's fault is its own
                self._causes[name] = "it cannot be loaded; the predictor's log has the details"
                self._undecided.discard(name)
                log.exception("deployment_not_loaded", deployment=name, exc_info=error)
            await asyncio.sleep(pause * (0.5 + self._jitter() / 2))
            pause = min(2 * pause, BACKOFF_MAX_S)
        # Kept first: what has once answered answers after a restart, too.
        await self._keep(served)
        # The one reference assignment: whoever reads the table sees the old one or the new one.
        self._serving = {**self._serving, name: served}
        self._causes.pop(name, None)
        self._undecided.discard(name)
        self._loading.pop(name, None)
        log.info("model_loaded", deployment=name, model=str(deployment.version.model))

    async def _load(self, deployment: Deployment) -> Served:
        version = deployment.version
        plan = await self._views.plan(version.view)
        try:
            row_wise = await asyncio.to_thread(self._transforms.are_row_wise, plan.transforms, plan.taken_by_transforms)
        except Untrusted as error:
            raise FailedPrecondition(str(error)) from error
        if not row_wise:
            log.warning("transforms_run_request_by_request", view=str(plan.ref))
        unknown = [f.name for f in version.inputs if f.name not in plan.feature_names]
        if unknown:
            raise FailedPrecondition(f"the model takes {unknown[0]}, which the view {plan.ref} does not have")
        return Served(deployment, plan, await self._models.load(version, plan.view.label), row_wise)

    async def _keep(self, *loaded: Served) -> None:
        """Writes what serves now or is just loaded, what is wanted where nothing serves, and the views of all."""
        async with self._file_lock:
            serving = self._serving | {s.deployment.name: s for s in loaded}
            kept = [serving[name].deployment if name in serving else d for name, d in self._wanted.items()]
            plans = {s.plan.ref: s.plan for s in serving.values()}
            for deployment in kept:
                ref = deployment.version.view
                # One that a restart found in the file and has yet to load: the next restart needs it, too.
                if ref not in plans and (known := self._views.known(ref)) is not None:
                    plans[ref] = known
            sections = [self._source.pack(kept), *(self._packer.pack_view(p.view) for p in plans.values())]
            await asyncio.to_thread(self._file.write, sections)

    def _restore(self) -> Sequence[Deployment]:
        """The deployments of the file; their views are remembered."""
        sections = self._file.read()
        if not sections:
            return []
        try:
            deployments = self._source.unpack(sections[0])
            for section in sections[1:]:
                self._views.remember(plan_view(self._packer.unpack_view(section)))
        except InvalidValue as error:
            log.error("serving_table_damaged", reason=str(error)[:CAUSE_CHARACTERS_MAX])
            return []
        log.info("serving_table_restored", deployments=len(deployments))
        return deployments


def _same(known: Deployment | None, wanted: Deployment) -> bool:
    return known is not None and known.answers_like(wanted)
