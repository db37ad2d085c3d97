"""Publishes with confirms. A publish ends in one of three ways: confirmed, refused, or unknown."""

import asyncio
import random
import struct
from collections.abc import Iterable
from dataclasses import dataclass
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
from shared.amqp.frame_interceptor import InterceptedChannel
from shared.errors import InfrastructureError, RingbackError
from shared.process.health import Health
from shared.topology import Topology

# Seconds without a confirm after which a publish counts as unknown (row 2 of the fault table).
CONFIRM_TIMEOUT: Final = 5.0
# Seconds between two looks at what is overdue, or missing on the broker.
CHECK_INTERVAL: Final = 0.5


class PublishRefusedError(InfrastructureError):
    """Not taken: a full queue, no queue is bound, an alarm is on, or there is no connection."""


class PublishUnknownError(InfrastructureError):
    """No confirm came: the message may or may not be there. Publish it again."""


class UnpublishableError(RingbackError):
    """The message can never be published: its properties can't be encoded, or exceed a frame."""


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message to publish. With `mandatory`, reaching no queue is a refusal."""

    routing_key: str
    properties: Properties
    body: bytes
    exchange: str = ""
    mandatory: bool = True


@dataclass(slots=True)
class _Pending:
    message_id: str | None
    done: asyncio.Future[None]
    deadline: float


class _Session:
    """The publishes in flight on one channel; it ends with the channel."""

    def __init__(self, channel: InterceptedChannel) -> None:
        self.channel = channel
        self.pending: dict[int, _Pending] = {}  # ascending by tag
        self.unrouted = asyncio.Event()  # a queue or binding is missing
        self._last_tag = 0
        channel.on_confirm = self._confirmed
        channel.on_return = self._returned

    def send(self, frames: bytes, pending: _Pending) -> None:
        self._last_tag += 1
        self.pending[self._last_tag] = pending
        self.channel.write(frames)

    def fail(self, error: InfrastructureError, *, due_by: float = float("inf")) -> None:
        """Fail what is in flight and was due by then."""
        for pending in self.pending.values():
            if pending.deadline > due_by:
                break
            _fail(pending, error)

    def _confirmed(self, tag: int, multiple: bool, accepted: bool) -> None:  # noqa: FBT001
        tags = list(takewhile(lambda each: each <= tag, self.pending)) if multiple else [tag]
        for each in tags:
            pending = self.pending.pop(each, None)
            if pending is None or pending.done.done():
                continue
            if accepted:
                pending.done.set_result(None)
            else:
                _fail(
                    pending, PublishRefusedError("the broker refused the message: a queue is full")
                )

    def _returned(self, text: str, header: bytes) -> None:
        # A return precedes its confirm and tells the publish only by message_id. Where several
        # with that id are in flight, all fail: repeating one too many loses nothing.
        self.unrouted.set()
        message_id = codec.decode_properties(header).message_id
        for pending in self.pending.values():
            if pending.message_id == message_id:
                _fail(pending, PublishRefusedError(f"the message reached no queue: {text}"))


def new_id() -> str:
    """A new unique id for a message; not a secret, so the kernel is not asked for each."""
    return f"{random.getrandbits(128):032x}"


class Publisher:
    """One connection of its own to publish on, kept open by `run`.

    A connection of its own, because RabbitMQ stops reading from connections that publish while an
    alarm is on: acks on the consumer's connection must not wait behind that.
    """

    def __init__(self, url: str, *, name: str, topology: Topology, health: Health) -> None:
        self._url = url
        self._name = name
        self._topology = topology
        self._health = health
        health.expect("publisher")
        self._session: _Session | None = None
        self._blocked = False
        self._ready = asyncio.Event()

    async def run(self) -> None:
        """Keep the connection open until cancelled.

        Raises:
            TopologyMismatch: the broker's queues are not ours.
        """
        await keep_connected(
            self._url,
            name=self._name,
            part="publisher",
            health=self._health,
            session=self._publish_on,
        )

    async def ready(self) -> None:
        """Wait until publishing is possible: connected, and no alarm."""
        await self._ready.wait()

    def publish(self, message: OutgoingMessage) -> asyncio.Future[None]:
        """Hand the message to the broker. The future ends when the broker has answered for it.

        Nothing is sent again by itself: whoever awaits knows what a repeat would mean.

        Raises (from the future, the last from the call):
            PublishRefusedError: not taken.
            PublishUnknownError: connection lost, or no confirm in 5 s.
            UnpublishableError: can never be published.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        session = self._session
        if session is None:
            done.set_exception(PublishRefusedError("not connected to the broker"))
            return done
        if self._blocked:
            done.set_exception(PublishRefusedError("the broker blocks publishing: an alarm is on"))
            return done
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
        deadline = done.get_loop().time() + CONFIRM_TIMEOUT
        session.send(frames, _Pending(message.properties.message_id, done, deadline))
        return done

    async def publish_all(self, messages: Iterable[OutgoingMessage]) -> None:
        """Publish and wait for every confirm; the first failure is raised after all have ended."""
        results = await asyncio.gather(
            *(self.publish(message) for message in messages), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _publish_on(self, link: BrokerConnection) -> None:
        await declare(link.connection, self._topology)
        channel, intercepted = await link.channel(confirms=True)
        session = self._session = _Session(intercepted)
        link.interceptor.on_blocked = self._alarm
        self._alarm(blocked=False)
        try:
            await run_until_first_ends(
                wait_until_lost(channel), self._expire(session), self._mend(session, link)
            )
        finally:
            self._session = None
            self._ready.clear()
            session.fail(PublishUnknownError("the connection was lost before the confirm"))

    def _alarm(self, blocked: bool) -> None:  # noqa: FBT001 - a callback's signature
        self._blocked = blocked
        if blocked:
            self._ready.clear()
            self._health.down("publisher", "the broker blocks publishing: an alarm is on")
        else:
            self._ready.set()
            self._health.up("publisher")

    async def _expire(self, session: _Session) -> None:
        """Fail what has waited too long for its confirm."""
        overdue = PublishUnknownError(f"no confirm within {CONFIRM_TIMEOUT:.0f} seconds")
        while True:
            await asyncio.sleep(CHECK_INTERVAL)
            if not self._blocked:  # the broker has said that it will not read for a while
                session.fail(overdue, due_by=asyncio.get_running_loop().time())

    async def _mend(self, session: _Session, link: BrokerConnection) -> None:
        """Declare again what somebody has deleted."""
        while True:
            await session.unrouted.wait()
            session.unrouted.clear()
            await declare(link.connection, self._topology)
            await asyncio.sleep(CHECK_INTERVAL)


def _fail(pending: _Pending, error: InfrastructureError) -> None:
    if not pending.done.done():
        pending.done.set_exception(error)
        pending.done.exception()  # whoever has stopped waiting need not be told
