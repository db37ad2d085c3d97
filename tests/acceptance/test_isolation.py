"""Hostile, dead and hanging receivers, and poison messages, do not affect other callbacks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import aio_pika

from services.sandbox import misbehaviour
from services.sandbox.misbehaviour import hang
from tests.fakes.broker_client import CALLBACKS, BrokerClient, broker_client, send_callback
from tests.fakes.ledger import Ledger
from tests.fakes.receivers import ClientConnection, Receiver, hang_on_accept, respond, serve
from tests.fakes.sandbox import running_sandbox
from tests.fakes.service import Service, running
from tests.fakes.waiting import until

# Row 28: the behaviour, and whether the callback counts as delivered (the status was received).
HOSTILE = {
    "hangs on accept": (hang_on_accept, False),
    "hangs": (misbehaviour.hang, False),
    "closes": (misbehaviour.close, False),
    "resets": (misbehaviour.reset, False),
    "slow-loris": (misbehaviour.drip_headers(), False),
    "a byte every 0.4 s": (misbehaviour.drip_body(), True),
    "endless headers": (misbehaviour.endless_headers(), False),
    "an endless header": (misbehaviour.MALFORMED["endless_header"], False),
    "an endless status line": (misbehaviour.MALFORMED["endless_status_line"], False),
    "endless 100 Continue": (misbehaviour.MALFORMED["endless_continue"], False),
    "an endless body": (misbehaviour.huge_body(), True),
    "endless chunks": (misbehaviour.MALFORMED["endless_chunks"], True),
    "reset in the body": (misbehaviour.reset_in_body, True),
    "reset in the headers": (misbehaviour.reset_in_headers, False),
    "a short body": (misbehaviour.MALFORMED["short_body"], True),
    "a long body": (misbehaviour.MALFORMED["long_body"], True),
    "garbage": (misbehaviour.send_bytes(), False),
}
TIMEOUT = 2.0


@asynccontextmanager
async def callback_service(
    amqp_url: str, directory: Path, **settings: object
) -> AsyncIterator[tuple[Service, BrokerClient]]:
    given = {f"RINGBACK_CALLBACK_{name.upper()}": str(value) for name, value in settings.items()}
    with running(directory, amqp_url, given) as service:
        await service.ready()
        async with broker_client(amqp_url) as publisher:
            yield service, publisher


def resident(service: Service) -> int:
    """Return the resident memory of the process in bytes."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


async def test_row_28_hostile_receivers_cost_only_their_timeout(
    amqp_url: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        service, publisher = await stack.enter_async_context(callback_service(amqp_url, tmp_path))
        healthy = await stack.enter_async_context(serve(respond()))
        bomb = misbehaviour.huge_body(100 << 20, gzip=True)
        hostile: dict[str, tuple[Receiver, bool]] = {
            name: (await stack.enter_async_context(serve(behaviour)), counts)
            for name, (behaviour, counts) in (HOSTILE | {"a gzip bomb": (bomb, True)}).items()
        }
        # Load all code before measuring the memory.
        await publisher.send_all(send_callback(healthy.url) for _ in range(200))
        await until(lambda: len(publisher.facts) == 200)
        before = resident(service)

        limits = {"timeout": TIMEOUT, "retry": {"quick_retries_count": 0}}
        ids = {
            name: await publisher.send(send_callback(receiver.url, **limits))
            for name, (receiver, _) in hostile.items()
        }
        healthy_ids = set(await publisher.send_all(send_callback(healthy.url) for _ in range(200)))
        await until(lambda: healthy_ids <= {f["callback_id"] for f in publisher.facts})
        await until(lambda: set(ids.values()) <= {f["callback_id"] for f in publisher.facts})

        for name, (_, counts) in hostile.items():
            (fact,) = publisher.facts_of(ids[name])
            expected = "callback.delivered" if counts else "callback.dead"
            assert fact["type"] == expected, (name, fact)
            if counts:
                assert fact["duration"] <= TIMEOUT + 1, name
        assert await service.metric("callback_duration_seconds_count") == 400 + len(hostile)
        slow = await service.metric("callback_duration_seconds_bucket", le="5.0")
        assert slow == 400 + len(hostile), "none lasted longer than five seconds"
        # Row 28 allows 10 MB, which includes facts, log lines and lanes of this test.
        assert resident(service) - before <= 10_000_000
        assert await service.is_ready()


async def test_row_29_dead_targets_do_not_delay_healthy_ones(amqp_url: str, tmp_path: Path) -> None:
    # The dead targets hang for longer than the test. All deliveries to healthy targets happen while
    # the requests to dead targets are in flight.
    settings = {"prefetch": 200, "timeout": 300}
    async with AsyncExitStack() as stack:
        service, publisher = await stack.enter_async_context(
            callback_service(amqp_url, tmp_path, **settings)
        )
        dead = [await stack.enter_async_context(serve(hang)) for _ in range(4)]
        healthy = [await stack.enter_async_context(serve(respond())) for _ in range(20)]
        ledger = Ledger(amqp_url, tuple(healthy))
        for _ in range(20):
            await publisher.send_all(send_callback(target.url) for target in dead for _ in range(5))
            ledger.accept(await publisher.send_all(send_callback(target.url) for target in healthy))
        await until(lambda: ledger.accepted <= ledger.delivered.keys())
        assert all(target.requests for target in dead)
        assert {fact["type"] for fact in publisher.facts} == {"callback.delivered"}
        assert ledger.repeats == 0
        assert await service.metric("callback_total", status="error") == 0


async def test_row_29_breakers_open_visibly_and_close_again(amqp_url: str, tmp_path: Path) -> None:
    failures = 3
    settings = {"breaker_failures": failures}
    answering, recovered = asyncio.Event(), asyncio.Event()
    answering.set()

    async def respond_503_until_recovered(connection: ClientConnection) -> None:
        while True:
            await connection.request()
            await answering.wait()
            await connection.write(misbehaviour.response(200 if recovered.is_set() else 503))

    async with AsyncExitStack() as stack:
        service, publisher = await stack.enter_async_context(
            callback_service(amqp_url, tmp_path, **settings)
        )
        target = await stack.enter_async_context(serve(respond_503_until_recovered))
        origin = target.url.removesuffix("/hook")
        # The timeout is longer than a probe is in flight.
        options = {"timeout": 100, "retry": {"delays": [1], "quick_retries_count": 50}}

        async def send(count: int) -> set[str]:
            bodies = (send_callback(target.url, **options) for _ in range(count))
            return set(await publisher.send_all(bodies))

        # All later requests are probes: no other request is in flight when the breaker opens.
        ids = await send(failures)
        await service.metric_reaches(1, "ringback_breaker_open", target_url=origin)
        await until(lambda: service.logged("breaker open", target_url=origin))
        # While it is open, it lets one probe at a time through: no other while one is in flight.
        answering.clear()
        probes = len(target.requests)
        ids |= await send(30 - failures)
        await until(lambda: len(target.requests) > probes)
        deferred = await service.metric("ringback_consumed_total", outcome="deferred")
        await service.metric_reaches(deferred + 1, "ringback_consumed_total", outcome="deferred")
        assert len(target.requests) == probes + 1
        answering.set()
        recovered.set()
        delivered = "callback.delivered"
        await until(
            lambda: {f["callback_id"] for f in publisher.facts if f["type"] == delivered} == ids, 60
        )
        assert service.logged("breaker closed", target_url=origin)
        assert await service.metric("ringback_breaker_open", target_url=origin) == 0


async def test_healthy_targets_are_served_at_once_while_half_of_the_targets_hang(
    amqp_url: str, tmp_path: Path
) -> None:
    settings = {"prefetch": 100, "timeout": 300}
    async with AsyncExitStack() as stack:
        _, publisher = await stack.enter_async_context(
            callback_service(amqp_url, tmp_path, **settings)
        )
        hanging = [await stack.enter_async_context(serve(hang)) for _ in range(10)]
        healthy = [await stack.enter_async_context(serve(respond())) for _ in range(10)]
        ledger = Ledger(amqp_url, tuple(healthy))
        # A backlog for hanging targets, six times the prefetch, comes before the first healthy one.
        await publisher.send_all(send_callback(target.url) for target in hanging for _ in range(60))
        for _ in range(30):
            ledger.accept(await publisher.send_all(send_callback(target.url) for target in healthy))
        await until(lambda: ledger.accepted <= ledger.delivered.keys())
        assert sum(len(target.requests) for target in hanging) >= 10
        assert {fact["type"] for fact in publisher.facts} == {"callback.delivered"}


async def test_a_hanging_target_with_a_backlog_does_not_delay_a_new_target(
    amqp_url: str, tmp_path: Path
) -> None:
    settings = {"prefetch": 100, "timeout": 300}
    async with AsyncExitStack() as stack:
        _, publisher = await stack.enter_async_context(
            callback_service(amqp_url, tmp_path, **settings)
        )
        hanging = await stack.enter_async_context(serve(hang))
        new = await stack.enter_async_context(serve(respond()))
        await publisher.send_all(send_callback(hanging.url) for _ in range(200))
        await until(lambda: hanging.requests)
        callback = await publisher.send(send_callback(new.url))
        await publisher.fact(callback, "callback.delivered")


async def test_a_fast_target_that_starts_to_hang_does_not_keep_all_slots(
    amqp_url: str, tmp_path: Path
) -> None:
    hanging = asyncio.Event()

    async def fast_at_first(connection: ClientConnection) -> None:
        while True:
            await connection.request()
            if hanging.is_set():
                await asyncio.Event().wait()
            await connection.write(misbehaviour.response())

    settings = {"prefetch": 200, "timeout": 300}
    async with AsyncExitStack() as stack:
        _, publisher = await stack.enter_async_context(
            callback_service(amqp_url, tmp_path, **settings)
        )
        changing = await stack.enter_async_context(serve(fast_at_first))
        healthy = await stack.enter_async_context(serve(respond()))
        warm_up = await publisher.send_all(
            send_callback(target.url) for target in (changing, healthy) for _ in range(150)
        )
        await until(lambda: len(publisher.facts) == len(warm_up))
        hanging.set()
        await publisher.send_all(send_callback(changing.url) for _ in range(600))
        ids = set(await publisher.send_all(send_callback(healthy.url) for _ in range(20)))
        await until(lambda: ids <= {fact["callback_id"] for fact in publisher.facts})


async def test_row_31_a_secret_is_rotated_under_load(amqp_url: str, tmp_path: Path) -> None:
    old, new = "canary-old-secret", "canary-new-secret"
    async with AsyncExitStack() as stack:
        service, publisher = await stack.enter_async_context(callback_service(amqp_url, tmp_path))
        receiver = await stack.enter_async_context(running_sandbox())
        url = await receiver.mailbox(secrets=[old])
        accepted = 0
        # Sender and receiver never switch at the same time. Receivers that read only one
        # X-Signature see the first secret of the list.
        for sent_with, known in (
            (old, [old]),
            ([old, new], [old]),
            ([old, new], [old, new]),
            ([new, old], [new]),
            (new, [new]),
        ):
            await receiver.configure_mailbox(url, secrets=known)
            accepted += 100
            await publisher.send_all(send_callback(url, hmac_secret=sent_with) for _ in range(100))
            await receiver.webhooks(url, accepted)
        await until(lambda: len(publisher.facts) == accepted)
        assert {fact["type"] for fact in publisher.facts} == {"callback.delivered"}
        assert {fact["attempt"] for fact in publisher.facts} == {1}, "no attempt failed"
        text = service.output + (await service.get("/metrics"))[1] + str(publisher.facts)
        assert "canary" not in text


async def test_row_13_a_message_that_kills_its_workers_is_dead_lettered_at_the_limit(
    amqp_url: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        first, publisher = await stack.enter_async_context(callback_service(amqp_url, tmp_path))
        target = await stack.enter_async_context(serve(hang))
        healthy = await stack.enter_async_context(serve(respond()))
        poison = await publisher.send(send_callback(target.url, timeout=300))
        await until(lambda: target.requests)
        first.kill()
        # Like nineteen more dead workers: receive the message and lose the connection.
        for _ in range(19):
            async with await aio_pika.connect(amqp_url) as connection:
                channel = await connection.channel()
                queue = await channel.get_queue(CALLBACKS)
                await until(partial(queue.get, fail=False))
        second = stack.enter_context(running(tmp_path, amqp_url))
        await until(lambda: len(target.requests) == 2, 30)
        ids = set(await publisher.send_all(send_callback(healthy.url) for _ in range(20)))
        await until(lambda: ids <= {f["callback_id"] for f in publisher.facts})
        second.kill()
        third = stack.enter_context(running(tmp_path, amqp_url))
        await third.ready()
        dead_letter = await publisher.dead_letter(poison)
        assert dead_letter.headers["x-first-death-reason"] == "delivery_limit"
        after = await publisher.send(send_callback(healthy.url))
        await publisher.fact(after, "callback.delivered")
