"""What the gateway does every second: asks the scheduler whether it answers, and keeps talking.

RabbitMQ tells of an alarm only those that publish; so both connections learn of it before a
caller's request meets it.
"""

import asyncio
from contextlib import suppress
from typing import Final

from shared.amqp.codec import Properties
from shared.amqp.publisher import OutgoingMessage, Publisher
from shared.amqp.request_reply import NoResponseError, RpcClient, UnavailableError
from shared.contracts.requests import Failure
from shared.contracts.schedule_requests import Operation
from shared.errors import InfrastructureError
from shared.process.health import Health

# Seconds between two questions.
EVERY: Final = 1.0
# Seconds a service has to answer; one under load takes a few hundredths.
TIMEOUT: Final = 2.0

# To no queue: confirmed, and gone.
_NOTHING: Final = OutgoingMessage("", Properties(), b"", mandatory=False)


async def keep_talking(publisher: Publisher) -> None:
    """Publish something to nobody, again and again, until cancelled."""
    while True:
        await publisher.ready()
        with suppress(InfrastructureError):
            await publisher.publish(_NOTHING)
        await asyncio.sleep(EVERY)


async def watch(requester: RpcClient, queue: str, *, part: str, health: Health) -> None:
    """Keep `health` told of the service that takes requests from `queue`, until cancelled."""
    await requester.ready()
    while True:
        fault = await _fault(requester, queue)
        if fault is None:
            health.up(part)
        else:
            health.down(part, fault)
        await asyncio.sleep(EVERY)


async def _fault(requester: RpcClient, queue: str) -> str | None:
    try:
        answer = await requester.ask(queue, Operation.PING, b"{}", timeout=TIMEOUT)
    except (NoResponseError, UnavailableError) as error:
        return str(error)
    if isinstance(answer, Failure):
        return answer.detail
    status = answer.get("status") if isinstance(answer, dict) else None
    return None if status == "ready" else str(status)
