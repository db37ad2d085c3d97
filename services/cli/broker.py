"""How a command reaches the broker, and says what is wrong when it does not."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, TypeVar

import click
from aiormq.tools import censor_url
from yarl import URL

from shared.amqp.connection import CONNECTION_ERRORS, BrokerConnection, connect, describe_error
from shared.amqp.publisher import Publisher
from shared.errors import RingbackError
from shared.process.configuration import configured
from shared.process.health import Health
from shared.settings import Settings
from shared.topology import topology

T = TypeVar("T")

NAME: Final = "ringback command"
# Seconds that a person waits for a broker which is not there, or does not take messages.
PATIENCE: Final = 5.0


def settings_here() -> Settings:
    """The shared settings; without a broker in them, that of `ringback up` in this checkout."""
    settings = configured()
    if "amqp_url" in settings.model_fields_set or (url := private_broker()) is None:
        return settings
    click.echo(f"Using the private RabbitMQ of this checkout, {url}", err=True)
    return settings.model_copy(update={"amqp_url": url})


def private_broker() -> str | None:
    """The URL of the private RabbitMQ of this checkout, if this is one and it runs."""
    try:
        from deploy.local.broker import Broker  # noqa: PLC0415 - not there outside a checkout
        from deploy.local.stack import DIRECTORY  # noqa: PLC0415
    except ImportError:
        return None
    broker = Broker(DIRECTORY / "broker")
    return broker.url if broker.pid else None


def private_database() -> str | None:
    """The URL of the private PostgreSQL of this checkout, if this is one and it runs."""
    try:
        from deploy.local.database import Database  # noqa: PLC0415 - not there outside a checkout
        from deploy.local.stack import DIRECTORY  # noqa: PLC0415
    except ImportError:
        return None
    database = Database(DIRECTORY / "database")
    return database.url if database.pid else None


def shown(url: str) -> str:
    """A URL without its password."""
    return str(censor_url(URL(url)))


def work(task: Coroutine[Any, Any, T]) -> T:
    """Run the command's task; errors that a person can mend become a line and exit code 1.

    SIGINT and SIGTERM cancel it, so that it can settle what is in flight.
    """
    logging.basicConfig(level=logging.CRITICAL)  # the command itself says what is wrong
    try:
        with asyncio.Runner() as runner:
            return runner.run(_cancellable(task))
    except asyncio.CancelledError:
        raise click.Abort from None
    except RingbackError as error:
        raise click.ClickException("\n".join(getattr(error, "faults", (str(error),)))) from None
    except CONNECTION_ERRORS as error:
        raise click.ClickException(f"the connection was lost: {describe_error(error)}") from error


async def _cancellable(task: Coroutine[Any, Any, T]) -> T:
    own = asyncio.current_task()
    assert own is not None  # noqa: S101 - a coroutine runs in a task
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, own.cancel)
    return await task


@asynccontextmanager
async def connection(settings: Settings) -> AsyncIterator[BrokerConnection]:
    """A connection to the broker.

    Raises:
        click.ClickException: there is none to be had.
    """
    async with AsyncExitStack() as stack:
        try:
            link = await stack.enter_async_context(connect(settings.amqp_url, name=NAME))
        except CONNECTION_ERRORS as error:
            url = shown(settings.amqp_url)
            raise unreachable(f"no connection to {url}: {describe_error(error)}") from None
        yield link


@asynccontextmanager
async def publishing(settings: Settings) -> AsyncIterator[Publisher]:
    """A publisher that is ready, with all queues declared.

    Raises:
        click.ClickException: there is no broker, or it blocks publishing.
        TopologyMismatchError: its queues are not ours.
    """
    health = Health()
    publisher = Publisher(
        settings.amqp_url, name=NAME, topology=topology(settings.queue_type), health=health
    )
    running = asyncio.create_task(publisher.run())
    ready = asyncio.create_task(publisher.ready())
    try:
        await asyncio.wait((running, ready), timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        if not ready.done():
            raise unreachable((health.fault or "it does not answer").removeprefix("publisher: "))
        yield publisher
    finally:
        for task in (running, ready):
            task.cancel()
        await asyncio.gather(running, ready, return_exceptions=True)


def unreachable(why: str) -> click.ClickException:
    """What to say, and how to mend it, when the broker can't be worked with."""
    return click.ClickException(
        f"RabbitMQ can't be worked with: {why}\n"
        "Name another with RINGBACK_AMQP_URL, or start a private one with `ringback up`;"
        " `ringback doctor` tells more."
    )
