"""The first steps in Python: define, ingest, train, deploy, predict, tell what happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from examples.first_steps.definitions import kitchens, late_orders, pipeline
from foresight.client import Client

FOLDER = Path(__file__).parent
# The last hour of the table of kitchens: features are fresh then.
ASKED_AT = datetime(2026, 3, 5, 9, 30, tzinfo=UTC)


def build(client: Client) -> None:
    """Registers group and view, writes the kitchens, trains on the orders and deploys."""
    client.apply(kitchens, late_orders)
    client.write("kitchens", _table("kitchens.csv"))
    orders = client.create_training_dataset("orders", "late_orders", _table("orders.csv"))
    version = client.train("late_orders", pipeline, train=[orders])
    client.deploy("late_orders", "late_orders", version.version)


def ask(client: Client) -> list[str]:
    """Asks about two orders; returns the ids of the predictions."""
    answer = client.predict(
        "late_orders",
        [
            {"restaurant": "bistro", "distance_km": 6.5, "rain": True},
            {"restaurant": "aroma", "distance_km": 0.8, "rain": False},
        ],
        event_time=ASKED_AT,
    )
    return list(answer.ids)


@contextmanager
def deployed(state: Path) -> Iterator[Callable[[], None]]:
    """The service in a running stack; the function asks once and tells the outcomes."""
    with Client(state=state) as client:
        build(client)

        def use() -> None:
            ids = ask(client)
            client.record_outcomes(values=[True, False], observed_at=[datetime.now(UTC)] * 2, prediction_ids=ids)

        yield use


def main() -> None:
    """Builds the service in the stack that runs, asks, and tells what happened."""
    with Client() as client:
        build(client)
        ids = ask(client)
        counts = client.record_outcomes(
            values=[True, False], observed_at=[datetime.now(UTC)] * len(ids), prediction_ids=ids
        )
    print(f"{len(ids)} predictions answered: {', '.join(ids)}")
    print(f"outcomes: {counts.matched} matched at once, {counts.held} held until their predictions are logged")


def _table(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / name, parse_dates=["event_time"])


if __name__ == "__main__":
    main()
