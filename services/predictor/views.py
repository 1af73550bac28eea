"""View versions by name and version: immutable, so fetched once and kept, VIEWS_MAX at most."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from foresight.values import FeatureView
from services.predictor.plans import ViewPlan, plan_view
from services.predictor.versions import VersionRef

# More than there are deployments, whose views a restart finds in the serving file only.
VIEWS_MAX = 1_024


class ViewSource(Protocol):
    """Where views come from."""

    async def view(self, ref: VersionRef) -> FeatureView:
        """The registered view. Raises NotFound and Unavailable."""
        ...


class ViewCatalogue:
    """Plans of views, those used longest ago forgotten first."""

    def __init__(self, source: ViewSource) -> None:
        self._source = source
        self._plans: OrderedDict[VersionRef, ViewPlan] = OrderedDict()

    async def plan(self, ref: VersionRef) -> ViewPlan:
        """The plan of a view version. Raises NotFound and Unavailable."""
        plan = self._plans.get(ref)
        if plan is None:
            plan = plan_view(await self._source.view(ref))
            self.remember(plan)
        self._plans.move_to_end(ref)
        return plan

    def known(self, ref: VersionRef) -> ViewPlan | None:
        """The plan, if it is remembered."""
        return self._plans.get(ref)

    def remember(self, plan: ViewPlan) -> None:
        """Takes a plan that came from elsewhere."""
        self._plans[plan.ref] = plan
        while len(self._plans) > VIEWS_MAX:
            self._plans.popitem(last=False)
