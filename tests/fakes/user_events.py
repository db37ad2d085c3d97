"""A program that publishes user events, and a gateway that reads them, over RabbitMQ."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from secrets import token_urlsafe
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from shared.amqp.rpc_client import RpcClient
from shared.contracts.requests import Failure
from shared.contracts.users import token_hash
from tests.fakes.messenger import PASSWORD
from tests.fakes.rpc import rpc_client
from tests.fakes.waiting import until


class UserEventsClient:
    """Publishes user events, sends requests, and collects the ids of users in wakes."""

    def __init__(self, channel: AbstractChannel, rpc: RpcClient) -> None:
        self.channel = channel
        self._rpc = rpc
        self.woken: list[int] = []

    async def __call__(self, operation: str, **body: Any) -> Any:
        """Send a request, and return the response."""
        response = await self._rpc.request(
            "subscriptions.requests", operation, json.dumps(body).encode(), timeout=20
        )
        assert not isinstance(response, Failure), response
        return response

    async def user(self) -> tuple[int, str]:
        """Register a user and sign in; return the id and the hash of the token."""
        credentials = {"name": uuid4().hex[:15], "password": PASSWORD}
        registered = await self("RegisterUser", user=credentials)
        hashed = token_hash(token_urlsafe(32))
        await self("SignIn", **credentials, token_hash=hashed)
        return registered["user_id"], hashed

    async def publish(self, user_id: Any, number: int = 0, **fields: Any) -> None:
        """Publish a user event with a confirm."""
        properties = {
            "message_id": fields.pop("message_id", uuid4().hex),
            "type": fields.pop("message_type", "UserEvent"),
        }
        body = {"user_id": user_id, "type": "t", "event": {"n": number}, **fields}
        message = aio_pika.Message(
            json.dumps(body).encode(),
            content_type="application/json",
            **properties,
        )
        exchange = await self.channel.get_exchange("user_events", ensure=False)
        await exchange.publish(message, routing_key=str(user_id), timeout=30)

    async def events(self, token: str, count: int) -> list[int]:
        """Wait for this many events, and return their numbers; no more follow."""
        found: list[int] = []

        async def read() -> bool:
            page = await self("ReadEvents", token_hash=token, limit=1000)
            found.extend(json.loads(event["event"])["n"] for event in page["events"])
            return len(found) >= count

        await until(read)
        return found

    async def dead_letters_are(self, count: int) -> None:
        """Check the number of dead letters."""
        queue = await self.channel.declare_queue("user_events.dead", passive=True)
        assert queue.declaration_result.message_count == count

    async def dead_letter(self) -> AbstractIncomingMessage:
        """Wait for the next dead letter, and remove it."""
        queue = await self.channel.get_queue("user_events.dead")

        async def next_one() -> AbstractIncomingMessage | None:
            return await queue.get(no_ack=True, fail=False)

        dead_letter: AbstractIncomingMessage = await until(next_one)
        return dead_letter


@asynccontextmanager
async def user_events_client(amqp_url: str) -> AsyncIterator[UserEventsClient]:
    """Connect to a broker with the topology."""
    connection = await aio_pika.connect(amqp_url)
    async with connection, rpc_client(amqp_url) as rpc:
        channel = await connection.channel(on_return_raises=True)
        client = UserEventsClient(channel, rpc)
        wakes = await channel.declare_queue(exclusive=True)
        await wakes.bind("user_events.wake")

        async def receive(message: AbstractIncomingMessage) -> None:
            assert message.type == "UserEventsWake"
            client.woken += json.loads(message.body)["user_ids"]

        await wakes.consume(receive, no_ack=True)
        yield client
