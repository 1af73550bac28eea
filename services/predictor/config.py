"""Settings of the predictor, read from `FORESIGHT_PREDICTOR_<NAME>`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.predictor.admission import QUEUE_ROWS_MAX
from services.predictor.batching import WINDOW_S
from services.predictor.last_known import BYTES_MAX, KEEP_S, ROWS_MAX
from services.predictor.streams import STREAMS_MAX
from services.runtime.settings import ServiceSettings, SocketAddress, SocketAddresses

SPOOL_BYTES_MAX = 1 << 30
REPEATS_BYTES_MAX = 64 << 20
FORMER_REPLICAS_MAX = 16
# At two thousand and more a second these wait for a tenth of a second.
PENDING_CALLS_MAX = 256


class PredictorSettings(ServiceSettings):
    """What the predictor is told."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", env_prefix="FORESIGHT_PREDICTOR_", env_nested_delimiter="__"
    )

    replica: str = Field(
        default="predictor-0",
        pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        description="name of this replica; no two processes with one spool folder may share it",
    )
    former_replicas: tuple[str, ...] = Field(
        default=(),
        max_length=FORMER_REPLICAS_MAX,
        description="JSON list of replicas that no process is any more; what their spools still hold is shipped by us",
    )
    spool_folder: Path = Field(description="folder of the durable spools, one inside per replica")
    spool_bytes_max: int = Field(
        default=SPOOL_BYTES_MAX, ge=1 << 16, description="predictions are refused while the spool holds so much"
    )
    spool_fsync: bool = Field(
        default=False, description="wait for the disk before answering: records survive a power loss too"
    )
    cache_folder: Path = Field(description="folder of model artifacts and of the last known deployments")
    feature_store: SocketAddresses = Field(description="addresses of the feature store's processes, with commas")
    trainer: SocketAddress = Field(description="address of the trainer")
    logger: SocketAddress = Field(description="address of the logger")
    gather_ms: float = Field(
        default=WINDOW_S * 1_000,
        ge=0,
        le=1_000,
        description="while the loop is busy a batch of requests is held open for at most so long; 0: never",
    )
    queue_rows_max: int = Field(
        default=QUEUE_ROWS_MAX, ge=1, description="rows that may wait or be worked on; more are refused at once"
    )
    pending_calls_max: int = Field(
        default=PENDING_CALLS_MAX,
        ge=1,
        description="calls that may queue unseen before the transport begins to drop new ones",
    )
    streams_max: int = Field(
        default=STREAMS_MAX, ge=1, description="streams of requests that may be open; one more is refused"
    )
    last_known_rows_max: int = Field(
        default=ROWS_MAX, ge=1, description="entities whose last served values are kept, for features that may use them"
    )
    last_known_bytes_max: int = Field(
        default=BYTES_MAX, ge=1 << 16, description="bytes that last served values may take together"
    )
    last_known_keep_s: float = Field(
        default=KEEP_S,
        gt=0,
        le=86_400,
        description="last served values are used so long after the feature store last showed that they are there",
    )
    repeats_bytes_max: int = Field(
        default=REPEATS_BYTES_MAX,
        ge=1 << 16,
        description="memory for answers to named requests, and as much disk; beyond it the oldest are forgotten early",
    )
    required_deployments: tuple[str, ...] = Field(
        default=(), description="JSON list of deployments without any of which the replica takes no traffic"
    )
    transform_modules: tuple[str, ...] = Field(
        default=(), description="JSON list of the Python modules whose functions views may use as transforms"
    )
