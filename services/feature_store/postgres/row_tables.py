"""Tables of rows: one per group version, columns named by position."""

from __future__ import annotations

from collections.abc import Sequence

from foresight.values import Column, DataType, FeatureGroup, Field

_TYPES = {
    DataType.INT64: "bigint",
    DataType.FLOAT64: "double precision",
    DataType.BOOL: "boolean",
    DataType.STRING: 'text COLLATE "C"',
    DataType.TIMESTAMP: "timestamptz",
    DataType.FLOAT_VECTOR: "real[]",
}


def table_of(group_id: int) -> str:
    """Name of a group's table."""
    return f"rows_{group_id}"


def physical_names(group: FeatureGroup) -> dict[str, str]:
    """Column of each key and feature of a group."""
    keys = {key.name: f"k{i}" for i, key in enumerate(group.entity_keys)}
    return keys | {feature.name: f"f{i}" for i, feature in enumerate(group.features)}


def sql_type(field: Field) -> str:
    """Type of a field's column."""
    return _TYPES[field.type]


def key_expressions(keys: Sequence[Field], alias: str = "") -> list[str]:
    """What the key index holds per key: hashes of texts, which may be longer than an index entry."""
    columns = [f"{alias}k{i}" for i in range(len(keys))]
    return [
        f"hashtextextended({column}, 0)" if key.type is DataType.STRING else column
        for key, column in zip(keys, columns, strict=True)
    ]


def create_statements(group_id: int, group: FeatureGroup) -> list[str]:
    """What makes the table of a group."""
    table, names = table_of(group_id), physical_names(group)
    keys = [f"{names[f.name]} {sql_type(f)} NOT NULL" for f in group.entity_keys]
    features = [f"{names[f.name]} {sql_type(f)}" for f in group.features]
    fixed = [
        "event_time timestamptz NOT NULL",
        # NULL: the time of the commit.
        "known_at timestamptz",
        "deleted boolean NOT NULL DEFAULT false",
        "write bigint NOT NULL",
    ]
    legend = ", ".join(f"{column} = {name}" for name, column in names.items())
    return [
        f"CREATE TABLE {table} ({', '.join([*keys, *fixed, *features])})",
        # Names are checked: letters, digits and underscores.
        f"COMMENT ON TABLE {table} IS '{group.name} version {group.version}: {legend}'",
        f"CREATE INDEX ON {table} (write)",
        # With the write number an earlier state of the store is found without looking at the later rows themselves.
        f"CREATE INDEX ON {table} ({', '.join(key_expressions(group.entity_keys))}, event_time DESC, write)",
        f"CREATE INDEX ON {table} (event_time)",
    ]


def add_column_statements(group_id: int, group: FeatureGroup, added: Sequence[Field]) -> list[str]:
    """What adds features to the table of a group; `group` has them already.

    A constant default is written nowhere: PostgreSQL reads it for the rows that are there, and fills it in for those
    that are copied in without the column.
    """
    table, names = table_of(group_id), physical_names(group)
    statements = []
    for field in added:
        default = group.defaults.get(field.name)
        filled = "" if default is None else f" DEFAULT {_literal(default)}"
        statements.append(f"ALTER TABLE {table} ADD COLUMN {names[field.name]} {sql_type(field)}{filled}")
    return statements


def _literal(value: Column) -> str:
    """A value as a constant of SQL."""
    python = value.python(0)
    match value.type:
        case DataType.TIMESTAMP:
            text = python.isoformat()
        case DataType.FLOAT_VECTOR:
            # The shortest text that reads as the same 32-bit float.
            text = "{" + ",".join(str(number) for number in value.values[0]) + "}"
        case DataType.FLOAT64:
            text = repr(python)
        case _:
            text = str(python)
    # Either way of reading backslashes gives the same text.
    quoted = text.replace("'", "''").replace("\\", "\\\\")
    return f"E'{quoted}'::{_TYPES[value.type].split(' COLLATE')[0]}"
