"""What the year was like: numbers from the platform's own logs, checked against what the clients saw."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pandas as pd
from sklearn.metrics import log_loss, roc_auc_score

from examples.flights import definitions as service
from examples.flights.replay import END, OUTCOMES_UNTIL, START, Replay
from foresight.client import Logged

VERIFIED = 200
ENDANGERED = 10
VERIFY_THREADS = 4

TOP_TEN_SQL = """
SELECT t.flight_id, t.carrier, t.origin, t.dest, t.scheduled_for, t.prediction_probability, landed.late
FROM sink.tomorrow AS t
LEFT JOIN unnest($2::text[], $3::bool[]) AS landed (flight_id, late) USING (flight_id)
WHERE t.run_id = $1
ORDER BY t.prediction_probability DESC, t.flight_id
LIMIT $4
"""

HOW_RIGHT_SQL = """
WITH ranked AS (
    SELECT flight_id, row_number() OVER (PARTITION BY run_id ORDER BY prediction_probability DESC, flight_id) AS rank
    FROM sink.tomorrow
)
SELECT count(*) AS scored,
       count(*) FILTER (WHERE rank <= $3) AS named,
       avg(late::int) FILTER (WHERE rank <= $3) AS named_late,
       avg(late::int) AS all_late
FROM ranked JOIN unnest($1::text[], $2::bool[]) AS landed (flight_id, late) USING (flight_id)
"""


def make_report(replay: Replay, state: Path, *, full: bool) -> dict[str, Any]:
    """Everything that the report shows, as plain values."""
    client = replay.operator
    client.wait_ingested(timeout_s=60)
    predictions = client.predictions(service.DEPLOYMENT, view=service.VIEW)
    months = _months(replay, predictions)
    latencies_ms = np.array(replay.record.latencies_s) * 1_000
    return {
        "full": full,
        "months": months,
        "mean": {
            model: {metric: float(np.mean([m[model][metric] for m in months])) for metric in ("log_loss", "roc_auc")}
            for model in ("flywheel", "frozen")
        },
        "decisions": [_decision(d) for d in replay.record.decisions],
        "pipelines": _pipelines(replay),
        "ledger": _ledger(replay, predictions),
        "verification": _verify(replay, list(predictions["prediction_id"])),
        "latency_ms": {
            "calls": len(latencies_ms),
            "rows_per_call": replay.record.answers / len(latencies_ms),
            "p50": float(np.percentile(latencies_ms, 50)),
            "p99": float(np.percentile(latencies_ms, 99)),
        },
        "work": [
            {"work": name, "rows": w.rows, "seconds": w.seconds, "rows_per_second": w.rows / w.seconds}
            for name, w in replay.record.work.items()
            if w.seconds > 0
        ],
        "tomorrow": asyncio.run(_tomorrow(replay.flights_of_the_year, *_report_reader(state))),
    }


def passed(report: dict[str, Any]) -> list[str]:
    """What the report shows to be wrong; empty when the year went as promised."""
    faults = []
    if not report["ledger"]["balanced"]:
        faults.append("the ledger does not balance")
    faults += [
        f"the runs of {p['name']} wrote {p['rows_out']} rows, and its group has {p['rows']}"
        for p in report["pipelines"]
        if p["rows_out"] != p["rows"] or p["states"] != ["succeeded"]
    ]
    checked = report["verification"]
    if checked["verified"] != checked["asked"] or checked["asked"] == 0:
        faults.append(f"{checked['verified']} of {checked['asked']} predictions verified")
    if report["mean"]["flywheel"]["log_loss"] >= report["mean"]["frozen"]["log_loss"]:
        faults.append("the flywheel's mean log loss is not lower than the frozen model's")
    return faults


def _months(replay: Replay, predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """Per month of asking: both models on the same predictions, those whose outcome is known."""
    assert replay.frozen is not None
    label = service.view.label.name
    months = []
    bounds = pd.date_range(START, END, freq="MS")
    for first, after in itertools.pairwise(bounds):
        asked = predictions[(predictions["event_time"] >= first) & (predictions["event_time"] < after)]
        known = asked[asked[label].notna()]
        truth, score = known[label].astype(bool), known["prediction_probability"]
        dataset = replay.operator.create_training_dataset(
            f"report_{first:%Y_%m}",
            service.VIEW,
            logged=Logged(
                from_event_time=first.to_pydatetime(),
                to_event_time=after.to_pydatetime(),
                observed_by=OUTCOMES_UNTIL,
            ),
        )
        if dataset.rows != len(known):
            raise RuntimeError(f"{first:%B}: {dataset.rows} logged rows with an outcome, the log shows {len(known)}")
        (frozen,) = replay.operator.evaluate([(service.MODEL, replay.frozen.version)], dataset)
        months.append(
            {
                "month": f"{first:%Y-%m}",
                "predictions": len(asked),
                "outcomes": len(known),
                "versions": sorted({int(v) for v in asked["log_model_version"]}),
                "flywheel": {
                    "log_loss": float(log_loss(truth, score)),
                    "roc_auc": float(roc_auc_score(truth, score)),
                },
                "frozen": {metric: frozen.metrics[metric] for metric in ("log_loss", "roc_auc")},
            }
        )
    return months


def _decision(decision: Any) -> dict[str, Any]:
    by_version = {m.model[1]: m.metrics for m in decision.models}
    return {
        "judged_at": decision.judged_at.isoformat(),
        "champion": decision.champion[1],
        "challenger": decision.challenger[1],
        "promoted": decision.promoted,
        "rows": decision.rows,
        "log_loss": {str(version): metrics["log_loss"] for version, metrics in by_version.items()},
    }


def _pipelines(replay: Replay) -> list[dict[str, Any]]:
    """The feature pipelines, their runs added up, and what is in the groups that they feed."""
    client, found = replay.operator, []
    for status in client.pipelines():
        runs = client.pipeline_runs(status.name)
        found.append(
            {
                "name": status.name,
                "position": status.position,
                "runs": len(runs),
                "states": sorted({run.state.name.lower() for run in runs}),
                "rows_in": sum(run.rows_in for run in runs),
                "rows_out": sum(run.rows_out for run in runs),
                "rows": client.count_rows(status.name),
            }
        )
    return found


def _ledger(replay: Replay, predictions: pd.DataFrame) -> dict[str, Any]:
    """Counts answers at the clients: each must be logged, spooled or quarantined, and none twice.

    A prediction whose answer was lost with a killed process is in the log and was asked again: `unanswered`.
    """
    rows = replay.operator.ledger()
    answered = set(replay.record.prediction_ids.values())
    logged = set(predictions["prediction_id"])
    accounted = all(r.logged + r.spooled + r.quarantined == r.highest_sequence for r in rows)
    held = sum(r.spooled + r.quarantined for r in rows)
    duplicates = len(predictions) - len(logged)
    missing = len(answered - logged)
    return {
        "answers": replay.record.answers,
        "outcomes": replay.record.outcomes,
        "replicas": [
            {
                "replica": r.replica,
                "incarnation": r.incarnation,
                "highest_sequence": r.highest_sequence,
                "logged": r.logged,
                "spooled": r.spooled,
                "quarantined": r.quarantined,
            }
            for r in rows
        ],
        "duplicates": duplicates,
        "answers_not_logged": missing,
        "unanswered": len(logged - answered),
        "balanced": bool(rows)
        and accounted
        and duplicates == 0
        and missing <= held
        and len(answered) == replay.record.answers,
    }


def _verify(replay: Replay, prediction_ids: list[str]) -> dict[str, Any]:
    """Replays randomly chosen predictions and compares features and scores byte by byte."""
    chosen = random.Random(2013).sample(sorted(prediction_ids), min(VERIFIED, len(prediction_ids)))
    with ThreadPoolExecutor(VERIFY_THREADS) as pool:
        results = list(pool.map(replay.operator.verify, chosen))
    return {
        "asked": len(results),
        "verified": sum(r.verified for r in results),
        "mismatches": [
            {"prediction_id": chosen[i], "name": m.name, "cause": str(m.cause)}
            for i, r in enumerate(results)
            for m in r.mismatches
        ],
    }


def _report_reader(state: Path) -> tuple[str, str]:
    """URL and password of the read-only role."""
    sink = json.loads((state / "foresight.json").read_text())["sink"]
    return sink["url"], Path(sink["password_file"]).read_text().strip()


async def _tomorrow(flights: pd.DataFrame, url: str, password: str) -> dict[str, Any]:
    """What a report would read: plain SQL by the read-only role, next to the reader's own record of landings."""
    landed = flights[flights["late"].notna()]
    ids, late = landed["flight_id"].tolist(), [bool(v) for v in landed["late"]]
    connection = await asyncpg.connect(url, password=password)
    try:
        evening = await connection.fetchval("SELECT max(run_id) FROM sink.tomorrow")
        top = await connection.fetch(TOP_TEN_SQL, evening, ids, late, ENDANGERED)
        right = await connection.fetchrow(HOW_RIGHT_SQL, ids, late, ENDANGERED)
    finally:
        await connection.close()
    return {
        "evening": evening,
        "flights": [
            {
                "flight": row["flight_id"],
                "carrier": row["carrier"],
                "from": row["origin"],
                "to": row["dest"],
                "scheduled": row["scheduled_for"].astimezone(UTC).isoformat(),
                "probability": row["prediction_probability"],
                "late": row["late"],
            }
            for row in top
        ],
        "scored": right["scored"],
        "named": right["named"],
        "named_late": float(right["named_late"]),
        "all_late": float(right["all_late"]),
    }


def write_report(report: dict[str, Any], folder: Path, log: Callable[[str], None]) -> None:
    """Writes report.json and flywheel.png into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(report, folder / "flywheel.png")
    log(f"written: {folder / 'report.json'}, {folder / 'flywheel.png'}")


def draw(report: dict[str, Any], path: Path) -> None:
    """The flywheel against the frozen model by month, with promotions marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    months = [m["month"] for m in report["months"]]
    names = [datetime.strptime(m, "%Y-%m").replace(tzinfo=UTC).strftime("%b") for m in months]
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for axis, metric, title in (
        (axes[0], "log_loss", "Log loss (lower is better)"),
        (axes[1], "roc_auc", "ROC AUC (higher is better)"),
    ):
        for model, color, marker, text in (
            ("frozen", "#9a6a00", "s", "frozen"),
            ("flywheel", "#00628b", "o", "flywheel"),
        ):
            values = [m[model][metric] for m in report["months"]]
            mean = report["mean"][model][metric]
            axis.plot(names, values, color=color, marker=marker, linewidth=2, label=f"{text} (mean {mean:.3f})")
        for decision in report["decisions"]:
            month = decision["judged_at"][:7]
            if decision["promoted"] and month in months:
                axis.axvline(months.index(month) - 0.5, color="#00628b", alpha=0.25, linestyle="--")
        axis.set_title(title)
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    figure.suptitle(
        "Flights from New York, 2013, asked 6 to 12 hours ahead: the flywheel and the frozen January-February model\n"
        "(dashed: a challenger was promoted)"
    )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
