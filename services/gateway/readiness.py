"""Whether the services behind the gateway answer: each is asked every second."""

import asyncio
from typing import Final

from shared.amqp.request_reply import NoAnswer, Requester, Unavailable
from shared.contracts.requests import Failure
from shared.contracts.schedule_requests import Operation
from shared.process.health import Health

# Seconds between two questions. They also keep the connection talking, so that it is told of an
# alarm (RabbitMQ tells only those that publish) before a caller's request meets it.
EVERY: Final = 1.0
# Seconds a service has to answer; one under load takes a few hundredths.
TIMEOUT: Final = 2.0


async def watch(requester: Requester, queue: str, *, part: str, health: Health) -> None:
    """Keep `health` told of the service that takes requests from `queue`, until cancelled."""
    await requester.ready()
    while True:
        fault = await _fault(requester, queue)
        if fault is None:
            health.up(part)
        else:
            health.down(part, fault)
        await asyncio.sleep(EVERY)


async def _fault(requester: Requester, queue: str) -> str | None:
    try:
        answer = await requester.ask(queue, Operation.PING, b"{}", timeout=TIMEOUT)
    except (NoAnswer, Unavailable) as error:
        return str(error)
    if isinstance(answer, Failure):
        return answer.detail
    status = answer.get("status") if isinstance(answer, dict) else None
    return None if status == "ready" else str(status)
