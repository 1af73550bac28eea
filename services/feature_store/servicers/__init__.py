"""The feature store's RPCs, one module per gRPC service: decode, one call, encode."""

from services.feature_store.servicers.erasure import ErasureServicer
from services.feature_store.servicers.lineage import LineageServicer
from services.feature_store.servicers.log_ingestion import LogIngestionServicer
from services.feature_store.servicers.offline import OfflineServicer
from services.feature_store.servicers.online import OnlineServicer
from services.feature_store.servicers.pipelines import PipelineServicer
from services.feature_store.servicers.registry import RegistryServicer
from services.feature_store.servicers.statistics import StatisticsServicer
from services.feature_store.servicers.training_datasets import TrainingDatasetServicer

__all__ = [
    "ErasureServicer",
    "LineageServicer",
    "LogIngestionServicer",
    "OfflineServicer",
    "OnlineServicer",
    "PipelineServicer",
    "RegistryServicer",
    "StatisticsServicer",
    "TrainingDatasetServicer",
]
