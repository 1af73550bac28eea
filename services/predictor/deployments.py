"""Which models answer for which deployment.

A watch follows the trainer. For every deployment whose arms are not those that serve, a task fetches for each arm the
view, checks the transforms, fetches and loads the artifact, warms it, and then swaps all in with one assignment: a
request keeps the versions that it began with, and the old ones serve until the new ones are ready. What cannot be
loaded shows its cause in `listing`, leaves the old versions serving, and is tried again with growing pauses. Shadows
are not waited for: they are loaded after the swap, and one that fails holds nothing up.

What serves is kept in a file, so that a restarted predictor serves without trainer and feature store registry.

An operator may unload a deployment: it then answers MODEL_NOT_READY here until it is loaded again or the process
starts anew. Loading also tries at once what would be tried after a pause.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Sequence

import structlog

from foresight.transforms import TransformSet
from foresight.values import InvalidValue, check_name
from services.predictor.loading import Loader
from services.predictor.models import ModelCache
from services.predictor.plans import plan_view
from services.predictor.serving import DeploymentSource, Served, ServedArms, ServingState, ViewPacker, state_of
from services.predictor.serving_file import ServingFile
from services.predictor.versions import Arm, Deployment
from services.predictor.views import ViewCatalogue
from services.runtime.errors import FailedPrecondition, ModelNotReady, NotFound, ServiceError, Unavailable

log = structlog.get_logger()

DEPLOYMENTS_MAX = 1_000
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
CAUSE_CHARACTERS_MAX = 300
UNLOADED = "an operator unloaded it on this replica"
_BUG = "it cannot be loaded; the predictor's log has the details"


class Deployments:
    """The serving table; one task runs `run`. Without one of the `required` deployments it is not ready."""

    def __init__(
        self,
        source: DeploymentSource,
        packer: ViewPacker,
        views: ViewCatalogue,
        models: ModelCache,
        transforms: TransformSet,
        file: ServingFile,
        *,
        required: Collection[str] = (),
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._source = source
        self._required = frozenset(required)
        self._packer = packer
        self._views = views
        self._loader = Loader(views, models, transforms)
        self._file = file
        self._file_lock = asyncio.Lock()
        self._jitter = jitter
        self._wanted: dict[str, Deployment] = {}
        self._serving: dict[str, ServedArms] = {}
        self._causes: dict[str, str] = {}
        # By deployment, then by arm.
        self._shadow_causes: dict[str, dict[str, str]] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._undecided: set[str] = set()
        self._unloaded: set[str] = set()
        self._delivered = False
        self._tasks: asyncio.TaskGroup | None = None

    @property
    def ready(self) -> bool:
        """Whether the first table has come and everything in it serves, or cannot for a cause that lasts.

        A deployment that cannot be loaded answers MODEL_NOT_READY; it does not take the others down with it, unless it
        is required.
        """
        return self._decided and self._required <= self._serving.keys()

    @property
    def _decided(self) -> bool:
        return self._delivered and not self._undecided

    def serving(self, name: str) -> Served:
        """The version that answers for a deployment, of its first arm when it has several. Raises as `arms` does."""
        return self.arms(name).first

    def arms(self, name: str) -> ServedArms:
        """What answers for a deployment. Raises InvalidValue, NotFound and ModelNotReady.

        A replica that has just started and has not loaded everything yet raises Unavailable: the deployment answers
        elsewhere, or in a moment.
        """
        serving = self._serving.get(name)
        if serving is not None:
            return serving
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
        """What answers or scores beside, by name of the deployment."""
        return [arm.served for _, serving in sorted(self._serving.items()) for arm in serving.arms]

    def _state(self, wanted: Deployment) -> ServingState:
        name = wanted.name
        return state_of(wanted, self._serving.get(name), self._causes.get(name), self._shadow_causes.get(name, {}))

    def wanted(self, name: str) -> Deployment:
        """The deployment as the trainer wants it. Raises InvalidValue, NotFound and Unavailable."""
        if (deployment := self._wanted.get(name)) is not None:
            return deployment
        check_name(name, "deployment")
        if not self._delivered:
            raise Unavailable("the deployments are not known yet", deployment=name)
        raise NotFound("deployment", name)

    async def load(self, name: str) -> None:
        """Serves what is wanted, at once and also after `unload`; nothing happens where it serves already.

        Raises what `wanted` raises, and why it cannot be loaded now; it is then tried again as usual. Shadows that are
        not loaded are tried at once, and not waited for.
        """
        wanted = self.wanted(name)
        self._unloaded.discard(name)
        if self._serves(wanted):
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
        pauses = _Pauses(self._jitter)
        while True:
            try:
                async for table in self._source.watch():
                    pauses = _Pauses(self._jitter)
                    await self._accept(table, tasks)
            except (ServiceError, InvalidValue) as error:
                log.warning("watch_interrupted", reason=str(error)[:CAUSE_CHARACTERS_MAX])
            except Exception as error:  # A supervised loop: what serves goes on serving
                log.exception("watch_failed", exc_info=error)
            await pauses.next()

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
            if deployment.name not in self._serving and not self._decided:
                self._undecided.add(deployment.name)
            if not self._serves(deployment):
                self._start(deployment, tasks)
        self._delivered = True
        if gone or changed:
            await self._keep()

    def _serves(self, wanted: Deployment) -> bool:
        """Whether everything that is wanted serves, shadows among it."""
        serving = self._serving.get(wanted.name)
        return serving is not None and serving.complete and serving.deployment.answers_like(wanted)

    def _let_go(self, name: str) -> None:
        """Ends what is under way for a deployment; what serves goes on."""
        if (task := self._loading.pop(name, None)) is not None:
            task.cancel()
        self._causes.pop(name, None)
        self._shadow_causes.pop(name, None)
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
        """Loads a deployment, as often as it takes, and swaps it in; then its shadows."""
        name = deployment.name
        pauses = _Pauses(self._jitter)
        while True:
            try:
                serving = await self._loader.load(deployment, self._serving.get(name))
                break
            except ServiceError as error:
                self._causes[name] = error.message[:CAUSE_CHARACTERS_MAX]
                if not isinstance(error, Unavailable):
                    self._undecided.discard(name)
                log.warning("deployment_not_loaded", deployment=name, cause=self._causes[name])
                _tell(first, error)
            except Exception as error:  # A supervised loop: one deployment's fault is its own
                self._causes[name] = _BUG
                self._undecided.discard(name)
                log.exception("deployment_not_loaded", deployment=name, exc_info=error)
                _tell(first, FailedPrecondition(self._causes[name], deployment=name))
            await pauses.next()
        # Kept first: what has once answered answers after a restart, too.
        await self._keep(serving)
        self._swap_in(serving)
        self._causes.pop(name, None)
        self._undecided.discard(name)
        _tell(first, None)
        log.info("model_loaded", deployment=name, model=str(deployment.version.model))
        await self._follow_shadows(deployment)
        self._loading.pop(name, None)

    def _swap_in(self, serving: ServedArms) -> None:
        # The one reference assignment: whoever reads the table sees the old one or the new one.
        self._serving = {**self._serving, serving.deployment.name: serving}

    async def _follow_shadows(self, deployment: Deployment) -> None:
        """Loads the shadows of a deployment that serves, as often as it takes, and swaps in each."""
        name = deployment.name
        causes = self._shadow_causes[name] = {}
        pauses = _Pauses(self._jitter)
        while not self._serving[name].complete:
            for arm in deployment.arms:
                if arm.shadow and self._serving[name].named(arm.name) is None:
                    await self._try_shadow(deployment, arm, causes)
            if causes:
                await pauses.next()

    async def _try_shadow(self, deployment: Deployment, arm: Arm, causes: dict[str, str]) -> None:
        name = deployment.name
        try:
            served = await self._loader.load_arm(deployment, arm)
        except ServiceError as error:
            causes[arm.name] = error.message[:CAUSE_CHARACTERS_MAX]
            log.warning("shadow_not_loaded", deployment=name, arm=arm.name, cause=causes[arm.name])
        except Exception as error:  # A supervised loop: one shadow's fault is its own
            causes[arm.name] = _BUG
            log.exception("shadow_not_loaded", deployment=name, arm=arm.name, exc_info=error)
        else:
            loaded = {a.name: a.served for a in self._serving[name].arms} | {arm.name: served}
            self._swap_in(ServedArms.of(deployment, loaded))
            await self._keep()
            causes.pop(arm.name, None)
            log.info("shadow_loaded", deployment=name, arm=arm.name, model=str(arm.version.model))

    async def _keep(self, *loaded: ServedArms) -> None:
        """Writes what serves now or is just loaded, what is wanted where nothing serves, and the views of all."""
        async with self._file_lock:
            serving = self._serving | {s.deployment.name: s for s in loaded}
            kept = [serving[name].deployment if name in serving else d for name, d in self._wanted.items()]
            plans = {arm.served.plan.ref: arm.served.plan for s in serving.values() for arm in s.arms}
            for ref in {arm.version.view: None for deployment in kept for arm in deployment.arms}:
                # One that a restart found in the file and has yet to load: the next restart needs it, too.
                if ref not in plans and (known := self._views.known(ref)) is not None:
                    plans[ref] = known
            sections = [self._source.pack(kept), *(self._packer.pack_view(p.view) for p in plans.values())]
            writing = asyncio.create_task(asyncio.to_thread(self._file.write, sections))
            # A thread goes on when its caller is cancelled; what is written next must not be overwritten by it.
            try:
                await asyncio.shield(writing)
            finally:
                await asyncio.wait([writing])

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


class _Pauses:
    """Pauses between attempts, each twice as long as the one before, up to a bound."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._seconds = BACKOFF_MIN_S

    async def next(self) -> None:
        """Waits for the next attempt."""
        await asyncio.sleep(self._seconds * (0.5 + self._jitter() / 2))
        self._seconds = min(2 * self._seconds, BACKOFF_MAX_S)


def _tell(first: asyncio.Future[ServiceError | None], outcome: ServiceError | None) -> None:
    # Whoever waited may have gone, and later tries have nobody to tell.
    if not first.done():
        first.set_result(outcome)


def _superseded(deployment: Deployment) -> ServiceError:
    return Unavailable(f"{deployment.name} changed while it was being loaded", deployment=deployment.name)


def _same(known: Deployment | None, wanted: Deployment) -> bool:
    return known is not None and known.answers_like(wanted)
