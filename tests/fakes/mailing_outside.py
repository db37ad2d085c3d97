"""What stands around a mailings process: it posts, takes what goes out, tells facts, and asks."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from services.sandbox.users import Directory
from shared.amqp.connection import connect
from shared.amqp.declare import declare
from shared.amqp.rpc_client import RpcClient
from shared.process.health import Health
from shared.topology import topology
from tests.fakes.mailing import fact
from tests.fakes.waiting import until


class Around:
    """One connection; `ids` holds the ids that came for each user, `messages` all that came."""

    def __init__(self, channel: AbstractChannel, requester: RpcClient) -> None:
        self.channel = channel
        self.requester = requester
        self.ids: dict[str, Counter[str]] = {}
        self.messages: list[AbstractIncomingMessage] = []

    async def post(self, body: Any, exchange: str = "postings", **properties: Any) -> str:
        """Publish a posting, confirmed; its id."""
        id_ = str(uuid4())
        given: dict[str, Any] = {
            "content_type": "application/json",
            "type": "Posting",
            "delivery_mode": 2,
            "message_id": id_,
        }
        message = aio_pika.Message(json.dumps(body).encode(), **(given | properties))
        to = await self.channel.get_exchange(exchange, ensure=False)
        key = {"postings": "posting"}.get(exchange) or body["facts"][0]["type"]
        await to.publish(message, routing_key=key, timeout=30)
        return id_

    async def settle(self, posting: str, messages: Iterable[Any], kind: str) -> None:
        """Tell that these messages of a posting, as it lists them, were `sent`, or `failed`."""
        facts = [
            fact(UUID(posting), 0, kind, each["channel"]) | {"message_id": each["id"]}
            for each in messages
        ]
        await self.post({"facts": facts}, exchange="outcomes", type="Facts")

    async def consume(self) -> None:
        """Take e-mails and SMS as they come."""
        await self.channel.set_qos(prefetch_count=2000)
        for name in ("messages.email", "messages.sms"):
            queue = await self.channel.get_queue(name, ensure=False)
            await queue.consume(self._take)

    async def _take(self, message: AbstractIncomingMessage) -> None:
        body = json.loads(message.body)
        self.ids.setdefault(body["user_id"], Counter())[body["id"]] += 1
        if len(self.messages) < 1000:
            self.messages.append(message)
        await message.ack()

    async def until(self, users: int, within: float = 60.0) -> None:
        """Wait until messages to so many users came."""
        await until(lambda: len(self.ids) >= users, within)

    async def ask(self, operation: str, **body: Any) -> Any:
        """Ask mailings; its answer as JSON."""
        answer = await self.requester.request(
            "mailings.requests", operation, json.dumps(body).encode(), timeout=10
        )
        return answer if isinstance(answer, dict) else answer.model_dump(mode="json")

    async def ended(self, id_: str, *states: str) -> dict[str, Any]:
        """Wait until a posting has one of these states, or its expansion an end; its status."""
        wanted = states or ("sending", "done", "failed", "expired")

        async def there() -> dict[str, Any] | None:
            status: dict[str, Any] = await self.ask("GetPosting", id=id_)
            return status if status.get("status") in wanted else None

        status: dict[str, Any] = await until(there)
        return status

    async def waiting(self, queue: str) -> int:
        """Count what lies in a queue."""
        found = await self.channel.declare_queue(queue, passive=True)
        return found.declaration_result.message_count or 0

    def directory(self, count: int) -> list[dict[str, Any]]:
        """Give the sandbox's users."""
        users = Directory(count)
        return [users.user(number) for number in range(count)]


@asynccontextmanager
async def outside(amqp_url: str, *, consuming: bool = True) -> AsyncIterator[Around]:
    """Connect and declare what Ringback needs."""
    async with connect(amqp_url, name="test") as link:
        await declare(link.connection, topology())
    requester = RpcClient(amqp_url, name="test", health=Health())
    asking = asyncio.create_task(requester.run())
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        it = Around(await connection.channel(on_return_raises=True), requester)
        if consuming:
            await it.consume()
        await requester.ready()
        yield it
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
