"""The whole loop for every kind of label: predict, log, verify, batch, outcomes, logged training data, judge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder

from deploy.local import LocalStack
from foresight.client import (
    Client,
    DataType,
    FeatureGroup,
    FeatureView,
    Field,
    Logged,
    MissingPolicy,
    Predictions,
    TrainingDataset,
    ViewFeature,
    ViewSource,
)
from foresight.values import Column

START = datetime(2026, 3, 1, tzinfo=UTC)
ASKED_AT = START + timedelta(days=2)
LINES = 40
PARCELS = FeatureGroup(
    name="parcels",
    entity_keys=(Field("depot", DataType.STRING), Field("line", DataType.INT64)),
    features=(
        Field("load", DataType.INT64),
        Field("minutes", DataType.FLOAT64),
        Field("kind", DataType.STRING),
        Field("is_open", DataType.BOOL),
        Field("shape", DataType.FLOAT_VECTOR, 3),
        Field("checked_at", DataType.TIMESTAMP),
        Field("distance", DataType.FLOAT64),
        Field("note", DataType.STRING),
    ),
)
NUMBERS = ["load", "minutes", "is_open", "distance"]


@dataclass(frozen=True)
class Task:
    """A label, what is true of each line, and two pipelines that learn it."""

    label: Field
    truth: Any
    champion: Any
    challenger: Any
    outputs: tuple[str, ...]
    metric: str

    @property
    def name(self) -> str:
        """Of view, model and deployment."""
        return f"task_{self.label.name}"


def _pipeline(model: Any) -> Pipeline:
    texts = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    numbers = SimpleImputer(strategy="mean")
    columns = ColumnTransformer([("numbers", numbers, NUMBERS), ("texts", texts, ["kind", "note"])])
    return Pipeline([("columns", columns), ("model", model)])


_TREES = HistGradientBoostingClassifier(max_iter=10, min_samples_leaf=2)
_LINEAR = LogisticRegression(C=1e-3)
TASKS = (
    Task(
        Field("speed", DataType.STRING),
        lambda line: ("slow", "steady", "écl@ir")[line % 3],
        _pipeline(_LINEAR),
        _pipeline(_TREES),
        ("probabilities", "label"),
        "log_loss",
    ),
    Task(
        Field("stars", DataType.INT64),
        lambda line: (-1, 3, 2**60 + 1, 7)[line % 4],
        _pipeline(_LINEAR),
        _pipeline(_TREES),
        ("probabilities", "label"),
        "accuracy",
    ),
    Task(
        Field("verdict", DataType.STRING),
        lambda line: ("no", "yes")[line % 2],
        _pipeline(_LINEAR),
        _pipeline(_TREES),
        ("probability", "label"),
        "roc_auc",
    ),
    Task(
        Field("cost", DataType.FLOAT64),
        lambda line: 3.5 * line,
        _pipeline(HistGradientBoostingRegressor(max_iter=2, min_samples_leaf=2)),
        _pipeline(HistGradientBoostingRegressor(max_iter=60, min_samples_leaf=2)),
        ("value",),
        "rmse",
    ),
)


def _rows() -> pd.DataFrame:
    """One row per line; every fifth value of each feature is NULL."""
    lines = np.arange(LINES)

    def some(values: list[Any], dtype: str = "object") -> Any:
        return pd.Series([None if i % 5 == 0 else v for i, v in enumerate(values)], dtype=dtype)

    return pd.DataFrame(
        {
            "depot": ["north"] * LINES,
            "line": lines,
            "load": some([int(i) % 12 for i in lines], "Int64"),
            "minutes": some([float(i) for i in lines], "Float64"),
            "kind": some([f"kind {i % 12}" for i in lines]),
            "is_open": some([bool(i % 2) for i in lines]),
            "shape": some([[float(i), 0.5, -1.0] for i in lines]),
            "checked_at": some([START + timedelta(hours=int(i)) for i in lines], "datetime64[us, UTC]"),
            "distance": some([float(i) * 1.5 for i in lines], "Float64"),
            "note": some([f"note {i % 3}" for i in lines]),
            "event_time": [START] * LINES,
        }
    )


def _view(task: Task) -> FeatureView:
    features = (
        ViewFeature("load", missing=MissingPolicy.DEFAULT, default=Column.build("load", DataType.INT64, [5])),
        ViewFeature("minutes"),
        ViewFeature("kind", missing=MissingPolicy.DEFAULT, default=Column.build("kind", DataType.STRING, ["other"])),
        ViewFeature("is_open"),
        ViewFeature("shape"),
        ViewFeature("checked_at"),
    )
    return FeatureView(
        name=task.name,
        sources=(ViewSource("parcels", features, max_age=timedelta(days=30)),),
        request_features=(Field("distance", DataType.FLOAT64), Field("note", DataType.STRING)),
        label=task.label,
    )


@pytest.fixture(scope="module")
def client(empty_stack: LocalStack) -> Iterator[Client]:
    """A client of a stack in which every task has a champion that serves."""
    with Client(state=empty_stack.state) as opened:
        opened.apply(PARCELS)
        opened.write("parcels", _rows())
        for task in TASKS:
            opened.apply(_view(task))
            champion = opened.train(task.name, task.champion, train=[_spine(opened, task)])
            opened.deploy(task.name, task.name, champion.version)
        yield opened


def _spine(client: Client, task: Task) -> TrainingDataset:
    rows = _rows()
    spine = rows[["depot", "line", "distance", "note"]].assign(
        event_time=START + timedelta(days=1), **{task.label.name: [task.truth(i) for i in range(LINES)]}
    )
    return client.create_training_dataset(f"{task.name}_spine", task.name, spine)


def _questions() -> list[dict[str, Any]]:
    rows = _rows()[["depot", "line", "distance", "note"]]
    return [{str(k): None if pd.isna(v) else v for k, v in row.items()} for row in rows.to_dict("records")]


@pytest.mark.parametrize("task", TASKS, ids=[task.label.name for task in TASKS])
async def test_the_loop_holds_for_every_kind_of_label(client: Client, empty_stack: LocalStack, task: Task) -> None:
    unknown = {"depot": None, "line": 3, "distance": None, "note": None}
    answer = client.predict(task.name, [*_questions(), unknown], event_time=ASKED_AT)
    assert tuple(answer.outputs) == task.outputs
    assert {m.feature for m in answer.missing if m.row == LINES} == {
        *("load", "minutes", "kind", "is_open", "shape", "checked_at")
    }
    for prediction_id in (answer.ids[0], answer.ids[1], answer.ids[-1]):
        verified = client.verify(prediction_id)
        assert verified.verified, verified.mismatches

    truth = [task.truth(i) for i in range(LINES)]
    told = client.record_outcomes(
        values=truth,
        observed_at=datetime.now(UTC),
        deployment=task.name,
        entity_keys=[{"depot": q["depot"], "line": q["line"]} for q in _questions()],
        event_times=[ASKED_AT] * LINES,
    )
    by_id = client.record_outcomes(values=truth[:1], observed_at=datetime.now(UTC), prediction_ids=answer.ids[-1:])
    assert by_id.matched + by_id.held == 1
    assert told.matched + told.held == LINES
    client.wait_ingested()

    log = client.predictions(task.name, view=task.name).set_index("prediction_id").loc[list(answer.ids)]
    for output in task.outputs:
        logged = log[f"prediction_{output}"].tolist()
        assert [_plain(v) for v in logged] == [_plain(v) for v in answer.outputs[output]]
    assert log[task.label.name].tolist() == [*truth, truth[0]]

    await _check_batch(client, empty_stack, task, answer)
    _check_judge(client, task)


async def _check_batch(client: Client, stack: LocalStack, task: Task, answer: Predictions) -> None:
    """The batch job scores bit by bit as the predictor does, wherever the predictor has the same features."""
    run = client.batch(
        task.name,
        "parcels",
        from_event_time=START,
        to_event_time=START + timedelta(days=1),
        event_time=ASKED_AT,
        sink_table=f"{task.name}_scores",
    )
    assert run.rows == LINES
    sink = stack.connection["sink"]
    connection = await asyncpg.connect(sink["url"], password=Path(sink["password_file"]).read_text())
    try:
        rows = await connection.fetch(f"SELECT * FROM sink.{run.sink_table} ORDER BY line")
    finally:
        await connection.close()
    for output in task.outputs:
        assert [row[f"prediction_{output}"] for row in rows] == list(answer.outputs[output])[:LINES]


def _check_judge(client: Client, task: Task) -> None:
    """A better challenger is promoted on the logged predictions and their outcomes, and serves."""
    logged = client.create_training_dataset(
        f"{task.name}_logged",
        task.name,
        logged=Logged(from_event_time=START, to_event_time=ASKED_AT + timedelta(days=1), observed_by=datetime.now(UTC)),
    )
    assert logged.rows == LINES + 1
    challenger = client.train(task.name, task.challenger, train=[logged])
    decision = client.judge(
        task.name, (task.name, challenger.version), logged, judged_at=datetime.now(UTC), metric=task.metric
    )
    assert decision.promoted, decision
    assert client.deployment(task.name).model.version == challenger.version


def _plain(value: Any) -> Any:
    return [float(v) for v in value] if isinstance(value, list | np.ndarray) else value
