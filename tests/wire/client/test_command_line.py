"""The command line against scripted services: what it sends, what it prints, and how it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from foresight.cli.app import app
from foresight.feature_store.v1 import offline_pb2, online_pb2, registry_pb2, training_dataset_pb2
from foresight.logger.v1 import outcome_pb2, prediction_log_pb2
from foresight.predictor.v1 import prediction_pb2
from foresight.tables import decode_table, encode_table
from foresight.trainer.v1 import batch_prediction_pb2, flywheel_pb2, model_registry_pb2, training_pb2
from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType, InvalidValue, MissingPolicy, ViewFeature, ViewSource, Violation
from foresight.wire import decode_column, decode_view, encode_column, encode_group, encode_instant, encode_view
from services.runtime import errors
from tests.wire.client.delays import HOUR, NOON, WEATHER, described_view, ref
from tests.wire.client.fake_foresight import FakeForesight, Gateway, pieces, tables

Run = Callable[..., Result]
SERVICE = """
from datetime import timedelta
from foresight.client import DataType, FeatureGroup, FeatureView, Field, ViewFeature, ViewSource

origin = Field("origin", DataType.STRING)
view = FeatureView("delays", Field("late", DataType.BOOL), (ViewSource("weather", (ViewFeature("wind"),)),))
weather = FeatureGroup("weather", (origin,), (Field("wind", DataType.FLOAT64),))
same = weather
"""
PIPELINE = """
from sklearn.linear_model import LogisticRegression
model = LogisticRegression(C=0.5)
fitted = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
"""


@pytest.fixture
def run(gateway: Gateway) -> Iterator[Run]:
    """Runs a command against the fake; modules that it imported are forgotten afterwards."""
    path, modules = list(sys.path), set(sys.modules)

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(app, [*map(str, arguments), "--state", str(gateway.state)])

    yield invoke
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not name.startswith("sklearn"):
            del sys.modules[name]


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a file and answers its path."""

    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(content)
        return path

    return write


def _json(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_apply_registers_what_a_file_defines_once(run: Run, fake: FakeForesight, file: Any) -> None:
    fake.on(
        "RegisterFeatureGroup",
        lambda r: registry_pb2.RegisterFeatureGroupResponse(group=r.group, created=True),
    )
    fake.on(
        "RegisterFeatureView",
        lambda r: registry_pb2.RegisterFeatureViewResponse(view=r.view, created=False),
    )
    service = file("service_d.py", SERVICE)
    assert _json(run("apply", service, "--json")) == [
        {"kind": "view", "name": "delays", "version": 0, "created": False},
        {"kind": "group", "name": "weather", "version": 0, "created": True},
    ]
    shown = run("apply", service)
    assert "weather" in shown.stdout
    assert "created" in shown.stdout
    empty = run("apply", file("empty_d.py", "x = 1\n"))
    assert empty.exit_code == 1
    assert "defines no FeatureGroup" in empty.stderr


def test_groups_and_views_are_listed(run: Run, fake: FakeForesight) -> None:
    fake.on("ListFeatureGroups", registry_pb2.ListFeatureGroupsResponse())
    assert "no groups yet" in run("groups").stdout
    fake.on("ListFeatureGroups", registry_pb2.ListFeatureGroupsResponse(groups=[encode_group(WEATHER)]))
    assert "origin string" in run("groups").stdout
    [group] = _json(run("groups", "--json"))
    assert group["features"] == [{"name": "wind", "type": "float64", "dimension": 0, "description": ""}]
    fake.on("ListFeatureViews", registry_pb2.ListFeatureViewsResponse(views=[described_view().view]))
    assert "late bool" in run("views").stdout
    [view] = _json(run("views", "--json"))
    assert (view["version"], view["sources"][0]["max_age_s"]) == (3, 3600.0)
    careful = replace(
        decode_view(described_view().view),
        sources=(
            ViewSource(
                "weather",
                (
                    ViewFeature("wind", missing=MissingPolicy.FAIL),
                    ViewFeature("gust", missing=MissingPolicy.LAST_KNOWN, last_known_max_age=timedelta(minutes=5)),
                ),
            ),
        ),
    )
    fake.on("ListFeatureViews", registry_pb2.ListFeatureViewsResponse(views=[encode_view(careful)]))
    shown = run("views").stdout
    assert "wind: fail" in shown
    assert "gust: last known up to 0:05:00, else fail" in shown


def test_ingest_writes_a_file_as_one_commit(run: Run, fake: FakeForesight, file: Any) -> None:
    fake.on("GetFeatureGroup", registry_pb2.GetFeatureGroupResponse(group=encode_group(WEATHER)))
    fake.on(
        "WriteFeatures",
        offline_pb2.WriteFeaturesResponse(commit=7, rows=2, committed_at=encode_instant(NOON)),
        offline_pb2.WriteFeaturesResponse(commit=7, rows=2, committed_at=encode_instant(NOON), duplicate=True),
    )
    rows = file("weather.csv", "origin,hour,wind\nJFK,2013-03-01T12:00:00Z,1\nLGA,2013-03-01T12:00:00Z,\n")
    command = ("ingest", "weather", rows, "--event-time", "hour", "--write-id", "w1")
    assert "2 rows of weather written · commit 7" in run(*command).stdout
    assert "nothing new" in run(*command).stdout
    assert _json(run(*command, "--json")) == {
        "number": 7,
        "committed_at": "2013-03-01T12:00:00Z",
        "rows": 2,
        "duplicate": True,
        "quarantined_rows": 0,
        "broken": [],
    }
    sent = fake.requests("WriteFeatures")[0]
    assert sent[0].header.write_id == "w1"
    assert decode_table([tables(sent)]).to_pylist()[1] == {"origin": "LGA", "event_time": NOON, "wind": None}
    refused = run("ingest", "weather", rows)
    assert refused.exit_code == 1
    assert "name its column with --event-time" in refused.stderr


def test_ingest_says_what_was_quarantined(run: Run, fake: FakeForesight, file: Any) -> None:
    fake.on("GetFeatureGroup", registry_pb2.GetFeatureGroupResponse(group=encode_group(WEATHER)))
    broken = offline_pb2.BrokenExpectation(name="wind_range", rows=3, samples=["origin 'JFK', wind -1.0", "b", "c"])
    fake.on(
        "WriteFeatures",
        offline_pb2.WriteFeaturesResponse(
            commit=7, rows=2, committed_at=encode_instant(NOON), quarantined_rows=3, broken=[broken]
        ),
    )
    rows = file("weather_q.csv", "origin,event_time,wind\nJFK,2013-03-01T12:00:00Z,1\n")
    command = ("ingest", "weather", rows, "--source", "stations")
    shown = run(*command).stdout
    assert "2 rows of weather written" in shown
    assert "3 rows break expectations" in shown
    assert "foresight quarantine weather --after-commit 6" in shown
    assert "origin 'JFK', wind -1.0" in shown
    assert _json(run(*command, "--json"))["broken"] == [
        {"name": "wind_range", "rows": 3, "samples": ["origin 'JFK', wind -1.0", "b", "c"]}
    ]
    assert fake.requests("WriteFeatures")[0][0].header.source == "stations"


def test_quarantined_rows_are_shown_and_written_to_a_file(run: Run, fake: FakeForesight, tmp_path: Path) -> None:
    found = pa.table({"origin": [f"o{i}" for i in range(30)], "commit": [7] * 30, "broken": [["wind_range"]] * 30})
    for part in encode_table(found):
        fake.on("ReadQuarantine", [offline_pb2.ReadQuarantineResponse(arrow=part)])
    shown = run("quarantine", "weather", "--after-commit", "6")
    assert "o29" in shown.stdout
    assert "o9" not in shown.stdout
    assert "the last 20 of 30" in shown.stderr
    assert fake.requests("ReadQuarantine")[0].after_commit == 6
    assert _json(run("quarantine", "weather", "--limit", "1", "--json"))[0]["broken"] == ["wind_range"]
    assert "30 rows in" in run("quarantine", "weather", "--output", str(tmp_path / "q.jsonl")).stdout
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 30


def test_train_makes_a_dataset_and_a_version_with_metrics(run: Run, fake: FakeForesight, file: Any) -> None:
    fake.on("GetFeatureView", described_view())
    splits = [
        training_dataset_pb2.SplitRows(split="train", rows=1),
        training_dataset_pb2.SplitRows(split="test", rows=1),
    ]
    label = registry_pb2.FeatureView(label=described_view().view.label).label
    dataset = training_dataset_pb2.TrainingDataset(id="d1", rows=2, splits=splits, label=label)
    fake.on("CreateTrainingDataset", training_dataset_pb2.CreateTrainingDatasetResponse(dataset=dataset))
    fake.on("GetTrainingDataset", training_dataset_pb2.GetTrainingDatasetResponse(dataset=dataset))
    metric = model_registry_pb2.Metric(name="roc_auc", value=0.71234)
    version = model_registry_pb2.ModelVersion(model=ref("delays", 4), train_rows=1, metrics=[metric])
    progress = training_pb2.TrainingProgress(stage="fitting", rows=1)
    answers = [training_pb2.TrainResponse(progress=progress), training_pb2.TrainResponse(version=version)]
    fake.on("Train", lambda request: answers)
    pipeline = f"{file('pipeline_e.py', PIPELINE)}:model"
    spine = file("spine.csv", "origin,event_time,hour,late\nJFK,2013-03-01T12:00:00Z,17,true\n")
    command = ("train", "delays", "--pipeline", pipeline, "--view", "delays", "--spine", spine)
    shown = run(*command, "--test-from", "2013-03-01T00:00:00Z", "--known-by")
    assert "delays v4 trained on 1 rows · d1" in shown.stdout
    assert "0.7123" in shown.stdout
    [created] = fake.requests("CreateTrainingDataset")
    assert created[0].header.known_by
    assert created[0].header.test_from.ToDatetime().isoformat() == "2013-03-01T00:00:00"
    assert decode_table([tables(created)])["late"].to_pylist() == [True]
    assert _json(run("train", "delays", "--pipeline", pipeline, "--dataset", "d1", "--json"))["version"] == 4
    assert [s.split for s in (*fake.requests("Train")[1].train, *fake.requests("Train")[1].test)] == ["train", "test"]
    fitted = run(*command[:2], "--pipeline", pipeline.replace(":model", ":fitted"), "--dataset", "d1")
    assert fitted.exit_code == 1
    assert "pipeline: is fitted" in fitted.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "m", "--pipeline", "p.py:x"], "either --spine with --view"),
        (["train", "m", "--pipeline", "none.py:x", "--dataset", "d"], "there is no file none.py"),
        (["train", "m", "--pipeline", "p.py:x", "--dataset", "d", "--known-by"], "belong to a spine"),
        (["predict", "d"], "either --set"),
        (["predict", "d", "--set", "x"], "name=value"),
        (["predict", "d", "--set", "x=1", "--event-time", "2013-03-01T12:00:00"], "no time zone"),
        (["ingest", "weather", "none.csv"], "none.csv"),
        (["deploy", "d"], "give either a model"),
        (["deploy", "d", "m", "--arm", "a=m@1"], "give either a model"),
        (["deploy", "d", "--arm", "a=m@1", "--version", "2"], "--version"),
        (["deploy", "d", "--arm", "m@1"], "NAME=MODEL@WEIGHT"),
        (["deploy", "d", "--arm", "a=m@x"], "NAME=MODEL@WEIGHT"),
        (["deploy", "d", "--shadow", "a=m@1"], "NAME=MODEL"),
        (["nothing"], "nothing"),
    ],
)
def test_wrong_usage_ends_with_2_and_sends_nothing(
    run: Run, fake: FakeForesight, arguments: list[str], says: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""
    assert fake.asked == {}


def test_a_refusal_ends_with_1_and_one_line_per_violation(run: Run, fake: FakeForesight) -> None:
    fake.on("ListFeatureGroups", errors.NotFound("group", "weather"))
    result = run("groups", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: no group weather\n"
    fake.on("ListFeatureGroups", InvalidValue("a", "is [wrong]", Violation("b", "is too")))
    result = run("groups")
    assert result.stderr.splitlines() == [
        "error: the request is wrong in 2 places",
        "  a: is [wrong]",
        "  b: is too",
    ]


def test_no_stack_is_said_at_once(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["models", "--state", str(tmp_path)])
    assert result.exit_code == 1
    assert "start one with `foresight up`" in result.stderr


def test_models_deployments_and_decisions_are_listed(run: Run, fake: FakeForesight) -> None:
    metric = model_registry_pb2.Metric(name="log_loss", value=0.5)
    version = model_registry_pb2.ModelVersion(model=ref("delays", 2), metrics=[metric], aliases=["champion"])
    older = model_registry_pb2.ModelVersion(model=ref("delays", 1))
    fake.on("ListModelVersions", model_registry_pb2.ListModelVersionsResponse(versions=[version, older]))
    shown = run("models", "delays").stdout
    assert "champion" in shown
    assert "log loss" in shown
    assert _json(run("models", "--json"))[0]["metrics"] == {"log_loss": 0.5}
    deployment = model_registry_pb2.Deployment(name="live", model=ref("delays", 2))
    fake.on("ListDeployments", model_registry_pb2.ListDeploymentsResponse(deployments=[deployment]))
    assert "delays v2" in run("deployments").stdout
    models = [training_pb2.ModelMetrics(model=ref("delays", v), metrics=[metric]) for v in (1, 2)]
    decision = flywheel_pb2.Decision(deployment="live", metric="log_loss", models=models, promoted=True)
    fake.on("ListDecisions", flywheel_pb2.ListDecisionsResponse(decisions=[decision]))
    assert "yes" in run("decisions").stdout
    assert _json(run("decisions", "live", "--json"))[0]["promoted"] is True


def test_deploy_waits_and_says_what_serves(run: Run, fake: FakeForesight) -> None:
    deployment = model_registry_pb2.Deployment(name="live", model=ref("delays", 2))
    fake.on("SetDeployment", model_registry_pb2.SetDeploymentResponse(deployment=deployment))
    serving = prediction_pb2.ServingDeployment(deployment="live", model=ref("delays", 2), ready=True)
    fake.on("ListServing", prediction_pb2.ListServingResponse(deployments=[serving]))
    assert "live serves delays v2" in run("deploy", "live", "delays").stdout
    assert _json(run("deploy", "live", "delays", "--version", 2, "--json"))["model"] == {"name": "delays", "version": 2}


def test_deploy_takes_arms_and_shadows(run: Run, fake: FakeForesight) -> None:
    fake.on("SetDeployment", _with_arms)
    serving = prediction_pb2.ServingDeployment(deployment="live", model=ref("late", 3), ready=True)
    fake.on("ListServing", prediction_pb2.ListServingResponse(deployments=[serving]))
    arguments = ["--arm", "champion=late:3@90", "--arm", "challenger=late@10", "--shadow", "next=late:5"]
    shown = run("deploy", "live", *arguments, "--salt", "spring").stdout
    assert "champion: late v3 (90 %)" in shown
    assert "next: late v5 (shadow)" in shown
    [request] = fake.requests("SetDeployment")
    assert (request.salt, request.HasField("model")) == ("spring", False)
    assert [(a.name, a.model.version, a.weight, a.shadow) for a in request.arms] == [
        ("champion", 3, 90, False),
        ("challenger", 0, 10, False),
        ("next", 5, 0, True),
    ]
    deployment = _with_arms(request).deployment
    fake.on("ListDeployments", model_registry_pb2.ListDeploymentsResponse(deployments=[deployment]))
    [listed] = _json(run("deployments", "--json"))
    assert [a["name"] for a in listed["arms"]] == ["champion", "challenger", "next"]


def _with_arms(request: model_registry_pb2.SetDeploymentRequest) -> model_registry_pb2.SetDeploymentResponse:
    deployment = model_registry_pb2.Deployment(name=request.name, model=request.arms[0].model, arms=request.arms)
    return model_registry_pb2.SetDeploymentResponse(deployment=deployment)


@pytest.fixture
def deployed(fake: FakeForesight) -> FakeForesight:
    """A fake whose deployment `live` uses the view `delays`, and which answers predictions."""
    deployment = model_registry_pb2.Deployment(name="live", model=ref("delays", 2), view=ref("delays", 3))
    fake.on("GetDeployment", model_registry_pb2.GetDeploymentResponse(deployment=deployment))
    fake.on("GetFeatureView", described_view())

    def answer(request: Any) -> prediction_pb2.PredictResponse:
        n = len(decode_column(request.columns[0]))
        missing = prediction_pb2.MissingFeature(
            row=0,
            feature="wind",
            status=online_pb2.FEATURE_STATUS_FUTURE,
            policy=registry_pb2.MISSING_POLICY_LAST_KNOWN,
            last_known_at=encode_instant(NOON - HOUR),
        )
        return prediction_pb2.PredictResponse(
            prediction_ids=[f"id-{row}" for row in range(n)],
            outputs=[encode_column(Column.build("probability", DataType.FLOAT64, [0.25] * n))],
            model=ref("delays", 2),
            event_time=encode_instant(NOON),
            missing=[missing],
        )

    fake.on("Predict", answer)
    fake.on("PredictStream", lambda m: prediction_pb2.PredictStreamResponse(response=answer(m.request)))
    return fake


def test_predict_asks_with_the_types_of_the_view(run: Run, deployed: FakeForesight) -> None:
    result = run("predict", "live", "--set", "origin=123", "--set", "hour=17", "--event-time", "2013-03-01T12:00:00Z")
    assert "id-0" in result.stdout
    assert "wind (future, last known of 2013-03-01T11:00:00Z)" in result.stdout
    [request] = deployed.requests("Predict")
    assert {c.name: decode_column(c).to_list() for c in request.columns} == {"origin": ["123"], "hour": [17]}
    assert request.event_time == encode_instant(NOON)


def test_predict_says_a_missing_feature_once(run: Run, deployed: FakeForesight) -> None:
    """With NULL there is nothing to add to why it is missing."""

    def missing(policy: Any) -> prediction_pb2.MissingFeature:
        return prediction_pb2.MissingFeature(feature="wind", status=online_pb2.FEATURE_STATUS_NULL, policy=policy)

    def answer(policy: Any) -> prediction_pb2.PredictResponse:
        return prediction_pb2.PredictResponse(
            prediction_ids=["id"], model=ref("delays", 2), event_time=encode_instant(NOON), missing=[missing(policy)]
        )

    deployed.on("Predict", answer(registry_pb2.MISSING_POLICY_NULL), answer(registry_pb2.MISSING_POLICY_DEFAULT))
    asked = ("predict", "live", "--set", "origin=123", "--set", "hour=17")
    assert "wind (null)" in run(*asked).stdout
    assert "wind (null, default)" in run(*asked).stdout


def test_predict_names_its_requests(run: Run, deployed: FakeForesight, file: Any) -> None:
    """Those for the rows of a file by number; and says how many answers are those to earlier ones."""

    def answer(request: Any) -> prediction_pb2.PredictResponse:
        n = len(decode_column(request.columns[0]))
        return prediction_pb2.PredictResponse(
            prediction_ids=["id"] * n, model=ref("delays", 2), event_time=encode_instant(NOON), repeated_answer=n == 1
        )

    deployed.on("Predict", answer)
    deployed.on("PredictStream", lambda m: prediction_pb2.PredictStreamResponse(response=answer(m.request)))
    named = run("predict", "live", "--set", "origin=123", "--set", "hour=17", "--request-id", "o7")
    assert "1 of 1 had been answered before" in named.stderr
    rows = file("ask.csv", "origin,hour\n" + "123,17\n" * 1025)
    assert "1 of 1,025 had been answered before" in run("predict", "live", "--rows", rows, "--request-id", "o8").stderr
    run("predict", "live", "--rows", rows, "--request-id", "o9", "--arm", "next")
    assert [r.request_id for r in deployed.requests("Predict")] == ["o7", "o9/0", "o9/1"]
    assert [m.request.request_id for m in deployed.requests("PredictStream")] == ["o8/0", "o8/1"]


def test_predict_says_which_rows_of_a_file_were_answered_before_an_error(
    run: Run, deployed: FakeForesight, file: Any
) -> None:
    answered = prediction_pb2.PredictResponse(
        prediction_ids=[f"id-{row}" for row in range(1024)], model=ref("delays", 2), event_time=encode_instant(NOON)
    )
    failed = prediction_pb2.PredictStreamError(code=5, message="the feature wind of row 1 is NULL")
    deployed.on(
        "PredictStream",
        prediction_pb2.PredictStreamResponse(response=answered),
        prediction_pb2.PredictStreamResponse(error=failed),
    )
    result = run("predict", "live", "--rows", file("ask.csv", "origin,hour\n" + "123,17\n" * 1500))
    assert result.exit_code == 1
    assert "the first 1,024 rows were answered, and are in the log" in result.stderr
    assert "counted from there" in result.stderr
    assert "the feature wind of row 1 is NULL" in result.stderr


def test_predict_explains_sixteen_rows_at_a_time(run: Run, deployed: FakeForesight, file: Any) -> None:
    """Drawn with the largest contribution first, what adds nothing left out; as JSON with all."""

    def floats(name: str, value: float, n: int) -> types_pb2.Column:
        return encode_column(Column.build(name, DataType.FLOAT64, [value] * n))

    def answer(request: Any) -> prediction_pb2.PredictResponse:
        n = len(decode_column(request.columns[0]))
        return prediction_pb2.PredictResponse(
            prediction_ids=[f"id-{row}" for row in range(n)],
            model=ref("delays", 2),
            event_time=encode_instant(NOON),
            explanation=prediction_pb2.Explanation(
                output="probability",
                base=floats("base", 0.5, n),
                score=floats("score", 0.25, n),
                contributions=[floats("wind", 0.125, n), floats("gust", 0.0, n), floats("hour", -0.375, n)],
            ),
        )

    deployed.on("Predict", answer)
    drawn = run("predict", "live", "--set", "origin=123", "--set", "hour=17", "--explain").stdout
    assert drawn.index("base 0.5") < drawn.index("hour -0.375") < drawn.index("wind +0.125")
    assert "gust" not in drawn
    rows = file("ask.csv", "origin,hour\n" + "123,17\n" * 20)
    answers = _json(run("predict", "live", "--rows", rows, "--explain", "--json"))
    assert len(answers) == 20
    assert answers[19]["explanation"] == {
        "output": "probability",
        "base": 0.5,
        "score": 0.25,
        "contributions": {"hour": -0.375, "wind": 0.125, "gust": 0.0},
    }
    requests = deployed.requests("Predict")
    assert all(request.explain for request in requests)
    assert [len(decode_column(request.columns[0])) for request in requests] == [1, 16, 4]


def test_predict_asks_for_the_rows_of_a_file_in_parts(run: Run, deployed: FakeForesight, file: Any) -> None:
    rows = file("ask.csv", "origin,hour\n" + "123,17\n" * 1500)
    answers = _json(run("predict", "live", "--rows", rows, "--json"))
    assert len(answers) == 1500
    assert answers[0] == {
        "prediction_id": "id-0",
        "probability": 0.25,
        "model": {"name": "delays", "version": 2},
        "event_time": "2013-03-01T12:00:00Z",
        "missing": {"wind": {"status": "future", "policy": "last_known", "last_known_at": "2013-03-01T11:00:00Z"}},
    }
    assert [len(decode_column(m.request.columns[0])) for m in deployed.requests("PredictStream")] == [1024, 476]


def test_outcomes_are_read_from_a_file_by_id_or_by_key(run: Run, deployed: FakeForesight, file: Any) -> None:
    deployed.on("RecordOutcomes", outcome_pb2.RecordOutcomesResponse(matched=1, held=2, duplicates=3))
    by_id = file("a.csv", "prediction_id,value,observed_at,revision\nx,true,2013-03-01T13:00:00Z,1\n")
    assert "1 matched · 2 held until their predictions are logged · 3 known already" in run("outcomes", by_id).stdout
    by_key = file("b.csv", "origin,event_time,value,observed_at\n5,2013-03-01T12:00:00Z,1,2013-03-01T13:00:00Z\n")
    assert _json(run("outcomes", by_key, "--deployment", "live", "--json"))["held"] == 2
    first, second = deployed.requests("RecordOutcomes")
    assert (list(first.prediction_ids), list(first.revisions)) == (["x"], [1])
    assert decode_column(second.values).to_list() == [True]
    assert decode_column(second.entity_keys[0]).to_list() == ["5"]
    assert list(second.observed_at_micros) == [second.event_time_micros[0] + HOUR.seconds * 1_000_000]
    assert "--deployment" in run("outcomes", by_key).stderr
    no_value = run("outcomes", file("c.csv", "prediction_id\nx\n"))
    assert no_value.exit_code == 1
    assert "value: is not a column" in no_value.stderr


def _logged(n: int) -> pa.Table:
    return pa.table(
        {
            "prediction_id": [f"id-{i}" for i in range(n)],
            "event_time": [NOON] * n,
            "log_deployment": ["live"] * n,
            "log_model": ["delays"] * n,
            "log_model_version": [2] * n,
            "origin": ["JFK"] * n,
            "wind": [1.5] * n,
            "prediction_probability": [0.25] * n,
        }
    )


def test_predictions_are_shown_or_written_with_their_outcomes(
    run: Run, deployed: FakeForesight, tmp_path: Path
) -> None:
    def read(request: Any) -> Iterator[Any]:
        if request.query.group.name == "log_outcomes_delays_v3":
            raise errors.NotFound("group", request.query.group.name)
        yield from pieces(offline_pb2.ReadFeaturesResponse, encode_table(_logged(30)))

    deployed.on("ReadFeatures", read)
    shown = run("predictions", "delays", "--deployment", "live")
    assert "id-29" in shown.stdout
    assert "id-19 " not in shown.stdout
    assert "1.5" in shown.stdout
    assert "the last 10 of 30" in shown.stderr
    [only] = _json(run("predictions", "delays", "--limit", 1, "--json"))
    assert (only["prediction_id"], only["wind"], only["late"]) == ("id-29", 1.5, None)
    output = tmp_path / "log.jsonl"
    assert "30 predictions in" in run("predictions", "delays", "--output", output).stdout
    assert len(output.read_text().splitlines()) == 30
    assert run("predictions", "delays", "--output", tmp_path / "log.xlsx").exit_code == 2


def test_predictions_say_what_is_out_of_the_ordinary(run: Run, deployed: FakeForesight) -> None:
    """Arms that were forced, shadows, and answers without the feature store; nothing of it where all is as ever."""
    marks: dict[str, list[Any]] = {
        "log_arm": ["", "a", "b", "s"],
        "log_arm_forced": [False, False, True, False],
        "log_shadow": [False, False, False, True],
        "log_degraded": [False, True, False, False],
    }

    def read(rows: pa.Table) -> Callable[[Any], Iterator[Any]]:
        def answer(request: Any) -> Iterator[Any]:
            if request.query.group.name == "log_outcomes_delays_v3":
                raise errors.NotFound("group", request.query.group.name)
            yield from pieces(offline_pb2.ReadFeaturesResponse, encode_table(rows))

        return answer

    logged = _logged(4)
    for name, values in marks.items():
        logged = logged.append_column(name, pa.array(values))
    deployed.on("ReadFeatures", read(logged))
    shown = [" ".join(line.split()) for line in run("predictions", "delays").stdout.splitlines()]
    for row, text in enumerate(["—", "a yes", "b (forced)", "s (shadow)"]):
        assert any(f"id-{row}" in line for line in shown)
        assert any(text in line for line in shown)
    deployed.on("ReadFeatures", read(logged.slice(0, 1)))
    usual = run("predictions", "delays").stdout
    assert "degraded" not in usual
    assert "arm" not in usual


def test_verify_ends_with_1_when_something_differs(run: Run, fake: FakeForesight) -> None:
    mismatch = prediction_pb2.Mismatch(
        name="wind", cause=prediction_pb2.MISMATCH_CAUSE_DATA, recorded="1.5", replayed="2.5"
    )
    good = prediction_pb2.VerifyPredictionResponse(verified=True, model=ref("delays", 2))
    bad = prediction_pb2.VerifyPredictionResponse(mismatches=[mismatch], model=ref("delays", 2))
    fake.on("VerifyPrediction", lambda request: good if request.prediction_id == "a" else bad)
    assert _json(run("verify", "a", "--json"))[0]["verified"] is True
    result = run("verify", "a", "b")
    assert result.exit_code == 1
    assert "wind (data): 1.5 → 2.5" in result.stdout


def test_the_ledger_ends_with_1_when_a_prediction_is_nowhere(run: Run, fake: FakeForesight) -> None:
    fake.on("GetSpool", prediction_pb2.GetSpoolResponse())
    row = prediction_log_pb2.IncarnationLedger(replica="p0", incarnation="i", highest_sequence=1500, logged=1500)
    fake.on("GetLedger", prediction_log_pb2.GetLedgerResponse(incarnations=[row]))
    assert "1,500" in run("ledger").stdout
    assert _json(run("ledger", "--json"))[0]["unaccounted"] == 0
    row.logged = 1499
    fake.on("GetLedger", prediction_log_pb2.GetLedgerResponse(incarnations=[row]))
    assert run("ledger").exit_code == 1


def test_batch_says_where_the_predictions_are(run: Run, fake: FakeForesight) -> None:
    done = batch_prediction_pb2.BatchRun(run_id="r1", model=ref("delays", 2), sink_table="tomorrow", rows=3)
    fake.on("RunBatchPrediction", lambda r: [batch_prediction_pb2.RunBatchPredictionResponse(run=done)])
    day = ("--from", "2013-03-01T00:00:00Z", "--to", "2013-03-02T00:00:00Z", "--as-of", "2013-03-01T12:00:00Z")
    result = run("batch", "live", "schedule", *day, "--sink-table", "tomorrow", "--run-id", "r1")
    assert "3 rows scored by delays v2 into tomorrow · run r1" in result.stdout
    [request] = fake.requests("RunBatchPrediction")
    assert (request.event_time, request.run_id, request.rows.group.name) == (encode_instant(NOON), "r1", "schedule")


def test_every_command_explains_itself() -> None:
    groups = [group.typer_instance for group in app.registered_groups]
    parts = [(app, []), *((group, [str(group.info.name)]) for group in groups if group is not None)]
    for part, words in parts:
        listed = CliRunner().invoke(app, [*words, "--help"]).stdout
        for command in part.registered_commands:
            assert command.callback is not None
            name = command.name or command.callback.__name__.replace("_", "-")
            assert name in listed
            result = CliRunner().invoke(app, [*words, name, "--help"])
            assert result.exit_code == 0
            assert command.callback.__doc__ is not None
