"""The sender to be measured against, as a good engineer writes it by hand for one purpose.

Takes `callbacks`, signs, posts, acks; what fails waits in the 1 s tier. No guard against its
callers, no lanes, no facts, no metrics, no log: all that is the product's handicap.
"""

import asyncio
import hashlib
import hmac
import json
import os

import aio_pika
import aiohttp
import uvloop
from aio_pika.abc import AbstractIncomingMessage


async def main() -> None:
    connection = await aio_pika.connect_robust(os.environ["RINGBACK_AMQP_URL"])
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=1000)
    queue = await channel.get_queue("callbacks")
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=10)
    )

    async def handle(message: AbstractIncomingMessage) -> None:
        order = json.loads(message.body)
        body = json.dumps(order["payload"], sort_keys=True).encode()
        secret = order["hmac_secret"].encode()
        headers = {
            "Content-Type": "application/json",
            "X-Signature": hmac.new(secret, body, hashlib.sha256).hexdigest(),
        }
        try:
            async with session.post(order["target_url"], data=body, headers=headers) as answer:
                await answer.read()
                answer.raise_for_status()
        except (aiohttp.ClientError, TimeoutError):
            copy = aio_pika.Message(
                message.body, content_type=message.content_type, type=message.type, delivery_mode=2
            )
            await channel.default_exchange.publish(copy, "callbacks.retry.1s")
        await message.ack()

    async with session:
        await queue.consume(handle)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    uvloop.run(main())
