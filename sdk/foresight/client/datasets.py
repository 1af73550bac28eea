"""Training datasets: a spine (or the prediction log) joined with a view, stored with its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from foresight.client.connection import READ_S, Calls, Connection
from foresight.client.features import VersionRef, describe_view, encode_optional, spine_fields, upload_chunks
from foresight.client.frames import Output, Progress, from_table, read_table, to_table
from foresight.feature_store.v1 import training_dataset_pb2, training_dataset_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.values import Field, InvalidValue
from foresight.wire import decode_field, decode_instant, decode_optional_instant, encode_instant


@dataclass(frozen=True, slots=True)
class Logged:
    """Rows of a training dataset from the prediction log, with the outcomes known by `observed_by`.

    Predictions with `from_event_time <= event time < to_event_time`, of one deployment or ('') of any that used the
    view. One without an outcome by then is left out (censored, not negative).
    """

    to_event_time: datetime
    observed_by: datetime
    deployment: str = ""
    from_event_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class TrainingDataset:
    """The manifest of a training dataset; with the commits it names it can be created again, to the same hash."""

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
    logged: Logged | None = None


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
        test_from: datetime | None = None,
        progress: Progress | None = None,
        timeout_s: float = READ_S,
    ) -> TrainingDataset:
        """Joins a spine (view's keys, `event_time`, request features, label) or logged predictions with a view.

        Give either `spine` or `logged`. `known_by`: only what was known by each row's event time. Rows from
        `test_from` on are the split `test`. When an answer is lost and asked for again, a second dataset with the
        same content may remain.
        """
        if (spine is None) == (logged is None):
            raise InvalidValue("spine", "or logged: give one of them")
        header = training_dataset_pb2.TrainingDatasetHeader(
            name=name,
            known_by=known_by,
            commit=commit,
            test_from=encode_optional(test_from),
            logged=None if logged is None else _encode_logged(logged),
        )
        table: pa.Table | None = None
        if spine is not None:
            described = describe_view(self._connection, view, version)
            table, version = to_table(spine, spine_fields(described)), described.version
        header.view.CopyFrom(types_pb2.VersionRef(name=view, version=version))

        def requests() -> Iterator[training_dataset_pb2.CreateTrainingDatasetRequest]:
            yield training_dataset_pb2.CreateTrainingDatasetRequest(header=header)
            for chunk in upload_chunks(table, progress) if table is not None else ():
                yield training_dataset_pb2.CreateTrainingDatasetRequest(arrow=chunk)

        response = self._connection.upload(self._datasets.CreateTrainingDataset, requests, timeout_s)
        return _decode_dataset(response.dataset)

    def training_dataset(self, dataset_id: str) -> TrainingDataset:
        """The manifest of a dataset. Raises NotFound."""
        request = training_dataset_pb2.GetTrainingDatasetRequest(dataset_id=dataset_id)
        return _decode_dataset(self._connection.call(self._datasets.GetTrainingDataset, request).dataset)

    def read_training_dataset(
        self,
        dataset: TrainingDataset | str,
        split: str = "",
        output: Output = "pandas",
        *,
        progress: Progress | None = None,
        timeout_s: float = READ_S,
    ) -> Any:
        """The rows of a dataset (`split`: 'train', 'test' or '' for all) as a DataFrame, `split` the last column."""
        request = training_dataset_pb2.ReadTrainingDatasetRequest(dataset_id=id_of(dataset), split=split)
        table = self._connection.download(
            lambda: self._datasets.ReadTrainingDataset(request, timeout=timeout_s),
            lambda parts: read_table((part.arrow for part in parts), progress),
        )
        return from_table(table, output)


def id_of(dataset: TrainingDataset | str) -> str:
    """The id of a dataset that is given as such or by its id."""
    return dataset if isinstance(dataset, str) else dataset.id


def _encode_logged(logged: Logged) -> training_dataset_pb2.LoggedPredictions:
    return training_dataset_pb2.LoggedPredictions(
        deployment=logged.deployment,
        from_event_time=encode_optional(logged.from_event_time),
        to_event_time=encode_instant(logged.to_event_time),
        observed_by=encode_instant(logged.observed_by),
    )


def _decode_logged(message: training_dataset_pb2.LoggedPredictions) -> Logged:
    return Logged(
        deployment=message.deployment,
        from_event_time=decode_optional_instant(
            message.HasField("from_event_time"), message.from_event_time, "from_event_time"
        ),
        to_event_time=decode_instant(message.to_event_time, "to_event_time"),
        observed_by=decode_instant(message.observed_by, "observed_by"),
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
        logged=_decode_logged(message.logged) if message.HasField("logged") else None,
    )


def decode_ref(message: types_pb2.VersionRef) -> VersionRef:
    """Name and version of a message."""
    return VersionRef(message.name, message.version)
