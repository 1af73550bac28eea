"""How values look on the wire: the codecs between `foresight.values` and the generated messages.

Decoding checks everything that does not depend on state and raises `foresight.values.InvalidValue`.
"""

from foresight.wire.columns import check_columns, decode_column, decode_columns, encode_column
from foresight.wire.expectations import decode_duration, decode_expectations, decode_failure_policy, encode_duration
from foresight.wire.features import (
    decode_defaults,
    decode_etag,
    decode_field,
    decode_group,
    decode_tags,
    decode_view,
    encode_field,
    encode_group,
    encode_tags,
    encode_view,
)
from foresight.wire.instants import decode_instant, decode_optional_instant, encode_instant

__all__ = [
    "check_columns",
    "decode_column",
    "decode_columns",
    "decode_defaults",
    "decode_duration",
    "decode_etag",
    "decode_expectations",
    "decode_failure_policy",
    "decode_field",
    "decode_group",
    "decode_instant",
    "decode_optional_instant",
    "decode_tags",
    "decode_view",
    "encode_column",
    "encode_duration",
    "encode_field",
    "encode_group",
    "encode_instant",
    "encode_tags",
    "encode_view",
]
