"""Pipelines, runs and reports of runs as messages."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from foresight.feature_store.v1 import pipeline_pb2
from foresight.values.errors import InvalidValue, quoted
from foresight.values.pipelines import PipelineRun, PipelineStatus, RunReport, RunState, Trigger, cut_error
from foresight.wire.instants import decode_optional_instant, encode_instant


def encode_pipeline(status: PipelineStatus) -> pipeline_pb2.Pipeline:
    """The message of a pipeline."""
    return pipeline_pb2.Pipeline(
        name=status.name,
        position=status.position,
        commit=status.commit,
        moved_at=_optional(status.moved_at),
        last_run=None if status.last_run is None else encode_run(status.last_run),
    )


def decode_pipeline(message: pipeline_pb2.Pipeline) -> PipelineStatus:
    """The pipeline of an answer."""
    return PipelineStatus(
        name=message.name,
        position=message.position,
        commit=message.commit,
        moved_at=_instant(message, "moved_at"),
        last_run=decode_run(message.last_run) if message.HasField("last_run") else None,
    )


def encode_run(run: PipelineRun | RunReport) -> pipeline_pb2.PipelineRun:
    """The message of a run, or of a report of one."""
    message = pipeline_pb2.PipelineRun(
        id=run.id,
        state=pipeline_pb2.RunState.ValueType(run.state),
        rows_in=run.rows_in,
        rows_out=run.rows_out,
        skipped=run.skipped,
        from_event_time=_optional(run.from_event_time),
        to_event_time=_optional(run.to_event_time),
        commit=run.commit,
        error=run.error,
    )
    if isinstance(run, PipelineRun):
        message.pipeline, message.trigger = run.pipeline, run.trigger.value
        if run.started_at is not None:
            message.started_at.CopyFrom(encode_instant(run.started_at))
        if run.finished_at is not None:
            message.finished_at.CopyFrom(encode_instant(run.finished_at))
    return message


def decode_run(message: pipeline_pb2.PipelineRun) -> PipelineRun:
    """The run of an answer."""
    return PipelineRun(
        id=message.id,
        pipeline=message.pipeline,
        trigger=_trigger(message.trigger),
        state=_state(message.state),
        started_at=_instant(message, "started_at"),
        finished_at=_instant(message, "finished_at"),
        rows_in=message.rows_in,
        rows_out=message.rows_out,
        skipped=message.skipped,
        from_event_time=_instant(message, "from_event_time"),
        to_event_time=_instant(message, "to_event_time"),
        commit=message.commit,
        error=message.error,
    )


def decode_new_run(message: pipeline_pb2.PipelineRun) -> PipelineRun:
    """The run that a request says to begin. Raises InvalidValue."""
    try:
        return PipelineRun(
            id=message.id,
            pipeline=message.pipeline,
            trigger=_trigger(message.trigger),
            from_event_time=_instant(message, "from_event_time"),
            to_event_time=_instant(message, "to_event_time"),
        )
    except InvalidValue as error:
        raise error.within("run") from None


def decode_report(message: pipeline_pb2.PipelineRun) -> RunReport:
    """The report of a request; its error is cut to what is kept. Raises InvalidValue."""
    try:
        return RunReport(
            id=message.id,
            state=_state(message.state),
            rows_in=message.rows_in,
            rows_out=message.rows_out,
            skipped=message.skipped,
            from_event_time=_instant(message, "from_event_time"),
            to_event_time=_instant(message, "to_event_time"),
            commit=message.commit,
            error=cut_error(message.error),
        )
    except InvalidValue as error:
        raise error.within("run") from None


def _trigger(text: str) -> Trigger:
    try:
        return Trigger(text)
    except ValueError:
        known = ", ".join(trigger.value for trigger in Trigger)
        raise InvalidValue("trigger", f"is {quoted(text)}, not one of {known}") from None


def _state(number: int) -> RunState:
    try:
        return RunState(number)
    except ValueError:
        raise InvalidValue("state", "is unset or unknown") from None


def _instant(message: pipeline_pb2.PipelineRun | pipeline_pb2.Pipeline, field: str) -> datetime | None:
    return decode_optional_instant(message.HasField(field), getattr(message, field), field)  # type: ignore[arg-type]


def _optional(instant: datetime | None) -> Timestamp | None:
    return None if instant is None else encode_instant(instant)
