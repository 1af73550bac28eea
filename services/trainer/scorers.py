"""Loaded models, for evaluation and batch prediction."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from foresight.scoring import OnnxModel, model_input
from foresight.values import Column, InvalidValue
from services.runtime.errors import FailedPrecondition
from services.runtime.threads import in_thread
from services.trainer.artifacts import ArtifactStore
from services.trainer.models import ModelVersion

log = structlog.get_logger()

LOADED_MAX = 8


class Scorers:
    """Keeps the last LOADED_MAX models loaded, by the digest of their artifact."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts
        self._loaded: OrderedDict[tuple[str, str], OnnxModel] = OrderedDict()

    async def load(self, version: ModelVersion) -> OnnxModel:
        """The version's model. Raises DataLoss when its artifact is damaged or gone."""
        # One artifact may serve versions of other names of classes, hence the model in the key.
        key = (str(version.ref), version.artifact_sha256)
        if (known := self._loaded.get(key)) is None:
            artifact = await self._artifacts.get(version.artifact_sha256)
            invariant = version.quality.batch_invariant
            known = await in_thread(OnnxModel, artifact, version.signature, batch_invariant=invariant)
            self._loaded[key] = known
        self._loaded.move_to_end(key)
        while len(self._loaded) > LOADED_MAX:
            self._loaded.popitem(last=False)
        return known


def score_rows(model: OnnxModel, features: Mapping[str, Column]) -> NDArray[Any]:
    """What `OnnxModel.score_raw` gives for stored rows; NaN where the model has no answer. Blocks.

    Raises FailedPrecondition when the model cannot take a value: it depends on what is stored, not on the caller.
    """
    try:
        # A double beyond the range of float32 becomes an infinity, as online.
        with np.errstate(over="ignore"):
            return model.score_raw({name: model_input(column) for name, column in features.items()})
    except InvalidValue as error:
        raise FailedPrecondition(f"the feature {error}", feature=error.violations[0].field) from error
    except Exception as error:  # ONNX Runtime has no public base of its errors, and a pipeline may refuse any text.
        log.warning("scoring_failed", error=type(error).__name__)
        raise FailedPrecondition("the model cannot score these rows; one has a value that it refuses") from error
