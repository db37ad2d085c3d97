"""The hand-written sender that Ringback is compared with.

It consumes `callbacks`, signs, posts and acknowledges; a failed callback goes to the 1 s tier. It
has no address checks, lanes, facts, metrics or logs. Ringback is measured with all of them.
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
        command = json.loads(message.body)
        body = json.dumps(command["payload"], sort_keys=True).encode()
        secret = command["hmac_secret"].encode()
        headers = {
            "Content-Type": "application/json",
            "X-Signature": hmac.new(secret, body, hashlib.sha256).hexdigest(),
        }
        try:
            async with session.post(command["target_url"], data=body, headers=headers) as response:
                await response.read()
                response.raise_for_status()
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
