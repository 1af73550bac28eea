"""The flywheel's decision: is the challenger better than the champion on what happened?"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from services.runtime.clock import Clock
from services.runtime.errors import FailedPrecondition
from services.runtime.ids import new_id
from services.trainer.evaluation import Evaluation
from services.trainer.measures import is_better
from services.trainer.metrics import TrainerMetrics
from services.trainer.models import Decision, Judgement, VersionRef
from services.trainer.registry import CHALLENGER, Registry

log = structlog.get_logger()


class Flywheel:
    """Judges challengers and promotes those that are better."""

    def __init__(self, registry: Registry, evaluation: Evaluation, clock: Clock, metrics: TrainerMetrics) -> None:
        self._registry = registry
        self._evaluation = evaluation
        self._clock = clock
        self._metrics = metrics

    async def judge(self, judgement: Judgement, references: Sequence[VersionRef] = ()) -> Decision:
        """Measures champion, challenger and references on the same rows, and promotes the challenger if it is better
        by more than the margin.

        The same judgement again answers the decision made first. Raises NotFound, StaleEtag when the deployment
        changes meanwhile, and FailedPrecondition without rows, for a challenger of another view than the champion's,
        and for a metric that is not defined on the rows.
        """
        if (made := await self._registry.decision(judgement)) is not None:
            return made
        deployment = await self._registry.deployment(judgement.deployment)
        champion = deployment.version
        challenger = await self._registry.version(judgement.challenger)
        if challenger.view != champion.view:
            raise FailedPrecondition(f"the challenger is of {challenger.view}, the champion of {champion.view}")
        others = [await self._registry.version(ref) for ref in references]
        await self._registry.set_alias(challenger.ref, CHALLENGER)
        measured, rows = await self._evaluation.measure([champion, challenger, *others], judgement.dataset)
        if not rows:
            raise FailedPrecondition("there are no rows with a label to judge on")
        values = [m.metrics.get(judgement.metric) for m in measured[:2]]
        if values[0] is None or values[1] is None:
            raise FailedPrecondition(f"{judgement.metric} is not defined for these models on these rows")
        decision = Decision(
            id=new_id(),
            judgement=judgement,
            champion=champion.ref,
            promoted=is_better(judgement.metric, values[1], values[0], judgement.margin),
            models=tuple(measured),
            rows=rows,
            created_at=self._clock(),
        )
        made = await self._registry.decide(decision, deployment.etag)
        if made is decision:
            log.info(
                "challenger_judged", deployment=deployment.name, challenger=str(challenger.ref), promoted=made.promoted
            )
            self._metrics.promotions.inc(int(made.promoted))
        return made
