"""Which processes the services of a stack run in, and what each is called.

A service that runs in one process gives it its name; one that runs in several numbers them: `predictor-0`,
`predictor-1`. What belongs to one of them for good (a spool, a cache) is found by its number, also when there is
another number of processes the next time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

SERVICES = ("feature_store", "trainer", "predictor", "logger")
GATEWAY = "gateway"
# As many as the gateway and callers of a service take.
PROCESSES_MAX = 16


@dataclass(frozen=True, slots=True)
class ServiceProcess:
    """One process of a service; `name` is that of the program."""

    service: str
    number: int
    name: str

    @property
    def replica(self) -> str:
        """The name that it has in what it leaves behind, however many there are."""
        return f"{self.service}-{self.number}"


def service_processes(counts: Mapping[str, int]) -> dict[str, tuple[ServiceProcess, ...]]:
    """The processes of each service; one unless `counts` says otherwise. Raises ValueError."""
    processes = {}
    for service in SERVICES:
        count = counts.get(service, 1)
        if not 1 <= count <= PROCESSES_MAX:
            raise ValueError(f"{service} runs in 1 to {PROCESSES_MAX} processes")
        names = [service] if count == 1 else [f"{service}-{number}" for number in range(count)]
        processes[service] = tuple(ServiceProcess(service, number, name) for number, name in enumerate(names))
    return processes


def with_metrics(processes: Mapping[str, Iterable[ServiceProcess]]) -> list[str]:
    """The names of what has a metrics page, in the order of their ports: further processes come after the gateway, so
    that their number changes no other port."""
    each = [process for service in SERVICES for process in processes[service]]
    first = [process.name for process in each if process.number == 0]
    return [*first, GATEWAY, *(process.name for process in each if process.number)]
