"""Settings: one frozen object per service, read from the environment once, all faults reported together.

A service `predictor` reads `FORESIGHT_PREDICTOR_<NAME>`. Secrets are paths of files. Nothing else in a service
reads the environment.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

# Linux refuses longer socket paths; see unix(7).
SOCKET_PATH_BYTES_MAX = 107
# Processes of one service that another one calls.
ADDRESSES_MAX = 16
S = TypeVar("S", bound="ServiceSettings")


def _check_socket(address: str) -> str:
    if not address.startswith("unix:/"):
        raise ValueError("must be unix:/absolute/path; services are reached from outside through the gateway")
    if len(address.removeprefix("unix:").encode()) > SOCKET_PATH_BYTES_MAX:
        raise ValueError(f"the socket's path is longer than {SOCKET_PATH_BYTES_MAX} bytes")
    if "," in address:
        raise ValueError("the socket's path must not hold a comma")
    return address


def _split(addresses: object) -> object:
    return tuple(addresses.split(",")) if isinstance(addresses, str) else addresses


def _check_several(addresses: tuple[str, ...]) -> tuple[str, ...]:
    if not 1 <= len(addresses) <= ADDRESSES_MAX or len(set(addresses)) != len(addresses):
        raise ValueError(f"must be 1 to {ADDRESSES_MAX} different addresses, separated by commas")
    return addresses


SocketAddress = Annotated[str, AfterValidator(_check_socket)]
# Of a service that runs in several processes: `unix:/first,unix:/second`.
SocketAddresses = Annotated[
    tuple[SocketAddress, ...], NoDecode, BeforeValidator(_split), AfterValidator(_check_several)
]


class ServiceSettings(BaseSettings):
    """What every service is told."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    listen: SocketAddress = Field(description="address of the gRPC server, unix:/absolute/path")
    metrics_port: int = Field(default=0, ge=0, le=65535, description="port of the metrics page on 127.0.0.1; 0: none")
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    drain_pause_s: float = Field(
        default=1.0, ge=0, le=60, description="after SIGTERM, time for balancers to look away while calls are answered"
    )
    stop_grace_s: float = Field(default=5.0, ge=0, le=600, description="time given to calls when stopping")


class DatabaseSettings(BaseModel, frozen=True):
    """A PostgreSQL database and the file that holds the role's password."""

    url: str
    password_file: Path | None = None

    @field_validator("url")
    @classmethod
    def _is_postgresql(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("postgresql", "postgres") or not parts.path.strip("/"):
            raise ValueError("must be postgresql://role@host:port/database (or ?host=/folder/of/the/socket)")
        if parts.password or any(name == "password" for name, _ in parse_qsl(parts.query)):
            raise ValueError("must not hold the password; name a file with it instead")
        return url

    def with_password(self, **options: str) -> str:
        """The URL with the password of the file and further query options, as libpq and SQLAlchemy take it."""
        parts = urlsplit(self.url)
        netloc = parts.netloc
        if self.password_file is not None:
            password = quote(self.password_file.read_text().strip(), safe="")
            user, _, host = netloc.rpartition("@")
            netloc = f"{user}:{password}@{host}"
        query = urlencode([*parse_qsl(parts.query), *options.items()], quote_via=quote)
        return urlunsplit(("postgresql", netloc, parts.path, query, ""))


def load_settings(settings: type[S]) -> S:
    """The settings of the environment. Prints every fault and exits with 2 when there are any."""
    try:
        return settings()  # type: ignore[call-arg]  # the fields come from the environment
    except ValidationError as error:
        prefix = settings.model_config.get("env_prefix", "")
        for fault in error.errors():
            name = prefix + "__".join(str(part) for part in fault["loc"]).upper()
            sys.stderr.write(f"setting {name}: {fault['msg']}\n")
        sys.exit(2)
    except SettingsError as error:
        # A list or object that is not JSON; it stops the reading of the others.
        sys.stderr.write(f"settings {settings.model_config.get('env_prefix', '')}*: {error}\n")
        sys.exit(2)
