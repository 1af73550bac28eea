"""The logger's answer as entries of a log page."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from foresight.logger.v1 import prediction_log_pb2, prediction_log_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType, Field, micros_from_instant
from foresight.wire import encode_column, encode_instant
from services.feature_store.groups import Reference
from services.feature_store.logger_client import LoggerClient
from services.feature_store.logs.log_groups import LoggedColumn, OutcomeEntry, PredictionEntry
from services.runtime.channel import open_channel
from services.runtime.errors import OutOfRange, Unavailable

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
VIEW = types_pb2.VersionRef(name="judged", version=2)


def column(name: str, type: DataType, values: list[Any], dimension: int = 0) -> types_pb2.Column:
    """The message of a column."""
    return encode_column(Column.build(name, type, values, dimension))


RECORD = prediction_log_pb2.PredictionRecord(
    prediction_ids=["p0", "p1"],
    caller="local",
    deployment="delays",
    model=types_pb2.VersionRef(name="delay", version=3),
    view=VIEW,
    event_time=encode_instant(NOON),
    served_at=encode_instant(NOON),
    entity_keys=[column("place", DataType.STRING, ["a", None])],
    request_features=[column("hour", DataType.INT64, [1, 2]), column("seen", DataType.TIMESTAMP, [NOON, None])],
    features=[
        prediction_log_pb2.LoggedFeature(column=column("hour", DataType.INT64, [1, 5])),
        prediction_log_pb2.LoggedFeature(column=column("v", DataType.FLOAT_VECTOR, [[1.0, 2.0], None], 2)),
    ],
    outputs=[column("late", DataType.BOOL, [True, False])],
)
OUTCOME = prediction_log_pb2.LoggedOutcome(
    prediction_id="p1", view=VIEW, value=column("late", DataType.BOOL, [True]), observed_at=encode_instant(NOON)
)


class FakeLogger(prediction_log_pb2_grpc.PredictionLogServiceServicer):
    """Answers one page, and refuses cursors beyond it."""

    async def ReadLog(self, request: Any, context: Any) -> prediction_log_pb2.ReadLogResponse:
        """See PredictionLogService."""
        if request.cursor > 9:
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "beyond the end")
        entries = [
            prediction_log_pb2.LogEntry(commit=8, record=RECORD),
            prediction_log_pb2.LogEntry(commit=9, outcome=OUTCOME),
        ]
        return prediction_log_pb2.ReadLogResponse(entries=entries, cursor=9, head=12)


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """Where the fake listens."""
    folder = Path(tempfile.mkdtemp(prefix="fs-fake-"))
    server = grpc.aio.server()
    prediction_log_pb2_grpc.add_PredictionLogServiceServicer_to_server(FakeLogger(), server)  # type: ignore[abstract]
    server.add_insecure_port(f"unix:{folder}/s")
    await server.start()
    yield f"unix:{folder}/s"
    await server.stop(None)
    shutil.rmtree(folder)


async def test_a_page_is_decoded(address: str) -> None:
    """Columns by name, what the model got before what was sent; NULLs as None."""
    async with open_channel(address) as channel:
        page = await LoggerClient(channel).read(0, 500)
        assert (page.cursor, page.head) == (9, 12)
        prediction, outcome = page.entries
        assert isinstance(prediction, PredictionEntry)
        assert isinstance(outcome, OutcomeEntry)
        assert prediction.columns == {
            "place": LoggedColumn(Field("place", DataType.STRING), ["a", None]),
            "hour": LoggedColumn(Field("hour", DataType.INT64), [1, 5]),
            "seen": LoggedColumn(Field("seen", DataType.TIMESTAMP), [micros_from_instant(NOON), None]),
            "v": LoggedColumn(Field("v", DataType.FLOAT_VECTOR, 2), [[1.0, 2.0], None]),
        }
        assert prediction.outputs["late"].values == [True, False]
        assert (prediction.view, prediction.model, prediction.model_version) == (Reference("judged", 2), "delay", 3)
        late = LoggedColumn(Field("late", DataType.BOOL), [True])
        assert outcome == OutcomeEntry(Reference("judged", 2), "p1", micros_from_instant(NOON), late)
        with pytest.raises(OutOfRange):
            await LoggerClient(channel).read(10, 500)


async def test_a_logger_that_is_away_is_unavailable() -> None:
    """Nothing of the address is told."""
    async with open_channel("unix:/tmp/nobody-listens-here") as channel:
        with pytest.raises(Unavailable, match=r"^the logger does not answer$"):
            await LoggerClient(channel).read(0, 500)
