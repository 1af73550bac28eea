"""Commands about training datasets: datasets, and dataset show, read, purge, recreate, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from foresight.cli.arguments import Json, State, open_client
from foresight.cli.output_files import check_suffix, write_batches
from foresight.cli.terminal import instant, show, size, table, working
from foresight.client import TrainingDataset

PANEL = "Models"
DatasetId = Annotated[str, typer.Argument(help="Id of a training dataset; see `foresight datasets`.")]

dataset = typer.Typer(
    name="dataset",
    no_args_is_help=True,
    help="Show a training dataset, read its rows, purge them, make them again, or delete it all.",
)


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command(rich_help_panel=PANEL)(datasets)
    for command in (show_dataset, read, purge, recreate, delete):
        dataset.command(command.__name__.removesuffix("_dataset"))(command)
    app.add_typer(dataset, rich_help_panel=PANEL)


def datasets(
    name: Annotated[str, typer.Argument(help="Only datasets of this name.")] = "",
    view: Annotated[str, typer.Option(help="Only datasets of this view.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest ones.")] = 50,
    state: State = None,
    as_json: Json = False,
) -> None:
    """List the training datasets, newest first."""
    with open_client(state) as client:
        found = client.training_datasets(name, view, limit=limit)
    rows = [
        {
            "id": d.id,
            "name": d.name,
            "view": d.view,
            "rows": d.rows,
            "splits": _splits(d),
            "of": _origin(d),
            "commit": d.commit,
            "stored": _stored(d),
            "created_at": d.created_at,
        }
        for d in found
    ]
    show(as_json, found, table(rows, "no training datasets yet; `foresight train` makes one from a spine"))


def show_dataset(dataset_id: DatasetId, state: State = None, as_json: Json = False) -> None:
    """Show what a training dataset is made of: all that is needed to make it again."""
    with open_client(state) as client:
        found = client.training_dataset(dataset_id)
    ages = (f"{g}, {'of any age' if age is None else f'at most {age} old'}" for g, age in _groups(found))
    facts = {
        "id": found.id,
        "name": found.name,
        "created_at": found.created_at,
        "view": found.view,
        "groups": list(ages),
        "commit": found.commit,
        "known_by": found.known_by,
        "of": _origin(found),
        "rows": found.rows,
        "splits": _splits(found),
        "split_by": _rule(found),
        "features": [f"{f.name} {f.type.value}" for f in found.features],
        "label": f"{found.label.name} {found.label.type.value}",
        "transforms": [f"{function} {sha256[:12]}…" for function, sha256 in found.transforms.items()],
        "stored": _stored(found),
        "content_sha256": found.content_sha256,
        "spine_sha256": found.spine_sha256 or None,
    }
    rows = [{"what": name.replace("_", " "), "value": value} for name, value in facts.items()]
    show(as_json, found, table(rows, ""))


def read(
    dataset_id: DatasetId,
    out: Annotated[Path, typer.Option(help="Write the rows to this .csv, .parquet or .jsonl file.")],
    split: Annotated[str, typer.Option(help="train, validation or test; default: all rows.")] = "",
    state: State = None,
    as_json: Json = False,
) -> None:
    """Write the rows of a training dataset to a file, also more of them than fit into memory."""
    check_suffix(out)
    with open_client(state) as client:
        found = client.training_dataset(dataset_id)
        with (
            working({"downloading": found.splits.get(split, 0) if split else found.rows}) as progress,
            client.stream_training_dataset(found, split) as batches,
        ):
            rows = write_batches(batches.schema, batches, out, progress)
    what = {"dataset_id": found.id, "split": split, "rows": rows, "file": str(out)}
    show(as_json, what, f"[green]✓[/] {rows:,} rows of {found.name} written to {out}")


def purge(dataset_id: DatasetId, state: State = None, as_json: Json = False) -> None:
    """Remove the stored rows of a training dataset; its manifest stays, and `recreate` makes them again."""
    with open_client(state) as client:
        freed = client.purge_training_dataset(dataset_id)
    what = f"{size(freed)} became free" if freed else "nothing became free"
    show(as_json, {"dataset_id": dataset_id, "freed_bytes": freed}, f"[green]✓[/] rows of {dataset_id} purged · {what}")


def recreate(dataset_id: DatasetId, state: State = None, as_json: Json = False) -> None:
    """Make the rows of a training dataset again, to the same hash, and store them."""
    with open_client(state) as client, working() as progress:
        progress("reading", 0)
        found = client.recreate_training_dataset(dataset_id)
    head = f"[green]✓[/] {found.rows:,} rows of {found.name} made again, with the same content"
    show(as_json, found, f"{head} · {found.content_sha256[:12]}… · {size(found.stored_bytes)}")


def delete(dataset_id: DatasetId, state: State = None, as_json: Json = False) -> None:
    """Delete a training dataset: rows, spine and manifest. Refused while a model was trained on it."""
    with open_client(state) as client:
        client.delete_training_dataset(dataset_id)
    show(as_json, {"dataset_id": dataset_id, "deleted": True}, f"[green]✓[/] {dataset_id} deleted")


def _splits(found: TrainingDataset) -> list[str]:
    return [f"{name} {rows:,}" for name, rows in found.splits.items()]


def _groups(found: TrainingDataset) -> list[tuple[Any, Any]]:
    ages = found.max_ages or (None,) * len(found.groups)
    return list(zip(found.groups, ages, strict=True))


def _origin(found: TrainingDataset) -> str:
    """Where its rows come from."""
    if found.logged is not None:
        of = f" of {found.logged.deployment}" if found.logged.deployment else ""
        return f"logged predictions{of}, outcomes by {instant(found.logged.observed_by)}"
    if found.spine is not None:
        return f"rows of {found.spine.group} v{found.spine.version}"
    return "a spine"


def _rule(found: TrainingDataset) -> str | None:
    if found.hash_split is not None:
        split = found.hash_split
        shares = f"{split.validation_share:.0%} validation, {split.test_share:.0%} test"
        return f"hash of {', '.join(split.keys)} with seed {split.seed}: {shares}"
    if found.test_from is None:
        return None
    validation = f"validation from {instant(found.validation_from)}, " if found.validation_from else ""
    return f"time: {validation}test from {instant(found.test_from)}"


def _stored(found: TrainingDataset) -> str:
    if found.forgotten_at is not None:
        return f"forgotten {instant(found.forgotten_at)}"
    return size(found.stored_bytes) if found.stored else "purged"
