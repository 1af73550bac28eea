"""Explanations of predictions: what each input of the model adds to a row's score, see `shapley`.

The prediction is made, recorded and answered as without one. What the model was given is kept aside, and explained in a
thread of its own after the prediction is recorded: no batch waits for an explanation, and all of them together take one
processor at most. Bounds: EXPLAINED_ROWS_MAX rows each, EXPLANATIONS_MAX at once.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import structlog
from numpy.typing import NDArray

from foresight.scoring import ModelTask, model_input
from foresight.values import Column, DataType, InvalidValue
from services.predictor.models import LoadedModel
from services.predictor.shapley import Background, Inputs, NoScore, contributions
from services.runtime.errors import FailedPrecondition, Overloaded

log = structlog.get_logger()

EXPLAINED_ROWS_MAX = 16
EXPLANATIONS_MAX = 8
RETRY_MIN_S = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Why n rows have their scores: base + the sum of contributions = score in each row, within 1e-9 of the greatest of
    them. `output` names what is explained; all columns are FLOAT64, contributions one per input of the model.
    """

    output: str
    base: Column
    score: Column
    contributions: tuple[Column, ...]


def check_explainable(rows: int) -> None:
    """Raises InvalidValue for too many rows."""
    if rows > EXPLAINED_ROWS_MAX:
        raise InvalidValue("explain", f"is for at most {EXPLAINED_ROWS_MAX} rows at once, not {rows}")


class _Abandoned(Exception):
    """Whoever asked has gone."""


class Explanations:
    """Makes explanations, one after the other."""

    def __init__(self, executor: Executor | None = None) -> None:
        self._executor = executor or ThreadPoolExecutor(1, "explanations")
        self._lock = threading.Lock()
        # Seconds that each is expected to take.
        self._under_way: dict[Explaining, float] = {}

    def begin(self, model: LoadedModel, rows: int, remaining_s: float | None) -> Explaining:
        """An explanation of so many rows, for a `with` block, at whose end it is given up if it is not made.

        Raises InvalidValue for too many rows, FailedPrecondition for a model without an example that it can score, and
        Overloaded when too many are under way or they take longer than the caller waits.
        """
        check_explainable(rows)
        if model.background is None:
            raise FailedPrecondition(
                "the model carries no example rows to explain its predictions with; train it again to have them"
            )
        expected_s = rows * model.explain_row_s
        with self._lock:
            before_s = sum(self._under_way.values())
            late = remaining_s is not None and before_s + expected_s > remaining_s
            if late or len(self._under_way) >= EXPLANATIONS_MAX:
                retry_s = max(before_s, RETRY_MIN_S)
                raise Overloaded("more explanations are asked for than can be made in time", retry_s)
            explaining = Explaining(self, model)
            self._under_way[explaining] = expected_s
        return explaining

    def submit(self, explaining: Explaining) -> Future[Explanation | None]:
        """Has it made when those before are; ended when it is made or given up."""
        work = self._executor.submit(explaining.make)
        work.add_done_callback(lambda _: self.end(explaining))
        return work

    def end(self, explaining: Explaining) -> None:
        """It takes no place any more; from any thread."""
        with self._lock:
            self._under_way.pop(explaining, None)


class Explaining:
    """An explanation that is being made: `take` what the model was given, then wait for `made`."""

    def __init__(self, owner: Explanations, model: LoadedModel) -> None:
        self._owner = owner
        self._model = model
        self._columns: Mapping[str, Column] = {}
        self._scores: NDArray[np.floating] = np.zeros(0)
        self._work: Future[Explanation | None] | None = None
        self._abandoned = False

    def __enter__(self) -> Explaining:
        return self

    def __exit__(
        self, type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._abandoned = True
        if self._work is None:
            self._owner.end(self)
        else:
            self._work.cancel()

    def take(self, columns: Mapping[str, Column], rows: range, outputs: Sequence[Column]) -> None:
        """The rows of these columns were scored, with these outputs."""
        names = self._model.onnx.names
        self._columns = {name: columns[name].part(rows.start, rows.stop) for name in names}
        self._scores = outputs[0].values

    async def made(self) -> Explanation | None:
        """The explanation of what was taken; None when the model has no score for a mix of a row and the example."""
        self._work = self._owner.submit(self)
        return await asyncio.wrap_future(self._work)

    def make(self) -> Explanation | None:
        """Computes it; in a thread."""
        if self._abandoned:
            return None
        model = self._model
        inputs = {name: model_input(column) for name, column in self._columns.items()}
        bases, scores, rows = list[float](), list[float](), list[dict[str, float]]()
        try:
            for row, score in enumerate(self._scores):
                started = time.perf_counter()
                output = int(score.argmax()) if score.ndim else None
                background = self._background(output)
                value = float(score if output is None else score[output])
                taken = {name: values[row : row + 1] for name, values in inputs.items()}
                score_mixed = functools.partial(self._score, output)
                rows.append(contributions(score_mixed, background, taken, value, model.seed))
                bases.append(background.base)
                scores.append(value)
                model.explained_row_in(time.perf_counter() - started)
        except _Abandoned:
            return None
        except NoScore:
            log.warning("explanation_without_score", model_sha256=model.sha256)
            return None
        added = tuple(
            _floats(field.name, [row.get(field.name, 0.0) for row in rows]) for field in model.onnx.signature.inputs
        )
        return Explanation(_output_of(model), _floats("base", bases), _floats("score", scores), added)

    def _background(self, output: int | None) -> Background:
        example = self._model.background
        assert example is not None
        inputs = {name: example.inputs[name] for name in self._model.onnx.names}
        return Background(inputs, _explained(self._model, example.outputs, output))

    def _score(self, output: int | None, mixed: Inputs) -> NDArray[np.float64]:
        if self._abandoned:
            raise _Abandoned
        try:
            return _explained(self._model, self._model.onnx.score_raw(mixed), output)
        except Exception as error:  # ONNX Runtime has no public base of its errors, and a pipeline may refuse any mix.
            log.warning("mixed_rows_not_scored", error=str(error)[:500])
            raise NoScore from error


def _explained(model: LoadedModel, raw: NDArray[np.float32], output: int | None) -> NDArray[np.float64]:
    """Of the graph's results what is explained, (n,): the value, or the probability of a class."""
    if model.onnx.signature.task is ModelTask.REGRESSION:
        return raw.astype(np.float64)
    # The positive class of two is the second one.
    return raw[:, 1 if output is None else output].astype(np.float64)


def _output_of(model: LoadedModel) -> str:
    return "value" if model.onnx.signature.task is ModelTask.REGRESSION else "probability"


def _floats(name: str, values: Sequence[float]) -> Column:
    return Column(name, DataType.FLOAT64, np.array(values, np.float64))
