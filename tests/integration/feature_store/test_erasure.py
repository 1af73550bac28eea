"""Whoever is forgotten is in no table, file or answer any more, and nobody else is touched."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import lmdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foresight.types.v1 import types_pb2
from foresight.values import Column, DataType, Expectation, FailurePolicy, Field, InvalidValue, Range
from services.feature_store.datasets.manifests import DatasetRequest, LoggedSelection, Manifest
from services.feature_store.erasure.eraser import Eraser, LogProgress, LogSelection
from services.feature_store.erasure.erasures import Entity, ErasureReport, Step
from services.feature_store.groups import Reference, StoredGroup
from services.feature_store.logger_client import LoggerClient
from services.feature_store.postgres.erased_rows import ROWS_PER_TRANSACTION
from services.feature_store.reads.queries import Condition, GroupQuery, Operator, SpineQuery
from services.feature_store.registry.lineage import Thing, ThingKind
from services.feature_store.statistics.targets import CommitRows
from services.runtime.errors import AlreadyExists, FailedPrecondition, NotFound, PermissionDenied, Unavailable
from services.runtime.identity import LOCAL
from tests.conftest import MakeDatabase
from tests.integration.feature_store.rig import NOW, Store, at, keys, running_store, source, state_folder
from tests.integration.logger import rig as log_rig

SERVED = at(20)
MARKER, OTHER = "mk-71a9-forget-me", "someone-else"
CUSTOMER = Field("customer", DataType.STRING)
OPERATOR, APPLICATION = "spiffe://foresight/operator/ann", "spiffe://foresight/application/demo"


@dataclass
class World:
    """A feature store with the log that it follows."""

    store: Store
    logger: log_rig.Logger
    client: LoggerClient

    async def take_all(self) -> None:
        """Reingests to the log's end."""
        while await self.store.ingestion.pull(self.client):
            pass

    async def forget(self, name: str = MARKER, request_id: str = "first", **entity: Any) -> ErasureReport:
        """Forgets a customer, or another entity, while reingestion goes on."""
        columns = key_columns(**(entity or {"customer": name}))
        async with self.at_work():
            return await self.store.eraser.forget(request_id, columns, OPERATOR)

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Reingestion and erasing go on."""
        async with working(self.store.ingestion.run(), self.store.eraser.run()):
            yield


@contextlib.asynccontextmanager
async def working(*loops: Any) -> AsyncIterator[None]:
    """Runs endless work beside the block."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def key_columns(**values: Any) -> dict[str, Column]:
    """Entity keys of a request."""
    types = {str: DataType.STRING, int: DataType.INT64, bool: DataType.BOOL}
    return {name: Column.build(name, types[type(value)], [value]) for name, value in values.items()}


@pytest.fixture
async def world(postgres_url: MakeDatabase) -> AsyncIterator[World]:
    """Customers, their orders, predictions about them, datasets and statistics."""
    async with log_rig.running_logger(postgres_url("logger")) as logger:
        client = LoggerClient(logger.channel)
        with state_folder() as folder:
            settings = postgres_url("feature_store")
            async with running_store(settings, folder, log=client, forgets=client) as store:
                made = World(store, logger, client)
                await fill(made)
                yield made


async def fill(world: World) -> None:
    """Rows about both customers in every place that can have any."""
    store = world.store
    await store.group(
        "people",
        [CUSTOMER],
        [Field("age", DataType.FLOAT64), Field("note", DataType.STRING)],
        expectations=(Expectation(Range(0, 150), "age"),),
        failure_policy=FailurePolicy.QUARANTINE,
    )
    await store.group("orders", [Field("number", DataType.INT64), CUSTOMER], [Field("amount", DataType.FLOAT64)])
    await store.group("shops", [Field("shop", DataType.STRING)], [Field("rating", DataType.FLOAT64)])
    await store.view("ages", source("people", "age"), label=Field("years", DataType.FLOAT64))
    await store.view(
        "offers",
        source("people", "age", keys={"customer": "buyer"}, prefix="buyer_"),
        source("people", "age", keys={"customer": "seller"}, prefix="seller_"),
        source("shops", "rating"),
    )
    await store.write("people", [{"customer": c, "event_time": at(1), "age": 30.0, "note": c} for c in (MARKER, OTHER)])
    await store.write("people", [{"customer": MARKER, "event_time": at(2), "age": 31.0, "note": MARKER}])
    wrong = [{"customer": c, "event_time": at(3), "age": a} for c in (MARKER, OTHER) for a in (-1.0, -2.0, 33.0)]
    await store.write("people", [{**row, "event_time": at(3 + i)} for i, row in enumerate(wrong)])
    await store.write(
        "orders",
        [{"number": n, "customer": c, "event_time": at(n), "amount": 1.0} for n in range(5) for c in (MARKER, OTHER)],
    )
    await store.write("shops", [{"shop": "corner", "event_time": at(1), "rating": 4.0}])
    await log_predictions(world)
    await world.take_all()


async def log_predictions(world: World, served: datetime = SERVED) -> list[str]:
    """One record of four predictions: the buyer, the seller, both, nobody is the one to be forgotten."""
    sent = log_rig.record(log_rig.new_incarnation(), 1, 4, event_time=served, deployment="offers")
    sent.view.CopyFrom(types_pb2.VersionRef(name="offers", version=1))
    del sent.entity_keys[:], sent.request_features[:], sent.features[:], sent.sources[:]
    buyers, sellers = [MARKER, OTHER, MARKER, OTHER], [OTHER, MARKER, MARKER, OTHER]
    sent.entity_keys.extend(
        log_rig.column(name, DataType.STRING, values)
        for name, values in (("buyer", buyers), ("seller", sellers), ("shop", ["corner"] * 4))
    )
    await world.logger.append(sent)
    ids = list(sent.prediction_ids)
    observed = int(NOW.timestamp()) * 1_000_000
    await world.logger.outcomes.RecordOutcomes(log_rig.by_id(ids, [True] * 4, observed_at=observed))
    return ids


async def make_datasets(store: Store) -> dict[str, Manifest]:
    """Of a spine with and without the customer, of a query, purged or naming the customer, and of the log."""

    def spine(*customers: str) -> pa.Table:
        return pa.table(
            {
                "customer": customers,
                "event_time": pa.array([at(30)] * len(customers), pa.timestamp("us", "UTC")),
                "years": [1.0] * len(customers),
            }
        )

    label = (("age", "years"),)
    ages = Reference("ages")
    everybody = SpineQuery(GroupQuery(Reference("people"), latest_only=True), label, at(40))
    named = GroupQuery(
        Reference("people"),
        where=(Condition("customer", Operator.EQUAL, Column.build("v", DataType.STRING, [MARKER])),),
    )
    listed = GroupQuery(Reference("people"), keys=(Column.build("customer", DataType.STRING, [MARKER, OTHER]),))
    logged = LoggedSelection(at(60), NOW + timedelta(minutes=1))
    made = {
        "with_them": await store.create(DatasetRequest("with_them", ages), spine(MARKER, OTHER)),
        "without": await store.create(DatasetRequest("without", ages), spine(OTHER)),
        "queried": await store.create(DatasetRequest("queried", ages, spine=everybody)),
        "named": await store.create(DatasetRequest("named", ages, spine=SpineQuery(named, label, at(40)))),
        "listed": await store.create(DatasetRequest("listed", ages, spine=SpineQuery(listed, label, at(40)))),
        "logged": await store.create(DatasetRequest("logged", Reference("offers"), logged=logged)),
    }
    await store.datasets.purge(made["named"].id)
    return made


async def tables_with(world: World, value: str) -> set[str]:
    """Tables of both services that have a value anywhere, in texts or in bytes."""
    found = set()
    for database, schema in ((world.store.database, "feature_store"), (world.logger.database, "logger")):
        async with database.statements() as connection:
            listed = f"SELECT table_name FROM information_schema.tables WHERE table_schema = '{schema}'"
            for name in list((await connection.exec_driver_sql(listed)).scalars()):
                statement = (
                    f"SELECT count(*) FROM {schema}.{name} t WHERE position('{value}' IN t::text) > 0 "
                    f"OR position('{value.encode().hex()}' IN t::text) > 0"
                )
                if (await connection.exec_driver_sql(statement)).scalar_one():
                    found.add(f"{schema}.{name}")
    return found


async def quarantined(store: Store) -> list[str]:
    """Customers of the rows that were kept apart."""
    found: list[str] = []
    async with store.quarantined.read(Reference("people"), 0) as stream:
        while (batch := await asyncio.to_thread(stream.next_batch)) is not None:
            found += batch["customer"].to_pylist()
    return found


def online_with(store: Store, value: str) -> int:
    """Entries of the online store's file that have a value anywhere."""
    found = 0
    for path in (store.folder / "online").glob("*/data.mdb"):
        # A copy, as a process may open a file only once.
        with tempfile.TemporaryDirectory() as copy:
            shutil.copy(path, copy)
            with lmdb.open(copy, readonly=True, lock=False) as file, file.begin() as transaction:
                found += sum(value.encode() in bytes(k) + bytes(v) for k, v in transaction.cursor())
    return found


def files_with(folder: Path, value: str) -> set[str]:
    """Files below a folder that have a value, packed or not."""
    found = set()
    for path in folder.rglob("*"):
        if path.is_file():
            text = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else ""
            if value in text or value.encode() in path.read_bytes():
                found.add(path.stem)
    return found


def rows_of(report: ErasureReport) -> dict[str, int]:
    return {removed.group.name: removed.rows for removed in report.rows}


async def test_nothing_of_a_forgotten_entity_is_left_and_everything_of_others_is(world: World) -> None:
    """In no table, no file of datasets, and no entry of the online store."""
    store = world.store
    made = await make_datasets(store)
    await store.described.get(CommitRows(Reference("people"), 1))
    before = {
        "feature_store.rows_1",
        "feature_store.rows_2",
        "feature_store.statistics",
        "feature_store.training_datasets",
        "logger.records",
    }
    assert before <= await tables_with(world, MARKER)
    assert online_with(store, MARKER) == online_with(store, OTHER) == 1 + 5
    assert MARKER in await quarantined(store)
    assert files_with(store.folder / "datasets", MARKER)

    report = await world.forget()

    assert await tables_with(world, MARKER) == set()
    assert online_with(store, MARKER) == 0
    assert set(await quarantined(store)) == {OTHER}
    assert files_with(store.folder / "datasets", MARKER) == set()
    assert rows_of(report) == {
        "people": 3,
        "orders": 5,
        "log_predictions_offers_v1": 3,
        "log_outcomes_offers_v1": 3,
    }
    assert report.erasure.predictions == 3
    assert report.erasure.finished_at is not None
    assert {name for _, name in report.datasets} == {"with_them", "queried", "named", "listed", "logged"}

    assert online_with(store, OTHER) == 1 + 5
    assert {row["customer"] for row in await store.read("people")} == {OTHER}
    assert len(await store.read("orders")) == 5
    assert len(await store.read("log_predictions_offers_v1")) == len(await store.read("log_outcomes_offers_v1")) == 1
    assert len(await quarantined(store)) == 2
    assert (await store.read_dataset(made["without"].id)).num_rows == 1
    assert (await store.datasets.recreate(made["without"].id)).stored
    for name in ("with_them", "queried", "named", "listed", "logged"):
        with pytest.raises(FailedPrecondition, match="forgotten"):
            await store.datasets.recreate(made[name].id)
    vectors = await store.vectors.latest(Reference("ages"), keys(customer=[MARKER, OTHER]), at(30))
    assert list(vectors.features[0].statuses) == [3, 1]
    assert (await store.registry.described_group(Reference("people")))[1] == len(await store.read("people"))


async def test_what_is_written_about_them_later_is_new_and_stays(world: World) -> None:
    """Rows offline and online, also with an earlier event time, and predictions."""
    store = world.store
    store.clock[0] = NOW
    await world.forget()
    await store.write("people", [{"customer": MARKER, "event_time": at(0.5), "age": 1.0}])
    await log_predictions(world, served=NOW + timedelta(seconds=1))
    again = await store.eraser.forget("first", key_columns(customer=MARKER), OPERATOR)
    assert rows_of(again)["people"] == 3
    await world.take_all()
    assert [row["age"] for row in await store.read("people") if row["customer"] == MARKER] == [1.0]
    vectors = await store.vectors.latest(Reference("ages"), keys(customer=[MARKER]), at(30))
    assert vectors.features[0].values.tolist() == [1.0]
    assert len(await store.read("log_predictions_offers_v1")) == 1 + 4


async def test_rows_written_while_they_are_being_forgotten_stay_everywhere(world: World) -> None:
    """The online store had the later ones only, and has what is left offline."""
    store = world.store
    begun = await store.erasures.begin("first", Entity.of(key_columns(customer=MARKER)), NOW)
    await store.write("people", [{"customer": MARKER, "event_time": at(0.5), "age": 7.0}])
    report = await world.forget()
    assert report.erasure.number == begun.number
    assert [row["age"] for row in await store.read("people") if row["customer"] == MARKER] == [7.0]
    vectors = await store.vectors.latest(Reference("ages"), keys(customer=[MARKER, OTHER]), at(30))
    assert vectors.features[0].values[0] == 7.0
    assert online_with(store, MARKER) == 1


async def test_rows_written_meanwhile_come_again_after_an_attempt_that_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys were removed already, with the later rows: the next attempt finds nothing to remove."""
    store = world.store
    whole, failures = store.online.remove, 3

    async def failing(group: StoredGroup, columns: tuple[Column, ...]) -> int:
        nonlocal failures
        removed = await whole(group, columns)
        if failures:
            failures -= 1
            raise Unavailable("the connection is gone")
        return removed

    monkeypatch.setattr(store.online, "remove", failing)
    await store.erasures.begin("first", Entity.of(key_columns(customer=MARKER)), NOW)
    await store.write("people", [{"customer": MARKER, "event_time": at(9), "age": 7.0}])
    await world.forget()
    assert not failures
    vectors = await store.vectors.latest(Reference("ages"), keys(customer=[MARKER]), at(30))
    assert vectors.features[0].values.tolist() == [7.0]
    assert online_with(store, MARKER) == 1


async def test_what_was_in_a_spool_is_dropped_and_does_not_come_back(world: World) -> None:
    """It arrives after everything was forgotten."""
    await world.forget()
    await log_predictions(world)
    await world.take_all()
    kept = await world.store.read("log_predictions_offers_v1")
    assert [(row["buyer"], row["seller"]) for row in kept] == [(OTHER, OTHER)] * 2
    assert await tables_with(world, MARKER) == set()


async def test_a_page_of_the_log_that_was_read_before_is_not_written_after(world: World) -> None:
    """The erasure waits for it."""
    store, read = world.store, asyncio.Event()
    go_on = asyncio.Event()
    await log_predictions(world)

    class SlowLog:
        async def read(self, cursor: int, limit: int) -> Any:
            page = await world.client.read(cursor, limit)
            read.set()
            await go_on.wait()
            return page

    pulling = asyncio.create_task(store.ingestion.pull(SlowLog()))
    await read.wait()
    async with working(store.eraser.run()):
        forgetting = asyncio.create_task(store.eraser.forget("first", key_columns(customer=MARKER), OPERATOR))
        while (await reached(store)) < Step.LOG_ROWS:
            await asyncio.sleep(0.01)
        go_on.set()
        await pulling
        await world.take_all()
        await forgetting
    assert await tables_with(world, MARKER) == set()
    assert len(await store.read("log_predictions_offers_v1")) == 2


async def reached(store: Store, request_id: str = "first") -> Step:
    try:
        return (await store.erasures.find(request_id)).step
    except NotFound:
        return Step.ONLINE


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("step", [step for step in Step if step is not Step.DONE])
@pytest.mark.parametrize("after", [False, True])
async def test_a_process_that_dies_in_the_middle_goes_on_at_its_start(world: World, step: Step, after: bool) -> None:
    """Whether the step was done and not noted, or not begun."""
    store = world.store
    await make_datasets(store)

    class DyingEraser(Eraser):
        def __init__(self) -> None:
            super().__init__(store.erasures, store.erased_parts, lambda: NOW)
            whole = self._steps[step]

            async def die(*given: Any) -> None:
                if after:
                    await whole(*given)
                raise Killed

            self._steps[step] = die

    dying = DyingEraser()
    running = asyncio.create_task(dying.run())
    async with working(store.ingestion.run()):
        call = asyncio.create_task(dying.forget("first", key_columns(customer=MARKER), OPERATOR))
        with pytest.raises(Killed):
            await running
        call.cancel()
        assert await reached(store) is step
        async with working(store.eraser.run()):
            while await reached(store) is not Step.DONE:
                await asyncio.sleep(0.02)
    assert await tables_with(world, MARKER) == set()
    assert online_with(store, MARKER) == 0
    report = await store.eraser.report("first", OPERATOR)
    assert rows_of(report) == {
        "people": 3,
        "orders": 5,
        "log_predictions_offers_v1": 3,
        "log_outcomes_offers_v1": 3,
    }
    assert report.erasure.predictions == 3
    assert len(report.datasets) == 5


async def test_an_erasure_waits_for_the_logger_and_says_so(world: World) -> None:
    """What was asked for is done once the logger is back."""
    store, away = world.store, [True]

    class Log:
        async def forget(
            self, request_id: str, served_before: datetime, selections: Sequence[LogSelection], after: int
        ) -> LogProgress:
            if away[0]:
                raise Unavailable("logger does not answer")
            return await world.client.forget(request_id, served_before, selections, after)

    eraser = Eraser(store.erasures, replace(store.erased_parts, log=Log()), lambda: NOW)
    async with working(store.ingestion.run(), eraser.run()):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await eraser.forget("first", key_columns(customer=MARKER), OPERATOR)
        report = await eraser.report("first", OPERATOR)
        assert (report.erasure.step, report.erasure.finished_at) == (Step.LOG, None)
        away[0] = False
        done = await eraser.forget("first", key_columns(customer=MARKER), OPERATOR)
    assert done.erasure.predictions == 3
    assert await tables_with(world, MARKER) == set()


async def test_two_processes_may_work_on_the_same_erasure(world: World) -> None:
    """Nothing is counted twice."""
    store = world.store
    other = Eraser(store.erasures, store.erased_parts, lambda: NOW)
    async with working(store.ingestion.run(), store.eraser.run(), other.run()):
        both = await asyncio.gather(
            *(e.forget("first", key_columns(customer=MARKER), OPERATOR) for e in (store.eraser, other))
        )
    assert [rows_of(report)["people"] for report in both] == [3, 3]
    assert both[0].erasure.predictions == 3


async def test_the_request_id_stands_for_one_entity_for_good(world: World) -> None:
    """Also once the entity itself is forgotten."""
    first = await world.forget()
    again = await world.store.eraser.forget("first", key_columns(customer=MARKER), LOCAL)
    assert again == first
    with pytest.raises(AlreadyExists):
        await world.store.eraser.forget("first", key_columns(customer=OTHER), OPERATOR)
    assert len(await world.store.read("people")) == 2


async def test_only_operators_forget_and_only_what_there_is(world: World) -> None:
    """A mistaken name is told, not forgotten."""
    eraser = world.store.eraser
    mine = key_columns(customer=MARKER)
    with pytest.raises(PermissionDenied):
        await eraser.forget("x", mine, APPLICATION)
    with pytest.raises(PermissionDenied):
        await eraser.report("x", "spiffe://foresight/operator-evil/x")
    with pytest.raises(NotFound):
        await eraser.report("x", OPERATOR)
    for wrong in (
        {},
        {"customer": Column.build("customer", DataType.STRING, [MARKER, OTHER])},
        {"customer": Column.build("customer", DataType.STRING, [None])},
        {"customer": Column.build("customer", DataType.FLOAT64, [1.0])},
    ):
        with pytest.raises(InvalidValue):
            await eraser.forget("x", wrong, OPERATOR)
    for request_id in ("", "x" * 129):
        with pytest.raises(InvalidValue):
            await eraser.forget(request_id, mine, OPERATOR)
    for unknown in (key_columns(custmer=MARKER), key_columns(customer=7), key_columns(customer=MARKER, rating="4")):
        with pytest.raises(FailedPrecondition, match="no feature group"):
            await eraser.forget("x", unknown, OPERATOR)
    with pytest.raises(NotFound):
        await eraser.report("x", OPERATOR)


async def test_an_entity_of_two_keys_is_only_where_both_are(world: World) -> None:
    """The customer stays, without one order."""
    report = await world.forget(customer=MARKER, number=3)
    assert rows_of(report) == {"orders": 1}
    left = [(row["customer"], row["number"]) for row in await world.store.read("orders")]
    assert (MARKER, 3) not in left
    assert len(left) == 9
    assert report.erasure.predictions == 0


async def test_keys_of_several_groups_name_the_predictions_that_have_them_all(world: World) -> None:
    """No group has both keys; a view has, in two ways."""
    report = await world.forget(customer=MARKER, shop="elsewhere", request_id="other shop")
    assert (rows_of(report), report.erasure.predictions) == ({}, 0)
    report = await world.forget(customer=MARKER, shop="corner")
    assert rows_of(report) == {"log_predictions_offers_v1": 3, "log_outcomes_offers_v1": 3}
    assert len(await world.store.read("people")) == 5


async def test_many_rows_go_in_several_transactions(world: World) -> None:
    """Of a group whose first key is another one; each is counted."""
    store, n = world.store, 2 * ROWS_PER_TRANSACTION + 17
    rows = pa.table(
        {
            "number": pa.array(range(100, 100 + n), pa.int64()),
            "customer": [MARKER] * n,
            "event_time": pa.array([at(3)] * n, pa.timestamp("us", "UTC")),
            "amount": pa.nulls(n, pa.float64()),
        }
    )
    await store.write_table("orders", rows)
    assert rows_of(await world.forget())["orders"] == n + 5
    assert [row["customer"] for row in await store.read("orders")] == [OTHER] * 5
    assert online_with(store, MARKER) == 0
    assert (await store.registry.described_group(Reference("orders")))[1] == 5


async def test_a_single_prediction_can_be_forgotten(world: World) -> None:
    """By its id, in the log and in what came from it."""
    [wanted, *_] = [row["prediction_id"] for row in await world.store.read("log_predictions_offers_v1")]
    report = await world.forget(prediction_id=wanted)
    assert rows_of(report) == {"log_predictions_offers_v1": 1, "log_outcomes_offers_v1": 1}
    assert await tables_with(world, wanted) == set()


async def test_models_and_deployments_behind_the_datasets_are_named(world: World) -> None:
    """As they are now."""
    store = world.store
    made = await make_datasets(store)
    model, deployment = Thing(ThingKind.MODEL, "prices", 4), Thing(ThingKind.DEPLOYMENT, "shopfront")
    await store.lineage.declare(model, [Thing(ThingKind.TRAINING_DATASET, made["with_them"].id)])
    await store.lineage.declare(deployment, [model])
    await store.lineage.declare(
        Thing(ThingKind.MODEL, "harmless", 1), [Thing(ThingKind.TRAINING_DATASET, made["without"].id)]
    )
    report = await world.forget()
    assert set(report.affected) == {model, deployment}


async def test_a_replay_says_whose_rows_were_erased_and_up_to_which_commit(world: World) -> None:
    """Exactly for the entities concerned."""
    store = world.store
    last = await store.commits.last()
    asked = keys(customer=[MARKER, OTHER, None])
    before = await store.vectors.replay(Reference("ages", 1), asked, at(30), last)
    assert not any(before.rows[0].erased_commits)
    assert before.rows[0].commits[0] > 0
    await world.forget()
    after = await store.vectors.replay(Reference("ages", 1), asked, at(30), last)
    assert list(after.rows[0].erased_commits) == [last, 0, 0]
    assert list(after.rows[0].commits) == [0, before.rows[0].commits[1], 0]


async def test_a_replica_that_was_away_forgets_by_hash(world: World, postgres_url: MakeDatabase) -> None:
    """Its store has the rows, the database neither them nor the entity's name."""
    store = world.store
    settings = store.database._settings
    with state_folder() as folder:
        async with running_store(settings, folder) as replica:
            await replica.applier.applied(await store.commits.last(), 5)
            assert online_with(replica, MARKER) == 6
        await world.forget()
        await store.write("people", [{"customer": MARKER, "event_time": at(0.25), "age": 5.0}])
        async with running_store(settings, folder) as replica:
            await replica.applier.erased(1, 5)
            assert online_with(replica, MARKER) == 1
            assert online_with(replica, OTHER) == 6
            vectors = await replica.vectors.latest(Reference("ages"), keys(customer=[MARKER]), at(30))
            assert vectors.features[0].values.tolist() == [5.0]
    with state_folder() as folder:
        async with running_store(settings, folder) as fresh:
            await fresh.applier.erased(1, 5)
            assert (await fresh.online.progress()).erasure == 1
