"""Settings of the feature store, read from FORESIGHT_FEATURE_STORE_*."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import DatabaseSettings, ServiceSettings, SocketAddress


class FeatureStoreSettings(ServiceSettings):
    """What the feature store is told."""

    model_config = SettingsConfigDict(
        env_prefix="FORESIGHT_FEATURE_STORE_", env_nested_delimiter="__", frozen=True, extra="ignore"
    )

    database: DatabaseSettings = Field(description="the database that holds the schema feature_store")
    state_folder: Path = Field(description="folder of the online store and of stored training datasets")
    logger: SocketAddress | None = Field(default=None, description="address of the logger; unset: no reingestion")
    transform_modules: tuple[str, ...] = Field(default=(), description="modules whose transforms may be imported")
