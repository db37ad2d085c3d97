"""`ringback doctor`: checks everything that Ringback needs, and explains how to fix it."""

import asyncio
import json
import platform
import re
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import aiohttp
import click
from aiormq.abc import DeliveredMessage

from services.cli.broker import (
    broker_settings,
    connection,
    private_database,
    run_task,
)
from services.cli.output import echo
from services.cli.run import settings_models
from services.console.settings import ConsoleSettings
from services.console.sign_in.errors import SignInError
from services.console.sign_in.provider import Provider
from shared.amqp.addresses import addresses, redacted
from shared.amqp.connection import CONNECTION_ERRORS, BrokerConnection, describe_error
from shared.amqp.declare import check
from shared.postgres.connection import StoreConnectionLostError, connect
from shared.postgres.migrations import Schema, SchemaMismatchError, pending
from shared.postgres.url import without_password
from shared.process.configuration import configured, unknown_variables
from shared.registry import SERVICES
from shared.security.settings import SecuritySettings
from shared.settings import DATABASE_URL, Settings, load
from shared.topology import topology

MIN_RABBITMQ: Final = (3, 10)
MIN_POSTGRESQL: Final = 15
# Largest difference between two clocks, in seconds. Receivers reject timestamps that differ by more
# than 5 minutes, and expiry is compared across machines. NTP keeps clocks within a fraction of a
# second.
MAX_SKEW: Final = 5.0
# Characters. RFC 7518, 3.2: a key for HS256 is at least as long as its hash.
MIN_KEY_LENGTH: Final = 32
# Seconds to wait for a response.
TIMEOUT: Final = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the report. `fix` explains how to resolve an error, or suggests an improvement."""

    check: str
    ok: bool
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        fix = f"\n         {self.fix}" if self.fix else ""
        return f"{'ok   ' if self.ok else 'ERROR'}  {self.check}: {self.detail}{fix}"


@click.command
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object per line.")
def doctor(*, as_json: bool) -> None:
    """Check settings, Python, broker, topology, database, migrations, clocks and sign-in.

    The report says how to fix each error. Nothing is changed. The exit code is 1 if there is an
    error.

    \b
    Example:
      RINGBACK_AMQP_URL=amqp://me:secret@rabbit.example:5672/ ringback doctor
    """
    configured(settings_models(), here=False)
    settings = broker_settings()
    healthy = True

    async def examine() -> None:
        nonlocal healthy
        async for finding in _findings(settings):
            healthy &= finding.ok
            echo(json.dumps(asdict(finding)) if as_json else str(finding))

    run_task(examine())
    raise SystemExit(0 if healthy else 1)


async def _findings(settings: Settings) -> AsyncIterator[Finding]:
    yield Finding("settings", ok=True, detail="all values are valid", fix=_advice())
    yield _python()
    nodes = [await _broker(settings, address) for address in addresses(settings.amqp_url)]
    for node in nodes:
        yield node
    if any(node.ok for node in nodes):
        async for finding in _queues(settings):
            yield finding
    async for finding in _database(settings):
        yield finding
    console = load(ConsoleSettings)
    if console.oidc_issuer is not None:
        yield await _sign_in(console, console.oidc_issuer)


def _advice() -> str:
    """Return a warning about unknown variables, or about a ticket key that is too short."""
    if unknown := unknown_variables():
        return f"Warning: {', '.join(unknown)} is not a setting. See config.example.toml."
    key = load(SecuritySettings).ticket_key
    if key is None or len(key.get_secret_value()) >= MIN_KEY_LENGTH:
        return ""
    return (
        f"Warning: RINGBACK_TICKET_KEY has fewer than {MIN_KEY_LENGTH} characters. Create a longer"
        " one: openssl rand -base64 32"
    )


def _python() -> Finding:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    try:
        return Finding("python", ok=True, detail=f"{python}, uvloop {version('uvloop')}")
    except PackageNotFoundError:
        fix = "To make it faster, install uvloop: pip install 'ringback[fast]'"
        return Finding("python", ok=True, detail=f"{python}, no uvloop", fix=fix)


async def _broker(settings: Settings, address: str) -> Finding:
    try:
        async with connection(settings.model_copy(update={"amqp_url": address})) as broker:
            properties = broker.connection.server_properties
    except click.ClickException as error:
        return _unusable(error)
    product, number = _text(properties.get("product")), _text(properties.get("version"))
    detail = f"{product} {number} at {redacted(address)}"
    found = tuple(int(part) for part in re.findall(r"\d+", number)[:2])
    if product == "RabbitMQ" and found < MIN_RABBITMQ:
        return Finding("broker", ok=False, detail=detail, fix="Ringback needs 3.10 or newer.")
    return Finding("broker", ok=True, detail=detail)


def _unusable(error: BaseException) -> Finding:
    reason = error.message if isinstance(error, click.ClickException) else describe_error(error)
    first, _, fix = reason.partition("\n")
    return Finding("broker", ok=False, detail=first, fix=fix)


async def _queues(settings: Settings) -> AsyncIterator[Finding]:
    try:
        async with connection(settings) as broker:
            async for finding in _topology(settings, broker):
                yield finding
        # A separate connection: during an alarm the broker stops reading from publishers.
        async with connection(settings) as broker:
            async for finding in _publishing(broker):
                yield finding
    except (click.ClickException, *CONNECTION_ERRORS) as error:
        yield _unusable(error)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


async def _publishing(broker: BrokerConnection) -> AsyncIterator[Finding]:
    """Check publishing and the broker's clock: a message expires in a queue of this check."""
    alarm = False

    def blocked(on: bool) -> None:  # noqa: FBT001 - a callback's signature
        nonlocal alarm
        alarm = on

    broker.interceptor.on_blocked = blocked
    received: asyncio.Future[DeliveredMessage] = asyncio.get_running_loop().create_future()

    async def receive(message: DeliveredMessage) -> None:
        if not received.done():
            received.set_result(message)

    channel = await broker.connection.channel()
    target = await channel.queue_declare(exclusive=True)
    dead_lettering = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": target.queue}
    queue = await channel.queue_declare(
        exclusive=True, arguments={"x-message-ttl": 0, **dead_lettering}
    )
    await channel.basic_consume(str(target.queue), receive, no_ack=True)
    try:
        async with asyncio.timeout(TIMEOUT):
            # Twice, because an alarm blocks a connection only after its first message.
            await channel.basic_publish(b"", routing_key=str(queue.queue))
            await channel.basic_publish(b"", routing_key=str(queue.queue))
            message = await received
    except TimeoutError:
        yield Finding(
            "publishing",
            ok=False,
            detail="the broker blocks publishing: an alarm is on" if alarm else "no confirm",
            fix="Free memory or disk space on the broker, see `rabbitmqctl status`. Ringback then"
            " continues by itself.",
        )
        return
    yield Finding("publishing", ok=True, detail="confirmed, no alarm")
    deaths: Any = (message.header.properties.headers or {})["x-death"]
    yield _clock("broker", deaths[0]["time"])


def _clock(server: str, at: datetime) -> Finding:
    skew = at.timestamp() - time.time()
    if abs(skew) <= MAX_SKEW:
        return Finding(
            "clock", ok=True, detail=f"{server} and this machine agree within {MAX_SKEW:.0f} s"
        )
    return Finding(
        "clock",
        ok=False,
        detail=f"{server} is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine",
        fix="Run NTP on both machines. `timedatectl` shows whether it is on.",
    )


async def _topology(settings: Settings, broker: BrokerConnection) -> AsyncIterator[Finding]:
    table = topology(settings.queue_type, backlog=settings.journal_backlog)
    differences = await check(broker.connection, table)
    for difference in differences:
        fault, _, fix = difference.partition(": ")
        yield Finding("topology", ok=False, detail=fault, fix=fix)
    if not differences:
        yield Finding("topology", ok=True, detail=f"all {len(table.queues)} queues are correct")


async def _database(settings: Settings) -> AsyncIterator[Finding]:
    url = settings.database_url or private_database()
    schemas = [Schema.of(spec.module) for spec in SERVICES.values() if spec.schema]
    if url is None:
        requiring = ", ".join(schema.name for schema in schemas)
        yield Finding(
            "database",
            ok=False,
            detail=f"not configured, but required by {requiring}",
            fix=f"Set {DATABASE_URL}.",
        )
        return
    try:
        async with connect(url, statement_timeout=TIMEOUT) as connected:
            number = connected.get_server_version()
            # asyncpg reads 17.12 as major 17, minor 0, micro 12.
            detail = f"PostgreSQL {number.major}.{number.micro} at {without_password(url)}"
            if number.major < MIN_POSTGRESQL:
                fix = f"Ringback needs {MIN_POSTGRESQL} or newer."
                yield Finding("database", ok=False, detail=detail, fix=fix)
            else:
                yield Finding("database", ok=True, detail=detail)
            yield _clock("database", await connected.fetchval("SELECT clock_timestamp()"))
            for schema in schemas:
                yield await _migrations(connected, schema)
    except StoreConnectionLostError as error:
        fix = f"Start PostgreSQL there, or set {DATABASE_URL}."
        yield Finding("database", ok=False, detail=str(error), fix=fix)


async def _sign_in(settings: ConsoleSettings, issuer: str) -> Finding:
    """Check the discovery document of the OpenID provider at which users of the console sign in."""
    async with aiohttp.ClientSession() as http:
        try:
            await Provider.of(settings, issuer, http).metadata()
        except SignInError as error:
            detail = f"{issuer}: {error}"
            return Finding("sign-in", ok=False, detail=detail, fix=error.reason.advice)
    return Finding("sign-in", ok=True, detail=f"the OpenID provider {issuer} responds")


async def _migrations(connected: Any, schema: Schema) -> Finding:
    try:
        waiting = await pending(connected, schema)
    except SchemaMismatchError as error:
        first, *others = (fault.partition(": ") for fault in error.faults)
        more = f" (and {len(others)} more)" if others else ""
        return Finding("migrations", ok=False, detail=first[0] + more, fix=first[2])
    if waiting:
        detail = f"{schema.name} lacks {', '.join(map(str, waiting))}"
        return Finding("migrations", ok=False, detail=detail, fix="Run `ringback migrate`.")
    last = schema.migrations[-1]
    return Finding("migrations", ok=True, detail=f"{schema.name} is up to date, {last}")
