"""What Triton's client does with a deployment; run by its own interpreter, prints one line of JSON.

python triton_program.py <address> <authority> <application's certificate and key> <operator's> <event time>
"""

from __future__ import annotations

import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

MODEL = "late_orders"
COLUMNS: dict[str, np.ndarray[Any, Any]] = {
    "restaurant": np.array([[b"bistro"], [b"aroma"]], np.object_),
    "distance_km": np.array([[6.5], [0.8]], np.float64),
    "rain": np.array([[True], [False]]),
}
DATATYPES = {"restaurant": "BYTES", "distance_km": "FP64", "rain": "BOOL"}


def client(address: str, authority: str, certificate: str) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(
        address, ssl=True, root_certificates=authority, private_key=certificate, certificate_chain=certificate
    )


def inputs() -> list[triton.InferInput]:
    made = []
    for name, values in COLUMNS.items():
        made.append(triton.InferInput(name, list(values.shape), DATATYPES[name]))
        made[-1].set_data_from_numpy(values)
    return made


def features(values: np.ndarray[Any, Any]) -> list[triton.InferInput]:
    made = triton.InferInput("features", list(values.shape), "FP32")
    made.set_data_from_numpy(values)
    return [made]


def answered(result: triton.InferResult) -> dict[str, Any]:
    response = result.get_response()
    return {
        "probability": result.as_numpy("probability").ravel().tolist(),
        "label": result.as_numpy("label").ravel().tolist(),
        "outputs": [output.name for output in response.outputs],
        "version": response.model_version,
        "id": response.id,
        "prediction_ids": response.parameters["prediction_ids"].string_param.split(","),
        "event_time": response.parameters["event_time"].string_param,
    }


def status_of(call: Any, *arguments: Any, **options: Any) -> str:
    try:
        call(*arguments, **options)
    except InferenceServerException as error:
        return str(error.status())
    return "OK"


def streamed(application: triton.InferenceServerClient, parameters: dict[str, Any]) -> list[Any]:
    """Two predictions around one that fails."""
    seen: queue.Queue[Any] = queue.Queue()
    application.start_stream(callback=lambda result, error: seen.put(error or result))
    for version in ("", "77", "1"):
        application.async_stream_infer(
            MODEL, inputs(), model_version=version, request_id=f"v{version}", parameters=parameters
        )
    results = [seen.get(timeout=20) for _ in range(3)]
    application.stop_stream()
    return [str(result) if isinstance(result, Exception) else answered(result) for result in results]


def described(application: triton.InferenceServerClient) -> dict[str, Any]:
    metadata = application.get_model_metadata(MODEL, as_json=True)
    config = application.get_model_config(MODEL, as_json=True)["config"]
    return {
        "live": application.is_server_live(),
        "ready": application.is_server_ready(),
        "model_ready": application.is_model_ready(MODEL, "1"),
        "server": application.get_server_metadata(as_json=True)["name"],
        "inputs": [[t["name"], t["datatype"], t["shape"]] for t in metadata["inputs"]],
        "versions": metadata["versions"],
        "max_batch_size": config["max_batch_size"],
        "features_shape": config["parameters"]["features_shape"]["string_value"],
    }


def main() -> None:
    address, authority, application_file, operator_file, event_time = sys.argv[1:]
    application, operator = (client(address, authority, file) for file in (application_file, operator_file))
    parameters = {"event_time": event_time}
    seen = described(application)
    seen["answer"] = answered(
        application.infer(
            MODEL,
            inputs(),
            request_id="from-triton",
            outputs=[triton.InferRequestedOutput("label"), triton.InferRequestedOutput("probability")],
            parameters=parameters,
        )
    )
    waiting: queue.Queue[Any] = queue.Queue()
    application.async_infer(
        MODEL, inputs(), callback=lambda result, error: waiting.put(error or result), parameters=parameters
    )
    seen["async"] = answered(waiting.get(timeout=20))
    seen["stream"] = streamed(application, parameters)
    matrix = np.array([[12, 18.5, 6.5, 1], [np.nan, np.nan, 0.8, 0]], np.float32)
    seen["given"] = answered(application.infer(MODEL, features(matrix[:1])))
    statistics = application.get_inference_statistics(MODEL, as_json=True)["model_stats"][0]
    seen["predictions"] = int(statistics["inference_count"])
    seen["statuses"] = {
        "unknown version": status_of(application.infer, MODEL, inputs(), model_version="77"),
        "unknown model": status_of(application.infer, "nobody", inputs()),
        "wrong datatype": status_of(application.infer, MODEL, inputs()[:2] + features(matrix)),
        "sequence": status_of(application.infer, MODEL, inputs(), sequence_id=5, sequence_start=True),
        "application unloads": status_of(application.unload_model, MODEL),
        "application loads": status_of(application.load_model, MODEL),
        "shared memory": status_of(operator.get_system_shared_memory_status),
        "operator unloads": status_of(operator.unload_model, MODEL),
        "unloaded": status_of(application.infer, MODEL, inputs(), parameters=parameters),
        "operator loads": status_of(operator.load_model, MODEL),
        "loaded": status_of(application.infer, MODEL, inputs(), parameters=parameters),
    }
    index = application.get_model_repository_index(as_json=True)["models"]
    seen["index"] = [[m["name"], m["version"], m["state"]] for m in index]
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
