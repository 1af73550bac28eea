"""MLServer's custom runtime that looks features up in Feast and then asks a scikit-learn model.

Inputs: `place`, BYTES (n), and `request`, FP64 (n, n_request_features). Output: `probability`, FP64 (n). The model's
uri is a folder with the Feast repository and `model.joblib`.
"""

from __future__ import annotations

from pathlib import Path

import joblib  # type: ignore[import-untyped]
import numpy as np
from feast_places import Places  # type: ignore[import-not-found]
from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec, StringCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]


class LateModel(MLModel):  # type: ignore[misc]
    """Answers how likely each is late."""

    async def load(self) -> bool:
        """Reads the model and opens the store, in the process that runs it."""
        folder = Path(str(self.settings.parameters.uri))
        self._places, self._model = Places(folder), joblib.load(folder / "model.joblib")
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Looks up, predicts."""
        inputs = {one.name: one for one in payload.inputs}
        features = self._places.features(StringCodec.decode_input(inputs["place"]))
        vectors = np.hstack([features, NumpyCodec.decode_input(inputs["request"])])
        probability = self._model.predict_proba(vectors)[:, 1]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("probability", probability)])
