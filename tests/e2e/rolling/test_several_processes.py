"""Two predictors and two feature stores: what is listed, and that each pair answers as one service."""

from __future__ import annotations

import json
import urllib.request
from datetime import UTC, datetime, timedelta

import grpc
import pandas as pd

from deploy.local import LocalStack
from deploy.local.overview import view
from deploy.local.state import StateFolder
from examples.first_steps import service
from foresight.client import Client
from foresight.feature_store.v1 import online_pb2, online_pb2_grpc
from foresight.types.v1 import types_pb2

SEVERAL = {"predictor": ["predictor-0", "predictor-1"], "feature_store": ["feature_store-0", "feature_store-1"]}
NAMES = {"trainer", "logger", *SEVERAL["predictor"], *SEVERAL["feature_store"]}
WRITES = 6


def test_every_process_is_listed_and_has_a_page_of_its_own(stack: LocalStack) -> None:
    connection = stack.connection
    assert {service: connection["processes"][service] for service in SEVERAL} == SEVERAL
    assert set(connection["sockets"]) == NAMES
    assert set(connection["metrics"]) == {*NAMES, "gateway"}
    assert {program.service for program in view(StateFolder(stack.state)).programs} == {*NAMES, "gateway", "postgres"}
    targets = json.loads((stack.state / "prometheus.json").read_text())
    assert {group["labels"]["replica"] for group in targets} == {*NAMES, "gateway"}
    for group in targets:
        path = group["labels"].get("__metrics_path__", "/metrics")
        with urllib.request.urlopen(f"http://{group['targets'][0]}{path}", timeout=10) as page:
            assert b"# TYPE" in page.read()


def test_what_is_written_through_one_feature_store_is_read_through_each(stack: LocalStack) -> None:
    """At once, as the call that wrote it says."""
    request = online_pb2.GetFeatureVectorsRequest(
        view=types_pb2.VersionRef(name="late_orders", version=1),
        entity_keys=[types_pb2.Column(name="restaurant", string_values=types_pb2.StringValues(values=["bistro"]))],
        event_time_micros=[int(service.ASKED_AT.timestamp() * 1_000_000)],
    )
    rows = pd.read_csv(service.FOLDER / "kitchens.csv").head(1).drop(columns="event_time")
    with Client(state=stack.state) as client:
        for number in range(WRITES):
            at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number)
            commit = client.write("kitchens", rows.assign(event_time=at))
            for name in SEVERAL["feature_store"]:
                with grpc.insecure_channel(stack.connection["sockets"][name]) as channel:
                    answer = online_pb2_grpc.OnlineFeatureServiceStub(channel).GetFeatureVectors(request, timeout=10)
                assert answer.vectors.applied_commit >= commit.number


def test_each_predictor_answers_and_the_ledger_has_both(stack: LocalStack) -> None:
    with Client(state=stack.state) as client:
        before = {row.replica: row.highest_sequence for row in client.ledger()}
        for _ in range(20):
            service.ask(client)
        after = {row.replica: row.highest_sequence for row in client.ledger()}
    given = {replica: count - before.get(replica, 0) for replica, count in after.items()}
    assert set(given) == set(SEVERAL["predictor"])
    assert all(given.values())
    assert sum(given.values()) == 40
