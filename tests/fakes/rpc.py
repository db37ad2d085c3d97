"""An RPC client for tests that play the gateway, or another service."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.amqp.rpc_client import RpcClient
from shared.process.health import Health


@asynccontextmanager
async def rpc_client(amqp_url: str) -> AsyncIterator[RpcClient]:
    """Yield a client that is connected."""
    client = RpcClient(amqp_url, name="test", health=Health())
    running = asyncio.create_task(client.run())
    await client.ready()
    try:
        yield client
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
