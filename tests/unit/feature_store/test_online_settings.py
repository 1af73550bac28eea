"""Settings of the online store."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from services.feature_store.config import FeatureStoreSettings, OnlineSettings, RedisSettings


def settings(*urls: str, **others: object) -> RedisSettings:
    """Settings of a cluster."""
    return RedisSettings.model_validate({"urls": urls, **others})


def test_nodes_are_hosts_and_ports_with_or_without_tls() -> None:
    plain = settings("redis://one:7000", "redis://[::1]")
    assert (plain.addresses, plain.tls) == ([("one", 7000), ("::1", 6379)], False)
    assert settings("rediss://one").tls


@pytest.mark.parametrize(
    "urls",
    [
        (),
        ("one:7000",),
        ("http://one",),
        ("redis://",),
        ("redis://one/3",),
        ("redis://one:port",),
        ("redis://user@one",),
        ("redis://:secret@one",),
        ("redis://one", "rediss://two"),
    ],
)
def test_what_is_no_cluster_is_refused(urls: tuple[str, ...]) -> None:
    """A password belongs into a file, and there are no numbered databases."""
    with pytest.raises(ValidationError):
        settings(*urls)


@pytest.mark.parametrize("prefix", ["", "A", "a{b}", "1", "x" * 32])
def test_a_prefix_is_a_plain_name(prefix: str) -> None:
    """Braces would move all keys into one slot."""
    with pytest.raises(ValidationError):
        settings("redis://one", prefix=prefix)


def test_the_environment_says_where_the_store_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """LMDB unless a cluster is named."""
    prefix = "FORESIGHT_FEATURE_STORE_"
    given = {"LISTEN": "unix:/s", "DATABASE__URL": "postgresql://a@b/c", "STATE_FOLDER": "/state"}
    for name, value in given.items():
        monkeypatch.setenv(prefix + name, value)
    assert FeatureStoreSettings().online == OnlineSettings(redis=None)  # type: ignore[call-arg]
    monkeypatch.setenv(f"{prefix}ONLINE__REDIS__URLS", json.dumps(["redis://one:7000"]))
    monkeypatch.setenv(f"{prefix}ONLINE__REDIS__BUCKETS", "16")
    found = FeatureStoreSettings().online.redis  # type: ignore[call-arg]
    assert found is not None
    assert (found.addresses, found.buckets) == ([("one", 7000)], 16)
