"""Settings of the feature store, read from FORESIGHT_FEATURE_STORE_*."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, field_validator
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import DatabaseSettings, ServiceSettings, SocketAddress


class RedisSettings(BaseModel, frozen=True):
    """A cluster of the Redis protocol."""

    urls: tuple[str, ...] = Field(min_length=1, description="redis://host:port of some nodes, rediss:// with TLS")
    username: str | None = None
    password_file: Path | None = None
    certificates_file: Path | None = Field(default=None, description="certificate authorities; unset: the system's")
    prefix: str = Field(default="foresight", pattern="^[a-z][a-z0-9_-]{0,30}$", description="prefix of all keys")
    buckets: int = Field(default=256, ge=1, le=16_384, description="hashes that a new store is spread over")

    @field_validator("urls")
    @classmethod
    def _are_nodes(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        schemes = set()
        for url in urls:
            parts = urlsplit(url)
            # `port` raises ValueError when it is no number.
            is_node = bool(parts.hostname) and parts.port != 0 and not parts.path.strip("/")
            if parts.scheme not in ("redis", "rediss") or not is_node:
                raise ValueError("must be redis://host:port or rediss://host:port")
            if parts.username or parts.password:
                raise ValueError("must not hold a user or password; name the user, and a file with the password")
            schemes.add(parts.scheme)
        if len(schemes) > 1:
            raise ValueError("must be all with TLS or all without")
        return urls

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.urls[0].startswith("rediss:")

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of the nodes."""
        return [(parts.hostname or "", parts.port or 6379) for parts in map(urlsplit, self.urls)]


class OnlineSettings(BaseModel, frozen=True):
    """Where the online store is: in the state folder, or in a cluster."""

    redis: RedisSettings | None = None


class FeatureStoreSettings(ServiceSettings):
    """What the feature store is told."""

    model_config = SettingsConfigDict(
        env_prefix="FORESIGHT_FEATURE_STORE_", env_nested_delimiter="__", frozen=True, extra="ignore"
    )

    database: DatabaseSettings = Field(description="the database that holds the schema feature_store")
    state_folder: Path = Field(description="folder of the online store and of stored training datasets")
    online: OnlineSettings = Field(default=OnlineSettings(), description="the online store; LMDB in the state folder")
    logger: SocketAddress | None = Field(default=None, description="address of the logger; unset: no reingestion")
    transform_modules: tuple[str, ...] = Field(default=(), description="modules whose transforms may be imported")
