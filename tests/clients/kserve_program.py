"""What the KServe SDK's client does with a deployment; run by its own interpreter, prints one line of JSON.

python kserve_program.py <address> <authority> <application's certificate and key> <event time>
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Any

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest, InferResponse

MODEL = "late_orders"


def typed() -> list[InferInput]:
    return [
        InferInput("restaurant", [2], "BYTES", ["bistro", "aroma"]),
        InferInput("distance_km", [2], "FP64", [6.5, 0.8]),
        InferInput("rain", [2], "BOOL", [True, False]),
    ]


def raw() -> list[InferInput]:
    made = [
        InferInput("restaurant", [2, 1], "BYTES"),
        InferInput("distance_km", [2, 1], "FP64"),
        InferInput("rain", [2, 1], "BOOL"),
    ]
    values = (
        np.array([["bistro"], ["aroma"]], np.object_),
        np.array([[6.5], [0.8]], np.float64),
        np.array([[True], [False]]),
    )
    for one, array in zip(made, values, strict=True):
        one.set_data_from_numpy(array)
    return made


def answered(response: InferResponse) -> dict[str, Any]:
    outputs = {output.name: output.as_numpy().ravel().tolist() for output in response.outputs}
    ids = response.parameters["prediction_ids"].string_param.split(",")
    return {**outputs, "id": response.id, "version": response.model_version, "prediction_ids": ids}


async def ask(address: str, authority: str, certificate: str, event_time: str) -> dict[str, Any]:
    # A refusal is expected below; the client would print its whole trace.
    logging.disable(logging.ERROR)
    parameters = {"event_time": event_time}
    async with InferenceGRPCClient(
        address, use_ssl=True, root_certificates=authority, private_key=certificate, certificate_chain=certificate
    ) as client:
        seen: dict[str, Any] = {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready(MODEL),
        }
        for kind, inputs in (("typed", typed()), ("raw", raw())):
            request = InferRequest(MODEL, inputs, request_id=f"from-kserve-{kind}", parameters=parameters)
            seen[kind] = answered(await client.infer(request))
        try:
            await client.infer(InferRequest(MODEL, typed()[:2], parameters=parameters))
        except grpc.RpcError as error:
            seen["status"], seen["details"] = error.code().name, error.details()
        return seen


if __name__ == "__main__":
    print(json.dumps(asyncio.run(ask(*sys.argv[1:]))))
