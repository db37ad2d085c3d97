"""U1 to U3 and N5 with real processes: each push arrives, whatever is killed."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest

from deploy.local.database import Database
from services.sandbox.misbehaviour import response
from tests.acceptance.crashing_deliveries import POINTS
from tests.fakes.crash_points import slow_except
from tests.fakes.messenger import RUN_SUBSCRIPTIONS, empty_subscriptions
from tests.fakes.receivers import ClientConnection, Receiver, respond, serve
from tests.fakes.service import RUN_CALLBACK, Service, running
from tests.fakes.system import SECRETS_KEY
from tests.fakes.user_events import user_events_client
from tests.fakes.waiting import until

CRASHING = ("-m", "tests.acceptance.crashing_deliveries")
EVENTS = 20


@contextmanager
def subscriptions(
    directory: Path, amqp_url: str, database_url: str, run: tuple[str, ...] = RUN_SUBSCRIPTIONS
) -> Iterator[Service]:
    """Run the service."""
    settings = {"RINGBACK_DATABASE_URL": database_url, "RINGBACK_SECRETS_KEY": SECRETS_KEY}
    with running(directory, amqp_url, settings, run) as service:
        yield service


def numbers(receiver: Receiver) -> list[int]:
    """Return the numbers of the events that arrived, with repeats."""
    return [json.loads(request.body)["event"]["n"] for request in receiver.requests]


def sequences(receiver: Receiver) -> list[int]:
    """Return the sequence numbers that arrived, with repeats."""
    return [int(request.headers["x-ringback-sequence"]) for request in receiver.requests]


@pytest.mark.parametrize("point", slow_except(POINTS, "after the confirm"))
async def test_u2_rows_16_and_17_a_kill_at_any_point_repeats_at_most_once_and_loses_no_push(
    amqp_url: str, own_database: Database, tmp_path: Path, point: str
) -> None:
    await empty_subscriptions(own_database.url)
    async with AsyncExitStack() as stack:
        callback = stack.enter_context(running(tmp_path, amqp_url, {}, RUN_CALLBACK))
        receiver = await stack.enter_async_context(serve(respond()))
        dying = stack.enter_context(
            subscriptions(tmp_path, amqp_url, own_database.url, (*CRASHING, point))
        )
        await dying.ready()
        await callback.ready()
        client = await stack.enter_async_context(user_events_client(amqp_url))
        user_id, token = await client.user()
        await client("StartCallback", token_hash=token, registration={"callback": receiver.url})
        for number in range(EVENTS):
            await client.publish(user_id, number, id=f"event-{number}")
        assert await dying.exit_code() == -9, dying.output
        second = stack.enter_context(subscriptions(tmp_path, amqp_url, own_database.url))
        await second.ready()
        await until(lambda: set(numbers(receiver)) == set(range(EVENTS)), 30)
        assert set(sequences(receiver)) == set(range(1, EVENTS + 1))
        by_id = Counter(request.headers["webhook-id"] for request in receiver.requests)
        assert len(by_id) == EVENTS
        assert max(by_id.values()) <= 2


@pytest.mark.slow
async def test_n5_with_a_receiver_that_fails_each_first_attempt_events_arrive_in_order(
    amqp_url: str, own_database: Database, tmp_path: Path
) -> None:
    failed: set[str] = set()

    async def fail_first(connection: ClientConnection) -> None:
        while True:
            request = await connection.request()
            first = request.headers["webhook-id"] not in failed
            failed.add(request.headers["webhook-id"])
            await connection.write(response(500 if first else 200))

    await empty_subscriptions(own_database.url)
    async with AsyncExitStack() as stack:
        services = [
            stack.enter_context(running(tmp_path, amqp_url, {}, RUN_CALLBACK)),
            *(
                stack.enter_context(subscriptions(tmp_path, amqp_url, own_database.url))
                for _ in range(2)
            ),
        ]
        for service in services:
            await service.ready()
        receiver = await stack.enter_async_context(serve(fail_first))
        client = await stack.enter_async_context(user_events_client(amqp_url))
        user_id, token = await client.user()
        registration = {"callback": receiver.url, "ordered": True}
        await client("StartCallback", token_hash=token, registration=registration)
        for number in range(5):
            await client.publish(user_id, number)
        await until(lambda: len(receiver.requests) >= 10)
        assert sequences(receiver) == [number for number in range(1, 6) for _ in range(2)]
