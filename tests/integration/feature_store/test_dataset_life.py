"""The life of training datasets: kept, purged, made again to the bit, shared, moved with their database, deleted."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import resource
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from foresight.transforms import source_sha256
from foresight.values import Column, DataType, Field, InvalidValue
from services.feature_store.datasets.manifests import (
    DatasetRequest,
    LoggedSelection,
    Manifest,
    ManifestFilter,
    dump_manifest,
)
from services.feature_store.datasets.splits import HashSplit, TimeSplit
from services.feature_store.groups import Reference
from services.feature_store.postgres.lineage import LineageTable
from services.feature_store.reads.histories import EventTimes
from services.feature_store.reads.queries import Condition, GroupQuery, Operator, SpineQuery
from services.feature_store.registry.lineage import Thing, ThingKind
from services.feature_store.tables.content import content_sha256
from services.runtime.errors import (
    DataLoss,
    FailedPrecondition,
    LimitExceeded,
    NotFound,
    OutOfRange,
    StaleEtag,
    TransformMismatch,
)
from services.runtime.settings import DatabaseSettings
from tests.conftest import MakeDatabase, PostgresServer
from tests.integration.feature_store import test_ingestion as logs
from tests.integration.feature_store.rig import LogInMemory, Store, at, running_store, source, state_folder
from tests.integration.feature_store.test_datasets import SPINE, define, doubled, request, transform

MODEL = Thing(ThingKind.MODEL, "delays", 3)
FLIGHTS = SpineQuery(GroupQuery(Reference("flights")), (("was_late", "late"),))


def files(store: Store) -> set[str]:
    """The digests of the stored files; nothing else may lie there."""
    found = [path for path in (store.folder / "datasets").rglob("*") if path.is_file()]
    assert all(path.suffix == ".parquet" for path in found)
    return {path.stem for path in found}


async def define_flights(store: Store) -> None:
    """A group whose rows are a spine: one corrected, one removed."""
    await store.group(
        "flights",
        [Field("flight", DataType.INT64)],
        [Field("place", DataType.STRING), Field("hour", DataType.INT64), Field("was_late", DataType.BOOL)],
    )
    rows = [
        {"flight": i, "event_time": at(35 + i), "place": "ab"[i % 2], "hour": i, "was_late": i % 3 == 0}
        for i in range(6)
    ]
    await store.write("flights", rows)
    await store.write("flights", [{**rows[1], "was_late": True}, {**rows[2], "deleted": True}])


async def change_everything(store: Store) -> None:
    """A backfill, a correction and a removal of rows that the datasets were made of."""
    await store.write("weather", [{"place": "a", "event_time": at(5), "wind": 77.0}])
    await store.write("weather", [{"place": p, "event_time": at(30), "wind": 99.0} for p in "ab"])
    with contextlib.suppress(NotFound):
        await store.registry.group(Reference("flights"))
        await store.write("flights", [{"flight": 9, "event_time": at(36), "place": "a", "hour": 1, "was_late": True}])
        await store.write("flights", [{"flight": 3, "event_time": at(38), "deleted": True}])


async def make_all(store: Store) -> list[Manifest]:
    """A dataset of each kind: a spine sent, one made by a query, with each kind of split, and what was known."""
    await define(store, transform(doubled, "wind", "hour"))
    await define_flights(store)
    by_key = HashSplit(5, 0.3, 0.2)
    return [
        await store.create(request("sent", split=TimeSplit(at(91), at(40))), SPINE),
        await store.create(request("known", known_by=True, split=by_key), SPINE),
        await store.create(request("queried", spine=FLIGHTS, split=by_key)),
        await store.create(request("past", spine=FLIGHTS, commit=3)),
    ]


async def contents(store: Store, manifests: list[Manifest]) -> list[str]:
    """The digests of what is read."""
    return [content_sha256(await store.read_dataset(manifest.id)) for manifest in manifests]


MODULES = [doubled.__module__]


@contextlib.asynccontextmanager
async def store_on(settings: DatabaseSettings, folder: Path) -> AsyncIterator[Store]:
    """A feature store that trusts the transforms of these tests."""
    async with running_store(settings, folder, modules=MODULES) as store:
        yield store


async def test_the_hash_survives_backfill_correction_purge_and_restart(postgres_url: MakeDatabase) -> None:
    """Purged, the rows are made again to the bit by another process; and so they are where all files are lost but
    the spines that were sent."""
    settings = postgres_url("feature_store")
    with state_folder() as folder:
        async with store_on(settings, folder) as store:
            made = await make_all(store)
            hashes = [manifest.content_sha256 for manifest in made]
            assert len(set(hashes)) == 4
            assert await contents(store, made) == hashes
            await change_everything(store)
            freed = [(await store.datasets.purge(manifest.id))[1] for manifest in made]
            assert freed == [manifest.stored_bytes for manifest in made]
            assert files(store) == {made[0].spine_sha256}
        async with store_on(settings, folder) as store:
            for manifest in made:
                purged = await store.datasets.get(manifest.id)
                assert (purged.stored, purged.stored_bytes) == (False, 0)
                with pytest.raises(FailedPrecondition, match="purged; recreate"):
                    await store.read_dataset(manifest.id)
                again = await store.datasets.recreate(manifest.id)
                assert again == manifest
            assert await contents(store, made) == hashes


async def test_the_hash_survives_a_dump_and_restore_of_the_database(
    postgres_url: MakeDatabase, postgres_server: PostgresServer
) -> None:
    """pg_dump and pg_restore into another database: with the spines that were sent, every dataset comes out the
    same, whatever happened to its rows since."""
    settings, restored = postgres_url("feature_store"), postgres_url("feature_store")
    with state_folder() as folder, state_folder() as other:
        async with store_on(settings, folder) as store:
            made = await make_all(store)
            await change_everything(store)
        await postgres_server.copy(settings, restored)
        (other / "datasets").mkdir()
        shutil.copy(folder / "datasets" / f"{made[0].spine_sha256}.parquet", other / "datasets")
        async with store_on(restored, other) as store:
            assert await store.datasets.page(ManifestFilter()) == (made[::-1], "")
            for manifest in made:
                with pytest.raises(DataLoss):
                    await store.read_dataset(manifest.id)
                assert await store.datasets.recreate(manifest.id) == manifest
            assert await contents(store, made) == [manifest.content_sha256 for manifest in made]
            later = await store.create(
                request("later", known_by=True, split=made[1].split, commit=made[1].commit), SPINE
            )
            assert later.content_sha256 == made[1].content_sha256


async def test_logged_predictions_are_made_again(store: Store, log: LogInMemory) -> None:
    """Also after outcomes were corrected and more came."""
    await logs.define(store)
    log.entries = [logs.predictions(["b1", "b0"], 5), *(logs.outcome(i, 20) for i in ("b1", "b0"))]
    await logs.take_all(store, log)
    selection = LoggedSelection(at(9), at(30))
    made = await store.create(request(logged=selection, split=HashSplit(1, 0.5)))
    log.entries += [logs.predictions(["c0"], 6), logs.outcome("c0", 21), logs.outcome("b0", 22, False)]
    await logs.take_all(store, log)
    await store.datasets.purge(made.id)
    assert await store.datasets.recreate(made.id) == made
    assert (await store.create(request(logged=selection))).rows == 3
    used = await LineageTable(store.database).users_of(Thing(ThingKind.FEATURE_GROUP, "log_outcomes_judged_v1", 1))
    assert Thing(ThingKind.TRAINING_DATASET, made.id) in used


async def test_a_query_is_a_spine(store: Store) -> None:
    """Rows that were corrected or removed are out; columns may have other names; the query is pinned and described."""
    await define(store)
    await define_flights(store)
    made = await store.create(request(spine=FLIGHTS))
    table = await store.read_dataset(made.id)
    assert table.column_names == ["flight", "event_time", "place", "wind", "rain", "hour", "late", "split"]
    assert table["flight"].to_pylist() == [0, 1, 3, 4, 5]
    assert table["late"].to_pylist() == [True, True, True, False, False]
    assert made.spine is not None
    assert made.spine.query.group == Reference("flights", 1)
    assert made.spine_sha256 == ""
    assert await store.datasets.get(made.id) == made
    some = GroupQuery(
        Reference("flights"),
        EventTimes(at(36), at(40)),
        where=(Condition("place", Operator.EQUAL, Column.build("place", DataType.STRING, ["b"])),),
    )
    assert (await store.create(request(spine=replace(FLIGHTS, query=some)))).rows == 2
    with pytest.raises(FailedPrecondition, match="finds no rows of flights"):
        await store.create(request(spine=replace(FLIGHTS, query=replace(some, times=EventTimes(at(900))))))
    for wrong, field in (
        (SpineQuery(GroupQuery(Reference("flights"))), "header.spine.late"),
        (SpineQuery(GroupQuery(Reference("flights")), (("absent", "late"),)), "header.spine.columns"),
    ):
        with pytest.raises(InvalidValue) as refused:
            await store.create(request(spine=wrong))
        assert [v.field for v in refused.value.violations] == [field]
    with pytest.raises(NotFound):
        await store.create(request(spine=SpineQuery(GroupQuery(Reference("nowhere")))))
    with pytest.raises(InvalidValue, match="arrow"):
        await store.create(request(spine=FLIGHTS), SPINE)
    with pytest.raises(InvalidValue, match=r"header\.spine"):
        request(spine=FLIGHTS, logged=LoggedSelection(at(9), at(30)))


async def test_a_dataset_as_of_a_time_has_the_commits_of_then(store: Store) -> None:
    """The commit that it stands for is pinned; a later commit changes nothing."""
    await define(store)
    async with store.database.statements() as connection:
        rows = await connection.exec_driver_sql("SELECT committed_at FROM commits WHERE commit = 1")
        first = rows.scalar_one()
    made = await store.create(request(as_of_time=first), SPINE)
    assert made.commit == 1
    assert (await store.read_dataset(made.id))["rain"].to_pylist()[0] == -1
    assert (await store.create(request(commit=1), SPINE)).content_sha256 == made.content_sha256
    with pytest.raises(InvalidValue, match="as_of_time"):
        request(as_of_time=first, commit=1)
    with pytest.raises(OutOfRange):
        await store.create(request(commit=99), SPINE)
    empty = await store.create(request(as_of_time=first - timedelta(days=1)), SPINE)
    assert empty.commit == 0
    await store.datasets.purge(empty.id)
    assert await store.datasets.recreate(empty.id) == empty


async def test_splits_by_key_keep_keys_together(store: Store) -> None:
    """Every row of a place is in one split, a NULL place too; the manifest counts them and names the keys."""
    await define(store)
    made = await store.create(request(split=HashSplit(11, 0.4, 0.3)), SPINE)
    assert made.split == HashSplit(11, 0.4, 0.3, ("place",))
    table = await store.read_dataset(made.id)
    groups = table.group_by("place").aggregate([("split", "count_distinct")])
    assert groups["split_count_distinct"].to_pylist() == [1] * groups.num_rows
    counted = {row["values"]: row["counts"] for row in pc.value_counts(table["split"]).to_pylist()}
    assert dict(made.splits) == counted
    for split in ("train", "validation", "test"):
        rows = await store.read_dataset(made.id, split)
        assert rows.equals(table.filter(pc.equal(table["split"], split)))
        async with store.datasets.read(made.id, split) as source_of_rows:
            assert source_of_rows.num_rows == rows.num_rows
    with pytest.raises(InvalidValue, match="not an entity key of judged"):
        await store.create(request(split=HashSplit(keys=("hour",))), SPINE)
    with pytest.raises(InvalidValue, match="split"):
        await store.read_dataset(made.id, "dev")


async def test_equal_content_is_kept_once_until_nobody_needs_it(store: Store) -> None:
    """Nothing becomes free while another dataset has the same rows, or the same spine."""
    await define(store)
    one, two = [await store.create(request(name), SPINE) for name in ("one", "two")]
    assert (one.content_sha256, one.spine_sha256) == (two.content_sha256, two.spine_sha256)
    assert files(store) == {one.content_sha256, one.spine_sha256}
    manifest, freed = await store.datasets.purge(one.id)
    assert (manifest.stored, freed) == (False, 0)
    assert (await store.read_dataset(two.id)).num_rows == 6
    assert await store.datasets.purge(one.id) == (manifest, 0)
    assert (await store.datasets.purge(two.id))[1] == two.stored_bytes
    assert files(store) == {one.spine_sha256}
    await store.datasets.delete(two.id)
    assert await store.datasets.recreate(one.id) == one
    await store.datasets.delete(one.id)
    assert files(store) == set()
    for gone in (one, two):
        for call in (store.datasets.get, store.datasets.purge, store.datasets.recreate, store.datasets.delete):
            with pytest.raises(NotFound):
                await call(gone.id)


async def test_purges_and_creations_of_equal_content_at_once_lose_nothing(postgres_url: MakeDatabase) -> None:
    """Whatever comes between what: what a manifest says is stored can be read, and nothing else is kept. Two
    processes do it to one folder."""
    settings = postgres_url("feature_store")
    with state_folder() as folder, state_folder() as second:
        (second / "datasets").symlink_to(folder / "datasets")
        # Only one of them feeds its online store.
        follower = running_store(settings, second, applying=False, modules=MODULES)
        async with store_on(settings, folder) as store, follower as other:
            await define(store)
            first = await store.create(request("first"), SPINE)

            async def make_and_purge(of: Store, times: int) -> None:
                for _ in range(times):
                    made = await of.create(request("again"), SPINE)
                    assert (await of.read_dataset(made.id)).num_rows == 6
                    await of.datasets.purge(made.id)

            async def purge_and_recreate(times: int) -> None:
                for _ in range(times):
                    await store.datasets.purge(first.id)
                    await store.datasets.recreate(first.id)
                    assert (await store.read_dataset(first.id)).num_rows == 6

            await asyncio.gather(*(make_and_purge(of, 4) for of in (store, other, store)), purge_and_recreate(6))
            assert (await store.read_dataset(first.id)).num_rows == 6
            assert files(store) == {first.content_sha256, first.spine_sha256}
            assert (await store.datasets.purge(first.id))[1] == first.stored_bytes
            assert files(store) == {first.spine_sha256}


async def test_what_a_model_was_trained_on_is_not_deleted(store: Store) -> None:
    """The models are named; once they are gone the dataset may go, and with it its hold on the view and the group."""
    await define(store)
    await define_flights(store)
    made = await store.create(request(spine=FLIGHTS))
    lineage, itself = LineageTable(store.database), Thing(ThingKind.TRAINING_DATASET, made.id)
    await lineage.declare(MODEL, [itself])
    with pytest.raises(FailedPrecondition, match="model delays version 3"):
        await store.datasets.delete(made.id)
    assert (await store.read_dataset(made.id)).num_rows == 5
    view, group = Thing(ThingKind.FEATURE_VIEW, "judged", 1), Thing(ThingKind.FEATURE_GROUP, "flights", 1)
    assert await lineage.users_of(view) == [itself]
    assert await lineage.users_of(group) == [itself]
    await lineage.declare(MODEL, [])
    kept = f"SELECT count(*) FROM statistics WHERE dataset_id = '{made.id}'"
    async with store.database.transaction() as connection:
        await connection.exec_driver_sql(
            "INSERT INTO statistics (kind, group_id, dataset_id, commit, selection, content, computed_at) "
            f"VALUES ('dataset', 0, '{made.id}', 0, '', '', now())"
        )
    await store.datasets.delete(made.id)
    async with store.database.statements() as connection:
        assert (await connection.exec_driver_sql(kept)).scalar_one() == 0
    assert await lineage.users_of(view) == await lineage.users_of(group) == []
    with pytest.raises(NotFound):
        await lineage.declare(MODEL, [itself])


async def test_manifests_are_listed_page_by_page(store: Store) -> None:
    """The newest first, by name and by view; a token that no answer had is refused."""
    await define(store)
    await store.view("other", source("weather", "wind"))
    made = []
    for i in range(5):
        made.append(await store.create(request(f"n{i % 2}"), SPINE))
        store.clock[0] += timedelta(minutes=i % 2)
    plain = SPINE.drop_columns(["hour"])
    made.append(await store.create(DatasetRequest("n0", Reference("other")), plain))

    async def listed(size: int, wanted: ManifestFilter) -> list[str]:
        found, token = await store.datasets.page(wanted, size)
        ids = [manifest.id for manifest in found]
        while token:
            found, token = await store.datasets.page(wanted, size, token)
            assert len(found) <= size
            ids += [manifest.id for manifest in found]
        return ids

    everything = [manifest.id for manifest in sorted(made, key=lambda m: (m.created_at, m.id), reverse=True)]
    for size in (1, 2, 3, 6, 100):
        assert await listed(size, ManifestFilter()) == everything
    assert len(await listed(2, ManifestFilter("n0"))) == 4
    assert len(await listed(2, ManifestFilter("n0", Reference("judged")))) == 3
    assert await listed(2, ManifestFilter(view=Reference("other", 1))) == [made[-1].id]
    assert await listed(2, ManifestFilter(view=Reference("other", 2))) == []
    for token in ("x", "bm9uZQ==", "é", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5IDE="):
        with pytest.raises(InvalidValue, match="page_token"):
            await store.datasets.page(ManifestFilter(), 1, token)
    with pytest.raises(InvalidValue, match="page_size"):
        await store.datasets.page(ManifestFilter(), 1_001)


async def test_rows_that_come_out_differently_are_data_loss(store: Store) -> None:
    """With both digests; nothing is stored. So it is with a damaged spine."""
    await define(store)
    made = await store.create(request(), SPINE)
    await store.datasets.purge(made.id)
    async with store.database.transaction() as connection:
        other = dump_manifest(replace(made, commit=1)).replace("'", "''")
        await connection.exec_driver_sql(f"UPDATE training_datasets SET manifest = '{other}'")
    with pytest.raises(DataLoss) as lost:
        await store.datasets.recreate(made.id)
    assert lost.value.metadata["content_sha256"] == made.content_sha256
    assert lost.value.metadata["recreated_sha256"] in lost.value.message
    assert made.content_sha256 in lost.value.message
    assert files(store) == {made.spine_sha256}
    path = store.folder / "datasets" / f"{made.spine_sha256}.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataLoss):
        await store.datasets.recreate(made.id)
    assert not (await store.datasets.get(made.id)).stored


async def test_a_transform_that_changed_is_a_mismatch(store: Store, postgres_url: MakeDatabase) -> None:
    """The rows of then need the function of then."""
    settings = postgres_url("feature_store")
    with state_folder() as folder:
        async with store_on(settings, folder) as trusting:
            await define(trusting, transform(doubled, "wind", "hour"))
            made = await trusting.create(request(), SPINE)
            assert made.transforms == ((f"{MODULES[0]}:doubled", source_sha256(doubled)),)
            await trusting.datasets.purge(made.id)
            async with trusting.database.transaction() as connection:
                other = dump_manifest(made).replace(source_sha256(doubled), "0" * 64).replace("'", "''")
                await connection.exec_driver_sql(f"UPDATE training_datasets SET manifest = '{other}'")
            with pytest.raises(TransformMismatch):
                await trusting.datasets.recreate(made.id)
        async with running_store(settings, folder) as distrusting:
            with pytest.raises(TransformMismatch):
                await distrusting.datasets.recreate(made.id)


async def test_a_full_disk_refuses_and_leaves_nothing(store: Store) -> None:
    """Neither a file nor a manifest; with room again the same call goes through."""
    await define(store)
    many = pa.concat_tables([SPINE] * 2_000).combine_chunks()
    many = many.set_column(0, "flight", pa.array([f"flight {i}" for i in range(many.num_rows)]))
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(LimitExceeded):
            await store.create(request(), many)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert files(store) == set()
    assert await store.datasets.page(ManifestFilter()) == ([], "")
    assert (await store.create(request(), many)).rows == 12_000


async def test_a_view_that_was_dropped_meanwhile_leaves_nothing(store: Store) -> None:
    """The files of a dataset whose manifest is refused go again."""
    await define(store)
    async with store.database.transaction() as connection:
        await connection.exec_driver_sql("UPDATE feature_views SET dropped = true")
    with pytest.raises(NotFound):
        await store.create(request(), SPINE)
    assert files(store) == set()


async def test_datasets_that_hold_an_entity_are_found_and_forgotten(store: Store) -> None:
    """By their rows, by their spine when the rows were purged, and by what they were made of when neither is left."""
    await define(store)
    await define_flights(store)
    with_b, without = SPINE, SPINE.filter(pc.equal(SPINE["place"], "a"))
    kept, purged, other = [
        await store.create(request(name), spine)
        for name, spine in (("kept", with_b), ("purged", with_b.slice(1)), ("other", without))
    ]
    queried, gone, old = [await store.create(request("q", spine=FLIGHTS, commit=n)) for n in (0, 4, 3)]
    for manifest in (purged, gone, old):
        await store.datasets.purge(manifest.id)

    async def holding(lost: dict[Reference, int], named: bool = False, **values: object) -> set[str]:
        found = await store.datasets.holding(lambda view: [values], lambda query: named, lost)
        return {manifest.id for manifest in found}

    assert await holding({}, place="b") == {kept.id, purged.id, queried.id}
    assert await holding({Reference("flights", 1): 4}, place="nowhere") == {queried.id, gone.id}
    assert await holding({Reference("weather", 1): 2}, place="nowhere") == {gone.id, old.id}
    assert await holding({}, named=True, place="nowhere") == {queried.id, gone.id, old.id}
    assert await holding({Reference("weather", 2): 1}, place="nowhere") == set()
    assert await holding({}, flight=4) == {queried.id}
    lost = {Reference("flights", 1): 4}
    found, now = await holding(lost, place="b"), store.clock[0]
    assert found == {kept.id, purged.id, queried.id, gone.id}
    for id in found:
        manifest = await store.datasets.forget(id, now)
        assert (manifest.forgotten_at, manifest.stored) == (now, False)
        assert (await store.datasets.forget(id, now + timedelta(days=1))).forgotten_at == now
        for call in (store.datasets.recreate, store.read_dataset):
            with pytest.raises(FailedPrecondition, match="forgotten"):
                await call(id)
        assert not (await store.datasets.purge(id))[0].stored
    assert files(store) == {other.content_sha256, other.spine_sha256}
    assert await holding(lost, place="b") == set()
    assert await store.datasets.recreate(old.id) == old


async def test_rows_that_were_being_made_when_an_entity_was_forgotten_are_not_stored(store: Store) -> None:
    """They may have it; the call is to be repeated, and then finds it gone."""
    await define(store)
    made = await store.create(request(), SPINE)
    await store.datasets.purge(made.id)

    async def forget_in_between(of: Store) -> None:
        async with of.database.transaction() as connection:
            # Holds what names files, until the entity was forgotten.
            lock = "SELECT pg_advisory_xact_lock(hashtext('feature_store.training_datasets'))"
            await connection.exec_driver_sql(lock)
            waiting = [
                asyncio.create_task(of.create(request("new"), SPINE)),
                asyncio.create_task(of.datasets.recreate(made.id)),
            ]
            await _until_waiting(of, 1)
            await connection.exec_driver_sql("UPDATE training_dataset_state SET erasures = erasures + 1")
        for task in waiting:
            with pytest.raises(StaleEtag):
                await task

    await forget_in_between(store)
    assert files(store) == {made.spine_sha256}
    assert await store.datasets.recreate(made.id) == made


async def _until_waiting(store: Store, at_least: int) -> None:
    """Returns once somebody waits for the lock, and the other one for its turn."""
    async with asyncio.timeout(20):
        for _ in itertools.count():
            async with store.database.statements() as connection:
                waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                found = (await connection.exec_driver_sql(waiting)).scalar_one()
            unfinished = list((store.folder / "datasets" / "unfinished").rglob("*"))
            if found >= at_least and sum(path.is_file() for path in unfinished) >= 3:
                return
            await asyncio.sleep(0.01)


async def test_a_reader_keeps_its_rows_while_they_are_purged(store: Store) -> None:
    """Who opened them reads them to the end."""
    await define(store)
    made = await store.create(request(), SPINE)
    async with store.datasets.read(made.id) as rows:
        await store.datasets.purge(made.id)
        assert sum(batch.num_rows for batch in rows.batches()) == 6
