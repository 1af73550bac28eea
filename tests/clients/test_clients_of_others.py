"""tritonclient and the KServe SDK through the gateway with mutual TLS, and `buf curl` on the predictor's socket: they
get what the native client gets, bit for bit, and every prediction of theirs is logged and verifies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.environments import python_of
from deploy.local import LocalStack
from examples.first_steps.service import ASKED_AT
from foresight.client import Client, Predictions

FOLDER = Path(__file__).parent
EVENT_TIME = ASKED_AT.isoformat()
TIMEOUT_S = 120
ROWS = [
    {"restaurant": "bistro", "distance_km": 6.5, "rain": True},
    {"restaurant": "aroma", "distance_km": 0.8, "rain": False},
]


def run(peer: str, program: str, *arguments: str) -> dict[str, Any]:
    """What a client's program printed, run without anything of ours."""
    command = [str(python_of(peer)), "-I", str(FOLDER / f"{program}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture
def native(stack: LocalStack) -> Predictions:
    with Client(state=stack.state) as client:
        return client.predict("late_orders", ROWS, event_time=ASKED_AT)


def check_logged(stack: LocalStack, ids: list[str]) -> None:
    with Client(state=stack.state) as client:
        for prediction_id in ids:
            assert client.verify(prediction_id).verified


def identity(stack: LocalStack, name: str) -> str:
    return str(stack.connection["identities"][name]["certificate"])


def address(stack: LocalStack) -> str:
    return str(stack.connection["gateway"])


def test_tritonclient(stack: LocalStack, native: Predictions) -> None:
    authority = str(stack.connection["ca"])
    files = [identity(stack, name) for name in ("application", "operator")]
    seen = run("tritonclient", "triton_program", address(stack), authority, *files, EVENT_TIME)
    assert (seen["live"], seen["ready"], seen["model_ready"], seen["server"]) == (True, True, True, "foresight")
    assert seen["inputs"] == [
        ["restaurant", "BYTES", ["-1", "1"]],
        ["distance_km", "FP64", ["-1", "1"]],
        ["rain", "BOOL", ["-1", "1"]],
    ]
    assert (seen["versions"], seen["max_batch_size"], seen["features_shape"]) == (["1"], 1_024, "FP32[-1,4]")
    assert seen["answer"]["outputs"] == ["label", "probability"]
    assert (seen["answer"]["id"], seen["answer"]["event_time"]) == ("from-triton", "2026-03-05T09:30:00.000000Z")
    before, failed, after = seen["stream"]
    assert "no version '77' of late_orders" in failed
    assert (before["id"], after["id"]) == ("v", "v1")
    for answer in (seen["answer"], seen["async"], before, after):
        assert answer["probability"] == native.outputs["probability"]
        assert answer["label"] == native.outputs["label"]
        assert answer["version"] == "1"
        check_logged(stack, answer["prediction_ids"])
    check_logged(stack, seen["given"]["prediction_ids"])
    assert 0 < seen["given"]["probability"][0] < 1
    assert seen["predictions"] >= 11
    assert seen["statuses"] == {
        "unknown version": "StatusCode.NOT_FOUND",
        "unknown model": "StatusCode.NOT_FOUND",
        "wrong datatype": "StatusCode.INVALID_ARGUMENT",
        "sequence": "StatusCode.INVALID_ARGUMENT",
        "application unloads": "StatusCode.PERMISSION_DENIED",
        "application loads": "StatusCode.PERMISSION_DENIED",
        "shared memory": "StatusCode.UNIMPLEMENTED",
        "operator unloads": "OK",
        "unloaded": "StatusCode.FAILED_PRECONDITION",
        "operator loads": "OK",
        "loaded": "OK",
    }
    assert seen["index"] == [["late_orders", "1", "READY"]]


def test_the_kserve_sdk(stack: LocalStack, native: Predictions) -> None:
    authority = str(stack.connection["ca"])
    seen = run("kserve", "kserve_program", address(stack), authority, identity(stack, "application"), EVENT_TIME)
    assert (seen["live"], seen["ready"], seen["model_ready"]) == (True, True, True)
    for kind in ("typed", "raw"):
        answer = seen[kind]
        assert (answer["id"], answer["version"]) == (f"from-kserve-{kind}", "1")
        assert answer["probability"] == native.outputs["probability"]
        assert answer["label"] == native.outputs["label"]
        check_logged(stack, answer["prediction_ids"])
    assert (seen["status"], seen["details"]) == ("INVALID_ARGUMENT", "inputs[rain]: is missing")


def test_buf_curl_against_reflection(stack: LocalStack, native: Predictions) -> None:
    """The predictor's own socket: the gateway does not show reflection to callers."""
    socket = str(stack.connection["sockets"]["predictor"]).removeprefix("unix:")
    body = {
        "model_name": "late_orders",
        "id": "from-buf",
        "parameters": {"event_time": {"string_param": EVENT_TIME}},
        "inputs": [
            {"name": "restaurant", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": ["YmlzdHJv"]}},
            {"name": "distance_km", "datatype": "FP64", "shape": [1], "contents": {"fp64_contents": [6.5]}},
            {"name": "rain", "datatype": "BOOL", "shape": [1], "contents": {"bool_contents": [True]}},
        ],
    }
    command = [str(Path(sys.executable).with_name("buf")), "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    options = ["--unix-socket", socket, "--data", json.dumps(body)]
    method = "http://localhost/inference.GRPCInferenceService/ModelInfer"
    done = subprocess.run([*command, *options, method], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["id"] == "from-buf"
    assert answer["outputs"][0]["contents"]["fp64Contents"] == native.outputs["probability"][:1]
