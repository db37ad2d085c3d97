"""Health checks that the gateway runs every second: of the scheduler, and of the event publisher.

RabbitMQ reports an alarm only to connections that publish. The regular messages on both
connections detect an alarm before a client's request fails.
"""

import asyncio
from contextlib import suppress
from typing import Final

from shared.amqp.codec import Properties
from shared.amqp.publisher import OutgoingMessage, Publisher
from shared.amqp.rpc_client import NoResponseError, RpcClient, UnavailableError
from shared.contracts.requests import Failure
from shared.contracts.schedule_requests import PING
from shared.errors import InfrastructureError
from shared.process.health import Health

# Seconds between two checks.
CHECK_INTERVAL: Final = 1.0
# Seconds. A scheduler under load responds within a few hundredths.
PING_TIMEOUT: Final = 2.0

# It reaches no queue: the broker confirms and drops it.
_EMPTY: Final = OutgoingMessage("", Properties(), b"", mandatory=False)


async def keep_publishing(publisher: Publisher) -> None:
    """Publish an empty message at every interval, until cancelled."""
    while True:
        await publisher.ready()
        with suppress(InfrastructureError):
            await publisher.publish(_EMPTY)
        await asyncio.sleep(CHECK_INTERVAL)


async def watch_scheduler(client: RpcClient, health: Health) -> None:
    """Ping the scheduler at every interval and report the result to `health`, until cancelled."""
    await client.ready()
    while True:
        reason = await _unready_reason(client)
        if reason is None:
            health.up(PING.service)
        else:
            health.down(PING.service, reason)
        await asyncio.sleep(CHECK_INTERVAL)


async def _unready_reason(client: RpcClient) -> str | None:
    try:
        response = await client.request(PING.queue, PING.name, b"{}", timeout=PING_TIMEOUT)
    except (NoResponseError, UnavailableError) as error:
        return str(error)
    if isinstance(response, Failure):
        return response.detail
    status = response.get("status") if isinstance(response, dict) else None
    return None if status == "ready" else str(status)
