"""Settings of the trainer, read from FORESIGHT_TRAINER_*."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import DatabaseSettings, ServiceSettings, SocketAddresses


class TrainerSettings(ServiceSettings):
    """What the trainer is told."""

    model_config = SettingsConfigDict(
        env_prefix="FORESIGHT_TRAINER_", env_nested_delimiter="__", frozen=True, extra="ignore"
    )

    database: DatabaseSettings = Field(description="the database that holds the schema trainer")
    state_folder: Path = Field(description="folder of the model artifacts")
    feature_store: SocketAddresses = Field(description="addresses of the feature store's processes, with commas")
    sink: DatabaseSettings = Field(description="the database whose schema sink takes batch predictions")
