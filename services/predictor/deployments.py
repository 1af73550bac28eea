"""Which model answers for which deployment.

A watch follows the trainer. For every deployment whose version is not the one that serves, a task fetches the view,
checks the transforms, fetches and loads the artifact, warms it and then swaps it in with one assignment: a request
keeps the version that it began with, and the old version serves until the new one is ready. What cannot be loaded
shows its cause in `listing`, leaves the old version serving, and is tried again with growing pauses.

What serves is kept in a file, so that a restarted predictor serves without trainer and feature store registry.

An operator may unload a deployment: it then answers MODEL_NOT_READY here until it is loaded again or the process
starts anew. Loading also tries at once what would be tried after a pause.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import structlog

from foresight.transforms import TransformSet, Untrusted
from foresight.values import InvalidValue, check_name
from services.predictor.models import ModelCache
from services.predictor.plans import plan_view
from services.predictor.serving import DeploymentSource, Served, ServingState, ViewPacker
from services.predictor.serving_file import ServingFile
from services.predictor.versions import Deployment
from services.predictor.views import ViewCatalogue
from services.runtime.errors import FailedPrecondition, ModelNotReady, NotFound, ServiceError, Unavailable

log = structlog.get_logger()

DEPLOYMENTS_MAX = 1_000
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
CAUSE_CHARACTERS_MAX = 300
UNLOADED = "an operator unloaded it on this replica"


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
        self._unloaded: set[str] = set()
        self._delivered = False
        self._tasks: asyncio.TaskGroup | None = None

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
        return [self._state(wanted) for _, wanted in sorted(self._wanted.items())]

    def state(self, name: str) -> ServingState:
        """One deployment. Raises what `wanted` raises."""
        return self._state(self.wanted(name))

    def all_serving(self) -> list[Served]:
        """What answers, by name of the deployment."""
        return [served for _, served in sorted(self._serving.items())]

    def _state(self, wanted: Deployment) -> ServingState:
        served = self._serving.get(wanted.name)
        current = served is not None and served.deployment.answers_like(wanted)
        cause = "" if current else self._causes.get(wanted.name, "it is being loaded")
        model = served.deployment.version.model if served else None
        failed = not current and wanted.name in self._causes
        return ServingState(wanted.name, model, cause, wanted.version.model, failed)

    def wanted(self, name: str) -> Deployment:
        """The deployment as the trainer wants it. Raises InvalidValue, NotFound and Unavailable."""
        if (deployment := self._wanted.get(name)) is not None:
            return deployment
        check_name(name, "deployment")
        if not self._delivered:
            raise Unavailable("the deployments are not known yet", deployment=name)
        raise NotFound("deployment", name)

    async def load(self, name: str) -> None:
        """Serves the wanted version, at once and also after `unload`; nothing happens where it serves already.

        Raises what `wanted` raises, and why the version cannot be loaded now; it is then tried again as usual.
        """
        wanted = self.wanted(name)
        self._unloaded.discard(name)
        served = self._serving.get(name)
        if served is not None and served.deployment.answers_like(wanted):
            return
        if self._tasks is None:
            raise Unavailable("this replica is stopping", deployment=name)
        self._let_go(name)
        failure = await self._start(wanted, self._tasks)
        if failure is not None:
            raise failure

    def unload(self, name: str) -> None:
        """Stops serving a deployment here until `load` or the next start. Raises what `wanted` raises.

        Requests that have begun keep their version and are answered.
        """
        self.wanted(name)
        self._let_go(name)
        self._unloaded.add(name)
        self._causes[name] = UNLOADED
        self._serving = {other: served for other, served in self._serving.items() if other != name}
        log.info("model_unloaded", deployment=name)

    async def run(self) -> None:
        """Follows the trainer until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await self._watch(tasks)
            finally:
                self._tasks = None

    async def _watch(self, tasks: asyncio.TaskGroup) -> None:
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
        self._unloaded -= gone
        to_load = [d for d in changed if d.name not in self._unloaded]
        for name in (*gone, *(d.name for d in to_load)):
            self._let_go(name)
        if gone:
            self._serving = {name: s for name, s in self._serving.items() if name in wanted}
        for deployment in to_load:
            served = self._serving.get(deployment.name)
            if served is None and not self.ready:
                self._undecided.add(deployment.name)
            if served is None or not served.deployment.answers_like(deployment):
                self._start(deployment, tasks)
        self._delivered = True
        if gone or changed:
            await self._keep()

    def _let_go(self, name: str) -> None:
        """Ends what is under way for a deployment; what serves goes on."""
        if (task := self._loading.pop(name, None)) is not None:
            task.cancel()
        self._causes.pop(name, None)
        self._undecided.discard(name)

    def _start(self, deployment: Deployment, tasks: asyncio.TaskGroup) -> asyncio.Future[ServiceError | None]:
        """Starts to load a deployment; answers what became of the first try, None: it serves."""
        first: asyncio.Future[ServiceError | None] = asyncio.get_running_loop().create_future()
        task = tasks.create_task(self._follow(deployment, first))
        # Not by the task itself: one that is cancelled before it begins never runs.
        task.add_done_callback(lambda _: _tell(first, _superseded(deployment)))
        self._loading[deployment.name] = task
        return first

    async def _follow(self, deployment: Deployment, first: asyncio.Future[ServiceError | None]) -> None:
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
                _tell(first, error)
            except Exception as error:  # A supervised loop: one deployment's fault is its own
                self._causes[name] = "it cannot be loaded; the predictor's log has the details"
                self._undecided.discard(name)
                log.exception("deployment_not_loaded", deployment=name, exc_info=error)
                _tell(first, FailedPrecondition(self._causes[name], deployment=name))
            await asyncio.sleep(pause * (0.5 + self._jitter() / 2))
            pause = min(2 * pause, BACKOFF_MAX_S)
        # Kept first: what has once answered answers after a restart, too.
        await self._keep(served)
        # The one reference assignment: whoever reads the table sees the old one or the new one.
        self._serving = {**self._serving, name: served}
        self._causes.pop(name, None)
        self._undecided.discard(name)
        self._loading.pop(name, None)
        _tell(first, None)
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


def _tell(first: asyncio.Future[ServiceError | None], outcome: ServiceError | None) -> None:
    # Whoever waited may have gone, and later tries have nobody to tell.
    if not first.done():
        first.set_result(outcome)


def _superseded(deployment: Deployment) -> ServiceError:
    return Unavailable(f"{deployment.name} changed while it was being loaded", deployment=deployment.name)


def _same(known: Deployment | None, wanted: Deployment) -> bool:
    return known is not None and known.answers_like(wanted)
