"""The demonstration of `ringback up`: four callbacks, told as they happen."""

import asyncio
import json
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

import aiohttp
import click
from aiormq.abc import DeliveredMessage

from services.cli.broker import connection, publishing
from services.cli.dead_letters import read
from services.cli.queue_browser import browse_queue
from shared.amqp.codec import Properties
from shared.amqp.connection import BrokerConnection
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, new_id
from shared.contracts.callback import SEND_CALLBACK, SendCallback
from shared.contracts.facts import CallbackAttemptFailed, CallbackDead, Fact, Facts
from shared.settings import Settings
from shared.topology import CALLBACKS, OUTCOMES, dead_queue

# The secret that a mailbox of the sandbox checks unless told otherwise.
SECRET: Final = "your-secret-key"  # noqa: S105 - public: the sandbox's default
# Where clouds keep their credentials: no callback may go there.
FORBIDDEN: Final = "http://169.254.169.254/latest/meta-data/"
# Seconds: two tiers of 1 s and 5 s, stretched by half at most, and room for a slow machine.
PATIENCE: Final = 45
# Seconds until the scheduled callback is due: long enough to watch it wait.
SOON: Final = 3


async def show(settings: Settings, sandbox: str, gateway: str) -> None:
    """Send one callback that arrives, one that is retried, one that is dead; schedule one more.

    Tells what happens, as it happens.

    Raises:
        TimeoutError: something did not happen in time.
    """
    run = uuid4().hex[:6]
    good, flaky, bad = (f"demo-{run}-{number}" for number in (1, 2, 3))
    click.echo(
        "\nFour callbacks to begin with:\n"
        f"  1  to {sandbox}/hooks/demo\n"
        f"  2  to {sandbox}/hooks/flaky, which answers 503 twice before it works\n"
        f"  3  to {FORBIDDEN}, where no callback may go\n"
        f"  4  to {sandbox}/hooks/demo, in three seconds, scheduled over HTTP at {gateway}\n"
    )
    async with (
        asyncio.timeout(PATIENCE + 5),
        connection(settings) as link,
        publishing(settings) as publisher,
        aiohttp.ClientSession(sandbox) as http,
    ):
        facts = await _facts(link)
        failing = {"behaviour": {"kind": "fail", "status": 503}, "times": 2, "per": "id"}
        async with http.put("/api/mailboxes/flaky", json=failing) as answer:
            answer.raise_for_status()
        await publisher.publish_all(
            [
                _order(good, f"{sandbox}/hooks/demo"),
                _order(flaky, f"{sandbox}/hooks/flaky"),
                _order(bad, FORBIDDEN),
            ]
        )
        died = asyncio.Event()
        telling = asyncio.create_task(_tell(facts, flaky, bad, died))
        try:
            await asyncio.gather(
                _arrived(http, 1, "demo", good, tries=1),
                _arrived(http, 2, "flaky", flaky, tries=3),
                _buried(link, bad, died),
                _on_time(http, gateway, f"{sandbox}/hooks/demo"),
            )
        finally:
            telling.cancel()


def _order(identity: str, url: str) -> OutgoingMessage:
    order = SendCallback(
        target_url=url, hmac_secret=SECRET, payload={"hello": "world"}, id=identity
    )
    return OutgoingMessage(
        CALLBACKS,
        Properties(
            content_type="application/json",
            type=SEND_CALLBACK,
            message_id=new_id(),
            delivery_mode=PERSISTENT,
        ),
        order.model_dump_json(exclude_defaults=True).encode(),
    )


async def _facts(link: BrokerConnection) -> asyncio.Queue[Fact]:
    """What the callback sender says of its work, from now on."""
    facts: asyncio.Queue[Fact] = asyncio.Queue()

    async def take(message: DeliveredMessage) -> None:
        for fact in Facts.model_validate_json(message.body).facts:
            facts.put_nowait(fact)

    channel = await link.connection.channel(publisher_confirms=False)
    queue = str((await channel.queue_declare(exclusive=True)).queue)
    await channel.queue_bind(queue, OUTCOMES, "callback.#")
    await channel.basic_consume(queue, take, no_ack=True)
    return facts


async def _tell(facts: asyncio.Queue[Fact], flaky: str, bad: str, died: asyncio.Event) -> None:
    while True:
        fact = await facts.get()
        if isinstance(fact, CallbackAttemptFailed) and fact.callback_id == flaky:
            wait = (fact.next_at - fact.at).total_seconds()
            _say(2, f"try {fact.attempt}: {fact.error}; waits {wait:.1f} s in the retry tiers")
        elif isinstance(fact, CallbackDead) and fact.callback_id == bad:
            died.set()


async def _arrived(
    http: aiohttp.ClientSession, number: int, mailbox: str, identity: str, *, tries: int
) -> None:
    """Wait at the receiver until so many tries came, and tell what it thinks of the last."""
    last = await _delivery(http, number, mailbox, identity, tries=tries)
    answered = f"delivered, the receiver responded with {last['status']}"
    _say(number, f"attempt {last['attempt']}: {answered}, {_verdict(last)}")


async def _on_time(http: aiohttp.ClientSession, gateway: str, url: str) -> None:
    """Schedule a callback, and tell how long after its moment it arrived."""
    wish = {"url": url, "delay": SOON, "hmac_secret": SECRET, "context": {"hello": "again"}}
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{gateway}/v1/callbacks", json=wish) as answer,
    ):
        created = json.loads(await answer.text())
        if not answer.ok:
            raise click.ClickException(f"the gateway did not take callback 4: {created['detail']}")
    run_at = datetime.fromisoformat(created["run_at"])
    _say(4, f"scheduled for {run_at:%H:%M:%S.%f}"[:-3] + f" UTC, id {created['id']}")
    delivery = await _delivery(http, 4, "demo", created["id"], tries=1)
    late = datetime.fromisoformat(delivery["received_at"]) - run_at
    milliseconds = late.total_seconds() * 1000
    _say(4, f"delivered {milliseconds:.0f} ms after its moment, {_verdict(delivery)}")


async def _delivery(
    http: aiohttp.ClientSession, number: int, mailbox: str, identity: str, *, tries: int
) -> dict[str, Any]:
    """Wait at the receiver until so many tries came; the last of them."""
    query: dict[str, Any] = {"mailbox": mailbox, "webhook_id": identity, "count": tries}
    query["timeout"] = PATIENCE
    async with http.get("/api/deliveries/wait", params=query) as response:
        answer = json.loads(await response.text())
    if not answer["complete"]:
        raise TimeoutError(f"callback {number} came {answer['count']} times, not {tries}")
    last: dict[str, Any] = answer["items"][0]
    return last


def _verdict(delivery: dict[str, Any]) -> str:
    """What the receiver thinks of the signatures."""
    if delivery["verified"]:
        return f"verified: {' and '.join(delivery['matched'])} are right"
    return f"not verified: {'; '.join(delivery['faults'])}"


async def _buried(link: BrokerConnection, identity: str, died: asyncio.Event) -> None:
    """Wait until the sender says that it is dead, and tell what lies in the dead queue."""
    await died.wait()
    async with browse_queue(link, dead_queue(CALLBACKS)) as walk:
        async for delivery in walk:
            letter = read(delivery)
            if letter.id == identity:
                _say(3, f"dead, in the queue {dead_queue(CALLBACKS)}: {letter.reason}")
                return
    raise TimeoutError(f"callback 3 is not in {dead_queue(CALLBACKS)}")


def _say(number: int, text: str) -> None:
    click.echo(f"  {number}  {text}")
