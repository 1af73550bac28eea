"""The report as tables on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def print_report(report: dict[str, Any], console: Console) -> None:
    """Prints the report, part by part."""
    console.print(_months(report))
    console.print(_decisions(report))
    console.print(_ledger(report))
    console.print(_tomorrow(report))
    console.print(_work(report))
    latency, checked = report["latency_ms"], report["verification"]
    console.print(
        f"Latency through the gateway over {latency['calls']:,} calls of {latency['rows_per_call']:.1f} flights: "
        f"p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms"
    )
    console.print(f"Verified: {checked['verified']} of {checked['asked']} predictions, features and score byte by byte")


def _months(report: dict[str, Any]) -> Table:
    table = Table(title="The flywheel and the frozen January-February model, on the same predictions")
    table.add_column("month")
    for name in ("predictions", "outcomes"):
        table.add_column(name, justify="right")
    table.add_column("versions")
    for name in ("log loss\nflywheel", "log loss\nfrozen", "ROC AUC\nflywheel", "ROC AUC\nfrozen"):
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
    table = Table(title="Challengers, judged by log loss on the last seven days")
    for name in ("judged", "champion", "challenger"):
        table.add_column(name)
    for name in ("flights", "champion's", "challenger's", "frozen's"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for d in report["decisions"]:
        frozen = next(iter(set(d["log_loss"]) - {str(d["champion"]), str(d["challenger"])}), str(d["champion"]))
        table.add_row(
            d["judged_at"][:10],
            f"version {d['champion']}",
            f"version {d['challenger']}",
            f"{d['rows']:,}",
            *(f"{d['log_loss'][v]:.4f}" for v in (str(d["champion"]), str(d["challenger"]), frozen)),
            "[green]promoted[/green]" if d["promoted"] else "kept back",
        )
    return table


def _ledger(report: dict[str, Any]) -> Table:
    ledger = report["ledger"]
    balance = "[green]balanced[/green]" if ledger["balanced"] else "[red]does not balance[/red]"
    table = Table(
        title=f"Ledger: {balance}",
        caption=f"{ledger['answers']:,} answers counted by the clients, {ledger['answers_not_logged']} of them not "
        f"logged; {ledger['unanswered']} logged without an answer; {ledger['duplicates']} duplicates; "
        f"{ledger['outcomes']:,} outcomes told",
    )
    table.add_column("replica")
    table.add_column("incarnation")
    for name in ("highest number", "logged", "in spool", "quarantined"):
        table.add_column(name, justify="right")
    for r in ledger["replicas"]:
        counts = (r["highest_sequence"], r["logged"], r["spooled"], r["quarantined"])
        table.add_row(r["replica"], r["incarnation"][:13], *(f"{count:,}" for count in counts))
    return table


def _tomorrow(report: dict[str, Any]) -> Table:
    tomorrow = report["tomorrow"]
    table = Table(
        title=f"The ten most endangered flights of the day after {tomorrow['evening']}, as a report reads them",
        caption=f"Over the year {tomorrow['named_late']:.0%} of the {tomorrow['named']:,} flights named so were late, "
        f"of all {tomorrow['scored']:,} scored {tomorrow['all_late']:.0%}",
    )
    for name in ("flight", "carrier", "from", "to", "scheduled (UTC)"):
        table.add_column(name)
    table.add_column("probability", justify="right")
    table.add_column("was it late?")
    said = {True: "late", False: "on time", None: "did not land"}
    for f in tomorrow["flights"]:
        table.add_row(
            *(f["flight"], f["carrier"], f["from"], f["to"], f["scheduled"][:16].replace("T", " ")),
            *(f"{f['probability']:.3f}", said[f["late"]]),
        )
    return table


def _work(report: dict[str, Any]) -> Table:
    table = Table(title="Work, as the clients timed it")
    table.add_column("step")
    for name in ("rows", "seconds", "rows/s"):
        table.add_column(name, justify="right")
    for w in report["work"]:
        rate = f"{w['rows_per_second']:,.0f}" if w["rows"] else ""
        table.add_row(w["work"], f"{w['rows']:,}" if w["rows"] else "", f"{w['seconds']:.1f}", rate)
    return table
