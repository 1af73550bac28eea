"""The metrics pages of a stack in the form that Prometheus reads from a file, one target per process.

Every process has a page of its own, and its series carry the name of the process as `replica`. Sums over `replica` are
those of the service.
"""

from __future__ import annotations

from collections.abc import Mapping

from deploy.local.processes import GATEWAY
from deploy.local.state import Json

GATEWAY_PAGE = "/stats/prometheus"


def scrape_targets(host: str, ports: Mapping[str, int], services: Mapping[str, str]) -> list[Json]:
    """Target groups of `file_sd_configs`; `services` names the service of each process."""
    groups: list[Json] = []
    for name, port in ports.items():
        labels = {"replica": name}
        if name == GATEWAY:
            labels |= {"job": GATEWAY, "__metrics_path__": GATEWAY_PAGE}
        else:
            labels["service"] = services[name]
        groups.append({"targets": [f"{host}:{port}"], "labels": labels})
    return groups
