"""Loaded models, for evaluation and batch prediction."""

from __future__ import annotations

from collections import OrderedDict

from foresight.scoring import OnnxModel
from services.runtime.threads import in_thread
from services.trainer.artifacts import ArtifactStore
from services.trainer.models import ModelVersion

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
