"""Models in memory: checked on what they carry, shared while they are in use, and let go after."""

from __future__ import annotations

import asyncio
import gc
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foresight.scoring import EXAMPLE_KEY, Example, ModelTask, OnnxModel, Signature, encode_example
from foresight.values import Column, DataType, Field
from services.predictor.artifacts import ArtifactCache
from services.predictor.models import LoadedModel, ModelCache
from services.predictor.versions import ModelVersion, VersionRef
from services.runtime.errors import FailedPrecondition
from tests.wire.predictor.onnx_models import crowd_model, linear_model, with_example, with_metadata

INPUTS = (Field("p", DataType.FLOAT64), Field("q", DataType.INT64))
LABEL = Field("late", DataType.BOOL)
CLASSES = Column.build("late", DataType.BOOL, [False, True])
SIGNATURE = Signature(ModelTask.BINARY_CLASSIFICATION, INPUTS, LABEL, CLASSES)
ROWS: Mapping[str, Sequence[float]] = {"p": [0.5, -1.0, float("nan")], "q": [1.0, 2.0, 3.0]}


class Shelf:
    """Artifacts by digest."""

    def __init__(self) -> None:
        self.artifacts: dict[str, bytes] = {}

    async def download(self, sha256: str) -> AsyncIterator[bytes]:
        yield self.artifacts[sha256]


class Loading:
    """A cache, and artifacts to load with it."""

    def __init__(self, folder: Path) -> None:
        self.shelf = Shelf()
        self.cache = ModelCache(ArtifactCache(folder / "artifacts", self.shelf))

    async def load(
        self, artifact: bytes, *, batch_invariant: bool = True, inputs: tuple[Field, ...] = INPUTS
    ) -> LoadedModel:
        digest = hashlib.sha256(artifact).hexdigest()
        self.shelf.artifacts[digest] = artifact
        ref = VersionRef("late", 1)
        task = ModelTask.BINARY_CLASSIFICATION
        version = ModelVersion(ref, ref, task, inputs, CLASSES, digest, len(artifact), batch_invariant)
        return await self.cache.load(version, LABEL)


@pytest.fixture
def loading(tmp_path: Path) -> Loading:
    return Loading(tmp_path)


def linear(bias: float = 0.0, names: Sequence[str] = ("p", "q")) -> bytes:
    return linear_model(names, [0.3] * len(names), bias, classifier=True)


async def test_a_model_that_scores_its_example_is_loaded_with_it(loading: Loading) -> None:
    model = await loading.load(with_example(linear(), SIGNATURE, ROWS))
    assert model.example is not None
    assert model.example.rows == 3
    assert np.isnan(model.example.inputs["p"][2])
    assert 0 < model.row_s < 1


async def test_a_model_without_an_example_is_loaded_all_the_same(loading: Loading) -> None:
    """It was registered before models had one."""
    model = await loading.load(linear())
    assert model.example is None
    assert 0 < model.row_s < 1


@pytest.mark.parametrize("shift", [1e-7, 0.5])
async def test_a_model_that_scores_its_example_otherwise_is_refused(loading: Loading, shift: float) -> None:
    """To the last bit."""
    with pytest.raises(FailedPrecondition, match="scores its example otherwise"):
        await loading.load(with_example(linear(), SIGNATURE, ROWS, shift=shift))
    assert loading.cache.loaded == 0


async def test_a_model_whose_scores_depend_on_the_batch_must_not_claim_otherwise(loading: Loading) -> None:
    """Marked as what it is, it is compared row by row with the scores of rows alone."""
    rows = {"p": [1.0, 2.0, 5.0], "q": [0.0, 1.0, 2.0]}
    crowd = crowd_model(["p", "q"])
    with pytest.raises(FailedPrecondition, match="scores its example otherwise"):
        await loading.load(with_example(crowd, SIGNATURE, rows))
    inputs: dict[str, Any] = {name: np.array(values, np.float32) for name, values in rows.items()}
    alone = OnnxModel(crowd, SIGNATURE, batch_invariant=False).score_raw(inputs)
    artifact = with_metadata(crowd, EXAMPLE_KEY, encode_example(Example(inputs, alone)) or "")
    assert (await loading.load(artifact, batch_invariant=False)).example is not None


@pytest.mark.parametrize(
    ("artifact", "says"),
    [
        (with_metadata(linear(), EXAMPLE_KEY, "{}"), "cannot be read"),
        (with_example(linear(names=("p", "r")), SIGNATURE, {"p": [1.0], "r": [2.0]}), "lacks"),
        (
            with_metadata(
                linear(),
                EXAMPLE_KEY,
                encode_example(Example({"p": np.zeros(1, np.float32)}, np.zeros((1, 2), np.float32))) or "",
            ),
            "cannot score its own example",
        ),
        (
            with_metadata(
                linear(),
                EXAMPLE_KEY,
                encode_example(
                    Example(
                        {"p": np.array(["text"], object), "q": np.zeros(1, np.float32)}, np.zeros((1, 2), np.float32)
                    )
                )
                or "",
            ),
            "cannot score its own example",
        ),
    ],
)
async def test_an_example_that_does_not_fit_is_refused(loading: Loading, artifact: bytes, says: str) -> None:
    with pytest.raises(FailedPrecondition, match=says):
        await loading.load(artifact)


async def test_a_model_in_use_is_shared_and_one_in_use_nowhere_is_let_go(loading: Loading) -> None:
    artifact = with_example(linear(), SIGNATURE, ROWS)
    first = await loading.load(artifact)
    assert await loading.load(artifact) is first
    assert loading.cache.loaded == 1
    del first
    async with asyncio.timeout(5):
        while loading.cache.loaded:
            # The event loop lets go of what the thread answered a turn later.
            await asyncio.sleep(0)
            gc.collect()
