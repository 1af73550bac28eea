"""Ports: the ones asked for, or free ones, or a message that helps."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from deploy.local.ports import choose_ports
from deploy.local.state import StackError

PROGRAMS = ("a", "b", "c")


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_zero_chooses_different_free_ports() -> None:
    ports = choose_ports(0, 0, PROGRAMS)
    chosen = {ports.gateway, *ports.metrics.values()}
    assert len(chosen) == 4
    assert list(ports.metrics) == list(PROGRAMS)
    for port in chosen:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_metrics_ports_follow_one_another() -> None:
    first = choose_ports(0, 0, PROGRAMS).metrics["a"]
    metrics = choose_ports(0, first, ("a",)).metrics
    assert metrics == {"a": first}


def test_a_taken_port_is_named_with_the_flag_that_changes_it(taken: int) -> None:
    with pytest.raises(StackError, match=rf"port {taken} is taken.*--gateway-port"):
        choose_ports(taken, 0, PROGRAMS)
    with pytest.raises(StackError, match=rf"port {taken} is taken.*--metrics-port"):
        choose_ports(0, taken, PROGRAMS)
    with pytest.raises(StackError, match=rf"port {taken} is taken.*--metrics-port"):
        choose_ports(0, taken - 1, ("a", "b"))


def test_a_port_that_cannot_be_is_refused() -> None:
    with pytest.raises(StackError, match="no port 65536"):
        choose_ports(0, 65_535, ("a", "b"))
