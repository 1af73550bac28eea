"""Makes versions ready to answer: view, transforms and model, all checked before any traffic."""

from __future__ import annotations

import asyncio

import structlog

from foresight.transforms import TransformSet, Untrusted
from services.predictor.models import ModelCache
from services.predictor.serving import Served, ServedArms
from services.predictor.versions import Arm, Deployment, is_same
from services.predictor.views import ViewCatalogue
from services.runtime.errors import FailedPrecondition

log = structlog.get_logger()


class Loader:
    """Loads the arms of deployments; what serves the same version for the same arm already is kept as it is."""

    def __init__(self, views: ViewCatalogue, models: ModelCache, transforms: TransformSet) -> None:
        self._views = views
        self._models = models
        self._transforms = transforms

    async def load(self, deployment: Deployment, before: ServedArms | None) -> ServedArms:
        """The deployment with all arms that it needs to answer, and the shadows that `before` has already.

        Raises Unavailable, and FailedPrecondition, NotFound or DataLoss for what cannot serve.
        """
        served = {arm.name: _kept(arm, before) for arm in deployment.arms}
        for arm in deployment.arms:
            if not arm.shadow and served[arm.name] is None:
                served[arm.name] = await self.load_arm(deployment, arm)
        return ServedArms.of(deployment, {name: s for name, s in served.items() if s is not None})

    async def load_arm(self, deployment: Deployment, arm: Arm) -> Served:
        """One arm, made ready. Raises as `load` does."""
        version = arm.version
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
        alone = Deployment(deployment.name, deployment.etag, (arm,), deployment.salt)
        return Served(alone, plan, await self._models.load(version, plan.view.label), row_wise)


def _kept(arm: Arm, before: ServedArms | None) -> Served | None:
    known = before.named(arm.name) if before is not None else None
    if known is not None and is_same(known.served.deployment.version, arm.version):
        return known.served
    return None
