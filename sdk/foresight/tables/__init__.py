"""Columns and tables in Arrow: the arrays of columns, and tables as chunks of an IPC stream. No gRPC, no protobuf."""

from foresight.tables.arrow import (
    ARROW_CHUNK_BYTES,
    arrow_type,
    column_from_arrow,
    column_to_arrow,
    decode_table,
    encode_batches,
    encode_table,
)

__all__ = [
    "ARROW_CHUNK_BYTES",
    "arrow_type",
    "column_from_arrow",
    "column_to_arrow",
    "decode_table",
    "encode_batches",
    "encode_table",
]
