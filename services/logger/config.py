"""Settings of the logger, from FORESIGHT_LOGGER_*."""

from __future__ import annotations

from pydantic_settings import SettingsConfigDict

from services.runtime.settings import DatabaseSettings, ServiceSettings


class LoggerSettings(ServiceSettings):
    """What the logger is told."""

    model_config = SettingsConfigDict(env_prefix="FORESIGHT_LOGGER_", env_nested_delimiter="__")

    database: DatabaseSettings
