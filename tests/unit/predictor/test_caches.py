"""What the predictor keeps on disk and in memory, and what bounds it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foresight.values import DataType, FeatureView, Field
from services.predictor.artifacts import ARTIFACTS_MAX, ArtifactCache
from services.predictor.serving_file import ServingFile
from services.predictor.versions import VersionRef
from services.predictor.views import VIEWS_MAX, ViewCatalogue
from services.runtime.errors import DataLoss, NotFound


class Source:
    """Artifacts by digest; counts downloads."""

    def __init__(self) -> None:
        self.artifacts: dict[str, bytes] = {}
        self.downloads = 0

    def put(self, artifact: bytes) -> str:
        digest = hashlib.sha256(artifact).hexdigest()
        self.artifacts[digest] = artifact
        return digest

    async def download(self, sha256: str) -> AsyncIterator[bytes]:
        self.downloads += 1
        if sha256 not in self.artifacts:
            raise NotFound("artifact", sha256)
        for byte in self.artifacts[sha256]:
            yield bytes([byte])


async def test_an_artifact_is_downloaded_once_and_kept_privately(tmp_path: Path) -> None:
    """Also for the next process."""
    source = Source()
    digest = source.put(b"model")
    for _ in range(2):
        assert await ArtifactCache(tmp_path / "a", source).fetch(digest) == b"model"
    assert source.downloads == 1
    (path,) = (tmp_path / "a").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


async def test_bytes_that_do_not_match_are_never_kept(tmp_path: Path) -> None:
    """DATA_LOSS, and a later good download is taken."""
    source = Source()
    digest = source.put(b"model")
    source.artifacts[digest] = b"other"
    cache = ArtifactCache(tmp_path, source)
    with pytest.raises(DataLoss):
        await cache.fetch(digest)
    assert not list(tmp_path.iterdir())
    source.artifacts[digest] = b"model"
    assert await cache.fetch(digest) == b"model"


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63, "http://host/model"])
async def test_a_digest_that_is_none_never_becomes_a_path(tmp_path: Path, digest: str) -> None:
    """Nothing is asked of the trainer either."""
    source = Source()
    with pytest.raises(DataLoss):
        await ArtifactCache(tmp_path, source).fetch(digest)
    assert source.downloads == 0


async def test_the_folder_of_artifacts_is_bounded(tmp_path: Path) -> None:
    """The newest stay."""
    source = Source()
    cache = ArtifactCache(tmp_path, source)
    for i in range(ARTIFACTS_MAX):
        (tmp_path / f"{i:064x}.onnx").write_bytes(b"")
    digest = source.put(b"new")
    await cache.fetch(digest)
    assert len(list(tmp_path.iterdir())) == ARTIFACTS_MAX
    assert await cache.fetch(digest) == b"new"
    assert source.downloads == 1


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    """Old leftovers go; one that may still be written to, and everything else, stays."""
    for name in (".new-old", ".new-fresh", "kept.onnx"):
        (tmp_path / name).write_bytes(b"x")
    os.utime(tmp_path / ".new-old", (0, 0))
    ArtifactCache(tmp_path, Source())
    assert sorted(p.name for p in tmp_path.iterdir()) == [".new-fresh", "kept.onnx"]


async def test_views_are_fetched_once_and_bounded() -> None:
    """Those used longest ago are forgotten."""
    fetched: list[int] = []

    class Views:
        async def view(self, ref: VersionRef) -> FeatureView:
            fetched.append(ref.version)
            field = Field("x", DataType.FLOAT64)
            return FeatureView(
                ref.name, Field("y", DataType.BOOL), request_features=(field,), features=(field,), version=ref.version
            )

    catalogue = ViewCatalogue(Views())
    for version in range(1, VIEWS_MAX + 1):
        await catalogue.plan(VersionRef("v", version))
    await catalogue.plan(VersionRef("v", 1))
    await catalogue.plan(VersionRef("v", VIEWS_MAX + 1))
    await catalogue.plan(VersionRef("v", 1))
    await catalogue.plan(VersionRef("v", 2))
    assert fetched == [*range(1, VIEWS_MAX + 2), 2]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=5), st.data())
def test_the_serving_file_is_whole_or_absent(tmp_path: Path, sections: list[bytes], data: st.DataObject) -> None:
    """Whatever happens to its bytes."""
    file = ServingFile(tmp_path / "serving")
    file.write(sections)
    assert file.read() == sections
    content = bytearray((tmp_path / "serving").read_bytes())
    cut = data.draw(st.integers(0, len(content)))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 0x10
    (tmp_path / "serving").write_bytes(content[: max(cut, 1)])
    assert file.read() == []
