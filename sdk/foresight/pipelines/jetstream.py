"""NATS JetStream as a source. The client library is imported when a source is opened.

A message's position is its sequence number in the stream. What is delivered begins after the position that is stored
with the rows, in order: the consumer is made anew for each run. A consumer that outlived a killed run would deliver
what is new before what was lost, and the position would pass over the latter.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from foresight.pipelines.sources import Message, SourceError

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

CONNECT_TIMEOUT_S = 5.0
FETCH_S = 5.0
# Unacknowledged messages are not delivered again while a run is at work on them.
ACK_WAIT_S = 600.0
INACTIVE_S = 60.0


@dataclass(frozen=True, slots=True)
class NatsSource:
    """Messages of a subject in a JetStream stream.

    `durable`: the consumer's name, under which operators see how far it is; it belongs to the pipeline alone. Empty:
    one without a name, gone a minute after the run. `pending_max`: messages on their way or in memory, at most, and so
    at most in a batch. `options`: further arguments of `nats.connect`, such as `tls` or `user_credentials` (a file).

    The stream keeps messages by limits or as a work queue; not by interest, which a consumer that is made anew would
    lose. A work queue lets go of messages once their rows are committed.
    """

    subject: str
    stream: str
    durable: str = ""
    servers: str | Sequence[str] = "nats://127.0.0.1:4222"
    pending_max: int = 20_000
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @contextlib.asynccontextmanager
    async def open(self, after: int) -> AsyncIterator[NatsSubscription]:
        """Connects, and subscribes to what comes after a position. Raises SourceError."""
        import nats

        lost = asyncio.Event()

        async def note_loss(*_: object) -> None:
            lost.set()

        with _explained():
            connection = await nats.connect(
                self.servers if isinstance(self.servers, str) else list(self.servers),
                **{
                    **self.options,
                    "connect_timeout": CONNECT_TIMEOUT_S,
                    # A connection that broke may have lost messages: the run ends, and the next one begins at the
                    # position.
                    "allow_reconnect": False,
                    "max_reconnect_attempts": 1,
                    "reconnect_time_wait": 0.1,
                    "error_cb": note_loss,
                    "disconnected_cb": note_loss,
                },
            )
        # Of several servers the first may have been away.
        lost.clear()
        try:
            with _explained():
                subscription = await self._subscribe(connection, after)
            yield NatsSubscription(connection, subscription, lost, after)
        finally:
            with contextlib.suppress(nats.errors.Error, OSError):
                await connection.close()

    async def _subscribe(self, connection: NatsClient, after: int) -> JetStreamContext.PullSubscription:
        from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, RetentionPolicy
        from nats.js.errors import NotFoundError

        context = connection.jetstream()
        info = await context.stream_info(self.stream)
        if info.config.retention == RetentionPolicy.INTEREST:
            raise SourceError(f"the stream {self.stream} keeps messages by interest; limits or a work queue are needed")
        if info.state.last_seq < after:
            raise SourceError(
                f"the stream {self.stream} ends at {info.state.last_seq}, before the pipeline's position {after}:"
                " it was made anew; give the pipeline another name to begin with it"
            )
        if self.durable:
            with contextlib.suppress(NotFoundError):
                await context.delete_consumer(self.stream, self.durable)
        # A work queue has nothing that is done, and takes no other policy.
        all_there_is = info.config.retention == RetentionPolicy.WORK_QUEUE
        made = await context.add_consumer(
            self.stream,
            ConsumerConfig(
                durable_name=self.durable or None,
                deliver_policy=DeliverPolicy.ALL if all_there_is else DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=None if all_there_is else after + 1,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=ACK_WAIT_S,
                filter_subject=self.subject,
                max_ack_pending=self.pending_max,
                inactive_threshold=None if self.durable else INACTIVE_S,
            ),
        )
        return await context.pull_subscribe_bind(consumer=made.name, stream=self.stream)


class NatsSubscription:
    """An open consumer."""

    def __init__(
        self,
        connection: NatsClient,
        subscription: JetStreamContext.PullSubscription,
        lost: asyncio.Event,
        committed: int,
    ) -> None:
        self._connection = connection
        self._subscription = subscription
        self._lost = lost
        self._committed = committed
        self._delivered = 0
        # In memory until their rows are committed; as many as the consumer may have pending.
        self._unacknowledged: deque[tuple[int, Msg]] = deque()

    async def receive(self, limit: int) -> list[Message]:
        """Waits for messages and answers 1 to `limit` of them. Raises SourceError."""
        while True:
            fetching = asyncio.create_task(self._subscription.fetch(limit, FETCH_S))
            losing = asyncio.create_task(self._lost.wait())
            try:
                await asyncio.wait([fetching, losing], return_when=asyncio.FIRST_COMPLETED)
                if not fetching.done():
                    raise SourceError("the connection to NATS was lost")
                with _explained(), contextlib.suppress(TimeoutError):
                    return [self._taken(message) for message in await fetching]
            finally:
                for task in (fetching, losing):
                    task.cancel()
                await asyncio.gather(fetching, losing, return_exceptions=True)
            # Nothing came; what was acknowledged too late to be known is told again.
            await self.acknowledge(self._committed)

    async def acknowledge(self, position: int) -> None:
        """Acknowledges everything up to a position. Raises SourceError."""
        self._committed = max(self._committed, position)
        told = False
        with _explained():
            while self._unacknowledged and self._unacknowledged[0][0] <= self._committed:
                await self._unacknowledged.popleft()[1].ack()
                told = True
            if told:
                await self._connection.flush()

    def _taken(self, message: Msg) -> Message:
        sequence = message.metadata.sequence
        self._delivered += 1
        if sequence.consumer != self._delivered:
            raise SourceError(f"delivery {self._delivered} of the consumer did not arrive")
        self._unacknowledged.append((sequence.stream, message))
        return Message(sequence.stream, message.data, dict(message.headers or {}), message.subject)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Faults of NATS and of the way to it as SourceError."""
    from nats.errors import Error

    try:
        yield
    except (Error, OSError) as error:
        raise SourceError(f"NATS: {str(error) or type(error).__name__}") from error
