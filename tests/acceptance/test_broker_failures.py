"""The broker is killed, suspended, restarted or full: the service reports it and loses nothing."""

import asyncio
import json
import math
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aio_pika
import aiormq
import pytest

from deploy.local.broker import Broker
from services.sandbox.misbehaviour import hang, response
from tests.fakes.broker_client import CALLBACKS, BrokerClient, broker_client, send_callback
from tests.fakes.crash_points import slow_except
from tests.fakes.ledger import Ledger
from tests.fakes.receivers import Behaviour, ClientConnection, Receiver, respond, serve
from tests.fakes.service import Service, running
from tests.fakes.waiting import until

# Small, so that the bound on repeats is tight.
PREFETCH = 50
SETTINGS = {"RINGBACK_CALLBACK_PREFETCH": str(PREFETCH)}


@dataclass(slots=True)
class Hold:
    """Holds responses back, from the request number `after` on, until a fault is injected.

    The fault comes in the middle then, however fast the machine is.
    """

    after: float = math.inf
    requests: int = 0
    injected: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> None:
        """Count a request, and wait while its response is held back."""
        self.requests += 1
        if self.requests >= self.after:
            await self.injected.wait()


@dataclass(slots=True)
class Setup:
    """A service, receivers of which one fails every first attempt, and their ledger."""

    service: Service
    ledger: Ledger
    targets: list[Receiver]
    hold: Hold

    async def send(self, publisher: BrokerClient, count: int) -> None:
        """Publish callbacks, spread over the receivers, and record the confirmed ones."""
        urls = [target.url for target in self.targets]
        # The timeout is longer than a response is held back.
        options = {"timeout": 100, "retry": {"delays": [1], "quick_retries_count": 20}}
        self.ledger.accept(
            await publisher.send_all(
                send_callback(urls[number % len(urls)], **options) for number in range(count)
            )
        )


def respond_unless_held(hold: Hold, *, fails_first: bool = False) -> Behaviour:
    """Respond; with `fails_first`, respond with 500 to the first attempt of each callback."""
    failed: set[str] = set()

    async def behave(connection: ClientConnection) -> None:
        while True:
            id_ = (await connection.request()).headers["webhook-id"]
            fails = fails_first and id_ not in failed
            failed.add(id_)
            await hold.wait()
            await connection.write(response(500 if fails else 200))

    return behave


@asynccontextmanager
async def running_setup(broker: Broker, directory: Path) -> AsyncIterator[Setup]:
    async with AsyncExitStack() as stack:
        service = stack.enter_context(running(directory, broker.url, SETTINGS))
        await service.ready()
        hold = Hold()
        targets = [
            await stack.enter_async_context(serve(respond_unless_held(hold, fails_first=fails)))
            for fails in (False, False, False, True)
        ]
        yield Setup(service, Ledger(broker.url, tuple(targets)), targets, hold)


async def inject_fault(
    setup: Setup, publisher: BrokerClient, fault: Callable[[], None], count: int = 300
) -> None:
    """Publish messages, and inject the fault when a third of them has reached a receiver."""
    setup.hold.after = count / 3
    await setup.send(publisher, count)
    await until(lambda: setup.hold.requests >= setup.hold.after)
    await asyncio.to_thread(fault)
    setup.hold.injected.set()


async def test_row_1_broker_killed_in_the_middle_of_1000_messages(
    own_broker: Broker, tmp_path: Path
) -> None:
    async with running_setup(own_broker, tmp_path) as setup:
        # A queue that is declared just before a kill comes back empty (see Broker.sync).
        await asyncio.to_thread(own_broker.sync)
        async with broker_client(own_broker.url) as publisher:
            with suppress(aiormq.exceptions.AMQPError, ConnectionError):
                await inject_fault(setup, publisher, own_broker.kill, 1000)
        assert len(setup.ledger.delivered) < 1000, "killed after the last delivery"
        await until(lambda: setup.service.logged("publisher is not ready"))
        assert (await setup.service.get("/readyz"))[0] == 503
        assert "127.0.0.1" in (await setup.service.parts())["consumer"]
        await asyncio.to_thread(own_broker.start)
        await setup.service.ready(30)
        await setup.ledger.complete()
        assert await setup.service.metric("amqp_reconnects_total") >= 2
        # Callbacks in flight at the kill, and acks that the quorum queue had not written yet.
        assert setup.ledger.repeats - failed_first(setup) <= 2 * PREFETCH
        assert not setup.service.logged("bug")


def failed_first(setup: Setup) -> int:
    """Return how many second deliveries the failing receiver caused."""
    return len({request.headers["webhook-id"] for request in setup.targets[3].requests})


@pytest.mark.slow
async def test_row_2_broker_suspended(own_broker: Broker, tmp_path: Path) -> None:
    await suspended(own_broker, tmp_path, seconds=12)


@pytest.mark.slow
async def test_row_2_broker_suspended_for_40_seconds(own_broker: Broker, tmp_path: Path) -> None:
    await suspended(own_broker, tmp_path, seconds=40)


async def suspended(broker: Broker, directory: Path, seconds: float) -> None:
    loop = asyncio.get_running_loop()

    async def fail_while_suspended(connection: ClientConnection) -> None:
        await connection.request()
        await setup.hold.injected.wait()
        await connection.write(response(500))

    async with (
        running_setup(broker, directory) as setup,
        serve(fail_while_suspended) as slow_target,
    ):
        async with broker_client(broker.url) as publisher:
            # It fails during the suspension, so its copy in a tier waits for a confirm.
            await publisher.send(send_callback(slow_target.url, timeout=100))
            await until(lambda: slow_target.requests)
            with suppress(aiormq.exceptions.AMQPError, ConnectionError):
                await inject_fault(setup, publisher, broker.suspend)
                stopped = loop.time()
        await until(lambda: setup.service.logged("no confirm within 5 seconds"))
        # The row requires a suspension of this length.
        await asyncio.sleep(stopped + seconds - loop.time())
        broker.resume()
        await setup.ledger.complete(30)
        await setup.service.ready(30)
        # A copy whose confirm is unknown is published again, so it may exist twice.
        assert setup.ledger.repeats - failed_first(setup) <= 3 * PREFETCH
        assert not setup.service.logged("bug")


async def test_a_service_can_be_stopped_while_the_broker_is_suspended(
    own_broker: Broker, tmp_path: Path
) -> None:
    settings = {"RINGBACK_SHUTDOWN_TIMEOUT": "4"}
    with running(tmp_path, own_broker.url, settings) as service:
        await service.ready()
        async with broker_client(own_broker.url) as publisher, serve(respond(500)) as target:
            await publisher.send(send_callback(target.url))
            await publisher.send(send_callback(target.url))
            await until(lambda: len(target.requests) == 2)
            await asyncio.to_thread(own_broker.suspend)
            service.signal(signal.SIGTERM)
            assert await service.exit_code(15) == 0
            assert "Traceback" not in service.output
            own_broker.resume()


@pytest.mark.slow
async def test_row_3_broker_restarted_gracefully(own_broker: Broker, tmp_path: Path) -> None:
    async with running_setup(own_broker, tmp_path) as setup:
        async with broker_client(own_broker.url) as publisher:
            with suppress(aiormq.exceptions.AMQPError, ConnectionError):
                await inject_fault(setup, publisher, own_broker.stop)
        await asyncio.to_thread(own_broker.start)
        await setup.service.ready(30)
        await setup.ledger.complete()
        assert not setup.service.logged("bug")


ALARMS = {
    "row 6, memory": (
        ("set_vm_memory_high_watermark", "absolute", "1"),
        ("set_vm_memory_high_watermark", "0.4"),
    ),
    "row 7, disk": (("set_disk_free_limit", str(10**15)), ("set_disk_free_limit", "50MB")),
}


@pytest.mark.parametrize("name", slow_except(ALARMS, "row 7, disk"))
async def test_rows_6_and_7_an_alarm_is_reported_and_survived(
    own_broker: Broker, tmp_path: Path, name: str
) -> None:
    raise_alarm, end_alarm = ALARMS[name]
    async with (
        running_setup(own_broker, tmp_path) as setup,
        broker_client(own_broker.url) as publisher,
    ):
        try:
            await setup.send(publisher, 20)
            await setup.ledger.complete()
            gate = asyncio.Event()
            async with serve(_gated(gate)) as target:
                ids = await publisher.send_all(
                    # Longer than a busy machine needs to raise the alarm.
                    send_callback(target.url, timeout=100, retry={"delays": [1]})
                    for _ in range(4)
                )
                await until(lambda: len(target.requests) == len(ids))
                await asyncio.to_thread(own_broker.ctl, *raise_alarm)
                gate.set()
                await until(lambda: setup.service.logged("facts is not ready"))
                status, text = await setup.service.get("/readyz")
                assert status == 503
                assert "alarm" in json.loads(text)["parts"]["facts"]
                assert "alarm" in setup.service.logged("facts is not ready")[0]["message"]
                assert not publisher.facts_of(ids[0]), "published during the alarm"
                await asyncio.to_thread(own_broker.ctl, *end_alarm)
                await setup.service.ready(30)
                await until(lambda: {f["callback_id"] for f in publisher.facts} >= set(ids), 30)
                assert len(target.requests) == len(ids), "an attempt was repeated"
            await setup.send(publisher, 20)
            await setup.ledger.complete()
        finally:
            await asyncio.to_thread(own_broker.ctl, *end_alarm)


def _gated(gate: asyncio.Event) -> Any:
    async def behave(connection: ClientConnection) -> None:
        while True:
            await connection.request()
            await gate.wait()
            await connection.write(response())

    return behave


async def test_row_8_a_deleted_queue_is_redeclared(own_broker: Broker, tmp_path: Path) -> None:
    async with (
        running_setup(own_broker, tmp_path) as setup,
        broker_client(own_broker.url) as publisher,
    ):
        await setup.send(publisher, 20)
        await setup.ledger.complete()
        await publisher.channel.queue_delete(CALLBACKS)
        await until(lambda: setup.service.logged("consumer is not ready"))

        async def accepted() -> bool:
            try:
                await setup.send(publisher, 1)
            except aiormq.exceptions.DeliveryError:  # not redeclared yet, or without a leader
                return False
            return True

        await until(accepted, 30)
        await setup.ledger.complete()
        await setup.service.ready()


async def test_a_deleted_tier_is_redeclared(own_broker: Broker, tmp_path: Path) -> None:
    async with (
        running_setup(own_broker, tmp_path) as setup,
        broker_client(own_broker.url) as publisher,
    ):
        await publisher.channel.queue_delete("callbacks.retry.1s")
        await setup.send(publisher, 20)
        await setup.ledger.complete()
        failing = setup.targets[3].requests
        await until(lambda: len(failing) >= 2 * 5)  # its five callbacks came back from the tier
        assert setup.service.logged("publish retried", queue="callbacks.retry.1s")


async def test_row_10_a_missing_dead_letter_target_delays_retries(
    own_broker: Broker, tmp_path: Path
) -> None:
    await dead_letter_target_missing(own_broker, tmp_path, seconds=10)


@pytest.mark.slow
async def test_row_10_a_dead_letter_target_is_missing_for_60_seconds(
    own_broker: Broker, tmp_path: Path
) -> None:
    await dead_letter_target_missing(own_broker, tmp_path, seconds=60)


async def dead_letter_target_missing(broker: Broker, directory: Path, seconds: float) -> None:
    with running(directory, broker.url) as service:
        await service.ready()
    async with broker_client(broker.url) as publisher, serve(respond()) as target:
        await publisher.channel.queue_delete(CALLBACKS)
        ledger = Ledger(broker.url, (target,))
        for _ in range(50):
            body = send_callback(target.url)
            message = aio_pika.Message(json.dumps(body).encode(), delivery_mode=2)
            await publisher.channel.default_exchange.publish(message, f"{CALLBACKS}.retry.1s")
            ledger.accept([body["id"]])
        await asyncio.sleep(seconds)  # the tier has no target
        with running(directory, broker.url) as service:
            await service.ready()
            await ledger.complete(10)


@pytest.mark.slow
async def test_row_11_a_full_tier_delays_retries_and_loses_nothing(
    own_broker: Broker, tmp_path: Path
) -> None:
    async with (
        running_setup(own_broker, tmp_path) as setup,
        broker_client(own_broker.url) as publisher,
    ):
        # A quorum queue detects late that it is full, and that it has room again.
        small = '{"max-length":2}'
        vhost = ("--vhost", own_broker.vhost)
        policy = ("small", r"^callbacks\.retry\.", small, "--apply-to", "queues")
        own_broker.ctl("set_policy", *vhost, *policy)
        try:
            for _ in range(20):
                await setup.send(publisher, 8)  # two of them fail their first attempt
            await until(lambda: setup.service.logged("publish retried", queue="callbacks.retry.1s"))
            await setup.ledger.complete()
            failing = setup.targets[3].requests
            await until(lambda: len(failing) == 2 * 40)  # each attempt once
        finally:
            own_broker.ctl("clear_policy", *vhost, "small")


@pytest.mark.slow
async def test_row_12_a_handler_slower_than_the_consumer_timeout_causes_one_redelivery(
    own_broker: Broker, tmp_path: Path
) -> None:
    def environment(name: str, value: int) -> None:
        own_broker.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")

    release = asyncio.Event()

    async def hangs_first(connection: ClientConnection) -> None:
        await connection.request()
        if connection.number == 1:
            await release.wait()
        await connection.write(response())

    before = own_broker.ctl("eval", "application:get_env(rabbit, consumer_timeout).")
    assert "1800000" in before, before
    environment("channel_tick_interval", 1000)
    environment("consumer_timeout", 3000)
    try:
        async with AsyncExitStack() as stack:
            service = stack.enter_context(running(tmp_path, own_broker.url))
            await service.ready()
            publisher = await stack.enter_async_context(broker_client(own_broker.url))
            target = await stack.enter_async_context(serve(hangs_first))
            callback = await publisher.send(send_callback(target.url, timeout=60))
            await until(lambda: len(target.requests) == 2)
            await publisher.fact(callback, "callback.delivered")
            release.set()  # the first attempt ends now, and its ack is stale
            second = await publisher.send(send_callback(target.url))
            await publisher.fact(second, "callback.delivered")
            assert [request.headers["webhook-id"] for request in target.requests] == [
                callback,
                callback,
                second,
            ]
            assert await service.metric("amqp_reconnects_total") == 1
            assert await publisher.length(CALLBACKS) == 0
            assert not service.logged("bug")
    finally:
        environment("channel_tick_interval", 60000)
        environment("consumer_timeout", 1800000)


async def test_a_service_that_starts_without_a_broker_connects_when_it_appears(
    own_broker: Broker, tmp_path: Path
) -> None:
    await asyncio.to_thread(own_broker.kill)
    with running(tmp_path, own_broker.url) as service:
        await until(lambda: service.logged("consumer is not ready"))
        await asyncio.to_thread(own_broker.start)
        await service.ready(30)
        async with broker_client(own_broker.url) as publisher, serve(hang) as target:
            await publisher.send(send_callback(target.url))
            await until(lambda: target.requests)
