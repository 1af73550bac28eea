"""Commands that ask and tell: predict, outcomes, verify."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer

from foresight.cli.arguments import Json, State, open_client, parse_instant, parse_setting, parse_settings
from foresight.cli.files import check_columns, read_file
from foresight.cli.terminal import instant, note, plain, show, table, working
from foresight.client import Client, DataType, Explanation, FeatureView, Field, ForesightError, Predictions
from foresight.client.frames import EVENT_TIME, Progress

PANEL = "Predictions"
ROWS_PER_CALL = 1_024
# More are not explained at once.
EXPLAINED_PER_CALL = 16
# Requests of so many rows keep the service busy, and leave it time for others.
CALLS_AHEAD = 4
_OBSERVED_AT = Field("observed_at", DataType.TIMESTAMP)
_PREDICTION_ID = Field("prediction_id", DataType.STRING)
_REVISION = Field("revision", DataType.INT64)


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (predict, outcomes, verify):
        app.command(rich_help_panel=PANEL)(command)


def predict(
    deployment: Annotated[str, typer.Argument(help="Deployment to ask.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A key or request feature; may be repeated.")
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="File with one row per prediction, instead of --set."),
    ] = None,
    event_time: Annotated[
        datetime | None,
        typer.Option(parser=parse_instant, metavar="INSTANT", help="Read features as of this time; default: now."),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Say what each input of the model adds to the score, beginning at its base."),
    ] = False,
    arm: Annotated[str, typer.Option(help="Force this arm of the deployment, as testers do; for operators.")] = "",
    request_id: Annotated[
        str,
        typer.Option(help="Names the request: the same one again within 10 minutes gets the first answer."),
    ] = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Predict for one entity (--set) or for every row of a file (--rows)."""
    if bool(settings) == (rows is not None):
        raise typer.BadParameter("give either --set name=value … or --rows FILE")
    given = dict(parse_setting(setting) for setting in settings or ())
    with open_client(state) as client, working() as progress:
        fields = {field.name: field for field in _asked(client, deployment)}
        ask = partial(client.predict, deployment, event_time=event_time, explain=explain, arm=arm)
        answers: Iterator[Predictions]
        if rows is None:
            answers = iter([ask(parse_settings(given, fields), request_id=request_id)])
        elif explain or arm:
            most = EXPLAINED_PER_CALL if explain else ROWS_PER_CALL
            questions = enumerate(_slices(read_file(rows, fields.values()), most))
            # As a stream names its requests.
            answers = (ask(part, request_id=f"{request_id}/{n}" if request_id else "") for n, part in questions)
        else:
            answers = client.predict_stream(
                *(deployment, _slices(read_file(rows, fields.values()), ROWS_PER_CALL)),
                event_time=event_time,
                request_id=request_id,
                in_flight=CALLS_AHEAD,
            )
        records = _collected(answers, progress)
    drawn = [{**r, "missing": [_in_words(*m) for m in r["missing"].items()], **_drawn(r)} for r in records]
    show(as_json, records, table(drawn, "no rows"))


def outcomes(
    file: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            help="Columns prediction_id (or the entity keys and event_time), value, observed_at, and perhaps revision.",
        ),
    ],
    deployment: Annotated[str, typer.Option(help="Deployment that was asked; needed without prediction ids.")] = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Record what turned out to be true, from a .csv, .parquet or .jsonl file."""
    with open_client(state) as client:
        view = client.view(*client.deployment(deployment).view) if deployment else None
        rows = read_file(file, _outcome_fields(view))
        check_columns(rows, file, "value", "observed_at")
        by_id = "prediction_id" in rows.column_names
        if not by_id and view is None:
            raise typer.BadParameter("a file without prediction ids needs the --deployment that was asked")
        keys = [key.name for key in view.entity_keys] if view is not None and not by_id else []
        if not by_id:
            check_columns(rows, file, *keys, "event_time", hint="or give a column prediction_id")
        with working({"sending": rows.num_rows}) as progress:
            counts = client.record_outcomes(
                rows["value"].to_pylist(),
                rows["observed_at"].to_pylist(),
                prediction_ids=rows["prediction_id"].to_pylist() if by_id else None,
                deployment=deployment,
                entity_keys=None if by_id else rows.select(keys),
                event_times=None if by_id else rows["event_time"].to_pylist(),
                revisions=rows["revision"].to_pylist() if "revision" in rows.column_names else None,
                progress=progress,
            )
    held = f"{counts.held:,} held until their predictions are logged"
    line = f"[green]✓[/] {counts.matched:,} matched · {held} · {counts.duplicates:,} known already"
    show(as_json, counts, line)


def verify(
    prediction_ids: Annotated[list[str], typer.Argument(help="Ids of predictions.")],
    state: State = None,
    as_json: Json = False,
) -> None:
    """Replay predictions from the log and compare features and outputs byte by byte; ends with 1 if one differs."""
    with open_client(state) as client, working() as progress:
        found = []
        for prediction_id in prediction_ids:
            found.append((prediction_id, client.verify(prediction_id)))
            progress("verifying", len(found))
    rows = [{"prediction_id": id, **plain(verification)} for id, verification in found]
    drawn = [
        {
            "prediction_id": id,
            "model": v.model,
            "verified": v.verified,
            "differs": [f"{m.name} ({m.cause}): {m.recorded} → {m.replayed}" for m in v.mismatches],
        }
        for id, v in found
    ]
    show(as_json, rows, table(drawn, ""))
    if not all(verification.verified for _, verification in found):
        raise typer.Exit(1)


def _asked(client: Client, deployment: str) -> tuple[Field, ...]:
    """What a deployment is asked with: entity keys and request features of its view."""
    view = client.view(*client.deployment(deployment).view)
    return (*view.entity_keys, *view.request_features)


def _slices(questions: pa.Table, rows: int) -> Iterator[pa.Table]:
    for start in range(0, questions.num_rows, rows):
        yield questions.slice(start, rows)


def _collected(answers: Iterable[Predictions], progress: Progress) -> list[dict[str, Any]]:
    """The records of answers. Says which had been given before and, when one is an error, which are there."""
    records: list[dict[str, Any]] = []
    repeated = 0
    try:
        for answer in answers:
            records += _records(answer)
            repeated += len(answer) if answer.repeated else 0
            progress("predicting", len(records))
    except ForesightError:
        if records:
            rows = f"{len(records):,}"
            note(f"the first {rows} rows were answered, and are in the log; rows of the error are counted from there")
        raise
    if repeated:
        note(f"{repeated:,} of {len(records):,} had been answered before, under this --request-id")
    return records


def _records(answer: Predictions) -> Iterator[dict[str, Any]]:
    """One record per prediction of an answer."""
    missing: dict[int, dict[str, Any]] = {}
    for feature in answer.missing:
        missing.setdefault(feature.row, {})[feature.feature] = {
            "status": feature.status.name.lower(),
            "policy": feature.policy,
            "last_known_at": feature.last_known_at,
        }
    arms = {row: {"model": arm.model, "arm": arm.arm} for arm in answer.arms for row in arm.rows}
    for row, id in enumerate(answer.ids):
        outputs = {name: values[row] for name, values in answer.outputs.items()}
        yield {
            "prediction_id": id,
            **outputs,
            **arms.get(row, {"model": answer.model}),
            "event_time": answer.event_time,
            "missing": missing.get(row, {}),
            **_explained(answer.explanation, row),
        }


def _explained(explanation: Explanation | None, row: int) -> dict[str, Any]:
    if explanation is None:
        return {}
    of_row = {"base": explanation.base[row], "score": explanation.score[row], "contributions": explanation.of(row)}
    return {"explanation": {"output": explanation.output, **of_row}}


def _drawn(record: dict[str, Any]) -> dict[str, list[str]]:
    """The explanation in a record as lines: the base, then what inputs add, the largest first."""
    if (explanation := record.get("explanation")) is None:
        return {}
    added = [f"{name} {value:+.4g}" for name, value in explanation["contributions"].items() if value]
    return {"explanation": [f"base {explanation['base']:.4g}", *added]}


def _in_words(feature: str, missing: dict[str, Any]) -> str:
    """A missing feature with why and what was done about it."""
    at = missing["last_known_at"]
    known = f" of {instant(at)}" if at is not None else ""
    # NULL is what a missing value is anyway.
    done = f", {missing['policy'].replace('_', ' ')}{known}" if missing["policy"] not in ("", "null") else ""
    return f"{feature} ({missing['status'].replace('_', ' ')}{done})"


def _outcome_fields(view: FeatureView | None) -> tuple[Field, ...]:
    fields = (EVENT_TIME, _OBSERVED_AT, _PREDICTION_ID, _REVISION)
    if view is None:
        return fields
    return (*fields, *view.entity_keys, Field("value", view.label.type))
