"""Features of places in Feast on Redis, as the model servers beside which Foresight is measured look them up.

python feast_places.py FOLDER HOST:PORT

Makes a Feast repository of FOLDER, whose `places.parquet` has the key `place`, `event_timestamp` and numbers, and
writes all of its rows to the Redis server.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

VIEW = "places"


class Places:
    """Online look-ups of all features of the repository in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._store = FeatureStore(repo_path=str(folder))
        self._names = [field.name for field in self._store.get_feature_view(VIEW).features]
        self._features = [f"{VIEW}:{name}" for name in self._names]

    def features(self, places: Sequence[str]) -> np.ndarray:
        """The features, (n_places, n_features) float64."""
        rows = [{"place": place} for place in places]
        answer = self._store.get_online_features(features=self._features, entity_rows=rows).to_dict()
        return np.column_stack([answer[name] for name in self._names]).astype(np.float64)


def main(folder: Path, redis: str) -> None:
    """Fills, reads one back."""
    config = {
        "project": "places",
        "provider": "local",
        "registry": str(folder / "registry.db"),
        "offline_store": {"type": "dask"},
        "online_store": {"type": "redis", "connection_string": redis},
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(config))
    rows = pd.read_parquet(folder / "places.parquet")
    names = [name for name in rows.columns if name not in ("place", "event_timestamp")]
    place = Entity(name="place", join_keys=["place"], value_type=ValueType.STRING)
    source = FileSource(name="places", path=str(folder / "places.parquet"), timestamp_field="event_timestamp")
    view = FeatureView(
        name=VIEW,
        entities=[place],
        ttl=timedelta(days=1),
        source=source,
        schema=[Field(name=name, dtype=Float64) for name in names],
    )
    store = FeatureStore(repo_path=str(folder))
    store.apply([place, view])
    store.write_to_online_store(VIEW, rows)
    one = rows.iloc[0]
    found = Places(folder).features([one["place"]])[0]
    if found.tolist() != one[names].tolist():
        raise RuntimeError("Feast does not answer what was written")
    print(json.dumps({"rows": len(rows)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
