"""Outcomes: what turned out to be true, which revision of it, and when it was known.

An outcome is claimed for a target. A claim by prediction id is held until the prediction arrives; a claim by keys is
kept for good, since another prediction with the same keys and event time may still arrive. Per prediction and per
target the revisions only grow, and one revision has one content.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from foresight.values import Column, DataType, InvalidValue
from services.runtime.errors import AlreadyExists, LimitExceeded

OUTCOMES_MAX = 10_000
# One outcome by keys may belong to many predictions; together at most so many per call.
ATTACHED_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """A true value in canonical bytes (see `scalars`), and when it was known, in microseconds since the epoch."""

    revision: int
    type: DataType
    value: bytes
    observed_at: int


@dataclass(frozen=True, slots=True)
class LoggedOutcome:
    """An outcome that belongs to a logged prediction."""

    prediction_id: str
    deployment: str
    view: str
    view_version: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Claims:
    """Outcome i of a request is for target i; all targets are of the same kind.

    `keys`: the columns behind targets by keys, a row per outcome.
    """

    targets: tuple[bytes, ...]
    outcomes: tuple[Outcome, ...]
    by_keys: bool
    keys: Mapping[str, Column] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= len(self.outcomes) <= OUTCOMES_MAX:
            raise InvalidValue("values", f"are {len(self.outcomes)}, not 1 to {OUTCOMES_MAX}")
        assert len(self.targets) == len(self.outcomes)
        first: dict[tuple[bytes, int], Outcome] = {}
        for i, (target, outcome) in enumerate(zip(self.targets, self.outcomes, strict=True)):
            if first.setdefault((target, outcome.revision), outcome) != outcome:
                raise InvalidValue(f"values[{i}]", "differs from another row of the same prediction and revision")


Revisions = dict[int, Outcome]


@dataclass(slots=True)
class Known:
    """What is stored about the targets of a request."""

    # Predictions that have arrived, per target.
    predictions: Mapping[bytes, Sequence[str]]
    # Revisions per prediction, and per target as claimed.
    attached: dict[str, Revisions] = field(default_factory=dict)
    claimed: dict[bytes, Revisions] = field(default_factory=dict)


@dataclass(slots=True)
class Plan:
    """What recording the claims changes, and what it answers."""

    attach: list[tuple[str, Outcome]] = field(default_factory=list)
    # Claims to be kept: row of the request, and whether a prediction has the outcome already.
    keep: list[tuple[int, bool]] = field(default_factory=list)
    matched: int = 0
    held: int = 0
    duplicates: int = 0


class _Verdict(enum.Enum):
    NEW = enum.auto()
    KNOWN = enum.auto()


def plan_outcomes(claims: Claims, known: Known) -> Plan:
    """Decides what becomes of every claim. Raises AlreadyExists, naming the row, when one contradicts what is known.

    Rows of one target are taken in the order of their revisions. Raises LimitExceeded when they belong to more than
    ATTACHED_MAX predictions.
    """
    plan = Plan()
    for row in sorted(range(len(claims.outcomes)), key=lambda row: claims.outcomes[row].revision):
        target, outcome = claims.targets[row], claims.outcomes[row]
        claimed = known.claimed.setdefault(target, {})
        if _judge(claimed, outcome, row) is _Verdict.KNOWN:
            plan.duplicates += 1
            continue
        predictions = known.predictions.get(target, ())
        fresh = []
        for prediction in predictions:
            revisions = known.attached.setdefault(prediction, {})
            if _judge(revisions, outcome, row) is _Verdict.NEW:
                revisions[outcome.revision] = outcome
                fresh.append((prediction, outcome))
        plan.attach.extend(fresh)
        check_attached(len(plan.attach))
        if claims.by_keys or not predictions:
            claimed[outcome.revision] = outcome
            plan.keep.append((row, bool(predictions)))
        if fresh:
            plan.matched += 1
        elif predictions:
            plan.duplicates += 1
        else:
            plan.held += 1
    return plan


def check_attached(predictions: int) -> None:
    """Raises LimitExceeded when the outcomes of one call belong to too many predictions."""
    if predictions > ATTACHED_MAX:
        message = f"the outcomes belong to more than {ATTACHED_MAX:,} predictions; send fewer in one call"
        raise LimitExceeded(message, limit="attached_outcomes")


def _judge(revisions: Revisions, outcome: Outcome, row: int) -> _Verdict:
    stored = revisions.get(outcome.revision)
    if stored == outcome:
        return _Verdict.KNOWN
    if stored is not None:
        raise AlreadyExists(
            f"values[{row}]: revision {outcome.revision} has other content already; a correction needs a higher one",
            row=str(row),
        )
    if revisions and outcome.revision < max(revisions):
        raise AlreadyExists(
            f"values[{row}]: revision {max(revisions)} was recorded already; a correction needs a higher one",
            row=str(row),
        )
    return _Verdict.NEW
