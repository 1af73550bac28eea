"""The report as tables on a terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def print_report(report: dict[str, Any], console: Console) -> None:
    """Prints the report, part by part."""
    console.print(_months(report))
    console.print(_decisions(report))
    console.print(_ledger(report))
    console.print(_pipelines(report))
    console.print(_tomorrow(report))
    console.print(_work(report))
    latency, checked = report["latency_ms"], report["verification"]
    console.print(
        f"Latency through the gateway over {latency['calls']:,} calls of {latency['rows_per_call']:.1f} flights: "
        f"p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms"
    )
    console.print(f"Verified: {checked['verified']} of {checked['asked']} predictions, features and score byte by byte")


def _table(title: str, caption: str | None = None) -> Table:
    """A table that fits into 80 columns."""
    return Table(title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold")


def _months(report: dict[str, Any]) -> Table:
    table = _table(title="The flywheel and the frozen January-February model, on the same predictions")
    table.add_column("month")
    for name in ("asked", "known"):
        table.add_column(name, justify="right")
    table.add_column("version")
    for name in ("flywheel\nlog loss", "frozen\nlog loss", "flywheel\nROC AUC", "frozen\nROC AUC"):
        table.add_column(name, justify="right")
    for m in report["months"]:
        table.add_row(
            m["month"],
            f"{m['predictions']:,}",
            f"{m['outcomes']:,}",
            ", ".join(map(str, m["versions"])),
            *(f"{m[model][metric]:.4f}" for metric in ("log_loss", "roc_auc") for model in ("flywheel", "frozen")),
        )
    mean = report["mean"]
    table.add_section()
    table.add_row(
        "mean",
        f"{sum(m['predictions'] for m in report['months']):,}",
        f"{sum(m['outcomes'] for m in report['months']):,}",
        "",
        *(f"{mean[model][metric]:.4f}" for metric in ("log_loss", "roc_auc") for model in ("flywheel", "frozen")),
        style="bold",
    )
    return table


def _decisions(report: dict[str, Any]) -> Table:
    table = _table(title="Challengers, judged by log loss on the last seven days")
    table.add_column("judged on", no_wrap=True)
    for name in ("flights", "champion", "challenger", "frozen"):
        table.add_column(name, justify="right")
    table.add_column("verdict", no_wrap=True)
    for d in report["decisions"]:
        frozen = next(iter(set(d["log_loss"]) - {str(d["champion"]), str(d["challenger"])}), str(d["champion"]))
        table.add_row(
            d["judged_at"][:10],
            f"{d['rows']:,}",
            *(f"v{v}  {d['log_loss'][str(v)]:.4f}" for v in (d["champion"], d["challenger"])),
            f"{d['log_loss'][frozen]:.4f}",
            "[green]promoted[/green]" if d["promoted"] else "kept back",
        )
    return table


def _ledger(report: dict[str, Any]) -> Table:
    ledger = report["ledger"]
    balance = "[green]balanced[/green]" if ledger["balanced"] else "[red]does not balance[/red]"
    table = _table(
        title=f"Ledger: {balance}",
        caption=f"{ledger['answers']:,} answers counted by the clients, {ledger['answers_not_logged']} of them not "
        f"logged; {ledger['unanswered']} logged without an answer; {ledger['duplicates']} duplicates; "
        f"{ledger['outcomes']:,} outcomes told",
    )
    table.add_column("replica")
    table.add_column("incarnation")
    for name in ("highest no.", "logged", "in spool", "quarantined"):
        table.add_column(name, justify="right")
    for r in ledger["replicas"]:
        counts = (r["highest_sequence"], r["logged"], r["spooled"], r["quarantined"])
        table.add_row(r["replica"], r["incarnation"][:13], *(f"{count:,}" for count in counts))
    return table


def _pipelines(report: dict[str, Any]) -> Table:
    table = _table(title="Feature pipelines: every row of their groups is in the history of their runs")
    table.add_column("pipeline")
    for name in ("runs", "rows in", "rows out", "in the group"):
        table.add_column(name, justify="right")
    table.add_column("position", no_wrap=True)
    for p in report["pipelines"]:
        counts = (p["runs"], p["rows_in"], p["rows_out"], p["rows"])
        table.add_row(p["name"], *(f"{count:,}" for count in counts), p["position"][:16])
    return table


def _tomorrow(report: dict[str, Any]) -> Table:
    tomorrow = report["tomorrow"]
    table = _table(
        title=f"The ten most endangered flights of the next day ({tomorrow['evening']})",
        caption=f"Over the year {tomorrow['named_late']:.0%} of the {tomorrow['named']:,} flights named so were late, "
        f"of all {tomorrow['scored']:,} scored {tomorrow['all_late']:.0%}",
    )
    for name in ("flight", "from", "to", "departs (UTC)"):
        table.add_column(name, no_wrap=True)
    table.add_column("probability", justify="right")
    table.add_column("arrived", no_wrap=True)
    said = {True: "late", False: "on time", None: "nowhere"}
    for f in tomorrow["flights"]:
        table.add_row(
            *(f["flight"], f["from"], f["to"], f["scheduled"][5:16].replace("T", " ")),
            *(f"{f['probability']:.3f}", said[f["late"]]),
        )
    return table


def _work(report: dict[str, Any]) -> Table:
    table = _table(title="Work, as the clients timed it")
    table.add_column("step")
    for name in ("rows", "seconds", "rows/s"):
        table.add_column(name, justify="right")
    for w in report["work"]:
        rate = f"{w['rows_per_second']:,.0f}" if w["rows"] else ""
        table.add_row(w["work"], f"{w['rows']:,}" if w["rows"] else "", f"{w['seconds']:.1f}", rate)
    return table
