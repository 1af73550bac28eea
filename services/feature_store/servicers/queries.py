"""Queries on the wire."""

from __future__ import annotations

from foresight.feature_store.v1 import offline_pb2, query_pb2, training_dataset_pb2
from foresight.types.v1 import types_pb2
from foresight.values import InvalidValue
from foresight.wire import decode_column, encode_column, encode_instant
from services.feature_store.reads.histories import EventTimes
from services.feature_store.reads.queries import Condition, GroupQuery, Operator, SpineQuery
from services.feature_store.servicers.messages import decode_reference, decode_set_instant, encode_reference
from services.feature_store.tables.row_source import RowSource
from services.feature_store.tables.transit import Upload

_OPERATORS: dict[Operator, query_pb2.Operator.ValueType] = {
    Operator.EQUAL: query_pb2.OPERATOR_EQUAL,
    Operator.NOT_EQUAL: query_pb2.OPERATOR_NOT_EQUAL,
    Operator.LESS: query_pb2.OPERATOR_LESS,
    Operator.AT_MOST: query_pb2.OPERATOR_AT_MOST,
    Operator.GREATER: query_pb2.OPERATOR_GREATER,
    Operator.AT_LEAST: query_pb2.OPERATOR_AT_LEAST,
    Operator.IN: query_pb2.OPERATOR_IN,
    Operator.IS_NULL: query_pb2.OPERATOR_IS_NULL,
    Operator.NOT_NULL: query_pb2.OPERATOR_NOT_NULL,
}


def decode_group_query(message: query_pb2.GroupQuery, field: str = "query") -> GroupQuery:
    """The query of a message."""
    try:
        return GroupQuery(
            group=decode_reference(message.group, "group"),
            times=EventTimes(
                decode_set_instant(message, "from_event_time"), decode_set_instant(message, "to_event_time")
            ),
            keys=tuple(decode_column(column, "keys") for column in message.keys),
            where=tuple(_decode_condition(condition) for condition in message.where),
            latest_only=message.latest_only,
        )
    except InvalidValue as error:
        raise error.within(field) from None


def decode_spine_query(message: query_pb2.SpineQuery, field: str = "spine") -> SpineQuery:
    """The query of a message."""
    query = decode_group_query(message.query, f"{field}.query")
    try:
        return SpineQuery(
            query=query,
            columns=tuple((mapping.column, mapping.name) for mapping in message.columns),
            at=decode_set_instant(message, "at"),
        )
    except InvalidValue as error:
        raise error.within(field) from None


async def received_spine(
    header: offline_pb2.AsOfHeader | training_dataset_pb2.TrainingDatasetHeader, upload: Upload
) -> RowSource | SpineQuery:
    """The spine of a call: the rows that were sent, or the query that the header has instead."""
    if not header.HasField("spine"):
        return await upload.rows()
    if await upload.rows_if_any() is not None:
        raise InvalidValue("arrow", "holds a spine, and so does the header; give one of them")
    return decode_spine_query(header.spine, "header.spine")


def encode_spine_query(query: SpineQuery) -> query_pb2.SpineQuery:
    """The message of a query."""
    rows = query.query
    return query_pb2.SpineQuery(
        query=query_pb2.GroupQuery(
            group=encode_reference(rows.group),
            from_event_time=None if rows.times.first is None else encode_instant(rows.times.first),
            to_event_time=None if rows.times.end is None else encode_instant(rows.times.end),
            keys=[encode_column(column) for column in rows.keys],
            where=[_encode_condition(condition) for condition in rows.where],
            latest_only=rows.latest_only,
        ),
        columns=[query_pb2.ColumnMapping(column=column, name=name) for column, name in query.columns],
        at=None if query.at is None else encode_instant(query.at),
    )


def _encode_condition(condition: Condition) -> query_pb2.Condition:
    return query_pb2.Condition(
        column=condition.column,
        operator=_OPERATORS[condition.operator],
        values=None if condition.values is None else encode_column(condition.values),
    )


def _decode_condition(message: query_pb2.Condition) -> Condition:
    try:
        operator = Operator(message.operator)
    except ValueError:
        raise InvalidValue("where.operator", f"of {message.column[:63]!a} is unset or not known") from None
    values = None
    if message.HasField("values"):
        # The condition names its column; the name of the values does not matter.
        named = types_pb2.Column()
        named.CopyFrom(message.values)
        named.name = "value"
        values = decode_column(named, "where.values")
    return Condition(message.column, operator, values)
