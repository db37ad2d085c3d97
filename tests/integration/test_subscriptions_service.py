"""Subscriptions as a process: user events over RabbitMQ, with a real broker and database."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.ingestion.app import SCHEMA as INGESTION_SCHEMA
from shared.postgres.migrations import migrate
from tests.fakes.command import ringback
from tests.fakes.ingesting import RUN_INGESTION
from tests.fakes.messenger import RUN_SUBSCRIPTIONS, empty_subscriptions
from tests.fakes.service import Service, running
from tests.fakes.system import SECRETS_KEY
from tests.fakes.user_events import UserEventsClient, user_events_client
from tests.fakes.waiting import until

RULES = """
[paid]
from_service = "shop"
event = "paid"
[[paid.user_event]]
user_id = "{{ details.user }}"
type = "paid"
event = { total = "{{ details.total }}" }
"""


@pytest.fixture(scope="module")
def service(
    shared_amqp_url: str, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    asyncio.run(empty_subscriptions(database_url))
    settings = {"RINGBACK_DATABASE_URL": database_url, "RINGBACK_SECRETS_KEY": SECRETS_KEY}
    directory = tmp_path_factory.mktemp("subscriptions")
    with running(directory, shared_amqp_url, settings, RUN_SUBSCRIPTIONS) as started:
        asyncio.run(started.ready())
        yield started


@pytest.fixture
async def client(service: Service, shared_amqp_url: str) -> AsyncIterator[UserEventsClient]:
    assert not service.exited(), service.output
    async with user_events_client(shared_amqp_url) as client:
        yield client


async def test_a_user_event_reaches_its_user_and_wakes_the_gateways(
    client: UserEventsClient,
) -> None:
    user_id, token = await client.user()
    other, other_token = await client.user()
    await client.publish(user_id, 1)
    await client.publish(str(user_id), 2)
    await client.publish(other, 3)
    assert await client.events(token, 2) == [1, 2]
    assert await client.events(other_token, 1) == [3]
    await until(lambda: {user_id, other} <= set(client.woken))


async def test_the_type_of_the_message_may_be_missing_but_not_wrong(
    client: UserEventsClient,
) -> None:
    user_id, token = await client.user()
    await client.publish(user_id, 1, message_type=None)
    await client.publish(user_id, 2, message_type="Event")
    assert "type is 'Event'" in str((await client.dead_letter()).headers["x-ringback-reason"])
    assert await client.events(token, 1) == [1]


async def test_a_repeated_event_has_no_effect(client: UserEventsClient, service: Service) -> None:
    user_id, token = await client.user()
    other, other_token = await client.user()
    before = await service.metric("ringback_user_events_total", outcome="repeated")
    for _ in range(3):
        await client.publish(user_id, 1, id="order-1")
        await client.publish(user_id, 2, message_id="order-2")
    await client.publish(other, 3, id="order-1")  # an id identifies an event of one user

    async def repeated() -> bool:
        after = await service.metric("ringback_user_events_total", outcome="repeated")
        return after == before + 4

    await until(repeated)
    assert sorted(await client.events(token, 2)) == [1, 2]
    assert await client.events(other_token, 1) == [3]


async def test_an_event_for_an_unknown_user_is_dead_lettered_with_a_reason_and_counted(
    client: UserEventsClient, service: Service
) -> None:
    before = await service.metric("ringback_user_events_total", outcome="unknown_user")
    await client.publish(1 << 60, id="lost")
    dead = await client.dead_letter()

    async def counted() -> bool:
        after = await service.metric("ringback_user_events_total", outcome="unknown_user")
        return after == before + 1

    await until(counted)
    assert dead.headers["x-ringback-reason"] == f"user {1 << 60} does not exist"
    assert json.loads(dead.body)["id"] == "lost"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"user_id": "ann"}, "user_id"),
        ({"event": [1]}, "event: Input should be an object"),
        ({"event": {"text": "a\0b"}}, "event: contains the character NUL"),
        ({"event": {"text": "a\ud800"}}, "Invalid JSON"),
        ({"event": {"n": float("inf")}}, "event: contains a number that JSON cannot represent"),
        ({"id": "x" * 201}, "id"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
    ],
)
async def test_an_invalid_user_event_is_dead_lettered(
    client: UserEventsClient, fields: dict[str, Any], reason: str
) -> None:
    await client.publish(**{"user_id": 1, **fields})
    dead = await client.dead_letter()
    assert reason in str(dead.headers["x-ringback-reason"])


async def test_e2_a_rule_publishes_a_user_event(
    client: UserEventsClient, shared_amqp_url: str, database_url: str, tmp_path: Path
) -> None:
    user_id, token = await client.user()
    await migrate(database_url, INGESTION_SCHEMA)
    (tmp_path / "rules.toml").write_text(RULES)
    settings = {"RINGBACK_DATABASE_URL": database_url, "RINGBACK_RULES_FILE": "rules.toml"}
    with running(tmp_path, shared_amqp_url, settings, RUN_INGESTION) as ingestion:
        await ingestion.ready()
        for user in (user_id, str(user_id)):
            body = {
                "from_service": "shop",
                "event": "paid",
                "details": {"user": user, "total": 9},
            }
            (tmp_path / "event.json").write_text(json.dumps(body))
            sent = await ringback(
                "send", "Event", str(tmp_path / "event.json"), amqp_url=shared_amqp_url
            )
            assert sent.code == 0, sent.err

        async def read() -> list[Any]:
            page = await client("ReadEvents", token_hash=token)
            found: list[Any] = page["events"]
            return found

        for _ in range(2):
            [event] = await until(read)
            assert (event["type"], json.loads(event["event"])) == ("paid", {"total": 9})


async def test_the_command_send_publishes_a_user_event(
    client: UserEventsClient, shared_amqp_url: str, tmp_path: Path
) -> None:
    user_id, token = await client.user()
    file = tmp_path / "event.json"
    file.write_text(json.dumps({"user_id": user_id, "type": "t", "event": {"n": 5}}))
    sent = await ringback("send", "UserEvent", str(file), amqp_url=shared_amqp_url)
    assert sent.code == 0, sent.err
    assert await client.events(token, 1) == [5]
