"""What processes are called, where their pages are, and how many there may be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.local.processes import PROCESSES_MAX, service_processes, with_metrics
from deploy.local.scraping import scrape_targets
from foresight.cli.app import app
from gateway.envoy import PROCESSES_MAX as GATEWAY_PROCESSES_MAX
from services.runtime.settings import ADDRESSES_MAX


def test_the_only_process_of_a_service_has_its_name_and_several_are_numbered() -> None:
    processes = service_processes({"predictor": 3})
    assert {service: [each.name for each in found] for service, found in processes.items()} == {
        "feature_store": ["feature_store"],
        "trainer": ["trainer"],
        "predictor": ["predictor-0", "predictor-1", "predictor-2"],
        "logger": ["logger"],
    }
    assert service_processes({})["predictor"][0].replica == processes["predictor"][0].replica == "predictor-0"


def test_further_processes_change_no_port_of_the_others() -> None:
    few, many = (with_metrics(service_processes({"predictor": n, "feature_store": n})) for n in (1, 3))
    assert few == ["feature_store", "trainer", "predictor", "logger", "gateway"]
    assert many[:5] == ["feature_store-0", "trainer", "predictor-0", "logger", "gateway"]
    assert set(many[5:]) == {"feature_store-1", "feature_store-2", "predictor-1", "predictor-2"}


@pytest.mark.parametrize("count", [0, PROCESSES_MAX + 1])
def test_there_are_so_many_processes_at_most(tmp_path: Path, count: int) -> None:
    with pytest.raises(ValueError, match=f"1 to {PROCESSES_MAX}"):
        service_processes({"predictor": count})
    for option in ("--predictors", "--feature-stores"):
        state = tmp_path / "state"
        assert CliRunner().invoke(app, ["up", "--state", str(state), option, str(count)]).exit_code == 2
        assert not state.exists()


def test_gateway_and_callers_take_as_many() -> None:
    assert len(service_processes({"predictor": PROCESSES_MAX})["predictor"]) == PROCESSES_MAX
    assert PROCESSES_MAX == GATEWAY_PROCESSES_MAX == ADDRESSES_MAX


def test_prometheus_finds_every_page_and_knows_whose_it_is() -> None:
    ports = {"feature_store": 1, "predictor-0": 2, "predictor-1": 3, "gateway": 4}
    services = {"feature_store": "feature_store", "predictor-0": "predictor", "predictor-1": "predictor"}
    groups = json.loads(json.dumps(scrape_targets("127.0.0.1", ports, services)))
    assert [group["targets"] for group in groups] == [[f"127.0.0.1:{port}"] for port in (1, 2, 3, 4)]
    assert [group["labels"] for group in groups] == [
        {"replica": "feature_store", "service": "feature_store"},
        {"replica": "predictor-0", "service": "predictor"},
        {"replica": "predictor-1", "service": "predictor"},
        {"replica": "gateway", "job": "gateway", "__metrics_path__": "/stats/prometheus"},
    ]
