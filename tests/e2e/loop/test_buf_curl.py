"""A tool that knows nothing of Foresight calls a predictor: it learns the messages by reflection and speaks JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.local import LocalStack
from foresight.client import Client

BUF = str(Path(sys.executable).with_name("buf"))
ASKED_AT = "2026-03-05T09:30:00Z"
PREDICTION = "foresight.predictor.v1.PredictionService"


def curl(stack: LocalStack, method: str, request: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """`buf curl` through the socket of the predictor."""
    socket = stack.connection["sockets"]["predictor"].removeprefix("unix:")
    return subprocess.run(
        [
            *(BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--unix-socket", socket),
            *("--data", json.dumps(request), f"http://localhost/{method}"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def answer(stack: LocalStack, method: str, request: dict[str, Any]) -> dict[str, Any]:
    done = curl(stack, method, request)
    assert done.returncode == 0, done.stderr
    answered: dict[str, Any] = json.loads(done.stdout)
    return answered


def test_columns_and_rows_are_answered_alike(stack: LocalStack) -> None:
    columns = [
        {"name": "restaurant", "stringValues": {"values": ["bistro"]}},
        {"name": "distance_km", "float64Values": {"values": [6.5]}},
        {"name": "rain", "boolValues": {"values": [True]}},
    ]
    by_columns = answer(
        stack, f"{PREDICTION}/Predict", {"deployment": "late_orders", "columns": columns, "eventTime": ASKED_AT}
    )
    row = {"restaurant": "bistro", "distance_km": 6.5, "rain": True}
    by_rows = answer(
        stack, f"{PREDICTION}/PredictRows", {"deployment": "late_orders", "rows": [row], "eventTime": ASKED_AT}
    )
    (probability,) = (output for output in by_columns["outputs"] if output["name"] == "probability")
    assert probability["float64Values"]["values"] == [by_rows["rows"][0]["outputs"]["probability"]]
    assert by_columns["eventTime"] == by_rows["eventTime"] == ASKED_AT
    with Client(state=stack.state) as client:
        assert client.verify(by_columns["predictionIds"][0]).verified
        assert client.verify(by_rows["rows"][0]["predictionId"]).verified


@pytest.mark.parametrize("method", ["ServerLive", "ServerReady"])
def test_the_inference_protocol_is_found_too(stack: LocalStack, method: str) -> None:
    key = "live" if method == "ServerLive" else "ready"
    assert answer(stack, f"inference.GRPCInferenceService/{method}", {}) == {key: True}


def test_a_refusal_is_read_with_its_details(stack: LocalStack) -> None:
    refused = curl(stack, f"{PREDICTION}/PredictRows", {"deployment": "nobody", "rows": [{"a": 1}]})
    assert refused.returncode != 0
    fault = json.loads(refused.stderr)
    assert fault["code"] == "not_found"
    assert any(detail["type"].endswith("google.rpc.ErrorInfo") for detail in fault["details"])
