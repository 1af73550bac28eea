"""The trainer as a process: it stops in order, and leaves nothing behind however it ends."""

from __future__ import annotations

import signal
import threading

import grpc
import psutil

from foresight.trainer.v1 import model_registry_pb2, model_registry_pb2_grpc
from tests.conftest import MakeDatabase
from tests.integration.trainer.process import trainer_process


def test_a_stopped_trainer_ends_its_watchers_and_its_worker(postgres_url: MakeDatabase) -> None:
    with trainer_process(postgres_url("trainer")) as trainer:
        worker = trainer.worker()
        stub = model_registry_pb2_grpc.ModelRegistryServiceStub(trainer.channel)
        states = stub.WatchDeployments(model_registry_pb2.WatchDeploymentsRequest())
        assert len(next(iter(states)).deployments) == 0
        reader = threading.Thread(target=list, args=(states,), daemon=True)
        reader.start()
        trainer.process.send_signal(signal.SIGTERM)
        # The stream ends well, and not because the grace that calls are given is over.
        reader.join(10)
        assert not reader.is_alive()
        assert states.code() is grpc.StatusCode.OK
        assert trainer.process.wait(15) == 0
        psutil.wait_procs([worker], timeout=10)
        assert not worker.is_running()


def test_a_killed_trainer_takes_its_worker_along(postgres_url: MakeDatabase) -> None:
    with trainer_process(postgres_url("trainer")) as trainer:
        worker = trainer.worker()
        trainer.process.kill()
        trainer.process.wait(10)
        _, alive = psutil.wait_procs([worker], timeout=10)
        assert not alive
