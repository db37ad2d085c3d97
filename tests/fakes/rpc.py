"""An RPC client and an RPC server for tests."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from shared.amqp.rpc import ANONYMOUS, RequestContext
from shared.amqp.rpc_client import RpcClient
from shared.amqp.rpc_server import Handler, RpcServer
from shared.process.health import Health
from shared.topology import Queue, Topology
from tests.fakes.waiting import until

QUEUE = "things.requests"
# As of the request queues.
ARGUMENTS: dict[str, str | int] = {"x-queue-type": "quorum", "x-delivery-limit": 20}
TOPOLOGY = Topology((), (Queue(QUEUE, ARGUMENTS),), ())


async def echo(context: RequestContext, body: bytes) -> Any:
    """Respond with the request and its context."""
    return {"context": list(context[:2]), "echo": json.loads(body)}


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


@asynccontextmanager
async def rpc_server(
    url: str, handlers: Mapping[str, Handler], prefetch: int = 100
) -> AsyncIterator[tuple[RpcServer, Health]]:
    """Yield a server of `QUEUE` that is ready."""
    health = Health()
    server = RpcServer(
        QUEUE,
        handlers,
        url=url,
        name="test server",
        topology=TOPOLOGY,
        prefetch=prefetch,
        health=health,
    )
    task = asyncio.create_task(server.run())
    try:
        await until(lambda: health.ready)
        yield server, health
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def request(
    client: RpcClient,
    operation: str = "Echo",
    value: Any = 1,
    timeout: float = 10,  # noqa: ASYNC109 - as in the tested function
    context: RequestContext = ANONYMOUS,
) -> Any:
    """Send a request to `QUEUE`, and return the response."""
    body = json.dumps(value).encode()
    return await client.request(QUEUE, operation, body, context=context, timeout=timeout)
