"""The depth of a queue is known again after the broker did not respond in time."""

import asyncio
from contextlib import suppress

import pytest

from shared.amqp import depth
from shared.amqp.depth import QueueDepth, QueueDepthUnknownError
from shared.process.health import Health
from shared.topology import CALLBACKS, topology
from tests.fakes.waiting import until


async def test_a_depth_is_counted_again_after_a_timeout(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = Health()
    declared = topology().only((CALLBACKS,))
    counter = QueueDepth(amqp_url, name="test", topology=declared, health=health)
    running = asyncio.create_task(counter.run())
    try:
        await until(lambda: health.is_up("depths"))
        assert await counter.count((CALLBACKS,)) >= 0
        monkeypatch.setattr(depth, "BROKER_TIMEOUT", 1e-4)
        with pytest.raises(QueueDepthUnknownError):
            await counter.count((CALLBACKS,))
        monkeypatch.undo()

        async def known() -> bool:
            with suppress(QueueDepthUnknownError):
                return await counter.count((CALLBACKS,)) >= 0
            return False

        await until(known)
    finally:
        running.cancel()
