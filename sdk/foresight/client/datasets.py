"""Training datasets: a spine (or the prediction log) joined with a view, stored with its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from foresight.client.connection import READ_S, Calls, Connection
from foresight.client.features import VersionRef, describe_view, encode_optional, spine_fields
from foresight.client.frames import Output, Progress, RowStream, from_table, read_table
from foresight.client.queries import RowsOf, decode_spine_query, encode_spine_query
from foresight.client.uploads import RowUpload
from foresight.client.writes import describe_group
from foresight.feature_store.v1 import training_dataset_pb2, training_dataset_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.values import Field, InvalidValue
from foresight.wire import decode_field, decode_instant, decode_optional_instant, encode_instant

_PAGE_SIZE = 1_000


@dataclass(frozen=True, slots=True)
class Logged:
    """Rows of a training dataset from the prediction log, with the outcomes known by `observed_by`.

    Predictions with `from_event_time <= event time < to_event_time`, of one deployment or ('') of any that used the
    view. One without an outcome by then is left out (censored, not negative), and so are those that shadow arms made,
    unless `shadows` says otherwise, and those made without the feature store, unless `degraded` does.
    """

    to_event_time: datetime
    observed_by: datetime
    deployment: str = ""
    from_event_time: datetime | None = None
    shadows: bool = False
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class HashSplit:
    """Splits a training dataset by a seeded hash of entity keys: all rows of a key are in one split, whatever their
    order.

    `test_share` and `validation_share` are shares of keys in [0, 1), together less than 1; the others are `train`.
    `keys` are hashed together; empty: all entity keys of the view. Another `seed` puts other keys into each split.
    """

    test_share: float = 0.0
    validation_share: float = 0.0
    seed: int = 0
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingDataset:
    """The manifest of a training dataset; with the commits it names it can be created again, to the same hash.

    `max_ages` are in the order of `groups`, None for none; `transforms` are functions with the SHA-256 of their source.
    `stored` is False once the rows were purged; `forgotten_at` says that an entity in them was forgotten, so that they
    cannot be made again.
    """

    id: str
    name: str
    view: VersionRef
    commit: int
    known_by: bool
    rows: int
    splits: Mapping[str, int]
    content_sha256: str
    spine_sha256: str
    groups: tuple[VersionRef, ...]
    created_at: datetime
    features: tuple[Field, ...]
    label: Field
    test_from: datetime | None = None
    validation_from: datetime | None = None
    hash_split: HashSplit | None = None
    logged: Logged | None = None
    spine: RowsOf | None = None
    stored: bool = True
    stored_bytes: int = 0
    transforms: Mapping[str, str] = field(default_factory=dict)
    max_ages: tuple[timedelta | None, ...] = ()
    forgotten_at: datetime | None = None


class DatasetCalls(Calls):
    """Calls about training datasets."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._datasets = training_dataset_pb2_grpc.TrainingDatasetServiceStub(connection.channel)

    def create_training_dataset(
        self,
        name: str,
        view: str,
        spine: Any = None,
        *,
        logged: Logged | None = None,
        version: int = 0,
        known_by: bool = False,
        commit: int = 0,
        as_of_time: datetime | None = None,
        validation_from: datetime | None = None,
        test_from: datetime | None = None,
        hash_split: HashSplit | None = None,
        progress: Progress | None = None,
        timeout_s: float = READ_S,
    ) -> TrainingDataset:
        """Joins a spine (view's keys, `event_time`, request features, label) or logged predictions with a view.

            client.create_training_dataset("spring", "delays", rows_of("flights", columns={"was_late": "late"}))

        Give either `spine` or `logged`. `spine` is a DataFrame, a table, a list of dicts or a dict of columns; rows of
        a group, see `rows_of`, that never leave the feature store; or, for more rows than fit into memory, an Arrow
        RecordBatchReader or the Path of a Parquet file. `known_by`: only what was known by each row's event time. Only
        commits up to `commit`, or that were published by `as_of_time`. Rows from `test_from` on are the split `test`,
        those from `validation_from` on and before that `validation`; or `hash_split` splits by key. When an answer is
        lost and asked for again, a second dataset with the same content may remain.
        """
        if (spine is None) == (logged is None):
            raise InvalidValue("spine", "or logged: give one of them")
        header = training_dataset_pb2.TrainingDatasetHeader(
            name=name,
            known_by=known_by,
            commit=commit,
            as_of_time=encode_optional(as_of_time),
            validation_from=encode_optional(validation_from),
            test_from=encode_optional(test_from),
            hash_split=None if hash_split is None else _encode_split(hash_split),
            logged=None if logged is None else _encode_logged(logged),
        )
        rows: RowUpload | None = None
        if isinstance(spine, RowsOf):
            header.spine.CopyFrom(encode_spine_query(spine, partial(describe_group, self._connection)))
        elif spine is not None:
            described = describe_view(self._connection, view, version)
            rows, version = RowUpload.of(spine, spine_fields(described)), described.version
        header.view.CopyFrom(types_pb2.VersionRef(name=view, version=version))

        def requests() -> Iterator[training_dataset_pb2.CreateTrainingDatasetRequest]:
            yield training_dataset_pb2.CreateTrainingDatasetRequest(header=header)
            for chunk in rows.chunks(progress) if rows is not None else ():
                yield training_dataset_pb2.CreateTrainingDatasetRequest(arrow=chunk)

        repeatable = rows is None or rows.repeatable
        create = self._datasets.CreateTrainingDataset
        return _decode_dataset(self._connection.upload(create, requests, timeout_s, repeatable=repeatable).dataset)

    def training_dataset(self, dataset_id: str) -> TrainingDataset:
        """The manifest of a dataset. Raises NotFound."""
        request = training_dataset_pb2.GetTrainingDatasetRequest(dataset_id=dataset_id)
        return _decode_dataset(self._connection.call(self._datasets.GetTrainingDataset, request).dataset)

    def training_datasets(
        self, name: str = "", view: str = "", version: int = 0, *, limit: int | None = None
    ) -> list[TrainingDataset]:
        """Manifests, the newest first: at most `limit`, of a name, of a view (version 0: of any of its versions)."""
        request = training_dataset_pb2.ListTrainingDatasetsRequest(
            name=name, view=types_pb2.VersionRef(name=view, version=version) if view else None
        )
        found: list[TrainingDataset] = []
        while limit is None or len(found) < limit:
            request.page_size = _PAGE_SIZE if limit is None else min(_PAGE_SIZE, limit - len(found))
            page = self._connection.call(self._datasets.ListTrainingDatasets, request)
            found += [_decode_dataset(dataset) for dataset in page.datasets]
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        return found

    def read_training_dataset(
        self,
        dataset: TrainingDataset | str,
        split: str = "",
        output: Output = "pandas",
        *,
        progress: Progress | None = None,
        timeout_s: float = READ_S,
    ) -> Any:
        """The rows of a dataset as a DataFrame, `split` the last column.

        `split`: 'train', 'validation', 'test', or '' for all. Raises FailedPrecondition when they were purged, DataLoss
        when they are not as they were stored; `recreate_training_dataset` makes them again.
        """
        request = training_dataset_pb2.ReadTrainingDatasetRequest(dataset_id=id_of(dataset), split=split)
        table = self._connection.download(
            lambda: self._datasets.ReadTrainingDataset(request, timeout=timeout_s),
            lambda parts: read_table((part.arrow for part in parts), progress),
        )
        return from_table(table, output)

    @contextmanager
    def stream_training_dataset(
        self, dataset: TrainingDataset | str, split: str = "", *, timeout_s: float = READ_S
    ) -> Iterator[RowStream]:
        """The rows of a dataset as Arrow batches, for more of them than fit into memory.

            with client.stream_training_dataset(dataset) as batches:
                for batch in batches: ...

        Rows are known to be all, and as they were stored, once the stream has ended without DataLoss. A lost connection
        ends it with Unavailable: nothing is asked for again in the middle.
        """
        request = training_dataset_pb2.ReadTrainingDatasetRequest(dataset_id=id_of(dataset), split=split)
        call = self._connection.streamed(lambda: self._datasets.ReadTrainingDataset(request, timeout=timeout_s))
        with call as parts:
            yield RowStream(part.arrow for part in parts)

    def purge_training_dataset(self, dataset: TrainingDataset | str) -> int:
        """Removes the stored rows and answers the bytes that became free: 0 while another dataset has the same content.

        The manifest stays, and `recreate_training_dataset` makes the rows again. Harmless when repeated.
        """
        request = training_dataset_pb2.PurgeTrainingDatasetRequest(dataset_id=id_of(dataset))
        return self._connection.call(self._datasets.PurgeTrainingDataset, request).freed_bytes

    def recreate_training_dataset(
        self, dataset: TrainingDataset | str, *, timeout_s: float = READ_S
    ) -> TrainingDataset:
        """Makes the rows again as the manifest says, to the same hash, and stores them.

        Raises DataLoss when they come out differently, FailedPrecondition when an entity in them was forgotten or a
        transform is not the one that made them.
        """
        request = training_dataset_pb2.RecreateTrainingDatasetRequest(dataset_id=id_of(dataset))
        return _decode_dataset(
            self._connection.call(self._datasets.RecreateTrainingDataset, request, timeout_s).dataset
        )

    def delete_training_dataset(self, dataset: TrainingDataset | str) -> None:
        """Removes rows, spine and manifest. Raises FailedPrecondition that names the models that were trained on it.

        When an answer is lost and asked for again, NotFound says that it went through.
        """
        request = training_dataset_pb2.DeleteTrainingDatasetRequest(dataset_id=id_of(dataset))
        self._connection.call(self._datasets.DeleteTrainingDataset, request)


def id_of(dataset: TrainingDataset | str) -> str:
    """The id of a dataset that is given as such or by its id."""
    return dataset if isinstance(dataset, str) else dataset.id


def _encode_logged(logged: Logged) -> training_dataset_pb2.LoggedPredictions:
    return training_dataset_pb2.LoggedPredictions(
        deployment=logged.deployment,
        from_event_time=encode_optional(logged.from_event_time),
        to_event_time=encode_instant(logged.to_event_time),
        observed_by=encode_instant(logged.observed_by),
        shadows=logged.shadows,
        degraded=logged.degraded,
    )


def _encode_split(split: HashSplit) -> training_dataset_pb2.HashSplit:
    if not 0 <= split.seed < 2**64:
        raise InvalidValue("hash_split.seed", "is not an unsigned 64-bit number")
    return training_dataset_pb2.HashSplit(
        seed=split.seed, test_share=split.test_share, validation_share=split.validation_share, keys=split.keys
    )


def _decode_split(message: training_dataset_pb2.HashSplit) -> HashSplit:
    return HashSplit(message.test_share, message.validation_share, message.seed, tuple(message.keys))


def _decode_logged(message: training_dataset_pb2.LoggedPredictions) -> Logged:
    return Logged(
        deployment=message.deployment,
        from_event_time=decode_optional_instant(
            message.HasField("from_event_time"), message.from_event_time, "from_event_time"
        ),
        to_event_time=decode_instant(message.to_event_time, "to_event_time"),
        observed_by=decode_instant(message.observed_by, "observed_by"),
        shadows=message.shadows,
        degraded=message.degraded,
    )


def _decode_dataset(message: training_dataset_pb2.TrainingDataset) -> TrainingDataset:
    return TrainingDataset(
        id=message.id,
        name=message.name,
        view=decode_ref(message.view),
        commit=message.commit,
        known_by=message.known_by,
        rows=message.rows,
        splits={split.split: split.rows for split in message.splits},
        content_sha256=message.content_sha256,
        spine_sha256=message.spine_sha256,
        groups=tuple(decode_ref(group) for group in message.groups),
        created_at=decode_instant(message.created_at, "created_at"),
        features=tuple(decode_field(field, "features") for field in message.features),
        label=decode_field(message.label, "label"),
        test_from=decode_optional_instant(message.HasField("test_from"), message.test_from, "test_from"),
        validation_from=decode_optional_instant(
            message.HasField("validation_from"), message.validation_from, "validation_from"
        ),
        hash_split=_decode_split(message.hash_split) if message.HasField("hash_split") else None,
        logged=_decode_logged(message.logged) if message.HasField("logged") else None,
        spine=decode_spine_query(message.spine) if message.HasField("spine") else None,
        stored=message.stored,
        stored_bytes=message.stored_bytes,
        transforms={transform.function: transform.source_sha256 for transform in message.transforms},
        max_ages=tuple(None if age < 0 else timedelta(microseconds=age) for age in message.max_age_micros),
        forgotten_at=decode_optional_instant(message.HasField("forgotten_at"), message.forgotten_at, "forgotten_at"),
    )


def decode_ref(message: types_pb2.VersionRef) -> VersionRef:
    """Name and version of a message."""
    return VersionRef(message.name, message.version)
