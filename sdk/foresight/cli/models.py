"""Commands about models and deployments: train, models, deploy, deployments, decisions, batch."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from foresight.cli.arguments import Json, State, load_object, open_client, parse_instant
from foresight.cli.files import check_columns, check_rows, read_file
from foresight.cli.terminal import show, table, working
from foresight.client import Arm, Client, Deployment, ModelVersion, TrainingDataset
from foresight.client.features import spine_fields

PANEL = "Models"
_ARM = re.compile(r"(?P<name>[^=]+)=(?P<model>[^:@]+)(:(?P<version>[0-9]{1,9}))?(@(?P<weight>[0-9]{1,9}))?")


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (train, models, deploy, deployments, decisions, batch):
        app.command(rich_help_panel=PANEL)(command)


def train(
    model: Annotated[str, typer.Argument(help="Name of the model; a new version of it is made.")],
    pipeline: Annotated[str, typer.Option(help="FILE.py:NAME of an unfitted scikit-learn pipeline.")],
    view: Annotated[str, typer.Option(help="Feature view to join the spine with.")] = "",
    spine: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="File with keys, event_time, request features and label."),
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Id of a training dataset, instead of a spine; may be repeated.")
    ] = None,
    event_time: Annotated[str, typer.Option(help="Column of the spine that holds the event time.")] = "event_time",
    test_from: Annotated[
        datetime | None,
        typer.Option(parser=parse_instant, metavar="INSTANT", help="Rows from here on are held out for the metrics."),
    ] = None,
    known_by: Annotated[
        bool, typer.Option("--known-by", help="Use only feature rows that were known at each row's event time.")
    ] = False,
    description: Annotated[str, typer.Option(help="What the version is, for people.")] = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Train a scikit-learn pipeline on a spine joined with a view (or on datasets) and register the version."""
    if (spine is None) == (not dataset):
        raise typer.BadParameter("give either --spine with --view, or --dataset")
    if spine is not None and not view:
        raise typer.BadParameter("--spine needs the --view to join it with")
    if dataset and (test_from is not None or known_by):
        raise typer.BadParameter("--test-from and --known-by belong to a spine; a dataset has its split already")
    estimator = load_object(pipeline)
    with open_client(state) as client:
        datasets = (
            [client.training_dataset(id) for id in dataset or ()]
            if spine is None
            else [_dataset_of(client, model, view, spine, event_time, test_from, known_by)]
        )
        with working({"reading": sum(d.rows for d in datasets)}) as progress:
            version = client.train(
                model,
                estimator,
                [(d, "train") for d in datasets],
                [(d, "test") for d in datasets if d.splits.get("test")],
                description=description,
                progress=progress,
            )
    head = f"[green]✓[/] {version.ref} trained on {version.train_rows:,} rows · {', '.join(d.id for d in datasets)}"
    metrics = [dict(version.metrics)] if version.metrics else []
    show(as_json, version, head, table(metrics, "no held-out rows, so no metrics; see --test-from"))


def models(
    model: Annotated[str, typer.Argument(help="Only versions of this model.")] = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """List model versions, newest first."""
    with open_client(state) as client:
        found = client.models(model)
    names = list(dict.fromkeys(name for version in found for name in version.metrics))
    rows = [_model_row(version, names) for version in found]
    show(as_json, found, table(rows, "no models yet; make one with `foresight train`"))


def deploy(
    deployment: Annotated[str, typer.Argument(help="What clients will call.")],
    model: Annotated[str, typer.Argument(help="Model to serve alone.")] = "",
    version: Annotated[int, typer.Option(min=0, help="Its version; 0: the latest.")] = 0,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL[:VERSION][@WEIGHT]",
            help="Instead of one model: an arm and its weight, e.g. champion=late:3@90; may be repeated. One without a "
            "weight is for testers who force it.",
        ),
    ] = None,
    shadow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL[:VERSION]", help="An arm that scores what others answer, for the log; may be repeated."
        ),
    ] = None,
    salt: Annotated[
        str, typer.Option(help="Assigns entities to arms; another one assigns all anew; default: the present one.")
    ] = "",
    wait_s: Annotated[float, typer.Option(min=0, help="Wait so long for the predictor to serve it.")] = 30.0,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Let a deployment serve a model version, or several side by side, and wait until it does."""
    arms = [*(parse_arm(text) for text in arm or ()), *(parse_arm(text, shadow=True) for text in shadow or ())]
    if bool(model) == bool(arms):
        raise typer.BadParameter("give either a model, or an --arm for each that is to answer")
    if arms and version:
        raise typer.BadParameter("--version goes with a model alone; name those of arms as NAME=MODEL:VERSION")
    with open_client(state) as client:
        found = client.deploy(deployment, model, version, arms=arms, salt=salt, wait_s=wait_s)
    served = ", ".join(_arm_in_words(found, a) for a in found.arms) if len(found.arms) > 1 else str(found.model)
    show(as_json, found, f"[green]✓[/] {found.name} serves {served}")


def deployments(state: State = None, as_json: Json = False) -> None:
    """List the deployments."""
    with open_client(state) as client:
        found = client.deployments()
    rows = [
        {
            "name": d.name,
            "model": d.model,
            "arms": [_arm_in_words(d, arm) for arm in d.arms] if len(d.arms) > 1 else [],
            "view": d.view,
            "updated_at": d.updated_at,
        }
        for d in found
    ]
    show(as_json, found, table(rows, "no deployments yet; make one with `foresight deploy NAME MODEL`"))


def decisions(
    deployment: Annotated[str, typer.Argument(help="Only decisions of this deployment.")] = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """List which challengers were judged, and which were promoted, oldest first."""
    with open_client(state) as client:
        found = client.decisions(deployment)
    rows = [
        {
            "judged_at": d.judged_at,
            "deployment": d.deployment,
            "champion": d.champion,
            "challenger": d.challenger,
            "metric": d.metric,
            "champion_has": d.models[0].metrics.get(d.metric) if d.models else None,
            "challenger_has": d.models[1].metrics.get(d.metric) if len(d.models) > 1 else None,
            "rows": d.rows,
            "promoted": d.promoted,
        }
        for d in found
    ]
    show(as_json, found, table(rows, "no decisions yet"))


def batch(
    deployment: Annotated[str, typer.Argument(help="Deployment whose model scores.")],
    group: Annotated[str, typer.Argument(help="Group with the rows to score: the view's keys and request features.")],
    from_event_time: Annotated[
        datetime,
        typer.Option("--from", parser=parse_instant, metavar="INSTANT", help="Score rows from this event time on …"),
    ],
    to_event_time: Annotated[
        datetime, typer.Option("--to", parser=parse_instant, metavar="INSTANT", help="… and before this one.")
    ],
    as_of: Annotated[
        datetime,
        typer.Option("--as-of", parser=parse_instant, metavar="INSTANT", help="Read features as of this time."),
    ],
    sink_table: Annotated[str, typer.Option(help="Table of the sink to write to; made at its first use.")],
    run_id: Annotated[str, typer.Option(help="Makes a repetition harmless: the same id is written once.")] = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Score the latest row per key of a group and write the predictions where reports read."""
    with open_client(state) as client, working() as progress:
        run = client.batch(
            deployment,
            group,
            from_event_time=from_event_time,
            to_event_time=to_event_time,
            event_time=as_of,
            sink_table=sink_table,
            run_id=run_id,
            progress=progress,
        )
    head = f"[green]✓[/] {run.rows:,} rows scored by {run.model} into {run.sink_table}"
    show(as_json, run, f"{head} · run {run.run_id} · {run.duration_ms:,} ms")


def _dataset_of(
    client: Client, name: str, view: str, spine: Path, event_time: str, test_from: datetime | None, known_by: bool
) -> TrainingDataset:
    rows = read_file(spine, spine_fields(client.view(view)), event_time=event_time)
    check_columns(rows, spine, "event_time", hint="name its column with --event-time")
    check_rows(rows, spine)
    with working({"uploading": rows.num_rows}) as progress:
        return client.create_training_dataset(
            name, view, rows, test_from=test_from, known_by=known_by, progress=progress
        )


def parse_arm(text: str, *, shadow: bool = False) -> Arm:
    """The arm of an option `name=model[:version][@weight]`. Raises BadParameter."""
    found = _ARM.fullmatch(text)
    if found is None or (shadow and found["weight"] is not None):
        form = "NAME=MODEL or NAME=MODEL:VERSION" if shadow else "NAME=MODEL@WEIGHT or NAME=MODEL:VERSION@WEIGHT"
        raise typer.BadParameter(f"{text!r} is not of the form {form}")
    weight = 0 if shadow else int(found["weight"] or 0)
    return Arm(found["name"], found["model"], int(found["version"] or 0), weight, shadow)


def _arm_in_words(deployment: Deployment, arm: Arm) -> str:
    """An arm with its version and its share of the entities."""
    share = "shadow" if arm.shadow else f"{100 * arm.weight / sum(a.weight for a in deployment.arms):.4g} %"
    return f"{arm.name}: {arm.model} v{arm.version} ({share})"


def _model_row(version: ModelVersion, metrics: list[str]) -> dict[str, Any]:
    return {
        "model": version.name,
        "version": version.version,
        "view": version.view,
        "train_rows": version.train_rows,
        **{name: version.metrics.get(name) for name in metrics},
        "aliases": version.aliases,
        "created_at": version.created_at,
    }
