"""A stream pipeline over JetStream, as a process of its own that can be killed.

    python -m tests.nats_server.landings ADDRESS_OF_THE_FEATURE_STORE URL_OF_NATS STREAM BATCH_ROWS

Runs again after a failure, as a worker does, until it is killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc

from foresight.client import Aborted, Client, Connection, DataType, FeatureGroup, Field, Retry, Unavailable
from foresight.pipelines import Message, NatsSource, SourceError, Stream, run_stream, stream

T0 = datetime(2026, 3, 1, tzinfo=UTC)
SUBJECT = "landings"
GROUP = FeatureGroup("landings", (Field("flight", DataType.INT64),), (Field("delay", DataType.FLOAT64),))


def client_of(address: str) -> Client:
    """A client that talks to the feature store's own socket."""
    channel = grpc.insecure_channel(address, [("grpc.default_authority", "localhost")])
    return Client(connection=Connection(channel, address, Retry(20.0)))


def body(flight: int) -> bytes:
    """The message of a landing."""
    return json.dumps({"flight": flight, "delay": flight / 2}).encode()


def rows(messages: list[Message]) -> list[dict[str, Any]]:
    """One row per landing."""
    landed = [json.loads(message.data) for message in messages]
    return [{**landing, "event_time": T0 + timedelta(seconds=landing["flight"])} for landing in landed]


def declared(url: str, name: str, batch_rows: int, **options: Any) -> Stream:
    """The pipeline of a JetStream stream; both have the same name."""
    source = NatsSource(subject=f"{name}.{SUBJECT}", stream=name, servers=url, **{"durable": name, **options})
    return stream(group=GROUP.name, source=source, batch_rows=batch_rows, batch_s=0.02, name=name)(rows)


async def _run_for_ever(pipeline: Stream, client: Client) -> None:
    while True:
        try:
            await run_stream(pipeline, client)
        except (SourceError, Unavailable, Aborted) as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            await asyncio.sleep(0.05)


if __name__ == "__main__":
    address, url, name, batch_rows = sys.argv[1:]
    asyncio.run(_run_for_ever(declared(url, name, int(batch_rows)), client_of(address)))
