"""A client of Ringback that uses only AMQP, through aio-pika."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from shared.amqp import codec
from shared.amqp.connection import connect
from tests.fakes.waiting import until

# Literals on purpose: these names are part of the public interface.
CALLBACKS = "callbacks"
DEAD = "callbacks.dead"
SECRET = "your-secret-key"


def send_callback(target_url: str, **fields: Any) -> dict[str, Any]:
    """Return the body of a SendCallback: the documented example with a new id."""
    return {
        "id": f"cb-{uuid4().hex}",
        "target_url": target_url,
        "target_method": "POST",
        "hmac_secret": SECRET,
        "payload": {"any": "json"},
        **fields,
    }


class BrokerClient:
    """One connection that publishes callbacks, reads dead letters and consumes facts."""

    def __init__(self, url: str, channel: AbstractChannel) -> None:
        self.channel = channel
        self._url = url
        self.facts: list[dict[str, Any]] = []
        self.fact_messages: list[AbstractIncomingMessage] = []
        self.dead_letters: list[AbstractIncomingMessage] = []

    async def send(self, body: Any, **properties: Any) -> str:
        """Publish to `callbacks` with a confirm, and return the id in the body, if any."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        defaults: dict[str, Any] = {
            "content_type": "application/json",
            "type": "SendCallback",
            "delivery_mode": 2,
        }
        message = aio_pika.Message(raw, **(defaults | properties))
        await self.channel.default_exchange.publish(message, routing_key=CALLBACKS, timeout=30)
        return str(body.get("id")) if isinstance(body, Mapping) else ""

    async def send_without_message_id(self, body: Any) -> None:
        """Publish with a confirm, but without a message_id. aio-pika always sets one."""
        raw = json.dumps(body).encode()
        properties = codec.Properties(content_type="application/json", type="SendCallback")
        async with connect(self._url, name="raw") as broker:
            _, intercepted = await broker.channel(confirms=True)
            confirmed = asyncio.Event()
            intercepted.on_confirm = lambda *_: confirmed.set()
            intercepted.write(
                codec.encode_publish(
                    intercepted.number,
                    "",
                    CALLBACKS,
                    properties,
                    raw,
                    mandatory=True,
                    frame_max=131_072,
                )
            )
            await asyncio.wait_for(confirmed.wait(), 30)

    async def send_all(self, bodies: Iterable[Any]) -> list[str]:
        """Publish concurrently, and wait for all confirms."""
        return list(await asyncio.gather(*(self.send(body) for body in bodies)))

    async def length(self, queue: str) -> int:
        """Return the number of ready messages in a queue."""
        declared = await self.channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0

    async def read_dead_letters(self) -> list[AbstractIncomingMessage]:
        """Consume the dead-letter queue, and return all dead letters so far."""
        queue = await self.channel.get_queue(DEAD)
        while message := await queue.get(no_ack=True, fail=False):
            self.dead_letters.append(message)
        return self.dead_letters

    async def dead_letter(self, callback_id: str, within: float = 60.0) -> AbstractIncomingMessage:
        """Wait for the dead letter of a callback."""

        async def found() -> AbstractIncomingMessage | None:
            dead_letters = await self.read_dead_letters()
            return next((each for each in dead_letters if callback_id in identities(each)), None)

        dead_letter: AbstractIncomingMessage = await until(found, within)
        return dead_letter

    def facts_of(self, callback_id: str) -> list[dict[str, Any]]:
        """Return the facts about a callback so far, in order."""
        return [fact for fact in self.facts if fact["callback_id"] == callback_id]

    async def fact(self, callback_id: str, kind: str, within: float = 60.0) -> dict[str, Any]:
        """Wait for a fact about a callback."""
        found: list[dict[str, Any]] = await until(
            lambda: [fact for fact in self.facts_of(callback_id) if fact["type"] == kind], within
        )
        return found[0]

    def record(self, message: AbstractIncomingMessage) -> None:
        """Record the facts in a message, except for those about dead letters and targets."""
        if (message.routing_key or "").startswith(("letter.", "target.")):
            return
        self.fact_messages.append(message)
        self.facts.extend(json.loads(message.body)["facts"])


def identities(dead_letter: AbstractIncomingMessage) -> set[str]:
    """Return all ids of a dead letter."""
    names = {str(dead_letter.message_id), str(dead_letter.headers.get("x-ringback-id"))}
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        names.add(str(json.loads(dead_letter.body)["id"]))
    return names


def reason(dead_letter: AbstractIncomingMessage) -> str:
    """Return the reason of a dead letter."""
    return str(dead_letter.headers["x-ringback-reason"])


@asynccontextmanager
async def broker_client(amqp_url: str) -> AsyncIterator[BrokerClient]:
    """Connect, and consume all facts. The exchange `outcomes` must exist."""
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel(on_return_raises=True)
        client = BrokerClient(amqp_url, channel)
        facts = await channel.declare_queue(exclusive=True)
        await facts.bind("outcomes", "#")

        async def receive(message: AbstractIncomingMessage) -> None:
            client.record(message)

        await facts.consume(receive, no_ack=True)
        yield client
