"""StatisticsService: decode, one call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator

from foresight.feature_store.v1 import statistics_pb2, statistics_pb2_grpc
from foresight.values import InvalidValue
from foresight.wire import encode_instant
from services.feature_store.servicers.messages import (
    Context,
    decode_reference,
    decode_set_instant,
    encode_reference,
)
from services.feature_store.statistics.described import DescribedRows
from services.feature_store.statistics.tables import answer_table, comparison_table
from services.feature_store.statistics.targets import CommitRows, DatasetRows, LatestRows, LogWindow, Target
from services.feature_store.tables.transit import chunks_of


class StatisticsServicer(statistics_pb2_grpc.StatisticsServiceServicer):
    """StatisticsService."""

    def __init__(self, described: DescribedRows) -> None:
        self._described = described

    async def GetStatistics(
        self, request: statistics_pb2.GetStatisticsRequest, context: Context
    ) -> AsyncIterator[statistics_pb2.GetStatisticsResponse]:
        subject, statistics = await self._described.get(_decode_target(request.target, "target"))
        target: statistics_pb2.StatisticsTarget | None = _encode_target(subject.target)
        async for chunk in chunks_of(answer_table(statistics)):
            yield statistics_pb2.GetStatisticsResponse(arrow=chunk, target=target)
            target = None

    async def CompareStatistics(
        self, request: statistics_pb2.CompareStatisticsRequest, context: Context
    ) -> AsyncIterator[statistics_pb2.CompareStatisticsResponse]:
        before, after, compared = await self._described.compare(
            _decode_target(request.reference, "reference"), _decode_target(request.current, "current")
        )
        targets = {"reference": _encode_target(before.target), "current": _encode_target(after.target)}
        async for chunk in chunks_of(comparison_table(compared)):
            yield statistics_pb2.CompareStatisticsResponse(arrow=chunk, **targets)
            targets = {}


def _decode_target(message: statistics_pb2.StatisticsTarget, field: str) -> Target:
    kind = message.WhichOneof("rows")
    if kind is None:
        raise InvalidValue(field, "says no rows")
    try:
        match kind:
            case "commit":
                return CommitRows(decode_reference(message.commit.group, "group"), message.commit.commit)
            case "latest":
                return LatestRows(decode_reference(message.latest.group, "group"), message.latest.commit)
            case "dataset":
                return DatasetRows(message.dataset.dataset_id, message.dataset.split)
            case "log":
                return _decode_window(message.log)
    except InvalidValue as error:
        raise error.within(f"{field}.{kind}") from None


def _decode_window(message: statistics_pb2.LogWindow) -> LogWindow:
    if not message.HasField("to_event_time"):
        raise InvalidValue("to_event_time", "is required")
    return LogWindow(
        view=decode_reference(message.view, "view"),
        to_event_time=decode_set_instant(message, "to_event_time"),
        from_event_time=decode_set_instant(message, "from_event_time"),
        deployment=message.deployment,
    )


def _encode_target(target: Target) -> statistics_pb2.StatisticsTarget:
    match target:
        case CommitRows():
            commit = statistics_pb2.CommitRows(group=encode_reference(target.group), commit=target.commit)
            return statistics_pb2.StatisticsTarget(commit=commit)
        case LatestRows():
            latest = statistics_pb2.LatestRows(group=encode_reference(target.group), commit=target.commit)
            return statistics_pb2.StatisticsTarget(latest=latest)
        case DatasetRows():
            dataset = statistics_pb2.DatasetRows(dataset_id=target.dataset_id, split=target.split)
            return statistics_pb2.StatisticsTarget(dataset=dataset)
        case LogWindow():
            first = target.from_event_time
            window = statistics_pb2.LogWindow(
                view=encode_reference(target.view),
                deployment=target.deployment,
                from_event_time=None if first is None else encode_instant(first),
                to_event_time=encode_instant(target.to_event_time),
            )
            return statistics_pb2.StatisticsTarget(log=window)
