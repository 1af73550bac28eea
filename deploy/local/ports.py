"""Ports on the loopback interface: the ones that are asked for, or free ones."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.local.state import StackError

LOOPBACK = "127.0.0.1"
DEFAULT_GATEWAY_PORT = 8443
DEFAULT_METRICS_PORT = 9464
# Below the range from which the kernel takes the ports of outgoing connections (32768 and up).
_FREE_PORTS = range(20_000, 32_000)
_TRIES = 200


@dataclass(frozen=True, slots=True)
class Ports:
    """The gateway's port and one metrics port per program."""

    gateway: int
    metrics: dict[str, int]


def choose_ports(gateway_port: int, metrics_port: int, programs: Sequence[str]) -> Ports:
    """Ports that nobody listens on. 0 chooses; else `metrics_port` is the first of as many as there are programs.

    Raises StackError that names a taken port and how to choose another one.
    """
    # All are held until all are known, so that none is chosen twice.
    with contextlib.ExitStack() as held:
        metrics = {
            name: _hold(held, metrics_port and metrics_port + offset, "--metrics-port")
            for offset, name in enumerate(programs)
        }
        return Ports(_hold(held, gateway_port, "--gateway-port"), metrics)


def _hold(held: contextlib.ExitStack, port: int, flag: str) -> int:
    if port > 65_535:
        raise StackError(f"there is no port {port}; choose a smaller one with {flag}")
    for candidate in [port] if port else random.sample(_FREE_PORTS, _TRIES):
        listener = held.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, candidate))
            # A bound socket alone does not keep another one with SO_REUSEADDR away.
            listener.listen()
        except PermissionError:
            raise StackError(f"port {port} needs rights that this user lacks; choose another one with {flag}") from None
        except OSError:
            continue
        return candidate
    if port:
        raise StackError(f"port {port} is taken by another program; choose another one with {flag} (0: any free one)")
    raise StackError("no free port was found")
