"""Connections are opened again when they are lost, with a growing delay."""

import asyncio

from shared.amqp.connection import BrokerConnection, keep_connected
from shared.process.health import Health


async def test_finding_b9_a_session_that_fails_at_once_is_repeated_with_backoff(
    amqp_url: str,
) -> None:
    """As by a 403 for the consumed queue."""
    sessions = 0

    async def refused(_: BrokerConnection) -> None:
        nonlocal sessions
        sessions += 1
        raise ConnectionResetError("403: access to the queue is refused")

    health = Health()
    running = keep_connected(amqp_url, name="test", part="consumer", health=health, session=refused)
    try:
        async with asyncio.timeout(2):
            await running
    except TimeoutError:
        assert 2 <= sessions < 30
    assert "403" in (health.fault or "")
