"""Statistics of rows: of a commit or the latest rows of a group, of a training dataset, of a window of the log."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import pyarrow as pa

from foresight.client.connection import READ_S, Calls, Connection
from foresight.client.datasets import TrainingDataset, id_of
from foresight.client.features import VersionRef, encode_optional
from foresight.client.frames import Output, from_table, read_table
from foresight.feature_store.v1 import statistics_pb2, statistics_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.values import InvalidValue
from foresight.wire import decode_instant, decode_optional_instant, encode_instant

# What an Arrow table says about whose statistics it holds, in its metadata, and a DataFrame in its `attrs`.
ROWS_OF, AGAINST = "rows_of", "against"


@dataclass(frozen=True, slots=True)
class GroupRows:
    """Rows of one commit of a group, 0 the group's last; or, `latest`, the latest row per key as of that commit."""

    group: str
    commit: int = 0
    latest: bool = False
    version: int = 0


@dataclass(frozen=True, slots=True)
class DatasetRows:
    """Rows of a training dataset: of a split, or ('') all."""

    dataset: TrainingDataset | str
    split: str = ""


@dataclass(frozen=True, slots=True)
class LogRows:
    """Logged predictions of a view with `from_event_time <= event time < to_event_time` (None: now), as they were
    reingested; of one deployment or ('') of any."""

    view: str
    from_event_time: datetime | None = None
    to_event_time: datetime | None = None
    deployment: str = ""
    version: int = 0


StatisticsRows: TypeAlias = GroupRows | DatasetRows | LogRows


class StatisticsCalls(Calls):
    """Calls about statistics."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._statistics = statistics_pb2_grpc.StatisticsServiceStub(connection.channel)

    def statistics(
        self,
        rows: StatisticsRows | None = None,
        *,
        group: str | None = None,
        commit: int = 0,
        latest: bool = False,
        dataset: TrainingDataset | str | None = None,
        split: str = "",
        log: str | None = None,
        deployment: str = "",
        from_event_time: datetime | None = None,
        to_event_time: datetime | None = None,
        version: int = 0,
        output: Output = "pandas",
        timeout_s: float = READ_S,
    ) -> Any:
        """The statistics of some rows as a DataFrame, one row per column of theirs.

        Name the rows by keywords, `group=`, `dataset=` or `log=` (a view), or give them as an object. `version` is that
        of the group or view. Columns: `column`, `type`, `rows`, `nulls`, `distinct`, `min`, `max`, `mean`,
        `standard_deviation`, `quantiles` (1, 5, 25, 50, 75, 95, 99 %), `histogram_edges`, `histogram_counts`,
        `top_values`, `top_counts`, `length_min`, `length_max`, `length_mean`; the proto of StatisticsService says how
        each is defined. In pandas `min`, `max` and `top_values` have values of the column's type, else texts.
        """
        keywords = (group, dataset, log)
        if sum(given is not None for given in (rows, *keywords)) != 1:
            raise InvalidValue("rows", "are named once: give rows, group=, dataset= or log=")
        if group is not None:
            rows = GroupRows(group, commit, latest, version)
        elif dataset is not None:
            rows = DatasetRows(dataset, split)
        elif log is not None:
            rows = LogRows(log, from_event_time, to_event_time, deployment, version)
        assert rows is not None
        request = statistics_pb2.GetStatisticsRequest(target=_encode_rows(rows))
        names: dict[str, str] = {}

        def chunks(parts: Iterable[statistics_pb2.GetStatisticsResponse]) -> Iterable[bytes]:
            for part in parts:
                if part.HasField("target"):
                    names[ROWS_OF] = _named(part.target)
                yield part.arrow

        table = self._connection.download(
            lambda: self._statistics.GetStatistics(request, timeout=timeout_s), lambda parts: read_table(chunks(parts))
        )
        return _answer(table, names, output)

    def compare_statistics(
        self,
        reference: StatisticsRows,
        current: StatisticsRows,
        *,
        output: Output = "pandas",
        timeout_s: float = READ_S,
    ) -> Any:
        """How `current` differs from `reference`, such as a window of the log from a training dataset, as a DataFrame.

        One row per column that both have: `column`, `type`, `reference_rows`, `current_rows`, `null_share_change`,
        `mean_change` (in standard deviations of the reference), `population_stability_index` (commonly: below 0.1 no
        change, above 0.25 a large one), `kolmogorov_smirnov`, `new_values_share` (of texts and bools).
        """
        request = statistics_pb2.CompareStatisticsRequest(
            reference=_encode_rows(reference), current=_encode_rows(current)
        )
        names: dict[str, str] = {}

        def chunks(parts: Iterable[statistics_pb2.CompareStatisticsResponse]) -> Iterable[bytes]:
            for part in parts:
                if part.HasField("current"):
                    names.update({ROWS_OF: _named(part.current), AGAINST: _named(part.reference)})
                yield part.arrow

        table = self._connection.download(
            lambda: self._statistics.CompareStatistics(request, timeout=timeout_s),
            lambda parts: read_table(chunks(parts)),
        )
        return _answer(table, names, output)


def python_value(text: str | None, type: str) -> Any:
    """A value of a table of statistics, which has them as texts, in the type of its column."""
    if text is None or type == "string":
        return text
    if type == "bool":
        return text == "true"
    if type == "timestamp":
        # Beyond the years that instants have: microseconds.
        return int(text) if text.lstrip("-").isdigit() else datetime.fromisoformat(text)
    return int(text) if type.startswith(("int", "uint")) else float(text)


def _answer(table: pa.Table, names: dict[str, str], output: Output) -> Any:
    """The table in the form that was asked for, knowing whose statistics it holds."""
    if output != "pandas":
        return from_table(table.replace_schema_metadata(names), output)
    frame = from_table(table, output)
    frame.attrs.update(names)
    types = table["type"].to_pylist()
    for name, read in _TYPED.items():
        if name in table.column_names:
            typed = [read(value, type) for value, type in zip(table[name].to_pylist(), types, strict=True)]
            frame[name] = _objects(typed)
    return frame


def _objects(values: list[Any]) -> Any:
    import pandas

    return pandas.Series(values, dtype=object)


_TYPED: dict[str, Callable[[Any, str], Any]] = {
    "min": python_value,
    "max": python_value,
    "top_values": lambda texts, type: [python_value(text, type) for text in texts],
}


def _encode_rows(rows: StatisticsRows) -> statistics_pb2.StatisticsTarget:
    match rows:
        case GroupRows():
            ref = types_pb2.VersionRef(name=rows.group, version=rows.version)
            if rows.latest:
                return statistics_pb2.StatisticsTarget(latest=statistics_pb2.LatestRows(group=ref, commit=rows.commit))
            return statistics_pb2.StatisticsTarget(commit=statistics_pb2.CommitRows(group=ref, commit=rows.commit))
        case DatasetRows():
            dataset = statistics_pb2.DatasetRows(dataset_id=id_of(rows.dataset), split=rows.split)
            return statistics_pb2.StatisticsTarget(dataset=dataset)
        case LogRows():
            window = statistics_pb2.LogWindow(
                view=types_pb2.VersionRef(name=rows.view, version=rows.version),
                deployment=rows.deployment,
                from_event_time=encode_optional(rows.from_event_time),
                to_event_time=encode_instant(rows.to_event_time or datetime.now(UTC)),
            )
            return statistics_pb2.StatisticsTarget(log=window)
    raise InvalidValue("rows", f"a {type(rows).__name__} is neither GroupRows nor DatasetRows nor LogRows")


def _named(target: statistics_pb2.StatisticsTarget) -> str:
    """Whose statistics these are, for people."""
    match target.WhichOneof("rows"):
        case "commit":
            group = VersionRef(target.commit.group.name, target.commit.group.version)
            return f"{group}, commit {target.commit.commit}"
        case "latest":
            group = VersionRef(target.latest.group.name, target.latest.group.version)
            return f"{group}, latest rows as of commit {target.latest.commit}"
        case "dataset":
            split = f", {target.dataset.split}" if target.dataset.split else ""
            return f"training dataset {target.dataset.dataset_id}{split}"
    window = target.log
    view = VersionRef(window.view.name, window.view.version)
    first = decode_optional_instant(window.HasField("from_event_time"), window.from_event_time, "from_event_time")
    before = _instant(decode_instant(window.to_event_time, "to_event_time"))
    since = "" if first is None else f" from {_instant(first)}"
    by = f" by {window.deployment}" if window.deployment else ""
    return f"predictions of {view}{by}{since} before {before}"


def _instant(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")
