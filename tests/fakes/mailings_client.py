"""A client of mailings that publishes postings and facts, consumes, and sends requests."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from services.sandbox.users import Directory
from shared.amqp.rpc_client import RpcClient
from shared.process.health import Health
from shared.registry import CHANNELS
from shared.topology import (
    MAILINGS_OUTCOMES,
    MAILINGS_REPORTS,
    MAILINGS_REQUESTS,
    MAILINGS_STARTS,
    POSTINGS,
)
from tests.fakes.declaring import declare_queues
from tests.fakes.mailing import fact
from tests.fakes.waiting import until

# Mailings stays within some hundred messages of a slow test, so that a kill always comes in the
# middle.
SHORT_QUEUES = {"RINGBACK_MAILINGS_MAX_WAITING": "500"}


class MailingsClient:
    """The client, on one connection.

    ids: the ids of the messages to each user, or client of a mailing.
    messages: the first 1,000 messages.
    hold_from: it acknowledges no message from this number of users on. With SHORT_QUEUES, mailings
        then waits after some more, so a kill comes in the middle, however fast the machine is.
    """

    def __init__(self, channel: AbstractChannel, client: RpcClient) -> None:
        self.channel = channel
        self._client = client
        self.ids: dict[str, Counter[str]] = {}
        self.messages: list[AbstractIncomingMessage] = []
        self.hold_from: float = math.inf
        self._held: list[AbstractIncomingMessage] = []

    async def post(self, body: Any, exchange: str = "postings", **properties: Any) -> str:
        """Publish a message with a confirm, and return its id."""
        posting_id = str(uuid4())
        defaults: dict[str, Any] = {
            "content_type": "application/json",
            "type": "Posting",
            "delivery_mode": 2,
            "message_id": posting_id,
        }
        message = aio_pika.Message(json.dumps(body).encode(), **(defaults | properties))
        target = await self.channel.get_exchange(exchange, ensure=False)
        key = "posting" if exchange == "postings" else f"{body['facts'][0]['type']}.mailings"
        await target.publish(message, routing_key=key, timeout=30)
        return posting_id

    async def settle(self, posting: str, messages: Iterable[Any], kind: str) -> None:
        """Publish facts: these messages of a posting were `sent` or `failed`."""
        facts = [
            fact(UUID(posting), 0, kind, each["channel"]) | {"message_id": each["id"]}
            for each in messages
        ]
        await self.post({"facts": facts}, exchange="outcomes", type="Facts")

    async def consume(self) -> None:
        """Consume e-mails and SMS."""
        await self.channel.set_qos(prefetch_count=500)
        queues = (queue for channel in CHANNELS.values() for queue in channel.queues.values())
        for name in queues:
            queue = await self.channel.get_queue(name, ensure=False)
            await queue.consume(self._receive)

    async def _receive(self, message: AbstractIncomingMessage) -> None:
        body = json.loads(message.body)
        recipient = body["recipient_id"] if "mailing_id" in body else body["user_id"]
        self.ids.setdefault(recipient, Counter())[body["id"]] += 1
        if len(self.messages) < 1000:
            self.messages.append(message)
        if len(self.ids) >= self.hold_from:
            self._held.append(message)
        else:
            await message.ack()

    async def release(self, hold_from: float = math.inf) -> None:
        """Acknowledge the messages that are held back, and hold back later ones only."""
        self.hold_from = hold_from
        held, self._held = self._held, []
        for message in held:
            await message.ack()

    async def wait_for_users(self, users: int, within: float = 180.0) -> None:
        """Wait until messages to this number of users have arrived."""
        await until(lambda: len(self.ids) >= users, within)

    async def request(self, operation: str, **body: Any) -> Any:
        """Send a request to mailings, and return the response as JSON."""
        response = await self._client.request(
            "mailings.requests", operation, json.dumps(body).encode(), timeout=60
        )
        return response if isinstance(response, dict) else response.model_dump(mode="json")

    async def wait_for_status(self, posting_id: str, *states: str) -> dict[str, Any]:
        """Wait for one of these states, by default the end of expansion; return the status."""
        expected = states or ("sending", "done", "failed", "expired")

        async def arrived() -> dict[str, Any] | None:
            status: dict[str, Any] = await self.request("GetPosting", id=posting_id)
            return status if status.get("status") in expected else None

        status: dict[str, Any] = await until(arrived)
        return status

    async def length(self, queue: str) -> int:
        """Return the number of ready messages in a queue."""
        found = await self.channel.declare_queue(queue, passive=True)
        return found.declaration_result.message_count or 0

    def directory(self, count: int) -> list[dict[str, Any]]:
        """Return the users of the sandbox."""
        users = Directory(count)
        return [users.user(number) for number in range(count)]


@asynccontextmanager
async def mailings_client(
    amqp_url: str, *, consuming: bool = True
) -> AsyncIterator[MailingsClient]:
    """Connect, and declare the queues of mailings."""
    own = (POSTINGS, MAILINGS_OUTCOMES, MAILINGS_REQUESTS, MAILINGS_STARTS, MAILINGS_REPORTS)
    channels = (queue for each in CHANNELS.values() for queue in each.queues.values())
    await declare_queues(amqp_url, *own, *channels)
    client = RpcClient(amqp_url, name="test", health=Health())
    running = asyncio.create_task(client.run())
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        mailings = MailingsClient(await connection.channel(on_return_raises=True), client)
        if consuming:
            await mailings.consume()
        await client.ready()
        yield mailings
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
