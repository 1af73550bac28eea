"""Checks the monitoring against the real thing: a real Prometheus scrapes a live stack that is in use, and every
expression of the Grafana dashboard must evaluate there to at least one value, and every alert without a fault.

Predictor and feature store run in two processes each: no value may be that of one of them alone, and their counts add
up to what was asked.

    python -m deploy.prometheus.live_check --prometheus /usr/bin/prometheus
"""

from __future__ import annotations

import argparse
import http
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from deploy.local import LocalStack
from examples.first_steps import service

FOLDER = Path(__file__).parent
DASHBOARD = FOLDER.parent / "grafana" / "overview.json"
DEADLINE_S = 60
PROCESSES = ("feature_store-0", "feature_store-1", "trainer", "predictor-0", "predictor-1", "logger", "gateway")
# One use asks for two.
PREDICTIONS_PER_USE = 2
ANSWERED = "sum(foresight_predictor_predictions_total)"


def expressions() -> list[str]:
    """Every expression of the dashboard."""
    dashboard = json.loads(DASHBOARD.read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def alerts() -> set[str]:
    """The names of all alerts."""
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return {rule["alert"] for group in groups for rule in group["rules"]}


def configuration(targets: Path) -> dict[str, Any]:
    """The shipped scrape configuration with the pages of a running stack, scraped every second."""
    config: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / name) for name in config["rule_files"]]
    (scraped,) = config["scrape_configs"]
    (found,) = scraped["file_sd_configs"]
    found["files"] = [str(targets)]
    return config


@contextmanager
def prometheus(program: str, config: dict[str, Any], folder: Path) -> Iterator[str]:
    """Runs a Prometheus on a free port of the loopback; answers its address."""
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    port = _free_port()
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def query(address: str, expression: str) -> list[Any]:
    """The instant vector of an expression; empty while Prometheus is starting."""
    url = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own loopback address
            result = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.SERVICE_UNAVAILABLE:
            return []
        raise SystemExit(f"Prometheus refuses {expression}: {error.read().decode()[:300]}") from None
    except OSError:
        return []
    values: list[Any] = result["data"]["result"]
    return [v for v in values if v["value"][1] != "NaN"]


def sound_alerts(address: str) -> set[str]:
    """The alerts that Prometheus has evaluated without a fault; most of them are silent, as they should be."""
    with urllib.request.urlopen(f"{address}/api/v1/rules?type=alert", timeout=5) as answer:  # noqa: S310 - as above
        groups = json.load(answer)["data"]["groups"]
    return {rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "ok"}


def check(address: str, use: Callable[[], None]) -> list[str]:
    """Uses the stack until every expression has a value; answers those that have none at the deadline."""
    missing = [*(f'up{{replica="{name}"}} == 1' for name in PROCESSES), *expressions()]
    deadline = time.monotonic() + DEADLINE_S
    uses = 0
    while missing and time.monotonic() < deadline:
        use()
        uses += 1
        missing = [expression for expression in missing if not query(address, expression)]
        time.sleep(0.5)
    while not (counted := query(address, f"{ANSWERED} == {PREDICTIONS_PER_USE * uses}")):
        if time.monotonic() >= deadline:
            break
        time.sleep(0.5)
    return missing if counted else [*missing, f"{ANSWERED} is not {PREDICTIONS_PER_USE * uses}"]


def of_one_process(address: str) -> list[str]:
    """The expressions whose values are told apart by process: what a service does is their sum."""
    labels = {"replica", "instance"}
    return [e for e in expressions() if any(labels & set(value["metric"]) for value in query(address, e))]


def main() -> int:
    """Runs the check; 0 when every expression has a value."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", default="prometheus", help="the program, or a path to it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="foresight-") as name:
        folder = Path(name)
        with (
            LocalStack(folder / "state", gateway_port=0, metrics_port=0, predictors=2, feature_stores=2) as stack,
            service.deployed(stack.state) as use,
            prometheus(arguments.prometheus, configuration(stack.state / "prometheus.json"), folder) as address,
        ):
            missing = check(address, use)
            missing += [f"of one process: {expression}" for expression in of_one_process(address)]
            missing += [f"alert {name}" for name in sorted(alerts() - sound_alerts(address))]
    for expression in missing:
        sys.stderr.write(f"no value: {expression}\n")
    total = len(expressions())
    sys.stdout.write(f"{total - len(missing)} of {total} dashboard expressions have values in a real Prometheus\n")
    return 1 if missing else 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
