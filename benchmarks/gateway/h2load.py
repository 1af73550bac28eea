"""Load by h2load of Debian's nghttp2-client: the same call over and over, so many in flight or so many a second.

h2load takes an error of gRPC for a success: it goes by the HTTP status. Who uses it has to look at the answers by
another way.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks.peers.debian import H2LOAD, libraries, unpacked

WARM_SHARE = 0.2
# Of a call's message: not compressed, and its length.
_FRAME = struct.Struct(">BI")
OK = 200
TIMEOUT_S = 90.0
# More would be refused by a system that bounds its queue; the same for all.
IN_FLIGHT_MAX = 128
# From one call to the next it waits for whole milliseconds, rounded up; this is what it loses thereby.
ROUNDED_UP_MS = 0.4


@dataclass(frozen=True, slots=True)
class Load:
    """What became of `calls`: latencies of those that were answered in `seconds`, after the first ones."""

    calls: int
    seconds: float
    latencies_s: Sequence[float]

    @property
    def per_s(self) -> float:
        """Answers per second."""
        return len(self.latencies_s) / self.seconds

    def quantile_s(self, share: float) -> float:
        """The latency that this share of the answers did not exceed."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def parse_log(log: str, calls: int, warm_share: float = WARM_SHARE) -> Load:
    """What h2load wrote of each call: start (µs), HTTP status, latency (µs). The first `warm_share` does not count.

    Raises ValueError when not all calls were answered.
    """
    rows = [tuple(map(int, line.split("\t")[:3])) for line in log.splitlines()]
    answered = sorted((start + latency, latency) for start, status, latency in rows if status == OK)
    if len(answered) != calls:
        raise ValueError(f"{len(answered)} of {calls} calls were answered")
    warm = max(1, int(warm_share * calls))
    seconds = (answered[-1][0] - answered[warm - 1][0]) / 1e6
    return Load(calls, seconds, [latency / 1e6 for _, latency in answered[warm:]])


def poisson_script(url: str, per_s: float, seconds: float, seed: int) -> list[str]:
    """Calls at random moments, so many a second on average: a line each, its moment in ms and where it goes."""
    random = Random(seed)
    count = round(per_s * seconds)
    moments = sorted(random.uniform(0, 1e3 * seconds) for _ in range(count))
    lines, written, last = [], 0.0, 0
    for moment in map(int, moments):
        if moment > last:
            written += moment - last - ROUNDED_UP_MS
            last = moment
        lines.append(f"{written:.3f}\t{url}")
    return lines


class H2Load:
    """Runs h2load; `folder` takes its files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = unpacked("h2load", *H2LOAD)
        self._environment = libraries(self._program)

    def in_flight(self, url: str, message: bytes, in_flight: int, calls: int) -> Load:
        """Makes so many calls, of which so many are in flight."""
        return self._run(message, calls, "-m", str(in_flight), "-n", str(calls), url)

    def offered(self, url: str, message: bytes, per_s: float, seconds: float, seed: int) -> Load:
        """Makes calls at random moments, however many are under way up to IN_FLIGHT_MAX."""
        lines = poisson_script(url, per_s, seconds, seed)
        script = self._folder / "script"
        script.write_text("\n".join(lines) + "\n")
        return self._run(message, len(lines), "-m", str(IN_FLIGHT_MAX), f"--timing-script-file={script}")

    def _run(self, message: bytes, calls: int, *options: str) -> Load:
        body, log = self._folder / "message", self._folder / "calls"
        body.write_bytes(_FRAME.pack(0, len(message)) + message)
        log.unlink(missing_ok=True)
        headers = ("-H", "content-type: application/grpc", "-H", "te: trailers")
        command = [str(self._program / "usr" / "bin" / "h2load"), "-c", "1", "-d", str(body), f"--log-file={log}"]
        subprocess.run(
            [*command, *headers, *options],
            env=self._environment,
            check=True,
            timeout=TIMEOUT_S,
            stdout=subprocess.DEVNULL,
        )
        return parse_log(log.read_text(), calls)
