"""How busy the event loop is, which says whether larger batches are worth a wait.

A larger batch saves CPU and nothing else. Where there is CPU left, a held batch only makes its callers wait, however
many they are; where there is none, the wait is shorter than the one for the CPU that it saves. What the loop's thread
spends per second is therefore measured, and not how many callers come: batches that are held have company by that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

# Of a core; the gRPC library's own threads take about a third of it beside.
BUSY = 0.5
SPAN_S = 0.1
# What is measured over less than this is mostly what the last batch took.
LEAST_S = 0.002


class Load:
    """CPU seconds per second of one thread, over about the last SPAN_S; used in that thread only."""

    def __init__(
        self, cpu: Callable[[], float] = time.thread_time, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._cpu = cpu
        self._clock = clock
        self._cpu_s, self._at = cpu(), clock()
        self._share = 0.0

    def busy(self) -> bool:
        """Whether the thread has been busy lately."""
        now = self._clock()
        elapsed = now - self._at
        if elapsed >= LEAST_S:
            cpu_s = self._cpu()
            share = (cpu_s - self._cpu_s) / elapsed
            self._share += (1 - math.exp(-elapsed / SPAN_S)) * (share - self._share)
            self._cpu_s, self._at = cpu_s, now
        return self._share >= BUSY
