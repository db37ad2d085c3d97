"""`ringback dead`: listing changes nothing, and a redrive loses nothing."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from deploy.local.broker import Broker
from shared.amqp import dead_letters as letters
from shared.amqp.connection import connect
from shared.amqp.queue_browser import browse_queue
from tests.fakes.broker_client import send_callback
from tests.fakes.command import ringback, start
from tests.fakes.declaring import declare_queues
from tests.fakes.held_broker import held_broker
from tests.fakes.service import running
from tests.fakes.waiting import until

CANARY = "secret-canary"
DIED_AT = 1_795_000_000_000
# A redrive is interrupted when it has sent about a third of these.
LETTERS, LETTERS_BYTES = 1000, 300_000


@pytest.fixture
async def channel(amqp_url: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """A plain AMQP channel, with the queues of callbacks declared."""
    await declare_queues(amqp_url, "callbacks")
    async with await aio_pika.connect(amqp_url) as connection:
        yield await connection.channel()


async def dead_letter(
    channel: aio_pika.abc.AbstractChannel,
    ids: Iterable[str],
    reason: str = "status 410",
    died_at: int = DIED_AT,
) -> None:
    """Publish messages to the dead-letter queue, as the callback service does."""
    await asyncio.gather(
        *(
            channel.default_exchange.publish(
                aio_pika.Message(
                    json.dumps(
                        send_callback("http://u:p@example.com:81/t?x=1", id=identity)
                    ).encode(),
                    content_type="application/json",
                    type="SendCallback",
                    message_id=f"m-{identity}",
                    app_id="somebody",
                    delivery_mode=2,
                    headers={
                        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                        "x-ringback-id": identity,
                        "x-ringback-attempt": 3,
                        "x-ringback-deferrals": 1,
                        "x-ringback-first-at": DIED_AT - 5000,
                        "x-ringback-not-before": DIED_AT - 10,
                        "x-ringback-reason": reason,
                        "x-ringback-died-at": died_at,
                    },
                ),
                routing_key="callbacks.dead",
            )
            for identity in ids
        )
    )


async def consume_all(channel: aio_pika.abc.AbstractChannel, queue: str) -> list[Any]:
    """Consume all messages of a queue, and return them in order."""
    count = await length(channel, queue)
    messages: asyncio.Queue[Any] = asyncio.Queue()
    found = await channel.get_queue(queue)
    tag = await found.consume(messages.put, no_ack=True)
    messages_in_order = [await asyncio.wait_for(messages.get(), 20) for _ in range(count)]
    await found.cancel(tag)
    return messages_in_order


async def ids(channel: aio_pika.abc.AbstractChannel, queue: str) -> list[str]:
    return [json.loads(message.body)["id"] for message in await consume_all(channel, queue)]


async def length(channel: aio_pika.abc.AbstractChannel, queue: str) -> int:
    declared = await channel.declare_queue(queue, passive=True)
    return declared.declaration_result.message_count or 0


async def test_list_shows_time_id_attempts_target_and_reason(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel
) -> None:
    await dead_letter(channel, ["c"], died_at=DIED_AT + 2000)
    await dead_letter(channel, ["a", "b"])
    await dead_letter(channel, ["d"], reason="not JSON", died_at=DIED_AT + 3000)

    two = ("--limit", "2", "--json")
    first = await ringback("dead", "list", "callbacks", "--oldest", *two, amqp_url=amqp_url)
    last = await ringback("dead", "list", "callbacks.dead", *two, amqp_url=amqp_url)
    filtered = await ringback(
        "dead", "list", "callbacks", "--reason", "NOT json", amqp_url=amqp_url
    )

    assert first.json_lines[0] == {
        "id": "a",
        "died_at": "2026-11-18T11:06:40.000Z",
        "attempts": 3,
        "target": "http://example.com:81",
        "reason": "status 410",
    }
    assert [line["id"] for line in first.json_lines] == ["a", "b"]
    assert [line["id"] for line in last.json_lines] == ["c", "d"]
    [line] = filtered.out.splitlines()
    assert line.split()[:2] == ["2026-11-18T11:06:43", "d"]


async def test_reading_a_queue_many_times_changes_nothing(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel
) -> None:
    """RabbitMQ 4 drops a message after 20 deliveries, unless the queue has another limit."""
    expected = [f"c{n}" for n in range(300)]
    await dead_letter(channel, expected)

    async with connect(amqp_url, name="test") as broker:
        for _ in range(30):
            async with browse_queue(broker, "callbacks.dead") as browser:
                assert [letters.parse_dead_letter(each).id async for each in browser] == expected

    assert await ids(channel, "callbacks.dead") == expected


async def test_show_hides_every_secret(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel
) -> None:
    body = send_callback(
        f"http://user:{CANARY}@example.com/path?key={CANARY}",
        id="me",
        hmac_secret=[CANARY, CANARY],
        headers={"Authorization": CANARY, "X-Mine": "shown"},
        payload={"password": CANARY, "deep": [{"api_key": CANARY}], "text": "shown"},
    )
    for name, data in (
        ("whole", json.dumps(body).encode()),
        ("broken", b'{"hmac_secret": "' + CANARY.encode()),
    ):
        message = aio_pika.Message(
            data, message_id=name, headers={"x-ringback-reason": "r", "X-Api-Key": CANARY}
        )
        await channel.default_exchange.publish(message, routing_key="callbacks.dead")

    whole = await ringback("dead", "show", "callbacks", "me", "--json", amqp_url=amqp_url)
    text = await ringback("dead", "show", "callbacks", "me", amqp_url=amqp_url)
    broken = await ringback("dead", "show", "callbacks", "broken", amqp_url=amqp_url)
    missing = await ringback("dead", "show", "callbacks", "nobody", amqp_url=amqp_url)

    [shown] = whole.json_lines
    assert shown["body"]["headers"]["X-Mine"] == shown["body"]["payload"]["text"] == "shown"
    assert "example.com/path" in shown["body"]["target_url"]
    assert "not JSON" in broken.out
    assert CANARY not in whole.out + text.out + broken.out + whole.err + text.err + broken.err
    assert missing.code == 1


async def test_list_shows_the_broker_s_own_reason(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel
) -> None:
    message = aio_pika.Message(b"{}", message_id="poison")
    await channel.default_exchange.publish(message, routing_key="callbacks")
    queue = await channel.get_queue("callbacks")
    while poison := await queue.get(fail=False):
        await poison.reject(requeue=True)
    await until(lambda: length(channel, "callbacks.dead"))

    output = await ringback("dead", "list", "callbacks", "--json", amqp_url=amqp_url)

    [line] = output.json_lines
    assert line["id"] == "poison"
    assert "delivery_limit" in line["reason"]
    assert line["died_at"]


async def test_redriven_messages_start_again_with_the_same_id(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel
) -> None:
    await dead_letter(channel, ["a", "b", "c", "d"])
    select = ("--id", "b", "--id", "c")

    dry_run = await ringback(
        "dead", "redrive", "callbacks", *select, "--dry-run", "--json", amqp_url=amqp_url
    )
    declined = await ringback(
        "dead", "redrive", "callbacks", *select, amqp_url=amqp_url, stdin="n\n"
    )
    assert await length(channel, "callbacks.dead") == 4
    done = await ringback(
        "dead", "redrive", "callbacks", *select, "--yes", "--json", amqp_url=amqp_url
    )

    assert [line["id"] for line in dry_run.json_lines] == ["b", "c"]
    assert declined.code == 1
    assert done.json_lines == [{"redriven": 2}]
    assert await ids(channel, "callbacks.dead") == ["a", "d"]
    redriven = await consume_all(channel, "callbacks")
    assert [json.loads(message.body)["id"] for message in redriven] == ["b", "c"]
    message = redriven[0]
    assert dict(message.headers) == {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "x-ringback-id": "b",
    }
    assert message.message_id not in (None, "m-b")
    assert (message.type, message.app_id) == ("SendCallback", "somebody")


async def test_messages_dead_lettered_again_are_not_redriven_again(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel, tmp_path: Path
) -> None:
    await dead_letter(channel, [f"c{n}" for n in range(200)])
    with running(tmp_path, amqp_url, {"RINGBACK_CALLBACK_ALLOWED_NETWORKS": ""}) as service:
        await service.ready()

        # The user in the URL is forbidden, so each is dead-lettered at once.
        output = await ringback(
            "dead", "redrive", "callbacks", "--yes", "--json", amqp_url=amqp_url
        )

        assert output.json_lines == [{"redriven": 200}]
        await until(lambda: len(service.logged("callback dead-lettered")) == 200 or None)


@pytest.mark.parametrize("filters", [pytest.param((), marks=pytest.mark.slow), ("--reason", "410")])
async def test_kill_9_during_a_redrive_loses_nothing(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel, filters: tuple[str, ...]
) -> None:
    expected = {f"c{n}" for n in range(LETTERS)}
    await dead_letter(channel, expected)
    async with held_broker(amqp_url, after=LETTERS_BYTES) as (held_url, released):
        command = await start("dead", "redrive", "callbacks", "--yes", *filters, amqp_url=held_url)
        await until(lambda: length(channel, "callbacks"))
        command.kill()
        await command.wait()
        released.set()
        await until(lambda: returned(channel, len(expected)))

    assert await length(channel, "callbacks.dead") > 0
    redriven, remaining = await ids(channel, "callbacks"), set(await ids(channel, "callbacks.dead"))
    assert {*redriven, *remaining} == expected
    assert len(redriven) == len(set(redriven))
    if not filters:  # with a filter, the queue has no bound on acks that it did not apply yet
        assert len(remaining & set(redriven)) <= 200

    await dead_letter(channel, remaining)
    second_redrive = await ringback(
        "dead", "redrive", "callbacks", "--yes", *filters, amqp_url=amqp_url
    )
    assert second_redrive.code == 0
    assert set(await ids(channel, "callbacks")) == remaining
    assert await length(channel, "callbacks.dead") == 0


async def test_messages_refused_by_the_work_queue_stay_dead_lettered(own_broker: Broker) -> None:
    """A message leaves the dead-letter queue only after the work queue has confirmed it."""
    expected = {f"c{n}" for n in range(300)}
    await declare_queues(own_broker.url, "callbacks")
    policy = ("short", "^callbacks$", '{"max-length": 50}')
    own_broker.ctl("set_policy", "--vhost", own_broker.vhost, *policy)
    async with await aio_pika.connect(own_broker.url) as connection:
        channel = await connection.channel()
        await dead_letter(channel, expected)

        output = await ringback("dead", "redrive", "callbacks", "--yes", amqp_url=own_broker.url)

        assert output.code == 1
        assert "Cannot redrive the other messages: the broker refused" in output.err
        redriven, remaining = await ids(channel, "callbacks"), await ids(channel, "callbacks.dead")
        assert 50 <= len(redriven) < 300
        assert {*redriven, *remaining} == expected


async def test_a_message_that_cannot_be_published_again_does_not_stop_a_redrive(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel
) -> None:
    await channel.default_exchange.publish(
        aio_pika.Message(b"{}", headers={"h": "x" * 131_000}, message_id="fat", delivery_mode=2),
        routing_key="callbacks.dead",
    )
    await dead_letter(channel, ["a", "b"])

    output = await ringback("dead", "redrive", "callbacks", "--yes", amqp_url=amqp_url)

    assert output.code == 1
    assert "2 of 3 messages moved" in output.err
    assert "Cannot redrive 1 of the messages, such as 'fat': the headers are" in output.err
    assert await ids(channel, "callbacks") == ["a", "b"]
    assert await length(channel, "callbacks.dead") == 1


async def returned(channel: aio_pika.abc.AbstractChannel, count: int) -> bool:
    """Return whether the messages of the killed command are back in their queues."""
    return await length(channel, "callbacks") + await length(channel, "callbacks.dead") >= count


async def test_ctrl_c_during_a_redrive_finishes_messages_in_flight(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel
) -> None:
    expected = sorted(f"c{n}" for n in range(LETTERS))
    await dead_letter(channel, expected)
    async with held_broker(amqp_url, after=LETTERS_BYTES) as (held_url, released):
        command = await start("dead", "redrive", "callbacks", "--yes", amqp_url=held_url)
        await until(lambda: length(channel, "callbacks"))
        command.send_signal(2)
        released.set()
        _, stderr = await command.communicate()
        await until(lambda: returned(channel, len(expected)))

    assert command.returncode == 1
    redriven, remaining = await ids(channel, "callbacks"), await ids(channel, "callbacks.dead")
    assert f"{len(redriven)} of {LETTERS} messages moved" in stderr.decode()
    assert remaining
    assert {*redriven, *remaining} == set(expected)
    assert len(redriven) == len(set(redriven))
    assert len(redriven + remaining) - len(expected) <= 20, "acks were lost"
