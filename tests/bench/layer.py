"""Part f: the AMQP layer alone, ours against aio-pika and aiormq, in one process."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import aio_pika
import aiormq
from aiormq.abc import DeliveredMessage
from pydantic import BaseModel

from shared.amqp.ack_batcher import AckBatcher
from shared.amqp.codec import Properties, decode_properties
from shared.amqp.connection import connect
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage
from shared.amqp.subscription import ignore_delivery
from shared.topology import Topology
from tests.bench.rig import PREFETCH, Rig, median, running_publisher
from tests.bench.table import Row, Section

ROUNDS: Final = 3
COUNT: Final = 5000
IN_FLIGHT: Final = 500
QUEUE: Final = "bench.layer"
QUORUM: Final[dict[str, Any]] = {"x-queue-type": "quorum"}
BODY: Final = b"x" * 1024

# A function of the broker's URL that returns the CPU µs per message.
Measure = Callable[[str], Awaitable[float]]


async def layer(rig: Rig) -> Section:
    """Part f."""
    url = rig.broker.add_vhost("layer")
    try:
        figures: dict[str, dict[str, list[float]]] = {}
        for _ in range(ROUNDS):
            for name, publishing, consuming in (
                ("ours", _publish_ours, _consume_ours),
                ("aiormq", _publish_aiormq, _consume_aiormq),
                ("aio-pika", _publish_aio_pika, _consume_aio_pika),
            ):
                measured = figures.setdefault(name, {"publish": [], "consume": []})
                measured["publish"].append(await publishing(url))
                measured["consume"].append(await consuming(url))  # the messages just published
    finally:
        rig.broker.delete_vhost("layer")
    rows = []
    for step, what in (("publish", "publish and confirm"), ("consume", "consume and ack")):
        ours = median(figures["ours"][step])
        for other in ("aio-pika", "aiormq"):
            reference = median(figures[other][step])
            rows.append(Row(f"{what}, against {other}", "µs", ours, reference, ours / reference))
    notes = [f"{COUNT:,} messages of 1 kB, {IN_FLIGHT} unconfirmed or prefetch {PREFETCH:,}"]
    return Section("f", "CPU of the AMQP layer per message", "library", rows, notes)


async def _publishing(publish: Callable[[int], Awaitable[Any]]) -> float:
    """Publish all messages with `IN_FLIGHT` unconfirmed at any time; return CPU µs each."""

    async def publish_every(first: int) -> None:
        for number in range(first, COUNT, IN_FLIGHT):
            await publish(number)

    cpu = time.process_time()
    await asyncio.gather(*(publish_every(first) for first in range(IN_FLIGHT)))
    return (time.process_time() - cpu) / COUNT * 1e6


class _Countdown:
    """Counts acknowledged messages and measures the CPU time until the last one."""

    def __init__(self) -> None:
        self._left = COUNT
        self._done = asyncio.Event()
        self._cpu = time.process_time()

    def one(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._done.set()

    async def cpu(self) -> float:
        await self._done.wait()
        return (time.process_time() - self._cpu) / COUNT * 1e6


async def _publish_ours(url: str) -> float:
    async with connect(url, name="bench") as broker:
        channel = await broker.connection.channel(publisher_confirms=False)
        await channel.queue_declare(QUEUE, durable=True, arguments=QUORUM)
    async with running_publisher(url, Topology((), (), ())) as publisher:

        async def publish(number: int) -> None:
            properties = Properties(
                content_type="application/json", message_id=f"m{number}", delivery_mode=PERSISTENT
            )
            await publisher.publish(OutgoingMessage(QUEUE, properties, BODY))

        return await _publishing(publish)


async def _consume_ours(url: str) -> float:
    async with connect(url, name="bench") as broker:
        channel, intercepted = await broker.channel(confirms=False)
        await channel.basic_qos(prefetch_count=PREFETCH)

        async def send(_: Sequence[BaseModel]) -> None:
            raise AssertionError("unexpected facts")

        acks = AckBatcher(intercepted, send)
        flushing = asyncio.create_task(acks.run(0.01))
        tasks: set[asyncio.Task[None]] = set()
        countdown = _Countdown()

        async def handle(delivery: Delivery) -> None:
            acks.started(delivery.tag)
            decode_properties(delivery.header)
            acks.done(delivery.tag)
            countdown.one()

        def receive(delivery: Delivery) -> None:
            task = asyncio.get_running_loop().create_task(handle(delivery))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        intercepted.on_delivery = receive
        await channel.basic_consume(QUEUE, ignore_delivery)
        spent = await countdown.cpu()
        await acks.flush()
        flushing.cancel()
        await channel.close()  # the response follows the acks
        return spent


async def _publish_aiormq(url: str) -> float:
    connection = await aiormq.connect(url)
    channel = await connection.channel()

    async def publish(number: int) -> None:
        properties = aiormq.spec.Basic.Properties(
            content_type="application/json", message_id=f"m{number}", delivery_mode=PERSISTENT
        )
        await channel.basic_publish(BODY, routing_key=QUEUE, properties=properties)

    spent = await _publishing(publish)
    await connection.close()
    return spent


async def _consume_aiormq(url: str) -> float:
    connection = await aiormq.connect(url)
    channel = await connection.channel()
    await channel.basic_qos(prefetch_count=PREFETCH)
    countdown = _Countdown()

    async def handle(message: DeliveredMessage) -> None:
        await channel.basic_ack(message.delivery.delivery_tag)  # type: ignore[arg-type, union-attr]
        countdown.one()

    await channel.basic_consume(QUEUE, handle)
    spent = await countdown.cpu()
    await channel.close()
    await connection.close()
    return spent


async def _publish_aio_pika(url: str) -> float:
    connection = await aio_pika.connect(url)
    channel = await connection.channel()

    async def publish(number: int) -> None:
        message = aio_pika.Message(
            BODY,
            content_type="application/json",
            message_id=f"m{number}",
            delivery_mode=PERSISTENT,
        )
        await channel.default_exchange.publish(message, QUEUE)

    spent = await _publishing(publish)
    await connection.close()
    return spent


async def _consume_aio_pika(url: str) -> float:
    connection = await aio_pika.connect(url)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=PREFETCH)
    countdown = _Countdown()
    queue = await channel.get_queue(QUEUE)

    async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        await message.ack()
        countdown.one()

    await queue.consume(handle)
    spent = await countdown.cpu()
    await channel.close()
    await connection.close()
    return spent
