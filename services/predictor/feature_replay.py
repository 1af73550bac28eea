"""Replays the features of one prediction from its record: the online rule, last known values, policies.

That the feature store was away cannot be replayed and is taken from the record. What was done about it is replayed: a
last known value from the row that the record names, read as of the row's own commit and time, and whether it was fresh
enough at the prediction's event time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from foresight.values import Column, FeatureStatus, MissingPolicy, instant_from_micros, micros_from_instant
from services.predictor.last_known import unavailable
from services.predictor.mismatches import Mismatch, MismatchCause, compare_columns
from services.predictor.plans import ViewPlan
from services.predictor.policies import ResolvedFeature, apply_policies
from services.predictor.records import PredictionRecord
from services.predictor.vectors import KnownValues, SourceRows, Vectors, VectorSource
from services.runtime.errors import FeatureMissing, Unavailable

# Event time in microseconds and commit; zeros for none.
_Row = tuple[int, int]
_NO_ROW: _Row = (0, 0)


class FeatureReplay:
    """Compares features with what the feature store's rows give now."""

    def __init__(self, vectors: VectorSource) -> None:
        self._vectors = vectors

    async def compare(self, plan: ViewPlan, record: PredictionRecord, row: int) -> list[Mismatch]:
        """Differences of source rows, statuses, last known rows and values after policies, for a row of a record.

        Raises OutOfRange and Unavailable.
        """
        keys = [column.take([row]) for column in record.entity_keys]
        then = tuple(feature.take([row]) for feature in record.features[: len(plan.features)])
        sources = tuple(SourceRows(s.group, [s.event_time_micros[row]], [s.commits[row]]) for s in record.sources)
        if all(_status_of(feature) is FeatureStatus.UNAVAILABLE for feature in then):
            now = unavailable(plan, 1)
        else:
            now = await self._vectors.replay(record.view, keys, record.event_time, record.applied_commit)
        now, mismatches = await self._with_known(plan, record, keys, then, now)
        checked = {mismatch.name for mismatch in mismatches}
        return mismatches + [m for m in _compare(plan, sources, then, now) if m.name not in checked]

    async def _with_known(
        self,
        plan: ViewPlan,
        record: PredictionRecord,
        keys: Sequence[Column],
        then: Sequence[ResolvedFeature],
        now: Vectors,
    ) -> tuple[Vectors, list[Mismatch]]:
        """The replayed vectors with the last known values that the record names, and what is wrong with those."""
        features, mismatches = list(now.features), []
        replays: dict[_Row, Vectors] = {}
        for index in plan.remembered:
            at, commit = _known_row(then[index])
            if not commit:
                continue
            if (at, commit) not in replays:
                # A row is in force from its time on, in some groups only after it.
                after = instant_from_micros(at + 1, "last_known_event_time_micros")
                replays[at, commit] = await self._vectors.replay(record.view, keys, after, commit)
            asked_at = micros_from_instant(record.event_time)
            mismatch = _compare_known(plan, index, (at, commit), replays[at, commit], asked_at)
            values = then[index].column if mismatch else replays[at, commit].features[index].column
            if mismatch is not None:
                mismatches.append(mismatch)
            features[index] = replace(features[index], known=KnownValues(values, [at], [commit]))
        return replace(now, features=tuple(features)), mismatches


def _compare_known(plan: ViewPlan, index: int, row: _Row, replay: Vectors, asked_at: int) -> Mismatch | None:
    """What is wrong with the row of a last known value."""
    planned = plan.features[index]
    name, found = planned.field.name, _row_of(replay.sources, planned.source)
    if found != row:
        erased = row[1] <= _erased_until(replay.sources, planned.source)
        cause = MismatchCause.FORGOTTEN if erased else MismatchCause.DATA
        return Mismatch(name, cause, _row_text(row), _row_text(found))
    if not 0 <= asked_at - row[0] <= planned.last_known_max_age_us:
        return Mismatch(name, MismatchCause.EXPIRY, _row_text(row), "not to be used at the event time")
    status = FeatureStatus(replay.features[index].statuses[0])
    if status is not FeatureStatus.PRESENT:
        return Mismatch(name, MismatchCause.DATA, FeatureStatus.PRESENT.name, status.name)
    return None


def _compare(
    plan: ViewPlan, sources: tuple[SourceRows, ...], then: Sequence[ResolvedFeature], replayed: Vectors
) -> Iterator[Mismatch]:
    """Differences of source rows, statuses and values after policies."""
    differing: dict[int, MismatchCause] = {}
    for position, group in enumerate(plan.groups):
        recorded, now = _row_of(sources, position), _row_of(replayed.sources, position)
        if recorded != now:
            erased = 0 < recorded[1] <= _erased_until(replayed.sources, position)
            differing[position] = MismatchCause.FORGOTTEN if erased else MismatchCause.DATA
            yield Mismatch(group.name, differing[position], _row_text(recorded), _row_text(now))
    try:
        resolved = apply_policies(plan, replayed, 1)
    except (FeatureMissing, Unavailable) as missing:
        # The recorded prediction had a value.
        name = missing.metadata["feature"]
        cause = MismatchCause.DATA if differing else MismatchCause.EXPIRY
        index = next(i for i, planned in enumerate(plan.features) if planned.field.name == name)
        cause = differing.get(plan.features[index].source, cause)
        yield Mismatch(name, cause, _status_of(then[index]).name, missing.metadata["status"])
        return
    for planned, before, now_feature in zip(plan.features, then, resolved, strict=True):
        yield from _compare_feature(before, now_feature, differing.get(planned.source))


def _compare_feature(
    then: ResolvedFeature, now: ResolvedFeature, other_row: MismatchCause | None
) -> Iterator[Mismatch]:
    """`other_row`: why another row answers now; None: the same one does."""
    name = then.column.name
    recorded, replayed = _status_of(then), _status_of(now)
    if recorded is not replayed:
        yield Mismatch(name, other_row or MismatchCause.EXPIRY, recorded.name, replayed.name)
    elif _policy_of(then) != _policy_of(now):
        yield Mismatch(name, other_row or MismatchCause.DATA, _policy_of(then), _policy_of(now))
    else:
        yield from compare_columns([then.column], [now.column], 0, other_row or MismatchCause.DATA)


def _status_of(feature: ResolvedFeature) -> FeatureStatus:
    return FeatureStatus(feature.statuses[0]) if feature.statuses else FeatureStatus.PRESENT


def _policy_of(feature: ResolvedFeature) -> str:
    policy = feature.policies[0] if feature.policies else 0
    return f"policy {MissingPolicy(policy).name}" if policy else "no policy"


def _known_row(feature: ResolvedFeature) -> _Row:
    return (feature.known_micros[0], feature.known_commits[0]) if feature.known_commits else _NO_ROW


def _row_of(sources: tuple[SourceRows, ...], position: int) -> _Row:
    if position >= len(sources):
        return _NO_ROW
    return sources[position].event_time_micros[0], sources[position].commits[0]


def _erased_until(sources: tuple[SourceRows, ...], position: int) -> int:
    """The last commit up to which rows of the entity were erased; 0: none were."""
    erased = sources[position].erased_commits if position < len(sources) else ()
    return erased[0] if erased else 0


def _row_text(row: _Row) -> str:
    return f"event time {row[0]} us, commit {row[1]}" if row != _NO_ROW else "no row"
