"""Artifacts: named by their digest, whole or absent, and never outside of their folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from foresight.values import InvalidValue
from services.runtime.errors import DataLoss, LimitExceeded, NotFound
from services.trainer.artifacts import FolderArtifacts


async def test_an_artifact_is_found_by_its_digest(tmp_path: Path) -> None:
    store = FolderArtifacts(tmp_path)
    sha256 = await store.put(b"model")
    assert sha256 == hashlib.sha256(b"model").hexdigest() == await store.put(b"model")
    assert await store.get(sha256) == b"model"
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [f"{sha256}.onnx"]


async def test_damaged_bytes_are_data_loss_and_storing_them_again_repairs_them(tmp_path: Path) -> None:
    store = FolderArtifacts(tmp_path)
    sha256 = await store.put(b"model")
    (tmp_path / sha256[:2] / f"{sha256}.onnx").write_bytes(b"other")
    with pytest.raises(DataLoss):
        await store.get(sha256)
    assert await store.put(b"model") == sha256
    assert await store.get(sha256) == b"model"


async def test_a_folder_that_takes_no_files_is_a_limit_that_names_no_path(tmp_path: Path) -> None:
    """As on a full disk; the caller is told, and it is no bug."""
    (tmp_path / "artifacts").write_bytes(b"no folder")
    with pytest.raises(LimitExceeded) as refused:
        await FolderArtifacts(tmp_path / "artifacts").put(b"model")
    assert refused.value.message == "the disk of the model artifacts is full or failing"


async def test_an_unknown_digest_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await FolderArtifacts(tmp_path).get("0" * 64)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n", "0" * 64 + "/.."])
async def test_what_is_no_digest_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidValue):
        await FolderArtifacts(tmp_path).get(name)
