"""Rows on their way to a service: in memory, or batch by batch when there are more of them than fit.

A DataFrame, a table, a list or a dict is converted as a whole; the rows of a Parquet file (a `pathlib.Path`), of an
Arrow RecordBatchReader and of an iterator of tables are converted and sent batch by batch. What was sent is sent again
after a lost connection, but for a reader and an iterator, whose rows come once only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from foresight.client.frames import Progress, to_table
from foresight.tables import encode_batches, encode_table
from foresight.values import Field, InvalidValue

_BATCH_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class RowUpload:
    """Rows with the columns in `fields` of their types; see `to_table` for what `data` may be besides."""

    data: Any
    fields: Sequence[Field]

    @classmethod
    def of(cls, data: Any, fields: Sequence[Field]) -> RowUpload:
        """The upload of data, which are converted at once unless they come in batches. Raises InvalidValue."""
        if isinstance(data, Path):
            if data.suffix.lower() != ".parquet":
                raise InvalidValue("data", f"{data.name} is not a .parquet file")
            return cls(data, fields)
        if isinstance(data, Iterator) and not isinstance(data, pa.RecordBatchReader):
            data = _reader(data, fields)
        return cls(data if isinstance(data, pa.RecordBatchReader) else to_table(data, fields), fields)

    @property
    def repeatable(self) -> bool:
        """Whether the rows can be sent a second time."""
        return not isinstance(self.data, pa.RecordBatchReader)

    def chunks(self, progress: Progress | None = None) -> Iterator[bytes]:
        """The chunks of an Arrow IPC stream; `progress` hears ("uploading", about how many rows are sent).

        Raises InvalidValue when a batch does not fit the fields, or when a file is not a Parquet file.
        """
        if isinstance(self.data, pa.Table):
            yield from upload_chunks(self.data, progress)
        elif isinstance(self.data, pa.RecordBatchReader):
            yield from self._of_batches(self.data.schema, self.data, progress)
        else:
            yield from self._of_file(self.data, progress)

    def _of_file(self, path: Path, progress: Progress | None) -> Iterator[bytes]:
        from pyarrow import parquet

        try:
            file = parquet.ParquetFile(path, pre_buffer=False)
        except pa.ArrowInvalid:
            raise InvalidValue("data", f"{path.name} is not a Parquet file") from None
        except OSError as error:
            raise InvalidValue("data", f"{path} cannot be read: {error.strerror or error}") from None
        with file:
            yield from self._of_batches(file.schema_arrow, file.iter_batches(_BATCH_ROWS), progress)

    def _of_batches(
        self, schema: pa.Schema, batches: Iterable[pa.RecordBatch], progress: Progress | None
    ) -> Iterator[bytes]:
        rows = 0

        def typed() -> Iterator[pa.RecordBatch]:
            nonlocal rows
            for batch in batches:
                yield from to_table(batch, self.fields).to_batches()
                rows += batch.num_rows
                if progress is not None:
                    progress("uploading", rows)

        yield from encode_batches(to_table(schema.empty_table(), self.fields).schema, typed())


def _reader(tables: Iterator[Any], fields: Sequence[Field]) -> pa.RecordBatchReader:
    """The batches of tables that come one by one, with the columns of the first."""
    first = to_table(next(tables, []), fields)

    def batches() -> Iterator[pa.RecordBatch]:
        for data in itertools.chain([first], tables):
            table = to_table(data, fields)
            if set(table.column_names) != set(first.column_names):
                raise InvalidValue("data", "has tables of different columns")
            try:
                yield from table.select(first.column_names).cast(first.schema).to_batches()
            except pa.ArrowInvalid as error:
                raise InvalidValue("data", f"has tables of different types: {error}") from None

    return pa.RecordBatchReader.from_batches(first.schema, batches())


def upload_chunks(table: pa.Table, progress: Progress | None = None) -> Iterator[bytes]:
    """The chunks of a table; `progress` hears ("uploading", about how many rows are sent)."""
    sent, size = 0, max(table.nbytes, 1)
    for chunk in encode_table(table):
        yield chunk
        sent += len(chunk)
        if progress is not None:
            progress("uploading", min(table.num_rows, table.num_rows * sent // size))
    if progress is not None:
        progress("uploading", table.num_rows)
