"""Forgetting: what the client and the command line send, ask, and make of the answer."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from foresight.cli.app import app
from foresight.client import Client, DataType, FeatureGroup, Field, InvalidValue, LineageThing, VersionRef
from foresight.feature_store.v1 import erasure_pb2, lineage_pb2, registry_pb2
from foresight.types.v1 import types_pb2
from foresight.wire import decode_column, encode_group, encode_instant
from services.runtime.errors import PermissionDenied
from tests.wire.client.fake_foresight import FakeForesight, Gateway

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
CUSTOMERS = FeatureGroup(
    "customers", (Field("customer_id", DataType.INT64),), (Field("age", DataType.FLOAT64),), version=1
)
SHOPS = FeatureGroup(
    "shops",
    (Field("shop", DataType.STRING), Field("open", DataType.BOOL)),
    (Field("rating", DataType.FLOAT64),),
    version=1,
)
CLASH = FeatureGroup("visits", (Field("shop", DataType.INT64),), (Field("n", DataType.INT64),), version=1)


def thing(kind: str, name: str, version: int = 0, label: str = "") -> lineage_pb2.Thing:
    number = lineage_pb2.ThingKind.Value(f"THING_KIND_{kind}")
    return lineage_pb2.Thing(kind=number, name=name, version=version, label=label)


def erasure(request_id: str = "first", *, finished: bool = True) -> erasure_pb2.Erasure:
    made = erasure_pb2.Erasure(
        request_id=request_id,
        requested_at=encode_instant(NOON),
        rows=[erasure_pb2.ErasedRows(group=types_pb2.VersionRef(name="customers", version=1), rows=1_234)],
        predictions=56,
    )
    if not finished:
        made.doing = "removing predictions from the log"
        return made
    made.finished_at.CopyFrom(encode_instant(NOON))
    made.datasets.append(thing("TRAINING_DATASET", "0192-abc", label="spring"))
    made.affected.extend([thing("MODEL", "prices", 4), thing("DEPLOYMENT", "shopfront")])
    return made


def answer(request: erasure_pb2.ForgetEntityRequest) -> erasure_pb2.ForgetEntityResponse:
    return erasure_pb2.ForgetEntityResponse(erasure=erasure(request.request_id))


def run(gateway: Gateway, *arguments: str, input: str = "") -> Result:
    return CliRunner().invoke(app, [*arguments, "--state", str(gateway.state)], input=input)


def listed(fake: FakeForesight, *groups: FeatureGroup) -> None:
    fake.on(
        "ListFeatureGroups", registry_pb2.ListFeatureGroupsResponse(groups=[encode_group(group) for group in groups])
    )


def test_an_entity_is_sent_as_one_row_and_the_report_says_what_went(client: Client, fake: FakeForesight) -> None:
    fake.on("ForgetEntity", answer)
    done = client.forget_entity({"customer_id": 7, "shop": "corner", "open": True}, request_id="mine")
    [request] = fake.requests("ForgetEntity")
    sent = {message.name: decode_column(message) for message in request.entity_keys}
    assert {name: (column.type, column.to_list()) for name, column in sent.items()} == {
        "customer_id": (DataType.INT64, [7]),
        "shop": (DataType.STRING, ["corner"]),
        "open": (DataType.BOOL, [True]),
    }
    assert (done.request_id, done.finished_at, done.doing) == ("mine", NOON, "")
    assert done.rows == {VersionRef("customers", 1): 1_234}
    assert done.predictions == 56
    assert done.datasets == {"0192-abc": "spring"}
    assert done.affected == (LineageThing.parse("model:prices@4"), LineageThing.parse("deployment:shopfront"))


def test_each_erasure_gets_an_id_of_its_own_which_a_retry_repeats(client: Client, fake: FakeForesight) -> None:
    fake.on("ForgetEntity", answer)
    client.forget_entity({"customer_id": 7})
    client.forget_entity({"customer_id": 7})
    one, two = (request.request_id for request in fake.requests("ForgetEntity"))
    assert one != two
    assert one
    assert two


def test_an_entity_is_a_dict_of_values(client: Client, fake: FakeForesight) -> None:
    wrongs: tuple[Any, ...] = ({}, [("customer_id", 7)], 7)
    for wrong in wrongs:
        with pytest.raises(InvalidValue):
            client.forget_entity(wrong)
    assert fake.requests("ForgetEntity") == []


def test_an_erasure_that_goes_on_says_where_it_is(client: Client, fake: FakeForesight) -> None:
    fake.on("GetErasure", erasure_pb2.GetErasureResponse(erasure=erasure(finished=False)))
    found = client.erasure("first")
    assert found.finished_at is None
    assert found.doing == "removing predictions from the log"


def test_the_command_gives_values_the_types_of_keys_and_shows_the_report(gateway: Gateway, fake: FakeForesight) -> None:
    listed(fake, CUSTOMERS, SHOPS)
    fake.on("ForgetEntity", answer)
    done = run(gateway, "forget", "customer_id=7", "open=true", "--yes")
    assert done.exit_code == 0, done.output
    [request] = fake.requests("ForgetEntity")
    assert [decode_column(message).to_list() for message in request.entity_keys] == [[7], [True]]
    for words in ("customers v1", "1,234", "56", "spring", "model:prices@4", "deployment:shopfront"):
        assert words in done.stdout
    assert request.request_id in done.stderr


def test_the_command_asks_first(gateway: Gateway, fake: FakeForesight) -> None:
    listed(fake, CUSTOMERS)
    fake.on("ForgetEntity", answer)
    asked = run(gateway, "forget", "customer_id=7", input="n\n")
    assert asked.exit_code == 1
    assert "customer_id=7, for good?" in asked.stderr
    assert fake.requests("ForgetEntity") == []
    assert run(gateway, "forget", "customer_id=7", input="y\n").exit_code == 0


def test_the_command_prints_json(gateway: Gateway, fake: FakeForesight) -> None:
    listed(fake, CUSTOMERS)
    fake.on("ForgetEntity", answer)
    done = run(gateway, "forget", "customer_id=7", "--yes", "--json", "--request-id", "mine")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["request_id"] == "mine"
    assert printed["rows"] == {"customers v1": 1_234}
    assert printed["affected"][0]["name"] == "prices"


def test_the_command_says_how_far_an_erasure_is(gateway: Gateway, fake: FakeForesight) -> None:
    fake.on("GetErasure", erasure_pb2.GetErasureResponse(erasure=erasure(finished=False)))
    done = run(gateway, "forget", "--status", "first")
    assert done.exit_code == 0, done.output
    assert "removing predictions from the log" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["customer_id=seven"], "is not of type int64"),
        (["customer_id="], "has no value"),
        (["customer_id=7", "customer_id=8"], "is given twice"),
        (["shop=corner"], "int64 and string"),
        ([], "either the keys"),
        (["customer_id"], "name=value"),
        (["customer_id=7", "--status", "x"], "either the keys"),
    ],
)
def test_a_mistake_is_told_before_anything_is_sent(
    gateway: Gateway, fake: FakeForesight, arguments: list[str], words: str
) -> None:
    listed(fake, CUSTOMERS, SHOPS, CLASH)
    failed = run(gateway, "forget", *arguments, "--yes")
    assert failed.exit_code in (1, 2)
    assert words in " ".join(failed.stderr.replace("│", " ").split())
    assert fake.requests("ForgetEntity") == []


def test_only_an_operator_is_let_through(gateway: Gateway, fake: FakeForesight) -> None:
    listed(fake, CUSTOMERS)
    fake.on("ForgetEntity", PermissionDenied("entities are forgotten by operators only"))
    failed = run(gateway, "forget", "customer_id=7", "--yes")
    assert failed.exit_code == 1
    assert "operators only" in failed.stderr
