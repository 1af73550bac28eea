"""Registered groups and references to versions."""

from __future__ import annotations

from dataclasses import dataclass

from foresight.values import FeatureGroup, InvalidValue, check_name

REFERENCE_BYTES_MAX = 128


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """A registered group version; `id` names its rows in every store."""

    id: int
    group: FeatureGroup


@dataclass(frozen=True, slots=True)
class Reference:
    """A version of a named group or view; version 0 is the latest."""

    name: str
    version: int = 0

    def __post_init__(self) -> None:
        check_name(self.name, "name", reserved=True)
        if len(self.name) > REFERENCE_BYTES_MAX:
            raise InvalidValue("name", f"is longer than {REFERENCE_BYTES_MAX} bytes")

    def __str__(self) -> str:
        return f"{self.name} version {self.version}" if self.version else self.name
