"""The digest of a table: equal for equal content however it lies in memory, different for anything else."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foresight.values import InvalidValue
from services.feature_store.tables.content import content_sha256

columns = st.integers(0, 6).flatmap(
    lambda n: st.fixed_dictionaries(
        {
            "number": st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=n, max_size=n),
            "float": st.lists(st.none() | st.floats(), min_size=n, max_size=n),
            "flag": st.lists(st.none() | st.booleans(), min_size=n, max_size=n),
            "text": st.lists(st.none() | st.text(max_size=3), min_size=n, max_size=n),
            "list": st.lists(st.none() | st.lists(st.floats(width=32), max_size=2), min_size=n, max_size=n),
        }
    )
)
SCHEMA = pa.schema(
    {
        "number": pa.int64(),
        "float": pa.float64(),
        "flag": pa.bool_(),
        "text": pa.string(),
        "list": pa.list_(pa.float32()),
    }
)


def made(content: dict[str, Any]) -> pa.Table:
    """A table of the schema."""
    return pa.table(content, schema=SCHEMA)


@settings(max_examples=50, deadline=None)
@given(content=columns, cut=st.integers(0, 6))
def test_layout_does_not_matter(content: dict[str, Any], cut: int) -> None:
    """Chunks, offsets, layouts of text, and bits behind NULLs."""
    table = made(content)
    digest = content_sha256(table)
    assert content_sha256(pa.concat_tables([table.slice(0, cut), table.slice(cut)])) == digest
    padded = pa.concat_tables([table, table, table]).combine_chunks()
    assert content_sha256(padded.slice(table.num_rows, table.num_rows)) == digest
    for layout in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        assert content_sha256(table.set_column(3, "text", table["text"].cast(layout))) == digest
    again = pa.ipc.open_stream(_stream(table)).read_all()
    assert content_sha256(again) == digest


@settings(max_examples=50, deadline=None)
@given(one=columns, other=columns)
def test_content_matters(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Digests agree when, and only when, the tables do."""
    assert (content_sha256(made(one)) == content_sha256(made(other))) == (_exact(one) == _exact(other))


def test_what_a_digest_tells_apart_and_what_not() -> None:
    """Names, order, types, NULL and zero, and the two zeros differ; the bits of a NaN do not."""
    tables = [
        pa.table({"a": [1, 0]}),
        pa.table({"b": [1, 0]}),
        pa.table({"a": pa.array([1, None], pa.int64())}),
        pa.table({"a": pa.array([1, 0], pa.int32())}),
        pa.table({"a": [1.0, 0.0]}),
        pa.table({"a": [1.0, -0.0]}),
        pa.table({"a": ["1", "0"]}),
        pa.table({"a": ["10", ""]}),
        pa.table({"a": [1, 0], "b": [1, 0]}),
        pa.table({"b": [1, 0], "a": [1, 0]}),
    ]
    assert len({content_sha256(table) for table in tables}) == len(tables)
    assert content_sha256(pa.table({"a": [math.nan]})) == content_sha256(pa.table({"a": [-math.nan]}))


def test_the_digest_is_this_one() -> None:
    """Written down, as datasets of earlier versions have to be verified by later ones."""
    table = pa.table({"a": pa.array([1, None]), "b": pa.array(["x", "é"]), "c": pa.array([0.5, None])})
    assert content_sha256(table) == "4814b3e06c8324609e3caa336b5a92f59d5a91a3caaa199cfb95b84581897c85"


def test_nested_types_are_not_carried() -> None:
    """It names the column."""
    with pytest.raises(InvalidValue, match=r"arrow\.s: has the type struct"):
        content_sha256(pa.table({"s": [{"a": 1}]}))


def _stream(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _exact(content: dict[str, Any]) -> str:
    """Tells -0.0 from 0.0, and takes every NaN for the same."""
    return repr(sorted(content.items()))
