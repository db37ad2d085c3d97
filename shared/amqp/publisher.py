"""Publishes with confirms. A publish ends in one of three ways: confirmed, refused, or unknown."""

import asyncio
import random
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from shared.amqp import codec, spans
from shared.amqp.codec import Properties
from shared.amqp.confirms import CONFIRM_TIMEOUT, Confirms, Replacements
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
from shared.tracing import active

# Seconds between two declarations of queues that are missing.
DECLARE_INTERVAL: Final = 0.5


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
class _Publish:
    message_id: str | None
    confirmed: asyncio.Future[None]


class _Session:
    """The publishes in flight on one channel. It ends with the channel."""

    def __init__(self, channel: InterceptedChannel, replacements: Replacements) -> None:
        self.channel = channel
        self.unrouted = asyncio.Event()  # a queue or binding is missing
        self.confirms = Confirms(channel, replacements, confirmed=_confirmed, overdue=_overdue)
        channel.on_return = self._returned

    def close(self) -> None:
        """Fail the publishes in flight."""
        error = PublishUnknownError("the connection was lost before the confirm")
        for publish in self.confirms.unconfirmed():
            fail(publish.confirmed, error)

    def _returned(self, text: str, header: bytes) -> None:
        # A return precedes its confirm and identifies the publish only by message_id. If several
        # with this id are in flight, all of them fail: a repeat loses nothing.
        self.unrouted.set()
        message_id = codec.decode_properties(header).message_id
        for publish in self.confirms.unconfirmed():
            if publish.message_id == message_id:
                error = PublishRefusedError(f"the message reached no queue: {text}")
                fail(publish.confirmed, error)


def _confirmed(publish: _Publish, accepted: bool) -> None:  # noqa: FBT001 - as called
    if publish.confirmed.done():
        return
    if accepted:
        publish.confirmed.set_result(None)
    else:
        fail(publish.confirmed, QueueFullError("the broker refused the message: a queue is full"))


def _overdue(publish: _Publish) -> None:
    text = f"no confirm within {CONFIRM_TIMEOUT:.0f} seconds"
    fail(publish.confirmed, PublishUnknownError(text))


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
        self._replacements = Replacements()

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
        if active.tracer is None:
            return self._send(message)
        return spans.publish(active.tracer, message, self._send)

    async def publish_all(self, messages: Iterable[OutgoingMessage]) -> None:
        """Publish and wait for all confirms, then raise the first failure, if any."""
        results = await asyncio.gather(
            *(self.publish(message) for message in messages), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _send(self, message: OutgoingMessage) -> asyncio.Future[None]:
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
        publish = _Publish(message.properties.message_id, confirmed)
        session.confirms.send(frames, message.routing_key, publish)
        return confirmed

    async def _serve(self, broker: BrokerConnection) -> None:
        await declare(broker.connection, self._topology)
        channel, intercepted = await broker.channel(confirms=True)
        session = _Session(intercepted, self._replacements)
        try:
            with self._flow.use(session, broker.interceptor):
                await run_until_first_ends(
                    wait_until_lost(channel),
                    session.confirms.watch(self._flow),
                    self._declare_missing(session, broker),
                )
        finally:
            session.close()

    async def _declare_missing(self, session: _Session, broker: BrokerConnection) -> None:
        """Declare the topology again after a message reached no queue."""
        while True:
            await session.unrouted.wait()
            session.unrouted.clear()
            await declare(broker.connection, self._topology)
            await asyncio.sleep(DECLARE_INTERVAL)
