"""A model server on the KServe SDK that looks features up in Feast and then asks a scikit-learn model.

python kserve_feast.py FOLDER GRPC_PORT HTTP_PORT

Inputs: `place`, BYTES (n), and `request`, FP64 (n, n_request_features). Output: `probability`, FP64 (n). FOLDER has the
Feast repository and `model.joblib`.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import grpc.aio
import joblib  # type: ignore[import-untyped]
import numpy as np
import uvicorn  # type: ignore[import-not-found]
from feast_places import Places  # type: ignore[import-not-found]
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

LOOPBACK = "127.0.0.1"


class LateModel(Model):  # type: ignore[misc]
    """Answers how likely each is late."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self._places, self._model = Places(folder), joblib.load(folder / "model.joblib")
        self.ready = True

    async def predict(
        self, payload: InferRequest, headers: dict[str, str] | None = None, response_headers: Any = None
    ) -> InferResponse:
        """Looks up, predicts."""
        inputs = {one.name: one for one in payload.inputs}
        places = [place.decode() for place in inputs["place"].as_numpy().ravel()]
        vectors = np.hstack([self._places.features(places), inputs["request"].as_numpy()])
        probability = self._model.predict_proba(vectors)[:, 1]
        output = InferOutput("probability", list(probability.shape), "FP64", data=probability.tolist())
        return InferResponse(payload.id, self.name, [output])


def listen_on_loopback_only() -> None:
    """The SDK has no option for it: both of its servers take any address of the machine."""
    add_insecure_port = grpc.aio.Server.add_insecure_port

    def add_loopback_port(server: grpc.aio.Server, address: str) -> int:
        return add_insecure_port(server, address.replace("[::]", LOOPBACK))

    grpc.aio.Server.add_insecure_port = add_loopback_port  # type: ignore[assignment,method-assign]
    load = uvicorn.Config.__init__
    uvicorn.Config.__init__ = lambda config, app, host, **options: load(config, app, host=LOOPBACK, **options)


def main(folder: Path, grpc_port: int, http_port: int) -> None:
    """Serves until it is stopped."""
    listen_on_loopback_only()
    # A line per call is written by none of the systems that are compared.
    server = ModelServer(grpc_port=grpc_port, http_port=http_port, enable_latency_logging=False)
    logging.getLogger("kserve").setLevel(logging.WARNING)
    server.start([LateModel("late", folder)])


if __name__ == "__main__":
    arguments, sys.argv = sys.argv, sys.argv[:1]
    main(Path(arguments[1]), int(arguments[2]), int(arguments[3]))
