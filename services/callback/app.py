"""The composition root of the callback sender: the only place that constructs things."""

import asyncio
import logging
import socket
from functools import partial

from services.callback import metrics
from services.callback.domain import retry_policy
from services.callback.handlers import Reporter, Sender, read
from services.callback.settings import CallbackSettings
from shared.amqp.consumer import Consumer
from shared.amqp.message import Work
from shared.amqp.publisher import Publisher
from shared.clock import SystemClock
from shared.contracts.callback import SendCallback
from shared.http.client import Client
from shared.http.guard import Guard
from shared.lanes import STALLED_AFTER, Breaker, Lanes
from shared.process.command import Service
from shared.process.run import Process
from shared.settings import load
from shared.topology import CALLBACKS, topology
from shared.version import VERSION

logger = logging.getLogger(__name__)


async def start(process: Process) -> None:
    """Put the callback sender together and set it going."""
    settings = load(CallbackSettings, "callback")
    clock = SystemClock()
    labels = metrics.Labels(settings.max_targets)

    def changed(target: str, breaker: Breaker, pause: float) -> None:
        opened = breaker is Breaker.OPEN
        metrics.BREAKER_OPEN.labels(labels.of(target)).set(opened)
        metrics.BREAKER_CHANGES.labels(breaker.value).inc()
        logger.warning("breaker %s", breaker, extra={"target_url": target, "pause": pause})

    client = await process.stack.enter_async_context(
        Client(
            Guard(settings.allowed_networks),
            user_agent=f"Ringback/{VERSION}",
            connect_timeout=settings.connect_timeout,
        )
    )
    lanes = Lanes(
        widest=settings.lane_limit,
        slots=settings.prefetch,
        failures=settings.breaker_failures,
        clock=asyncio.get_running_loop().time,
        changed=changed,
    )
    sender = Sender(client, lanes, labels, settings, clock)
    tables = topology(process.settings.queue_type).only((CALLBACKS,))
    name = f"ringback callback {socket.gethostname()}"
    publisher = Publisher(
        process.settings.amqp_url,
        name=f"{name} publisher",
        topology=tables,
        health=process.health,
    )
    consumer = Consumer(
        Work(
            queue=CALLBACKS,
            read=partial(read, max_bytes=settings.max_message_bytes),
            identity=_identity,
            handle=sender.handle,
            policy=partial(retry_policy, give_up_after=settings.give_up_after),
            report=Reporter(clock).report,
            drain=lanes.drain,
        ),
        url=process.settings.amqp_url,
        name=f"{name} consumer",
        topology=tables,
        publisher=publisher,
        prefetch=settings.prefetch,
        clock=clock,
        health=process.health,
    )
    process.run(_sweep(lanes))
    process.run(publisher.run())
    process.run(consumer.run())
    process.on_drain(consumer.drain)


async def _sweep(lanes: Lanes) -> None:
    while True:
        await asyncio.sleep(STALLED_AFTER / 2)
        lanes.sweep()


def _identity(order: SendCallback) -> str | None:
    return order.id


SERVICE = Service("services.callback", CallbackSettings, start)
