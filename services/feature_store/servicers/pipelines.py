"""FeaturePipelineService: decode, one call, encode."""

from __future__ import annotations

from foresight.feature_store.v1 import pipeline_pb2, pipeline_pb2_grpc
from foresight.wire.pipelines import decode_new_run, decode_report, encode_pipeline, encode_run
from services.feature_store.pipelines import Pipelines
from services.feature_store.servicers.messages import Context


class PipelineServicer(pipeline_pb2_grpc.FeaturePipelineServiceServicer):
    """FeaturePipelineService."""

    def __init__(self, pipelines: Pipelines) -> None:
        self._pipelines = pipelines

    async def GetPipeline(
        self, request: pipeline_pb2.GetPipelineRequest, context: Context
    ) -> pipeline_pb2.GetPipelineResponse:
        return pipeline_pb2.GetPipelineResponse(pipeline=encode_pipeline(await self._pipelines.pipeline(request.name)))

    async def ListPipelines(
        self, request: pipeline_pb2.ListPipelinesRequest, context: Context
    ) -> pipeline_pb2.ListPipelinesResponse:
        found = await self._pipelines.pipelines()
        return pipeline_pb2.ListPipelinesResponse(pipelines=[encode_pipeline(status) for status in found])

    async def StartRun(self, request: pipeline_pb2.StartRunRequest, context: Context) -> pipeline_pb2.StartRunResponse:
        run = await self._pipelines.start(decode_new_run(request.run))
        return pipeline_pb2.StartRunResponse(run=encode_run(run))

    async def ReportRun(
        self, request: pipeline_pb2.ReportRunRequest, context: Context
    ) -> pipeline_pb2.ReportRunResponse:
        run = await self._pipelines.report(decode_report(request.run))
        return pipeline_pb2.ReportRunResponse(run=encode_run(run))

    async def ListRuns(self, request: pipeline_pb2.ListRunsRequest, context: Context) -> pipeline_pb2.ListRunsResponse:
        runs = await self._pipelines.runs(request.pipeline, request.limit)
        return pipeline_pb2.ListRunsResponse(runs=[encode_run(run) for run in runs])
