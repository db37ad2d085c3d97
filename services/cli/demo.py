"""The first part of the demonstration of `ringback up`: four callbacks."""

import asyncio
import json
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

import aiohttp
import click
from aiormq.abc import DeliveredMessage

from services.cli.broker import connection, publishing
from services.cli.output import echo
from shared.amqp.codec import Properties
from shared.amqp.connection import BrokerConnection
from shared.amqp.dead_letters import parse_dead_letter
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, new_id
from shared.amqp.queue_browser import browse_queue
from shared.contracts.callback import SEND_CALLBACK, SendCallback
from shared.contracts.facts import CallbackAttemptFailed, CallbackDead, Fact, Facts
from shared.settings import Settings
from shared.topology import CALLBACKS, OUTCOMES, dead_queue

# The default secret of the sandbox's mailboxes.
SECRET: Final = "your-secret-key"  # noqa: S105 - public: the sandbox's default
# The metadata service of clouds, which holds credentials. Callbacks to it are forbidden.
FORBIDDEN: Final = "http://169.254.169.254/latest/meta-data/"
# Seconds: retry tiers of 1 s and 5 s, each at most half longer by jitter, on a slow machine.
DELIVERY_TIMEOUT: Final = 45
# Seconds until the scheduled callback is due.
SCHEDULE_DELAY: Final = 3


async def show_callbacks(settings: Settings, sandbox: str, gateway: str) -> str:
    """Deliver one callback, retry one, dead-letter one and schedule one, and print each step.

    Returns the id of the callback that is retried.

    Raises:
        TimeoutError: a step took too long.
    """
    run = uuid4().hex[:6]
    good, flaky, forbidden = (f"demo-{run}-{number}" for number in (1, 2, 3))
    echo(
        "\nDemonstration, part 1: signed callbacks (webhooks)\n"
        f"  1  a callback to {sandbox}/hooks/demo\n"
        f"  2  a callback to {sandbox}/hooks/flaky, which fails twice with 503\n"
        f"  3  a callback to {FORBIDDEN}, a forbidden address\n"
        f"  4  a callback scheduled over HTTP ({gateway}), due in {SCHEDULE_DELAY} seconds\n"
    )
    async with (
        asyncio.timeout(DELIVERY_TIMEOUT + 5),
        connection(settings) as broker,
        publishing(settings) as publisher,
        aiohttp.ClientSession(sandbox) as http,
    ):
        facts = await _consume_facts(broker)
        failing = {"behaviour": {"kind": "fail", "status": 503}, "times": 2, "per": "id"}
        async with http.put("/api/mailboxes/flaky", json=failing) as response:
            response.raise_for_status()
        await publisher.publish_all(
            [
                _callback(good, f"{sandbox}/hooks/demo"),
                _callback(flaky, f"{sandbox}/hooks/flaky"),
                _callback(forbidden, FORBIDDEN),
            ]
        )
        dead = asyncio.Event()
        printing = asyncio.create_task(_print_facts(facts, flaky, forbidden, dead))
        try:
            await asyncio.gather(
                _print_delivery(http, 1, "demo", good, attempts=1),
                _print_delivery(http, 2, "flaky", flaky, attempts=3),
                _print_dead_letter(broker, forbidden, dead),
                _schedule(http, gateway, f"{sandbox}/hooks/demo"),
            )
        finally:
            printing.cancel()
    return flaky


def _callback(callback_id: str, url: str) -> OutgoingMessage:
    command = SendCallback(
        target_url=url, hmac_secret=SECRET, payload={"hello": "world"}, id=callback_id
    )
    return OutgoingMessage(
        CALLBACKS,
        Properties(
            content_type="application/json",
            type=SEND_CALLBACK,
            message_id=new_id(),
            delivery_mode=PERSISTENT,
        ),
        command.model_dump_json(exclude_defaults=True).encode(),
    )


async def _consume_facts(broker: BrokerConnection) -> asyncio.Queue[Fact]:
    """Consume the facts about callbacks from now on."""
    facts: asyncio.Queue[Fact] = asyncio.Queue()

    async def receive(message: DeliveredMessage) -> None:
        for fact in Facts.model_validate_json(message.body).facts:
            facts.put_nowait(fact)

    channel = await broker.connection.channel(publisher_confirms=False)
    queue = str((await channel.queue_declare(exclusive=True)).queue)
    await channel.queue_bind(queue, OUTCOMES, "callback.#")
    await channel.basic_consume(queue, receive, no_ack=True)
    return facts


async def _print_facts(
    facts: asyncio.Queue[Fact], flaky: str, forbidden: str, dead: asyncio.Event
) -> None:
    """Print the failed attempts of `flaky`, and set `dead` when `forbidden` is dead-lettered."""
    while True:
        fact = await facts.get()
        if isinstance(fact, CallbackAttemptFailed) and fact.callback_id == flaky:
            delay = (fact.next_at - fact.at).total_seconds()
            _print(2, f"attempt {fact.attempt} failed: {fact.error}; next attempt in {delay:.1f} s")
        elif isinstance(fact, CallbackDead) and fact.callback_id == forbidden:
            dead.set()


async def _print_delivery(
    http: aiohttp.ClientSession, number: int, mailbox: str, callback_id: str, *, attempts: int
) -> None:
    """Wait for the last of these attempts at the sandbox, and print its result."""
    delivery = await _delivery(http, number, mailbox, callback_id, attempts=attempts)
    _print(
        number,
        f"attempt {delivery['attempt']} delivered: the receiver responded with "
        f"{delivery['status']}; {_signatures(delivery)}",
    )


async def _schedule(http: aiohttp.ClientSession, gateway: str, url: str) -> None:
    """Schedule a callback, and print how late it was delivered."""
    command = {
        "url": url,
        "delay": SCHEDULE_DELAY,
        "hmac_secret": SECRET,
        "context": {"hello": "again"},
    }
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{gateway}/v1/callbacks", json=command) as response,
    ):
        created = json.loads(await response.text())
        if not response.ok:
            raise click.ClickException(
                f"Cannot schedule callback 4: the gateway rejected it: {created['detail']}"
            )
    run_at = datetime.fromisoformat(created["run_at"])
    _print(4, f"scheduled for {run_at:%H:%M:%S.%f}"[:-3] + f" UTC, id {created['id']}")
    delivery = await _delivery(http, 4, "demo", created["id"], attempts=1)
    late = datetime.fromisoformat(delivery["received_at"]) - run_at
    milliseconds = late.total_seconds() * 1000
    _print(4, f"delivered {milliseconds:.0f} ms after it was due; {_signatures(delivery)}")


async def _delivery(
    http: aiohttp.ClientSession, number: int, mailbox: str, callback_id: str, *, attempts: int
) -> dict[str, Any]:
    """Wait until the sandbox has received `attempts` attempts, and return the last one."""
    query: dict[str, Any] = {"mailbox": mailbox, "webhook_id": callback_id, "count": attempts}
    query["timeout"] = DELIVERY_TIMEOUT
    async with http.get("/api/deliveries/wait", params=query) as response:
        waited = json.loads(await response.text())
    if not waited["complete"]:
        raise TimeoutError(
            f"the sandbox received callback {number} {waited['count']} times instead of {attempts}"
        )
    last: dict[str, Any] = waited["items"][0]
    return last


def _signatures(delivery: dict[str, Any]) -> str:
    if delivery["verified"]:
        return f"signatures verified ({', '.join(delivery['matched'])})"
    return f"signatures not valid: {'; '.join(delivery['faults'])}"


async def _print_dead_letter(
    broker: BrokerConnection, callback_id: str, dead: asyncio.Event
) -> None:
    """Wait until the callback is dead-lettered, and print the reason from its queue."""
    await dead.wait()
    async with browse_queue(broker, dead_queue(CALLBACKS)) as browser:
        async for delivery in browser:
            dead_letter = parse_dead_letter(delivery)
            if dead_letter.id == callback_id:
                _print(3, f"dead-lettered to {dead_queue(CALLBACKS)}: {dead_letter.reason}")
                return
    raise TimeoutError(f"callback 3 is not in the queue {dead_queue(CALLBACKS)}")


def _print(number: int, text: str) -> None:
    echo(f"  {number}  {text}")
