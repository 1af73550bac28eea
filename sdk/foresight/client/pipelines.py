"""Positions and run history of feature pipelines; `foresight.pipelines` declares and runs them."""

from __future__ import annotations

from foresight.client.connection import Calls, Connection
from foresight.feature_store.v1 import pipeline_pb2, pipeline_pb2_grpc
from foresight.values import InvalidValue
from foresight.values.pipelines import PipelineRun, PipelineStatus, RunReport
from foresight.wire.pipelines import decode_pipeline, decode_run, encode_run

_LIMIT_MAX = 1_000


class PipelineCalls(Calls):
    """Calls about pipelines."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._pipelines = pipeline_pb2_grpc.FeaturePipelineServiceStub(connection.channel)

    def pipelines(self) -> list[PipelineStatus]:
        """The feature pipelines that ran at least once, by name, each with its position and newest run."""
        response = self._connection.call(self._pipelines.ListPipelines, pipeline_pb2.ListPipelinesRequest())
        return [decode_pipeline(pipeline) for pipeline in response.pipelines]

    def pipeline(self, name: str) -> PipelineStatus:
        """How far a pipeline has come; one that never wrote has the empty position."""
        request = pipeline_pb2.GetPipelineRequest(name=name)
        return decode_pipeline(self._connection.call(self._pipelines.GetPipeline, request).pipeline)

    def pipeline_runs(self, pipeline: str = "", limit: int = 50) -> list[PipelineRun]:
        """Runs of a pipeline, or of all, the newest first; `limit`: 1 to 1,000."""
        if not 1 <= limit <= _LIMIT_MAX:
            raise InvalidValue("limit", f"is not within 1 and {_LIMIT_MAX}")
        request = pipeline_pb2.ListRunsRequest(pipeline=pipeline, limit=limit)
        return [decode_run(run) for run in self._connection.call(self._pipelines.ListRuns, request).runs]

    def start_run(self, run: PipelineRun) -> PipelineRun:
        """Records that a run began, and answers it with its time; a retry is harmless. `foresight.pipelines` calls it.

        Raises AlreadyExists for the id of another run.
        """
        request = pipeline_pb2.StartRunRequest(run=encode_run(run))
        return decode_run(self._connection.call(self._pipelines.StartRun, request).run)

    def report_run(self, report: RunReport) -> PipelineRun:
        """Records how a run goes on or ended; a retry is harmless.

        Raises NotFound, and FailedPrecondition when the run was over before with another report.
        """
        request = pipeline_pb2.ReportRunRequest(run=encode_run(report))
        return decode_run(self._connection.call(self._pipelines.ReportRun, request).run)
