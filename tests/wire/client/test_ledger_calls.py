"""The ledger and reingestion: what is counted, and what is waited for."""

import pytest

from foresight.client import (
    Client,
    DeadlineExceeded,
)
from foresight.feature_store.v1 import log_ingestion_pb2
from foresight.logger.v1 import prediction_log_pb2
from foresight.predictor.v1 import prediction_pb2
from tests.wire.client.fake_foresight import FakeForesight


def _spool(*incarnations: tuple[str, int, int], replica: str = "p0") -> prediction_pb2.GetSpoolResponse:
    return prediction_pb2.GetSpoolResponse(
        incarnations=[
            prediction_pb2.SpooledIncarnation(
                replica=replica, incarnation=name, highest_sequence=highest, pending=pending
            )
            for name, highest, pending in incarnations
        ]
    )


def test_the_ledger_adds_what_the_log_has_and_what_the_spool_holds(client: Client, fake: FakeForesight) -> None:
    fake.on("GetSpool", _spool(("new", 9, 4), ("newest", 2, 2)))
    rows = [
        prediction_log_pb2.IncarnationLedger(
            replica="p0", incarnation="old", highest_sequence=5, logged=3, quarantined=1
        ),
        prediction_log_pb2.IncarnationLedger(
            replica="p0", incarnation="new", highest_sequence=5, logged=5, duplicates=2
        ),
    ]
    fake.on("GetLedger", prediction_log_pb2.GetLedgerResponse(incarnations=rows))
    old, new, newest = client.ledger()
    assert (old.highest_sequence, old.unaccounted) == (5, 1)
    assert (new.highest_sequence, new.logged, new.spooled, new.duplicates, new.unaccounted) == (9, 5, 4, 2, 0)
    assert (newest.highest_sequence, newest.spooled, newest.unaccounted) == (2, 2, 0)


def test_the_ledger_asks_every_replica_for_its_spool(client: Client, fake: FakeForesight) -> None:
    spools = {f"p{n}": _spool(("a", 5 + n, n), replica=f"p{n}") for n in range(3)}
    fake.on_processes("GetSpool", spools)
    row = prediction_log_pb2.IncarnationLedger(replica="p2", incarnation="a", highest_sequence=5, logged=5)
    fake.on("GetLedger", prediction_log_pb2.GetLedgerResponse(incarnations=[row]))
    rows = {row.replica: (row.highest_sequence, row.logged, row.spooled) for row in client.ledger()}
    assert rows == {"p0": (5, 0, 0), "p1": (6, 0, 1), "p2": (7, 5, 2)}


def test_the_ledger_waits_for_a_moment_in_which_nothing_moves(client: Client, fake: FakeForesight) -> None:
    fake.on("GetSpool", _spool(("a", 9, 9)), _spool(("a", 9, 3)), _spool(("a", 9, 0)), _spool(("a", 9, 0)))
    row = prediction_log_pb2.IncarnationLedger(replica="p0", incarnation="a", highest_sequence=9, logged=9)
    fake.on("GetLedger", prediction_log_pb2.GetLedgerResponse(incarnations=[row]))
    assert client.ledger()[0].spooled == 0


def _ingested(cursor: int) -> log_ingestion_pb2.GetIngestionStatusResponse:
    return log_ingestion_pb2.GetIngestionStatusResponse(cursor=cursor, predictions=3)


def test_waiting_for_reingestion_asks_spools_then_the_logs_end(client: Client, fake: FakeForesight) -> None:
    fake.on("GetSpool", _spool(("a", 3, 1)), _spool(("a", 3, 0)))
    fake.on("GetIngestionStatus", _ingested(4), _ingested(6), _ingested(7))
    fake.on("ReadLog", prediction_log_pb2.ReadLogResponse(head=7))
    assert client.wait_ingested().cursor == 7
    [request] = fake.requests("ReadLog")
    assert (request.cursor, request.page_size) == (4, 1)
    assert client.ingestion().last_pull_at is None


def test_waiting_for_reingestion_ends_with_how_far_it_came(client: Client, fake: FakeForesight) -> None:
    fake.on("GetSpool", _spool(("a", 3, 2)))
    with pytest.raises(DeadlineExceeded, match="2 predictions are still in the spool"):
        client.wait_ingested(timeout_s=0.001)
    fake.on("GetSpool", _spool())
    fake.on("GetIngestionStatus", _ingested(4))
    fake.on("ReadLog", prediction_log_pb2.ReadLogResponse(head=7))
    with pytest.raises(DeadlineExceeded, match="at 4 of 7"):
        client.wait_ingested(timeout_s=0.001)
