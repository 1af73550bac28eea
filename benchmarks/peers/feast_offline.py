"""Feast's historical features: joins a spine with three feature views, end to end into a DataFrame.

python feast_offline.py FOLDER duckdb|postgres [HOST DATABASE USER PASSWORD]

FOLDER has spine.parquet (`event_timestamp`, the keys) and, for each of the views in views.json, `<name>.parquet`
(`event_timestamp`, `created`, key, features). Prints the seconds of RUNS joins, the rows, and the peak
memory of the process.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, FileSource, RepoConfig, ValueType

RUNS = 2


def offline_store(kind: str, connection: list[str]) -> dict[str, Any]:
    """Feast's configuration of the store."""
    if kind == "duckdb":
        return {"type": "duckdb"}
    host, database, user, password = connection
    return {
        "type": "postgres",
        "host": host,
        "port": 5432,
        "database": database,
        "db_schema": "public",
        "user": user,
        "password": password,
        "sslmode": "disable",
    }


def source_of(kind: str, folder: Path, name: str) -> Any:
    """Where the rows of a view are; those of PostgreSQL were loaded before."""
    if kind == "duckdb":
        return FileSource(
            name=f"{name}_source",
            path=str(folder / f"{name}.parquet"),
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
        )
    from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource

    return PostgreSQLSource(
        name=f"{name}_source",
        query=f"SELECT * FROM feast_{name}",
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )


def main(arguments: list[str]) -> None:
    """Registers the views, joins, prints."""
    folder, kind, connection = Path(arguments[0]), arguments[1], arguments[2:]
    views: dict[str, dict[str, Any]] = json.loads((folder / "views.json").read_text())
    work = Path(tempfile.mkdtemp(prefix="feast-"))
    store = FeatureStore(
        config=RepoConfig(
            project="flights",
            provider="local",
            registry=str(work / "registry.db"),
            offline_store=offline_store(kind, connection),
            online_store={"type": "sqlite", "path": str(work / "online.db")},
            entity_key_serialization_version=3,
        )
    )
    things: list[Any] = []
    features: list[str] = []
    for name, view in views.items():
        entity = Entity(name=view["key"], join_keys=[view["key"]], value_type=ValueType.STRING)
        ttl = timedelta(hours=view["ttl_hours"]) if view["ttl_hours"] else timedelta(0)
        things += [
            entity,
            FeatureView(name=name, entities=[entity], ttl=ttl, source=source_of(kind, folder, name), online=False),
        ]
        features += [f"{name}:{feature}" for feature in view["features"]]
    store.apply(things)
    spine: pd.DataFrame = pq.read_table(folder / "spine.parquet").to_pandas()
    seconds, rows = [], 0
    for _ in range(RUNS):
        started = time.perf_counter()
        joined = store.get_historical_features(entity_df=spine, features=features, full_feature_names=True).to_df()
        seconds.append(time.perf_counter() - started)
        rows = len(joined)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "rows": rows, "peak_bytes": peak}))


if __name__ == "__main__":
    main(sys.argv[1:])
