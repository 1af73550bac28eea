"""The call and the command about the online store, against scripted services."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from foresight.cli.app import app
from foresight.client import Client, FailedPrecondition, RebuiltStore, Unavailable
from foresight.feature_store.v1 import online_pb2
from services.runtime import errors
from tests.wire.client.fake_foresight import FakeForesight, Gateway

REBUILT = online_pb2.RebuildOnlineStoreResponse(applied_commit=12, keys=3_400)


def test_a_rebuild_tells_what_took_over(fake: FakeForesight, client: Client) -> None:
    fake.on("RebuildOnlineStore", REBUILT)
    assert client.rebuild_online_store() == RebuiltStore(applied_commit=12, keys=3_400)


def test_a_rebuild_is_not_repeated_by_itself(fake: FakeForesight, client: Client) -> None:
    """A second one would build everything again."""
    fake.on("RebuildOnlineStore", errors.Unavailable("away"), REBUILT)
    with pytest.raises(Unavailable):
        client.rebuild_online_store()
    assert len(fake.requests("RebuildOnlineStore")) == 1


def test_a_second_rebuild_is_refused(fake: FakeForesight, client: Client) -> None:
    fake.on("RebuildOnlineStore", errors.FailedPrecondition("the online store is being rebuilt already"))
    with pytest.raises(FailedPrecondition, match="already"):
        client.rebuild_online_store()


def test_the_command_says_how_many_keys_there_are(fake: FakeForesight, gateway: Gateway) -> None:
    fake.on("RebuildOnlineStore", REBUILT, REBUILT)
    arguments = ["rebuild-online", "--state", str(gateway.state)]
    shown = CliRunner().invoke(app, arguments)
    assert "3,400 keys, from the rows up to commit 12" in shown.output
    assert json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout) == {"applied_commit": 12, "keys": 3_400}
