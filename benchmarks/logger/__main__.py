"""How many single predictions a second the logger stores, and what one costs the logger and PostgreSQL.

One shipper sends batch after batch, each when the one before is durable: small ones, as a predictor under moderate
load gathers them, and full ones. CPU is that of the processes, from /proc, per record. `make bench-logger`
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from dataclasses import dataclass

import grpc

from benchmarks.logger.processes import LoggerProcess, running_logger
from benchmarks.logger.records import Shipment
from benchmarks.results import Result, publish
from foresight.logger.v1 import prediction_log_pb2

APPEND = "/foresight.logger.v1.PredictionLogService/AppendRecords"
ROUNDS = 5
# Records in all, and in one request.
LOADS = ((5_000, 50), (20_000, 500))
PER_S_MIN, LOGGER_US_MAX = 10_000, 40


@dataclass(frozen=True, slots=True)
class Round:
    """What one record took: seconds until it was durable, CPU microseconds."""

    seconds: float
    logger_us: float
    postgres_us: float


async def measured_round(running: LoggerProcess, shipment: Shipment, records: int, batch: int) -> Round:
    """Ships `records` predictions in requests of `batch`."""
    requests = [shipment.request(batch) for _ in range(records // batch)]
    async with running.channel() as channel:
        append: grpc.aio.UnaryUnaryMultiCallable[bytes, prediction_log_pb2.AppendRecordsResponse]
        append = channel.unary_unary(APPEND, response_deserializer=prediction_log_pb2.AppendRecordsResponse.FromString)
        await append(b"")
        before, started = running.cpu_s(), time.perf_counter()
        appended = 0
        for request in requests:
            appended += (await append(request, timeout=10)).appended
        seconds, after = time.perf_counter() - started, running.cpu_s()
    if appended != records:
        raise RuntimeError(f"{appended} of {records} records were appended")
    logger_us, postgres_us = (1e6 * (b - a) / records for a, b in zip(before, after, strict=True))
    return Round(seconds / records, logger_us, postgres_us)


async def measure(running: LoggerProcess, rounds: int = ROUNDS) -> list[Result]:
    """All figures; medians of the rounds, in which the sizes of batches take turns."""
    shipment = Shipment()
    await measured_round(running, shipment, 2_000, 100)
    found: dict[int, list[Round]] = {batch: [] for _, batch in LOADS}
    for _ in range(rounds):
        for records, batch in LOADS:
            found[batch].append(await measured_round(running, shipment, records, batch))
    results = []
    for batch, of in found.items():
        most = batch == max(found)
        per_s = 1 / statistics.median(r.seconds for r in of)
        logger_us = statistics.median(r.logger_us for r in of)
        named = f"single predictions, {batch} a request"
        results += [
            Result(f"{named}: appended", per_s, "1/s", at_least=PER_S_MIN if most else None),
            Result(f"{named}: CPU of the logger", logger_us, "us each", at_most=LOGGER_US_MAX),
            Result(f"{named}: CPU of PostgreSQL", statistics.median(r.postgres_us for r in of), "us each"),
        ]
    return results


def main() -> int:
    """Measures and publishes."""
    with running_logger() as running:
        results = asyncio.run(measure(running, int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS))
    publish("logger", results)
    return 0 if all(result.holds for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
