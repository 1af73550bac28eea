"""Runs the predictor: `python -m services.predictor`, told by `FORESIGHT_PREDICTOR_<NAME>`."""

from __future__ import annotations

from services.runtime import termination

if __name__ == "__main__":
    # What follows takes a while to load, and may be told to stop meanwhile.
    termination.exit_when_told()

import asyncio
import contextlib
import importlib.metadata
import sys
from collections.abc import AsyncIterator, Coroutine

from foresight.predictor.v1 import prediction_pb2_grpc
from foresight.transforms import TransformSet
from inference import grpc_service_pb2_grpc
from services.predictor.admission import Admission
from services.predictor.answer_codec import AnswerCodec
from services.predictor.answer_journal import AnswerJournal
from services.predictor.arms import Arms
from services.predictor.artifacts import ArtifactCache
from services.predictor.config import PredictorSettings
from services.predictor.deployments import Deployments
from services.predictor.feature_store_client import REPEATABLE, FeatureStoreClient
from services.predictor.inference_servicer import INFERENCE_SERVICE, InferenceServicer
from services.predictor.last_known import LastKnown
from services.predictor.logger_client import LoggerClient
from services.predictor.lookup import Lookup
from services.predictor.models import ModelCache
from services.predictor.prediction import Predictor
from services.predictor.record_codec import decode_record, encode_records
from services.predictor.recording import Recorder
from services.predictor.repeats import Repeats
from services.predictor.servicer import SERVICE, PredictionServicer
from services.predictor.serving_file import ServingFile
from services.predictor.shadows import Shadows
from services.predictor.shipping import Shipper
from services.predictor.spool import Spool, SpoolInUse
from services.predictor.streams import Streams
from services.predictor.telemetry import Telemetry
from services.predictor.trainer_client import TrainerClient
from services.predictor.verification import Verifier
from services.predictor.views import ViewCatalogue
from services.runtime.channel import open_channel
from services.runtime.clock import system_clock
from services.runtime.ids import new_id
from services.runtime.logs import configure_logs
from services.runtime.memory import keep_what_is_there
from services.runtime.metrics import Metrics
from services.runtime.server import Server
from services.runtime.settings import load_settings

FLUSH_S = 2.0
# What shadows are given to end when the process stops.
SHADOWS_S = 0.5


def main() -> None:
    """Serves until SIGTERM."""
    settings = load_settings(PredictorSettings)
    configure_logs("predictor", settings.log_level)
    try:
        termination.run(serve(settings))
    except SpoolInUse as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)


async def serve(settings: PredictorSettings) -> None:
    """Wires the predictor and serves until SIGTERM."""
    async with contextlib.AsyncExitStack() as stack:
        metrics = Metrics("predictor")
        stack.enter_context(metrics.served(settings.metrics_port))
        telemetry = Telemetry(metrics.registry)
        clock = system_clock

        spool, *former = [
            await asyncio.to_thread(_open_spool, settings, name)
            for name in (settings.replica, *settings.former_replicas)
        ]
        for each in (spool, *former):
            stack.callback(each.close)
        features = FeatureStoreClient(await stack.enter_async_context(open_channel(settings.feature_store, REPEATABLE)))
        trainer = TrainerClient(await stack.enter_async_context(open_channel(settings.trainer)))
        logger = LoggerClient(await stack.enter_async_context(open_channel(settings.logger)))

        transforms = TransformSet(settings.transform_modules)
        views = ViewCatalogue(features)
        models = ModelCache(ArtifactCache(settings.cache_folder / "artifacts", trainer))
        kept = ServingFile(settings.cache_folder / "serving")
        deployments = Deployments(
            *(trainer, features, views, models, transforms, kept), required=settings.required_deployments
        )
        last_known = LastKnown(
            rows_max=settings.last_known_rows_max,
            bytes_max=settings.last_known_bytes_max,
            keep_s=settings.last_known_keep_s,
            evicted=telemetry.last_known_evicted,
        )
        lookup = Lookup(features, last_known)
        predictor = Predictor(
            deployments,
            lookup,
            transforms,
            Recorder(spool, encode_records, clock, fsync=settings.spool_fsync),
            telemetry,
            clock,
            admission=Admission(settings.queue_rows_max),
            window_s=settings.gather_ms / 1_000,
        )
        shadows = Shadows(predictor.score_beside, lambda: predictor.admitted_rows, telemetry.shadowed)
        arms = Arms(deployments, predictor, shadows, clock)
        journal = AnswerJournal(settings.cache_folder / "answers" / settings.replica, settings.repeats_bytes_max)
        repeats = Repeats(
            *(arms, AnswerCodec(), journal, clock),
            bytes_max=settings.repeats_bytes_max,
            on_repeat=telemetry.repeated,
        )
        await asyncio.to_thread(repeats.restore)
        stack.push_async_callback(repeats.close)
        verifier = Verifier(logger, spool, decode_record, views, features, transforms, trainer, models)
        shipper = Shipper(spool, logger)
        telemetry.watch(
            "spool_pending",
            "Predictions that the logger has not acknowledged",
            lambda: spool.pending + sum(each.pending for each in former),
        )
        telemetry.watch("spool_bytes", "Bytes of the spool on disk", lambda: spool.size)
        telemetry.watch("queue_rows", "Rows that wait or are worked on", lambda: predictor.admitted_rows)
        telemetry.watch("last_known_rows", "Entities with last known values", lambda: len(last_known))
        telemetry.watch("last_known_bytes", "About how many bytes last known values take", lambda: last_known.bytes)
        telemetry.watch("feature_store_away", "1 while the feature store does not answer", lambda: lookup.away)
        telemetry.watch("answers_remembered", "Answers that a repeated request gets again", lambda: repeats.remembered)
        telemetry.watch("shadow_rows", "Rows that wait for shadows or are scored by them", lambda: shadows.rows)
        telemetry.watch_versions(deployments.all_serving)
        telemetry.watch("models_loaded", "Models in memory", lambda: models.loaded)

        await stack.enter_async_context(_running(deployments.run()))
        await stack.enter_async_context(_running(shipper.run()))
        stack.push_async_callback(shipper.flush, FLUSH_S)
        for each in former:
            await stack.enter_async_context(_running(Shipper(each, logger).run()))
        await stack.enter_async_context(_running(shadows.run()))
        stack.push_async_callback(shadows.close, SHADOWS_S)

        async def ready() -> bool:
            # A full spool is answered per call, with its reason; only one that needs an operator stops the traffic.
            return deployments.ready and spool.accepting

        server = Server(settings, metrics, pending_calls_max=settings.pending_calls_max)
        streams = Streams(streams_max=settings.streams_max)
        await stack.enter_async_context(_running(streams.end_after(server.closing)))
        telemetry.watch("streams_open", "Streams of requests under way", lambda: streams.open)
        servicer = PredictionServicer(repeats, verifier, deployments, spool, streams, former)
        prediction_pb2_grpc.add_PredictionServiceServicer_to_server(servicer, server.grpc)
        inference = InferenceServicer(arms, deployments, streams, ready, importlib.metadata.version("foresight"))
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, server.grpc)
        keep_what_is_there()
        await server.run([SERVICE, INFERENCE_SERVICE], ready)


def _open_spool(settings: PredictorSettings, replica: str) -> Spool:
    return Spool(
        settings.spool_folder,
        replica,
        new_id(),
        bytes_max=settings.spool_bytes_max,
        fsync=settings.spool_fsync,
    )


@contextlib.asynccontextmanager
async def _running(work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Runs a supervised loop beside the block and cancels it at its end."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


if __name__ == "__main__":
    main()
