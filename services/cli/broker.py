"""Connects commands to the broker, and reports errors to the user."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeVar

import click

from shared.amqp.connection import (
    CONNECTION_ERRORS,
    BrokerConnection,
    NoConnectionError,
    connect,
    describe_error,
)
from shared.amqp.publisher import Publisher
from shared.amqp.rpc_client import RpcClient
from shared.errors import RingbackError
from shared.process.configuration import configured
from shared.process.health import Health
from shared.settings import Settings
from shared.topology import topology

T = TypeVar("T")

NAME: Final = "ringback command"
# Seconds until a command reports that the broker is unavailable or blocks publishing.
BROKER_TIMEOUT: Final = 5.0


def broker_settings() -> Settings:
    """Return the shared settings. Without a broker URL, use the broker of `ringback up`."""
    settings = configured()
    if "amqp_url" in settings.model_fields_set or (url := private_broker()) is None:
        return settings
    click.echo(f"Using the private RabbitMQ of this checkout, {url}", err=True)
    return settings.model_copy(update={"amqp_url": url})


def private_broker() -> str | None:
    """Return the URL of the RabbitMQ of `ringback up` in this checkout, or None."""
    try:
        from deploy.local.broker import Broker  # noqa: PLC0415 - only in a checkout
        from deploy.local.stack import DIRECTORY  # noqa: PLC0415
    except ImportError:
        return None
    broker = Broker(DIRECTORY / "broker")
    return broker.url if broker.pid else None


def private_database() -> str | None:
    """Return the URL of the PostgreSQL of `ringback up` in this checkout, or None."""
    try:
        from deploy.local.database import Database  # noqa: PLC0415 - only in a checkout
        from deploy.local.stack import DIRECTORY  # noqa: PLC0415
    except ImportError:
        return None
    database = Database(DIRECTORY / "database")
    return database.url if database.pid else None


def private_gateway() -> str | None:
    """Return the URL of the gateway of `ringback up` in this checkout, or None."""
    try:
        from deploy.local.stack import gateway_url  # noqa: PLC0415 - only in a checkout
    except ImportError:
        return None
    return gateway_url()


def run_task(task: Coroutine[Any, Any, T]) -> T:
    """Run the command's task. Expected errors are printed as one line, with exit code 1.

    SIGINT and SIGTERM cancel the task, so that it can finish messages in flight.
    """
    logging.basicConfig(level=logging.CRITICAL)  # the command prints errors itself
    try:
        with asyncio.Runner() as runner:
            return runner.run(_cancellable(task))
    except asyncio.CancelledError:
        raise click.Abort from None
    except RingbackError as error:
        raise click.ClickException("\n".join(getattr(error, "faults", (str(error),)))) from None
    except CONNECTION_ERRORS as error:
        raise click.ClickException(f"Connection lost: {describe_error(error)}") from error


async def _cancellable(task: Coroutine[Any, Any, T]) -> T:
    own = asyncio.current_task()
    assert own is not None  # noqa: S101 - a coroutine runs in a task
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, own.cancel)
    return await task


@asynccontextmanager
async def connection(settings: Settings) -> AsyncIterator[BrokerConnection]:
    """Open a connection to the broker.

    Raises:
        click.ClickException: the broker is unavailable.
    """
    async with AsyncExitStack() as stack:
        try:
            broker = await stack.enter_async_context(connect(settings.amqp_url, name=NAME))
        except NoConnectionError as error:
            raise unreachable(str(error)) from None
        yield broker


@asynccontextmanager
async def publishing(settings: Settings) -> AsyncIterator[Publisher]:
    """Start a publisher, and wait until it is ready and all queues are declared.

    Raises:
        click.ClickException: the broker is unavailable, or blocks publishing.
        TopologyMismatchError: the broker's queues differ from the topology.
    """
    health = Health()
    table = topology(settings.queue_type, backlog=settings.journal_backlog)
    publisher = Publisher(settings.amqp_url, name=NAME, topology=table, health=health)
    running = asyncio.create_task(publisher.run())
    ready = asyncio.create_task(publisher.ready())
    try:
        await asyncio.wait(
            (running, ready), timeout=BROKER_TIMEOUT, return_when=asyncio.FIRST_COMPLETED
        )
        if running.done():
            running.result()
        if not ready.done():
            raise unreachable((health.fault or "no response").removeprefix("publisher: "))
        yield publisher
    finally:
        for task in (running, ready):
            task.cancel()
        await asyncio.gather(running, ready, return_exceptions=True)


@asynccontextmanager
async def requesting(settings: Settings) -> AsyncIterator[RpcClient]:
    """Start a client of the services, and wait until it is ready.

    Raises:
        click.ClickException: the broker is unavailable, or blocks publishing.
    """
    health = Health()
    client = RpcClient(settings.amqp_url, name=NAME, health=health)
    running = asyncio.create_task(client.run())
    try:
        try:
            async with asyncio.timeout(BROKER_TIMEOUT):
                await client.ready()
        except TimeoutError:
            fault = health.fault or "no response"
            raise unreachable(fault.removeprefix("broker: ")) from None
        yield client
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def unreachable(reason: str) -> click.ClickException:
    """Return the error for a broker that a command cannot use."""
    return click.ClickException(
        f"Cannot use RabbitMQ: {reason}\n"
        "Set RINGBACK_AMQP_URL, start a private broker with `ringback up`,"
        " or check the environment with `ringback doctor`."
    )
