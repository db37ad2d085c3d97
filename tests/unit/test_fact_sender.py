"""Facts for observers: whose queues the sender waits for."""

import asyncio
from datetime import UTC, datetime

import pytest

from shared.amqp import fact_sender
from shared.amqp.fact_sender import MAX_UNKNOWN, FactSender
from shared.amqp.publisher import OutgoingMessage, Publisher, PublishUnknownError
from shared.contracts.facts import CallbackDead, CallbackDelivered
from shared.process.health import Health
from shared.topology import topology

FACT = {
    "fact_id": "id-1//1",
    "at": datetime(2026, 11, 20, 15, tzinfo=UTC),
    "callback_id": "id-1",
    "client_id": None,
    "target": None,
    "attempt": 1,
}
DELIVERED = CallbackDelivered(**FACT, status=200, duration=0.1)
DEAD = CallbackDead(**FACT, reason="no")


async def test_finding_b2_a_queue_that_never_confirms_delays_its_facts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An observer of one type of facts has a queue without a majority."""
    unconfirmed: list[str] = []

    def publish(_: Publisher, message: OutgoingMessage) -> asyncio.Future[None]:
        result: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if message.routing_key == DELIVERED.type:
            unconfirmed.append(message.routing_key)
            result.set_exception(PublishUnknownError("no confirm within 5 seconds"))
        else:
            result.set_result(None)
        return result

    async def ready(_: Publisher) -> None:
        """Return at once, as a connected publisher does."""

    async def run(_: Publisher) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Publisher, "publish", publish)
    monkeypatch.setattr(Publisher, "ready", ready)
    monkeypatch.setattr(Publisher, "run", run)
    monkeypatch.setattr(fact_sender, "RETRY_INTERVAL", 0.0)
    health = Health()
    publisher = Publisher("amqp://unused", name="test", topology=topology(), health=health)
    facts = FactSender(publisher, url="amqp://unused", name="test", health=health)
    running = asyncio.create_task(facts.run())
    try:
        await facts.send_confirmed([DELIVERED])
        assert len(unconfirmed) == MAX_UNKNOWN
        await facts.send_confirmed([DEAD])
        await facts.drain(1.0)  # the fact of the other type is confirmed
        await facts.send_confirmed([DELIVERED])
        assert len(unconfirmed) == MAX_UNKNOWN + 1, "nobody waits for the repeats"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
