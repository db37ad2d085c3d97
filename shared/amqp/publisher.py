"""Publishes with confirms. A publish ends in one of three ways: confirmed, refused, or unknown."""

import asyncio
import random
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Final

from shared.amqp import codec
from shared.amqp.codec import Properties
from shared.amqp.connection import (
    BrokerConnection,
    keep_connected,
    run_until_first_ends,
    wait_until_lost,
)
from shared.amqp.declare import declare
from shared.amqp.flow_control import FlowControl, fail
from shared.amqp.frame_interceptor import InterceptedChannel
from shared.errors import InfrastructureError, RingbackError
from shared.process.health import Health
from shared.topology import Topology

# Seconds without a confirm after which a publish counts as unknown (row 2 of the fault table).
CONFIRM_TIMEOUT: Final = 5.0
# Seconds between checks for overdue confirms and for missing queues.
CHECK_INTERVAL: Final = 0.5


class PublishRefusedError(InfrastructureError):
    """Not published: a full queue, no bound queue, an alarm, or no connection."""


class QueueFullError(PublishRefusedError):
    """Not in every queue: at least one is full. The others have the message."""


class PublishUnknownError(InfrastructureError):
    """Not confirmed: the message may or may not be in its queue. Publish it again."""


class UnpublishableError(RingbackError):
    """The message can never be published: its properties are not encodable or exceed a frame."""


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message to publish. If it is `mandatory` and reaches no queue, it is refused."""

    routing_key: str
    properties: Properties
    body: bytes
    exchange: str = ""
    mandatory: bool = True


@dataclass(slots=True)
class _Pending:
    message_id: str | None
    confirmed: asyncio.Future[None]
    deadline: float


class _Session:
    """The publishes in flight on one channel. It ends with the channel."""

    def __init__(self, channel: InterceptedChannel) -> None:
        self.channel = channel
        self.pending: dict[int, _Pending] = {}  # ascending by tag
        self.unrouted = asyncio.Event()  # a queue or binding is missing
        self.confirmed_at = asyncio.get_running_loop().time()
        self._last_tag = 0
        channel.on_confirm = self._confirmed
        channel.on_return = self._returned

    def send(self, frames: bytes, pending: _Pending) -> None:
        self._last_tag += 1
        self.pending[self._last_tag] = pending
        self.channel.write(frames)

    def fail(self, error: InfrastructureError, *, due_by: float = float("inf")) -> bool:
        """Fail and forget the publishes whose deadline is not later than `due_by`, if any."""
        pending = list(self.pending)
        overdue = list(takewhile(lambda tag: self.pending[tag].deadline <= due_by, pending))
        for tag in overdue:
            fail(self.pending.pop(tag).confirmed, error)
        return bool(overdue)

    def postpone(self, deadline: float) -> None:
        """Set the deadline of all publishes."""
        for pending in self.pending.values():
            pending.deadline = deadline

    def _confirmed(self, tag: int, multiple: bool, accepted: bool) -> None:  # noqa: FBT001 - as called
        self.confirmed_at = asyncio.get_running_loop().time()
        tags = list(takewhile(lambda each: each <= tag, self.pending)) if multiple else [tag]
        for each in tags:
            pending = self.pending.pop(each, None)
            if pending is None or pending.confirmed.done():
                continue
            if accepted:
                pending.confirmed.set_result(None)
            else:
                error = QueueFullError("the broker refused the message: a queue is full")
                fail(pending.confirmed, error)

    def _returned(self, text: str, header: bytes) -> None:
        # A return precedes its confirm and identifies the publish only by message_id. If several
        # with this id are in flight, all of them fail: a repeat loses nothing.
        self.unrouted.set()
        message_id = codec.decode_properties(header).message_id
        for pending in self.pending.values():
            if pending.message_id == message_id:
                error = PublishRefusedError(f"the message reached no queue: {text}")
                fail(pending.confirmed, error)


def new_id() -> str:
    """Return a new unique message id. It is not a secret, so it costs no system call."""
    return f"{random.getrandbits(128):032x}"


class Publisher:
    """Publishes on its own connection, which `run` keeps open.

    RabbitMQ stops reading from connections that publish while an alarm is on. The consumer's acks
    must not wait for that, so they use another connection. `part` names it in the health of a
    process with several publishers.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        topology: Topology,
        health: Health,
        part: str = "publisher",
    ) -> None:
        self._keep_connected = partial(keep_connected, url, name=name, part=part, health=health)
        self._topology = topology
        self._flow: FlowControl[_Session] = FlowControl(part, health)

    async def run(self) -> None:
        """Keep the connection open until cancelled.

        Raises:
            TopologyMismatchError: the broker's queues differ from `topology`.
        """
        await self._keep_connected(session=self._serve)

    async def ready(self) -> None:
        """Wait until messages can be published: connected, and no alarm is on."""
        await self._flow.ready()

    def publish(self, message: OutgoingMessage) -> asyncio.Future[None]:
        """Send the message. The future ends when the broker has confirmed or refused it.

        Nothing is sent twice: only the caller knows whether a repeat is harmless.

        Raises (from the future, the last one from the call):
            PublishRefusedError: not published.
            PublishUnknownError: the connection was lost, or no confirm arrived within 5 s.
            UnpublishableError: it can never be published.
        """
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        session = self._flow.session
        if session is None:
            confirmed.set_exception(PublishRefusedError(self._flow.fault))
            return confirmed
        try:
            frames = codec.encode_publish(
                session.channel.number,
                message.exchange,
                message.routing_key,
                message.properties,
                message.body,
                mandatory=message.mandatory,
                frame_max=session.channel.frame_max,
            )
        except (ValueError, TypeError, struct.error) as error:
            raise UnpublishableError(str(error)) from error
        deadline = confirmed.get_loop().time() + CONFIRM_TIMEOUT
        session.send(frames, _Pending(message.properties.message_id, confirmed, deadline))
        return confirmed

    async def publish_all(self, messages: Iterable[OutgoingMessage]) -> None:
        """Publish and wait for all confirms, then raise the first failure, if any."""
        results = await asyncio.gather(
            *(self.publish(message) for message in messages), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _serve(self, broker: BrokerConnection) -> None:
        await declare(broker.connection, self._topology)
        channel, intercepted = await broker.channel(confirms=True)
        session = _Session(intercepted)
        try:
            with self._flow.use(session, broker.interceptor):
                await run_until_first_ends(
                    wait_until_lost(channel),
                    self._fail_overdue(session),
                    self._declare_missing(session, broker),
                )
        finally:
            session.fail(PublishUnknownError("the connection was lost before the confirm"))

    async def _fail_overdue(self, session: _Session) -> None:
        """Fail publishes without a confirm at their deadline.

        Raises:
            ConnectionResetError: the channel is stuck. After the death of a queue's leader,
                RabbitMQ 3.10.8 may confirm nothing any more on a channel that used it.
        """
        while True:
            await asyncio.sleep(CHECK_INTERVAL)
            now = asyncio.get_running_loop().time()
            if self._flow.session is None:  # the broker reads no publish until the alarm ends
                session.postpone(now + CONFIRM_TIMEOUT)
            else:
                text = f"no confirm within {CONFIRM_TIMEOUT:.0f} seconds"
                overdue = session.fail(PublishUnknownError(text), due_by=now)
                if overdue and now - session.confirmed_at >= CONFIRM_TIMEOUT:
                    raise ConnectionResetError("the broker confirms nothing")

    async def _declare_missing(self, session: _Session, broker: BrokerConnection) -> None:
        """Declare the topology again after a message reached no queue."""
        while True:
            await session.unrouted.wait()
            session.unrouted.clear()
            await declare(broker.connection, self._topology)
            await asyncio.sleep(CHECK_INTERVAL)
