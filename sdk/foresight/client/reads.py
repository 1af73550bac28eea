"""Reading features: rows of groups, and point-in-time joins with views, as a whole or batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pyarrow as pa

from foresight.client.connection import READ_S, Calls, Connection
from foresight.client.features import describe_view, encode_optional, spine_fields
from foresight.client.frames import Output, Progress, RowStream, from_table, read_table
from foresight.client.queries import Condition, RowsOf, encode_group_query, encode_spine_query, rows_of
from foresight.client.uploads import RowUpload
from foresight.client.writes import describe_group
from foresight.feature_store.v1 import offline_pb2, offline_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.values import FeatureGroup, InvalidValue


class ReadCalls(Calls):
    """Calls that read rows."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._reads = offline_pb2_grpc.OfflineFeatureServiceStub(connection.channel)

    def read(
        self,
        group: str,
        *,
        version: int = 0,
        from_event_time: datetime | None = None,
        to_event_time: datetime | None = None,
        keys: Any = None,
        where: Iterable[Condition] = (),
        latest: bool = False,
        commit: int = 0,
        as_of_time: datetime | None = None,
        output: Output = "pandas",
        progress: Progress | None = None,
        timeout_s: float = READ_S,
    ) -> Any:
        """The rows of a group with `from_event_time <= event_time < to_event_time`, in commit order, as a DataFrame.

            client.read("weather", where=[("wind", ">", 10)], keys=[{"origin": "JFK"}], latest=True)

        `keys`, `where` and `latest` are those of `rows_of`; tombstones are left out with `latest`. `commit`: only
        commits up to that one; `as_of_time`: only those that were published by then. Columns: keys, `event_time`,
        features, `known_at`, `commit`, `deleted`.
        """
        rows = rows_of(
            group,
            version=version,
            where=where,
            keys=keys,
            from_event_time=from_event_time,
            to_event_time=to_event_time,
            latest=latest,
        )
        request = self._read_request(rows, commit, as_of_time)
        table = self._connection.download(
            lambda: self._reads.ReadFeatures(request, timeout=timeout_s),
            lambda parts: read_table((part.arrow for part in parts), progress),
        )
        return from_table(table, output)

    @contextmanager
    def stream(
        self,
        group: str | RowsOf,
        *,
        commit: int = 0,
        as_of_time: datetime | None = None,
        timeout_s: float = READ_S,
    ) -> Iterator[RowStream]:
        """The rows of a group as Arrow batches, for more of them than fit into memory.

            with client.stream(rows_of("weather", where=[("wind", ">", 10)])) as batches:
                for batch in batches: ...

        See `read`. A lost connection ends it with Unavailable: nothing is asked for again in the middle.
        """
        request = self._read_request(rows_of(group) if isinstance(group, str) else group, commit, as_of_time)
        with self._connection.streamed(lambda: self._reads.ReadFeatures(request, timeout=timeout_s)) as parts:
            yield RowStream(part.arrow for part in parts)

    def read_as_of(
        self,
        view: str,
        spine: Any,
        *,
        version: int = 0,
        known_by: bool = False,
        commit: int = 0,
        as_of_time: datetime | None = None,
        output: Output = "pandas",
        progress: Progress | None = None,
        timeout_s: float = READ_S,
    ) -> Any:
        """Joins each row of `spine` with the features of a view as of the row's `event_time`.

            client.read_as_of("delays", rows_of("flights", latest=True, at=now))

        `spine` has the view's entity keys, `event_time` and request features, and other columns, which are passed
        through; it may be a `pathlib.Path` of a Parquet file. Or the feature store makes it of rows of a group, see
        `rows_of`. One output row per spine row, in order; missing is NULL. `known_by`: only what was known by then.
        `commit`, `as_of_time`: see `read`.
        """
        if isinstance(spine, pa.RecordBatchReader):
            raise InvalidValue("spine", "comes once only and could not be sent again; use stream_as_of")
        requests = self._join_requests(view, version, spine, known_by, commit, as_of_time, progress)
        joined = self._connection.download(
            lambda: self._reads.ReadAsOf(requests(), timeout=timeout_s),
            lambda parts: read_table((part.arrow for part in parts), progress),
        )
        return from_table(joined, output)

    @contextmanager
    def stream_as_of(
        self,
        view: str,
        spine: Any,
        *,
        version: int = 0,
        known_by: bool = False,
        commit: int = 0,
        as_of_time: datetime | None = None,
        timeout_s: float = READ_S,
    ) -> Iterator[RowStream]:
        """As `read_as_of`, as Arrow batches, for more rows than fit into memory; see `stream`.

        `spine` may also be an Arrow RecordBatchReader, which is sent batch by batch.
        """
        requests = self._join_requests(view, version, spine, known_by, commit, as_of_time, None)
        with self._connection.streamed(lambda: self._reads.ReadAsOf(requests(), timeout=timeout_s)) as parts:
            yield RowStream(part.arrow for part in parts)

    def _read_request(self, rows: RowsOf, commit: int, as_of_time: datetime | None) -> offline_pb2.ReadFeaturesRequest:
        return offline_pb2.ReadFeaturesRequest(
            query=encode_group_query(rows, self._described), commit=commit, as_of_time=encode_optional(as_of_time)
        )

    def _join_requests(
        self,
        view: str,
        version: int,
        spine: Any,
        known_by: bool,
        commit: int,
        as_of_time: datetime | None,
        progress: Progress | None,
    ) -> Callable[[], Iterator[offline_pb2.ReadAsOfRequest]]:
        """What makes the messages of a join; a batch reader can be sent once only."""
        header = offline_pb2.AsOfHeader(
            view=types_pb2.VersionRef(name=view, version=version),
            known_by=known_by,
            commit=commit,
            as_of_time=encode_optional(as_of_time),
        )
        upload: RowUpload | None = None
        if isinstance(spine, RowsOf):
            header.spine.CopyFrom(encode_spine_query(spine, self._described))
        else:
            described = describe_view(self._connection, view, version)
            header.view.version = described.version
            upload = RowUpload.of(spine, spine_fields(described))

        def requests() -> Iterator[offline_pb2.ReadAsOfRequest]:
            yield offline_pb2.ReadAsOfRequest(header=header)
            for chunk in upload.chunks(progress) if upload is not None else ():
                yield offline_pb2.ReadAsOfRequest(arrow=chunk)

        return requests

    def _described(self, group: str, version: int) -> FeatureGroup:
        return describe_group(self._connection, group, version)
