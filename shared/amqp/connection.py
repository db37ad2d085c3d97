"""A connection to RabbitMQ that is opened with backoff and opened again when it is lost."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import aiormq
import backoff
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.tools import censor_url
from prometheus_client import Counter
from yarl import URL

from shared.amqp.frame_interceptor import FrameInterceptor, InterceptedChannel, InterceptedTransport
from shared.process.health import Health

logger = logging.getLogger(__name__)

RECONNECTS: Final = Counter("amqp_reconnects", "Connections to RabbitMQ that were lost.")

# Seconds. A dead peer is noticed after three heartbeats; aiormq's 60 would take three minutes.
HEARTBEAT: Final = 10
CONNECT_TIMEOUT: Final = 10.0
# Short, because a service that is back within seconds loses no deadline; recovery is within 30 s.
MAX_BACKOFF: Final = 5.0
CLOSE_TIMEOUT: Final = 2.0

# aiormq raises these and, from its internals, RuntimeError when a connection dies in mid-call.
CONNECTION_ERRORS: Final = (
    aiormq.exceptions.AMQPError,
    OSError,
    TimeoutError,
    RuntimeError,
    asyncio.InvalidStateError,
)


@dataclass(frozen=True, slots=True)
class BrokerConnection:
    """One open connection, with the tap on its transport."""

    connection: AbstractConnection
    interceptor: FrameInterceptor

    async def channel(self, *, confirms: bool) -> tuple[AbstractChannel, InterceptedChannel]:
        """A new channel: aiormq's for everything rare, the tapped one for the content."""
        channel = await self.connection.channel(publisher_confirms=confirms)
        frame_max = self.connection.connection_tune.frame_max
        return channel, self.interceptor.channel(channel.number, frame_max)


def describe_error(error: BaseException) -> str:
    """An error as a few words; some of asyncio's and aiormq's have no text."""
    return str(error) or type(error).__name__


@asynccontextmanager
async def connect(url: str, *, name: str) -> AsyncIterator[BrokerConnection]:
    """One connection, tried once.

    Raises:
        one of CONNECTION_ERRORS: the broker is not there, refuses, or does not answer.
    """
    transport = InterceptedTransport()
    target = URL(url).update_query({"name": name, "heartbeat": HEARTBEAT})
    async with asyncio.timeout(CONNECT_TIMEOUT):
        connection = await aiormq.connect(target, transport_factory=transport)
    try:
        yield BrokerConnection(connection, transport.interceptor)
    finally:
        with suppress(*CONNECTION_ERRORS):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await connection.close()


async def keep_connected(
    url: str,
    *,
    name: str,
    part: str,
    health: Health,
    session: Callable[[BrokerConnection], Awaitable[None]],
) -> None:
    """Run `session` on an open connection; when the connection is lost, again on a new one.

    `session` marks the part up once it works. Returns when `session` returns. Waits between tries
    grow with jitter up to 5 s. Any error of another kind than a connection's ends it.
    """
    shown = censor_url(URL(url))

    def tell(details: Any) -> None:
        health.down(part, f"no connection to {shown}: {describe_error(details['exception'])}")

    @backoff.on_exception(
        backoff.expo,
        CONNECTION_ERRORS,
        factor=0.2,
        max_value=MAX_BACKOFF,
        on_backoff=tell,
        logger=None,
    )
    async def once() -> bool:
        """Whether the session ended by itself; False when an open connection was lost."""
        async with connect(url, name=name) as link:
            try:
                await session(link)
            except CONNECTION_ERRORS as error:
                why = describe_error(error)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                why = "the broker shows no sign of life"
            else:
                return True
            RECONNECTS.inc()
            health.down(part, f"connection to {shown} lost: {why}")
            return False

    while not await once():
        pass


def is_cancelled() -> bool:
    """Whether a CancelledError is meant for the running task.

    Else it is aiormq's: it raises one in whoever waits for a connection whose heartbeats fail.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def run_until_first_ends(*works: Coroutine[Any, Any, None]) -> None:
    """Run all until one ends, end the others, and raise what that one raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def wait_until_lost(channel: AbstractChannel) -> None:
    """Wait until the channel or its connection closes.

    Raises:
        one of CONNECTION_ERRORS: always, with the reason.
    """
    await channel.closing
    raise ConnectionResetError("the channel was closed")
