"""Restarts programs of a running stack one after the other, each once the one before it is back in use.

A service's process drains: the gateway looks away before it ends. While a service runs in several processes, no call to
it fails; the calls to one that runs in a single process fail with UNAVAILABLE until it is back, and clients that repeat
them notice a delay. The gateway hands over to a new process of its own.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import time
from collections.abc import Callable, Sequence

from deploy.local.leftovers import recorded_births
from deploy.local.ports import LOOPBACK
from deploy.local.processes import GATEWAY, SERVICES
from deploy.local.scraping import GATEWAY_PAGE
from deploy.local.state import Json, StackError, StateFolder, read_json

TIMEOUT_S = 60.0
# Whoever is called by others comes before them.
ORDER = ("logger", "feature_store", "trainer", "predictor")
_POLL_S = 0.02
_HEALTHY = re.compile(r'envoy_cluster_membership_healthy\{envoy_cluster_name="(\w+)"\} (\d+)')


def restart(state: StateFolder, names: Sequence[str] = (), on_done: Callable[[str], None] = lambda name: None) -> None:
    """Restarts programs of these names, or all processes of services of these names, in the order of who needs whom;
    none: all services and the gateway. Raises StackError."""
    connection = read_json(state.connection)
    if connection is None:
        raise StackError(f"no stack is ready in {state.path}; `foresight up` starts one")
    for name in _chosen(connection, names):
        if name == GATEWAY:
            _replace_gateway(state)
        else:
            pid = program_pid(state, name)
            # One that has just ended by itself starts again as well.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            wait_restarted(state, name, pid)
            wait_in_use(connection)
        on_done(name)


def program_pid(state: StateFolder, name: str) -> int:
    """The process id of a program. Raises StackError while it has none."""
    births = recorded_births({"programs": {name: _program(state, name)}})
    if not births or births[0].process() is None:
        raise StackError(f"{name} is not running at the moment")
    return births[0].pid


def wait_restarted(state: StateFolder, name: str, pid: int, timeout_s: float = TIMEOUT_S) -> int:
    """Waits until a program is ready in another process than `pid`, and answers that one's id. Raises StackError."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        program = _program(state, name)
        if program["state"] == "ready" and program["pid"] not in (None, pid):
            return int(program["pid"])
        time.sleep(_POLL_S)
    raise StackError(f"{name} was not ready again within {timeout_s:g} s")


def _chosen(connection: Json, names: Sequence[str]) -> list[str]:
    processes: dict[str, list[str]] = connection["processes"]
    each = [name for service in ORDER for name in processes[service]] + [GATEWAY]
    if not names:
        return each
    wanted: set[str] = set()
    for name in names:
        found = processes.get(name, [name])
        if not set(found) <= set(each):
            raise StackError(f"{name} cannot be restarted; these can: {', '.join(dict.fromkeys([*SERVICES, *each]))}")
        wanted.update(found)
    return [name for name in each if name in wanted]


def _replace_gateway(state: StateFolder) -> None:
    pid, holder = program_pid(state, GATEWAY), state.holder()
    if holder is None:
        raise StackError(f"no stack runs in {state.path}")
    os.kill(holder, signal.SIGUSR1)
    wait_restarted(state, GATEWAY, pid)


def wait_in_use(connection: Json) -> None:
    """Returns when the gateway sends calls to every process: until then the next one must not leave.

    Raises StackError after TIMEOUT_S.
    """
    wanted = {service: len(names) for service, names in connection["processes"].items()}
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if wanted.items() <= _healthy(connection["metrics"][GATEWAY]).items():
            return
        time.sleep(_POLL_S)
    raise StackError(f"the gateway did not find every process within {TIMEOUT_S:g} s")


def _healthy(port: int) -> dict[str, int]:
    """How many processes of each service the gateway counts as healthy; empty while it does not answer."""
    page = http.client.HTTPConnection(LOOPBACK, port, timeout=5)
    try:
        page.request("GET", f"{GATEWAY_PAGE}?filter=membership_healthy")
        text = page.getresponse().read().decode()
    # It may end while it answers.
    except (OSError, http.client.HTTPException):
        return {}
    finally:
        page.close()
    return {name: int(count) for name, count in _HEALTHY.findall(text)}


def _program(state: StateFolder, name: str) -> Json:
    content = read_json(state.run)
    if content is None:
        raise StackError(f"the stack in {state.path} does not run")
    found: Json | None = content["programs"].get(name)
    if found is None:
        raise StackError(f"the stack in {state.path} has no program {name}, only {', '.join(content['programs'])}")
    return found
