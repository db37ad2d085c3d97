"""Connections to RabbitMQ, opened with backoff and opened again when they are lost."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import aiormq
import backoff
from aiormq.abc import AbstractChannel, AbstractConnection
from prometheus_client import Counter
from yarl import URL

from shared.amqp.addresses import addresses, redacted
from shared.amqp.declare import TopologyMismatchError
from shared.amqp.frame_interceptor import FrameInterceptor, InterceptedChannel, InterceptedTransport
from shared.process.health import Health

logger = logging.getLogger(__name__)

RECONNECTS: Final = Counter("amqp_reconnects", "Lost connections to RabbitMQ.")

# Seconds. A dead peer is detected after three heartbeats; aiormq's 60 s would take three minutes.
HEARTBEAT: Final = 10
CONNECT_TIMEOUT: Final = 10.0
# Seconds. Short, because services must recover within 30 s of the broker's return.
MAX_BACKOFF: Final = 5.0
# Seconds after which a session counts as working. One that fails earlier, such as by a 403 for its
# queue, is repeated with a growing delay.
STABLE_TIME: Final = 5.0
CLOSE_TIMEOUT: Final = 2.0

# aiormq raises these, and its internals raise RuntimeError, when a connection dies during a call.
CONNECTION_ERRORS: Final = (
    aiormq.exceptions.AMQPError,
    OSError,
    TimeoutError,
    RuntimeError,
    asyncio.InvalidStateError,
)

C = TypeVar("C")


class NoConnectionError(ConnectionError):
    """No address accepts a connection. The text has each address and reason, and no password."""


class _UnstableSessionError(Exception):
    """A session failed soon after it had connected."""


@dataclass(frozen=True, slots=True)
class BrokerConnection:
    """An open connection and the interceptor of its frames."""

    connection: AbstractConnection
    interceptor: FrameInterceptor

    async def channel(self, *, confirms: bool) -> tuple[AbstractChannel, InterceptedChannel]:
        """Open a channel: aiormq's for rare methods, the intercepted one for messages."""
        channel = await self.connection.channel(publisher_confirms=confirms)
        frame_max = self.connection.connection_tune.frame_max
        return channel, self.interceptor.channel(channel.number, frame_max)


def describe_error(error: BaseException) -> str:
    """Return the error's text, or its type: some errors of asyncio and aiormq have no text."""
    if isinstance(error, aiormq.exceptions.InvalidFrameError):
        # RabbitMQ closes the connection instead of opening the virtual host. aiormq drops its text.
        return "the virtual host in the URL does not exist, or this user may not use it"
    return str(error) or type(error).__name__


async def connect_to_first(order: Iterable[str], connect: Callable[[str], Awaitable[C]]) -> C:
    """Return a connection to the first of these addresses that accepts one.

    Raises:
        NoConnectionError: there is none.
    """
    reasons = []
    for url in order:
        try:
            return await connect(url)
        except CONNECTION_ERRORS as error:
            reasons.append(f"no connection to {redacted(url)}: {describe_error(error)}")
    raise NoConnectionError("; ".join(reasons))


@asynccontextmanager
async def connect(url: str, *, name: str) -> AsyncIterator[BrokerConnection]:
    """Open one connection: try each address of `url` once, in a random order.

    Raises:
        NoConnectionError: each address is unreachable, refuses, or does not respond.
    """
    async with _connect(_shuffled(url), name=name) as broker:
        yield broker


def _shuffled(urls: str) -> deque[str]:
    """Return the addresses in a random order, so that connections are spread over the nodes."""
    order = list(addresses(urls))
    random.shuffle(order)
    return deque(order)


@asynccontextmanager
async def _connect(order: deque[str], *, name: str) -> AsyncIterator[BrokerConnection]:
    """Try each address once. Those that were tried move to the end, the connected one last."""

    async def open_connection(url: str) -> BrokerConnection:
        order.rotate(-1)
        transport = InterceptedTransport()
        target = URL(url).update_query({"name": name, "heartbeat": HEARTBEAT})
        async with asyncio.timeout(CONNECT_TIMEOUT):
            connection = await aiormq.connect(target, transport_factory=transport)
        return BrokerConnection(connection, transport.interceptor)

    broker = await connect_to_first(tuple(order), open_connection)
    try:
        yield broker
    finally:
        with suppress(*CONNECTION_ERRORS):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await broker.connection.close()


async def keep_connected(
    url: str,
    *,
    name: str,
    part: str,
    health: Health,
    session: Callable[[BrokerConnection], Awaitable[None]],
) -> None:
    """Run `session` on an open connection, and again on a new one when the connection is lost.

    A lost connection is replaced by one to the next address. The session reports the part as up
    once it works. When no address accepts a connection, the delay to the next attempt grows, with
    jitter, up to 5 s, and starts again after a session of 5 s. Returns when a session returns.

    Errors other than CONNECTION_ERRORS are raised. A TopologyMismatchError is raised until the part
    has been up. Later, the queues of a process that works are not a reason to end it.
    """
    order = _shuffled(url)
    was_up = False

    def report(details: Any) -> None:
        if not isinstance(details["exception"], _UnstableSessionError):
            health.down(part, str(details["exception"]))

    @backoff.on_exception(
        backoff.expo,
        (NoConnectionError, _UnstableSessionError),
        factor=0.2,
        max_value=MAX_BACKOFF,
        on_backoff=report,
        logger=None,
    )
    async def run_session() -> bool:
        """Return whether the session has returned, rather than lost its connection."""
        nonlocal was_up
        async with _connect(order, name=name) as broker:
            used, started = order[-1], time.monotonic()
            reason = await _run(session, broker, mismatch_ends=not was_up)
            if reason is None:
                return True
            was_up = was_up or health.is_up(part)
            RECONNECTS.inc()
            health.down(part, f"connection to {redacted(used)} lost: {reason}")
            if time.monotonic() - started < STABLE_TIME:
                raise _UnstableSessionError
            return False

    while not await run_session():
        pass


async def _run(
    session: Callable[[BrokerConnection], Awaitable[None]],
    broker: BrokerConnection,
    *,
    mismatch_ends: bool,
) -> str | None:
    """Run a session, and return why its connection was lost, or None if it has returned."""
    try:
        await session(broker)
    except CONNECTION_ERRORS as error:
        return describe_error(error)
    except TopologyMismatchError as error:
        if mismatch_ends:
            raise
        return str(error)
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        return "missed heartbeats"
    return None


def is_cancelled() -> bool:
    """Return whether a CancelledError is meant for the running task.

    aiormq also raises it in tasks that wait on a connection whose heartbeats fail.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def run_until_first_ends(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run all until the first one ends, cancel the others, and raise the first one's error."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
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
