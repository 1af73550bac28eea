"""From questions about one view to scores: look-up, policies, transforms and model, on columns of all their rows.

Every stage treats a row by itself, so the rows of one question have the values that they would have alone; transforms
that cannot show that they do run question by question (`Served.transforms_row_wise`). When the rows of all questions
cannot be scored together, each question is scored alone and only the one at fault fails.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from foresight.transforms import TransformSet, Untrusted
from foresight.values import Column, micros_from_instant
from services.predictor.plans import ViewPlan
from services.predictor.policies import ResolvedFeature, apply_policies, rows_without_required
from services.predictor.questions import Question
from services.predictor.serving import Served
from services.predictor.telemetry import Telemetry
from services.predictor.vectors import Vectors
from services.runtime.errors import FailedPrecondition, TransformMismatch

log = structlog.get_logger()

ERROR_CHARACTERS_MAX = 500


@dataclass(frozen=True, slots=True, eq=False)
class Questions:
    """Questions about one view, their rows one after the other; question i has the rows `starts[i]:starts[i + 1]`."""

    questions: tuple[Question, ...]
    starts: tuple[int, ...]
    keys: tuple[Column, ...]
    request_features: tuple[Column, ...]

    @classmethod
    def joined(cls, questions: Sequence[Question]) -> Questions:
        """The questions with joined columns."""
        return cls(
            tuple(questions),
            tuple(itertools.accumulate((q.rows for q in questions), initial=0)),
            tuple(Column.joined(columns) for columns in zip(*(q.keys for q in questions), strict=True)),
            tuple(Column.joined(columns) for columns in zip(*(q.request_features for q in questions), strict=True)),
        )

    @property
    def given(self) -> bool:
        """Whether they hold the features that the model takes, see `Question`; all do or none."""
        return self.questions[0].given

    @property
    def rows(self) -> int:
        """Rows of all questions."""
        return self.starts[-1]

    @property
    def event_time_micros(self) -> list[int]:
        """The event time of each row."""
        times: list[int] = []
        for question in self.questions:
            times += [micros_from_instant(question.event_time)] * question.rows
        return times

    def rows_of(self, question: int) -> range:
        """The rows of one question."""
        return range(self.starts[question], self.starts[question + 1])


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Questions that were scored together: features after policies, outputs of transforms, outputs of the model, and
    the time that the model took."""

    questions: Questions
    vectors: Vectors
    features: tuple[ResolvedFeature, ...]
    made: tuple[Column, ...]
    outputs: tuple[Column, ...]
    inference_s: float = 0.0

    @property
    def columns(self) -> dict[str, Column]:
        """Everything that a model may take, by name."""
        given = (*self.questions.keys, *self.questions.request_features)
        return {c.name: c for c in (*given, *(f.column for f in self.features), *self.made)}

    @property
    def recorded_features(self) -> tuple[ResolvedFeature, ...]:
        """Features after policies, then what transforms made."""
        return (*self.features, *(ResolvedFeature(column) for column in self.made))


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """What became of questions: groups that were scored together with the positions of their questions, and faults."""

    scored: tuple[tuple[Scored, tuple[int, ...]], ...]
    faults: Mapping[int, Exception]


class Scoring:
    """Scores questions; its methods may run in any thread."""

    def __init__(self, transforms: TransformSet, telemetry: Telemetry) -> None:
        self._transforms = transforms
        self._telemetry = telemetry

    def score_apart(self, served: Served, questions: Questions, vectors: Vectors) -> Outcomes:
        """Scores questions together as far as possible; a fault of one leaves the others as they are."""
        n = len(questions.questions)
        suspects = _without_required(served.plan, questions, vectors) if n > 1 else frozenset[int]()
        good = tuple(i for i in range(n) if i not in suspects)
        groups: list[tuple[Scored, tuple[int, ...]]] = []
        faults: dict[int, Exception] = {}
        alone = sorted(suspects)
        if good:
            part, its_vectors = (questions, vectors) if not suspects else _taken(questions, vectors, good)
            try:
                groups.append((self.score(served, part, its_vectors), good))
            except Exception as error:  # noqa: BLE001 - whoever is not its cause is scored alone
                if len(good) == 1:
                    faults[good[0]] = error
                else:
                    alone = list(range(n))
        for i in alone:
            part, its_vectors = _taken(questions, vectors, (i,))
            try:
                groups.append((self.score(served, part, its_vectors), (i,)))
            except Exception as error:  # noqa: BLE001 - it is raised where the answer is awaited
                faults[i] = error
        return Outcomes(tuple(groups), faults)

    def score(self, served: Served, questions: Questions, vectors: Vectors) -> Scored:
        """Scores all questions together.

        Raises FeatureMissing, Unavailable, TransformMismatch, FailedPrecondition and InvalidValue, with rows counted
        over all.
        """
        plan = served.plan
        resolved = () if questions.given else apply_policies(plan, vectors, questions.rows)
        columns = {c.name: c for c in (*questions.keys, *questions.request_features)}
        columns.update((f.column.name, f.column) for f in resolved)
        made: tuple[Column, ...] = ()
        if plan.transforms and not questions.given:
            with self._telemetry.stage("transform"):
                made = self._transformed(served, questions, columns)
            columns.update((c.name, c) for c in made)
        with self._telemetry.stage("score"):
            started = time.perf_counter()
            outputs = served.model.score(columns)
            inference_s = time.perf_counter() - started
        return Scored(questions, vectors, resolved, made, outputs, inference_s)

    def _transformed(self, served: Served, questions: Questions, columns: Mapping[str, Column]) -> tuple[Column, ...]:
        if served.transforms_row_wise or len(questions.questions) == 1:
            return apply_transforms(self._transforms, served.plan, columns)
        starts = questions.starts
        apart = [
            apply_transforms(self._transforms, served.plan, {n: c.part(start, stop) for n, c in columns.items()})
            for start, stop in itertools.pairwise(starts)
        ]
        return tuple(Column.joined(parts) for parts in zip(*apart, strict=True))


def apply_transforms(transforms: TransformSet, plan: ViewPlan, columns: Mapping[str, Column]) -> tuple[Column, ...]:
    """The outputs of the view's transforms. Raises TransformMismatch, and FailedPrecondition when one fails."""
    if not plan.transforms:
        return ()
    try:
        # What a function does with odd numbers is seen in its result; warnings would only fill the log.
        with np.errstate(all="ignore"):
            return tuple(transforms.apply(plan.transforms, columns))
    except Untrusted as error:
        raise TransformMismatch(str(error), view=str(plan.ref)) from error
    except Exception as error:  # The function is the user's own and may raise anything, with anything in it.
        log.warning(
            "transform_failed", view=str(plan.ref), error=f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS_MAX]
        )
        raise FailedPrecondition(
            "an on-demand transform of the view fails on these values", view=str(plan.ref)
        ) from error


def _without_required(plan: ViewPlan, questions: Questions, vectors: Vectors) -> frozenset[int]:
    """Questions that lack a feature that they need: expected to fail, they are not tried with the others."""
    if questions.given:
        return frozenset()
    rows = rows_without_required(plan, vectors, questions.rows)
    if not rows:
        return frozenset()
    return frozenset(i for i in range(len(questions.questions)) if not rows.isdisjoint(questions.rows_of(i)))


def _taken(questions: Questions, vectors: Vectors, positions: Sequence[int]) -> tuple[Questions, Vectors]:
    """Some of the questions, and the vectors of their rows."""
    rows = [row for i in positions for row in questions.rows_of(i)]
    return Questions.joined([questions.questions[i] for i in positions]), vectors.take(rows)
