"""Checks the monitoring against the real thing: a real Prometheus scrapes a live stack that is in use, and every
expression of the Grafana dashboard must evaluate there to at least one value, and every alert without a fault.

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
SERVICES = ("feature_store", "trainer", "predictor", "logger")


def expressions() -> list[str]:
    """Every expression of the dashboard."""
    dashboard = json.loads(DASHBOARD.read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def alerts() -> set[str]:
    """The names of all alerts."""
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return {rule["alert"] for group in groups for rule in group["rules"]}


def configuration(metrics: dict[str, int]) -> dict[str, Any]:
    """The shipped scrape configuration with the ports of a running stack, scraped every second."""
    config: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / name) for name in config["rule_files"]]
    services, gateway = config["scrape_configs"]
    for static in services["static_configs"]:
        static["targets"] = [f"127.0.0.1:{metrics[static['labels']['service']]}"]
    gateway["static_configs"][0]["targets"] = [f"127.0.0.1:{metrics['gateway']}"]
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
    missing = ['up{job="gateway"} == 1', *(f'up{{service="{s}"}} == 1' for s in SERVICES), *expressions()]
    deadline = time.monotonic() + DEADLINE_S
    while missing and time.monotonic() < deadline:
        use()
        missing = [expression for expression in missing if not query(address, expression)]
        time.sleep(0.5)
    return missing


def main() -> int:
    """Runs the check; 0 when every expression has a value."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", default="prometheus", help="the program, or a path to it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="foresight-") as name:
        folder = Path(name)
        with (
            LocalStack(folder / "state", gateway_port=0, metrics_port=0) as stack,
            service.deployed(stack.state) as use,
            prometheus(arguments.prometheus, configuration(stack.metrics_ports), folder) as address,
        ):
            missing = check(address, use)
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
