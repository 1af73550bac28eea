"""Logged predictions with the outcomes that were known by a time, in one statement."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence

import pyarrow as pa

from foresight.tables import arrow_type
from foresight.values import Field
from services.feature_store.datasets.manifests import LoggedSelection
from services.feature_store.groups import StoredGroup
from services.feature_store.logs.log_groups import DEGRADED, SHADOW
from services.feature_store.postgres.row_filters import text_sql
from services.feature_store.postgres.row_tables import physical_names, sql_type
from services.feature_store.postgres.rows import select_versions, streamed
from services.feature_store.reads.histories import BatchStream, EventTimes
from services.runtime.database import Database

_STATEMENT = """
SELECT {columns}, o.label
FROM ({predictions}) AS p JOIN
  (SELECT DISTINCT ON (id) id, label, deleted FROM ({outcomes}) AS all_of_them
   ORDER BY id, event_time DESC, commit DESC) AS o
  ON o.id = p.id
WHERE NOT p.deleted AND NOT o.deleted AND o.label IS NOT NULL{deployment}{shadows}{degraded}
ORDER BY p.event_time, p.id"""


class LabelledRows:
    """Reads logged predictions that have an outcome."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextlib.asynccontextmanager
    async def labelled(
        self,
        predictions: StoredGroup,
        outcomes: StoredGroup,
        fields: Sequence[Field],
        label: Field,
        selection: LoggedSelection,
        watermark: int,
    ) -> AsyncIterator[BatchStream]:
        """The columns `fields`, NULL where the group has no such column, then `label`; by event time and id.

        The label is that of the latest outcome by (event time, commit) until `observed_by`; rows without one are left
        out, and so are degraded ones and those of shadows unless they are selected. Holds one Arrow connection until it
        is closed.
        """
        known = {"event_time": "event_time"} | physical_names(predictions.group)
        taken = [f.name for f in fields if f.name in known]
        names = {name: f"c{i}" for i, name in enumerate(taken)}
        columns = [
            f"p.{names[f.name]}" if f.name in names else f"NULL::{sql_type(f).partition(' COLLATE')[0]}" for f in fields
        ]
        times = EventTimes(selection.from_event_time, selection.to_event_time)
        until = EventTimes(None, selection.observed_by, inclusive=True)
        identity = predictions.group.entity_keys[0].name
        logged = {**{alias: name for name, alias in names.items()}, "id": identity, "deployment": "log_deployment"}
        if SHADOW in known and not selection.shadows:
            logged["shadow"] = SHADOW
        if DEGRADED in known and not selection.degraded:
            logged["degraded"] = DEGRADED
        observed = {"id": outcomes.group.entity_keys[0].name, "label": label.name}
        fixed = {"event_time": "event_time", "commit": "commit", "deleted": "deleted"}
        statement = _STATEMENT.format(
            columns=", ".join(columns),
            predictions=select_versions(predictions, logged | fixed, watermark, times),
            outcomes=select_versions(outcomes, observed | fixed, watermark, until),
            shadows=" AND p.shadow IS NOT TRUE" if "shadow" in logged else "",
            degraded=" AND p.degraded IS NOT TRUE" if "degraded" in logged else "",
            deployment=f" AND p.deployment = {text_sql(selection.deployment)}" if selection.deployment else "",
        )
        schema = pa.schema([(f.name, arrow_type(f)) for f in (*fields, label)])
        async with streamed(self._database, statement, schema) as batches:
            yield batches
