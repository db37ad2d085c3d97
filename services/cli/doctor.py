"""`ringback doctor`: is everything there that Ringback needs? Says how to mend what is not."""

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

import click
from aiormq.abc import DeliveredMessage

from services.cli.broker import (
    broker_settings,
    connection,
    private_database,
    redacted_url,
    run_task,
)
from services.cli.run import settings_models
from shared.amqp.connection import CONNECTION_ERRORS, BrokerConnection, describe_error
from shared.amqp.declare import check
from shared.postgres.connection import StoreConnectionLostError, connect, without_password
from shared.postgres.migrations import Schema, SchemaMismatchError, pending
from shared.process.configuration import configured
from shared.registry import SERVICES
from shared.security.settings import SecuritySettings
from shared.settings import DATABASE_URL, Settings, load
from shared.topology import topology

OLDEST_RABBITMQ: Final = (3, 10)
OLDEST_POSTGRESQL: Final = 15
# Seconds that a clock may be off. Receivers refuse a signature that is five minutes old or ahead,
# and expiry is compared across machines; NTP keeps a clock within a fraction of one.
SKEW: Final = 5.0
# Characters. RFC 7518, 3.2: a key for HS256 is as long as its hash, or longer.
SHORTEST_KEY: Final = 32
# Seconds to wait for an answer.
PATIENCE: Final = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `mend` says what to do about a fault, or what could be better."""

    check: str
    ok: bool
    detail: str
    mend: str = ""

    def __str__(self) -> str:
        mend = f"\n         {self.mend}" if self.mend else ""
        return f"{'ok   ' if self.ok else 'FAULT'}  {self.check}: {self.detail}{mend}"


@click.command
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
def doctor(*, as_json: bool) -> None:
    """Check settings, Python, broker, topology, database, migrations, clocks; say how to mend each.

    Changes nothing. Exit code 1 if there is a fault.

    \b
    Example:
      RINGBACK_AMQP_URL=amqp://me:secret@rabbit.example:5672/ ringback doctor
    """
    configured(settings_models())
    settings = broker_settings()
    healthy = True

    async def examine() -> None:
        nonlocal healthy
        async for finding in _findings(settings):
            healthy &= finding.ok
            click.echo(json.dumps(asdict(finding)) if as_json else str(finding))

    run_task(examine())
    raise SystemExit(0 if healthy else 1)


async def _findings(settings: Settings) -> AsyncIterator[Finding]:
    yield Finding("settings", ok=True, detail="every value is right", mend=_advice())
    yield _python()
    try:
        async with connection(settings) as broker:
            yield _broker(settings, broker)
            async for finding in _topology(settings, broker):
                yield finding
        # On a connection of its own: in an alarm the broker stops reading from who publishes.
        async with connection(settings) as broker:
            async for finding in _publishing(broker):
                yield finding
    except (click.ClickException, *CONNECTION_ERRORS) as error:
        why = error.message if isinstance(error, click.ClickException) else describe_error(error)
        first, _, mend = why.partition("\n")
        yield Finding("broker", ok=False, detail=first, mend=mend)
    async for finding in _database(settings):
        yield finding


def _advice() -> str:
    """On a ticket key that can be guessed."""
    key = load(SecuritySettings).ticket_key
    if key is None or len(key.get_secret_value()) >= SHORTEST_KEY:
        return ""
    return (
        f"Could be safer: RINGBACK_TICKET_KEY has fewer than {SHORTEST_KEY} characters; make one:"
        " openssl rand -base64 32"
    )


def _python() -> Finding:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    try:
        return Finding("python", ok=True, detail=f"{python}, uvloop {version('uvloop')}")
    except PackageNotFoundError:
        mend = "Could be faster: pip install 'ringback[fast]' adds uvloop."
        return Finding("python", ok=True, detail=f"{python}, no uvloop", mend=mend)


def _broker(settings: Settings, broker: BrokerConnection) -> Finding:
    properties = broker.connection.server_properties
    product, number = _text(properties.get("product")), _text(properties.get("version"))
    detail = f"{product} {number} at {redacted_url(settings.amqp_url)}"
    found = tuple(int(part) for part in re.findall(r"\d+", number)[:2])
    if product == "RabbitMQ" and found < OLDEST_RABBITMQ:
        return Finding("broker", ok=False, detail=detail, mend="Ringback needs 3.10 or newer.")
    return Finding("broker", ok=True, detail=detail)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


async def _publishing(broker: BrokerConnection) -> AsyncIterator[Finding]:
    """Let a message expire in a queue of our own: the broker notes on it when that was."""
    alarm = False

    def blocked(on: bool) -> None:  # noqa: FBT001 - a callback's signature
        nonlocal alarm
        alarm = on

    broker.interceptor.on_blocked = blocked
    came: asyncio.Future[DeliveredMessage] = asyncio.get_running_loop().create_future()

    async def take(message: DeliveredMessage) -> None:
        if not came.done():
            came.set_result(message)

    channel = await broker.connection.channel()
    target = await channel.queue_declare(exclusive=True)
    lettering = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": target.queue}
    queue = await channel.queue_declare(exclusive=True, arguments={"x-message-ttl": 0, **lettering})
    await channel.basic_consume(str(target.queue), take, no_ack=True)
    try:
        async with asyncio.timeout(PATIENCE):
            # Twice: an alarm stops a connection only after its first message.
            await channel.basic_publish(b"", routing_key=str(queue.queue))
            await channel.basic_publish(b"", routing_key=str(queue.queue))
            message = await came
    except TimeoutError:
        yield Finding(
            "publishing",
            ok=False,
            detail="an alarm is on: the broker blocks publishing" if alarm else "no confirm came",
            mend="Free memory or disk space on the broker, see `rabbitmqctl status`; Ringback goes"
            " on by itself then.",
        )
        return
    yield Finding("publishing", ok=True, detail="confirmed; no alarm is on")
    deaths: Any = (message.header.properties.headers or {})["x-death"]
    yield _clock("the broker", deaths[0]["time"])


def _clock(whose: str, at: datetime) -> Finding:
    skew = at.timestamp() - time.time()
    if abs(skew) <= SKEW:
        return Finding("clock", ok=True, detail=f"{whose}'s and ours agree within {SKEW:.0f} s")
    return Finding(
        "clock",
        ok=False,
        detail=f"{whose}'s is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} ours",
        mend="Run NTP on both machines; `timedatectl` shows whether it is on.",
    )


async def _topology(settings: Settings, broker: BrokerConnection) -> AsyncIterator[Finding]:
    table = topology(settings.queue_type)
    differences = await check(broker.connection, table)
    for difference in differences:
        what, _, mend = difference.partition(": ")
        yield Finding("topology", ok=False, detail=what, mend=mend)
    if not differences:
        yield Finding(
            "topology", ok=True, detail=f"all {len(table.queues)} queues are as they should be"
        )


async def _database(settings: Settings) -> AsyncIterator[Finding]:
    url = settings.database_url or private_database()
    schemas = [Schema.of(spec.module) for spec in SERVICES.values() if spec.schema]
    if url is None:
        needing = ", ".join(schema.name for schema in schemas)
        yield Finding(
            "database",
            ok=not schemas,
            detail=f"none configured; {f'needed by {needing}' if needing else 'none is needed'}",
            mend=f"Set {DATABASE_URL}." if needing else "",
        )
        return
    try:
        async with connect(url, patience=PATIENCE) as connected:
            number = connected.get_server_version()
            detail = f"PostgreSQL {number.major}.{number.minor} at {without_password(url)}"
            if number.major < OLDEST_POSTGRESQL:
                mend = f"Ringback needs {OLDEST_POSTGRESQL} or newer."
                yield Finding("database", ok=False, detail=detail, mend=mend)
            else:
                yield Finding("database", ok=True, detail=detail)
            yield _clock("the database", await connected.fetchval("SELECT clock_timestamp()"))
            for schema in schemas:
                yield await _migrations(connected, schema)
    except StoreConnectionLostError as error:
        mend = f"Start PostgreSQL there, or set {DATABASE_URL}."
        yield Finding("database", ok=False, detail=str(error), mend=mend)


async def _migrations(connected: Any, schema: Schema) -> Finding:
    try:
        lacking = await pending(connected, schema)
    except SchemaMismatchError as error:
        first, *others = (fault.partition(": ") for fault in error.faults)
        more = f" (and {len(others)} more)" if others else ""
        return Finding("migrations", ok=False, detail=first[0] + more, mend=first[2])
    if lacking:
        detail = f"{schema.name} lacks {', '.join(map(str, lacking))}"
        return Finding("migrations", ok=False, detail=detail, mend="Run `ringback migrate`.")
    last = schema.migrations[-1]
    return Finding("migrations", ok=True, detail=f"{schema.name} is up to date, {last}")
