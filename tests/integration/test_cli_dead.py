"""`ringback dead`: looking changes nothing, and putting back loses nothing."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from deploy.local.broker import Broker
from services.cli import dead_letters as letters
from services.cli.queue_browser import browse_queue
from shared.amqp.connection import connect
from tests.fakes.command import ringback, start
from tests.fakes.outside import order
from tests.fakes.service import running
from tests.fakes.waiting import until

CANARY = "secret-canary"
DIED_AT = 1_795_000_000_000


@pytest.fixture
async def channel(amqp_url: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """A plain AMQP channel, with all queues declared."""
    assert (await ringback("topology", "declare", amqp_url=amqp_url)).code == 0
    async with await aio_pika.connect(amqp_url) as connection:
        yield await connection.channel()


async def bury(
    channel: aio_pika.abc.AbstractChannel,
    ids: Iterable[str],
    reason: str = "status 410",
    died_at: int = DIED_AT,
) -> None:
    """Put messages into the dead queue as the callback sender does."""
    await asyncio.gather(
        *(
            channel.default_exchange.publish(
                aio_pika.Message(
                    json.dumps(order("http://u:p@example.com:81/t?x=1", id=identity)).encode(),
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


async def taken(channel: aio_pika.abc.AbstractChannel, queue: str) -> list[Any]:
    """Take all messages of a queue; in order."""
    count = await length(channel, queue)
    messages: asyncio.Queue[Any] = asyncio.Queue()
    found = await channel.get_queue(queue)
    tag = await found.consume(messages.put, no_ack=True)
    took = [await asyncio.wait_for(messages.get(), 20) for _ in range(count)]
    await found.cancel(tag)
    return took


async def ids(channel: aio_pika.abc.AbstractChannel, queue: str) -> list[str]:
    return [json.loads(message.body)["id"] for message in await taken(channel, queue)]


async def length(channel: aio_pika.abc.AbstractChannel, queue: str) -> int:
    declared = await channel.declare_queue(queue, passive=True)
    return declared.declaration_result.message_count or 0


async def test_list_tells_when_why_where_to_and_after_how_many_tries(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel
) -> None:
    await bury(channel, ["c"], died_at=DIED_AT + 2000)
    await bury(channel, ["a", "b"])
    await bury(channel, ["d"], reason="not JSON", died_at=DIED_AT + 3000)

    two = ("--limit", "2", "--json")
    first = await ringback("dead", "list", "callbacks", "--oldest", *two, amqp_url=amqp_url)
    last = await ringback("dead", "list", "callbacks.dead", *two, amqp_url=amqp_url)
    some = await ringback("dead", "list", "callbacks", "--reason", "NOT json", amqp_url=amqp_url)

    assert first.json_lines[0] == {
        "id": "a",
        "died_at": "2026-11-18T11:06:40.000Z",
        "attempts": 3,
        "target": "http://example.com:81",
        "reason": "status 410",
    }
    assert [line["id"] for line in first.json_lines] == ["a", "b"]
    assert [line["id"] for line in last.json_lines] == ["c", "d"]
    [line] = some.out.splitlines()
    assert line.split()[:2] == ["2026-11-18T11:06:43", "d"]


async def test_looking_any_number_of_times_changes_nothing(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel
) -> None:
    """RabbitMQ 4 drops what was delivered 20 times, unless told otherwise."""
    there = [f"c{n}" for n in range(300)]
    await bury(channel, there)

    async with connect(amqp_url, name="test") as link:
        for _ in range(30):
            async with browse_queue(link, "callbacks.dead") as walk:
                assert [letters.read(each).id async for each in walk] == there

    assert await ids(channel, "callbacks.dead") == there


async def test_show_hides_every_secret(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel
) -> None:
    body = order(
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
    none = await ringback("dead", "show", "callbacks", "nobody", amqp_url=amqp_url)

    [shown] = whole.json_lines
    assert shown["body"]["headers"]["X-Mine"] == shown["body"]["payload"]["text"] == "shown"
    assert "example.com/path" in shown["body"]["target_url"]
    assert "not JSON" in broken.out
    assert CANARY not in whole.out + text.out + broken.out + whole.err + text.err + broken.err
    assert none.code == 1


async def test_the_broker_s_own_reason_is_told(
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


async def test_what_is_put_back_starts_anew_under_its_old_id(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel
) -> None:
    await bury(channel, ["a", "b", "c", "d"])
    select = ("--id", "b", "--id", "c")

    dry = await ringback(
        "dead", "redrive", "callbacks", *select, "--dry-run", "--json", amqp_url=amqp_url
    )
    asked = await ringback("dead", "redrive", "callbacks", *select, amqp_url=amqp_url, given="n\n")
    assert await length(channel, "callbacks.dead") == 4
    done = await ringback(
        "dead", "redrive", "callbacks", *select, "--yes", "--json", amqp_url=amqp_url
    )

    assert [line["id"] for line in dry.json_lines] == ["b", "c"]
    assert asked.code == 1
    assert done.json_lines == [{"redriven": 2}]
    assert await ids(channel, "callbacks.dead") == ["a", "d"]
    back = await taken(channel, "callbacks")
    assert [json.loads(message.body)["id"] for message in back] == ["b", "c"]
    message = back[0]
    assert dict(message.headers) == {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "x-ringback-id": "b",
    }
    assert message.message_id not in (None, "m-b")
    assert (message.type, message.app_id) == ("SendCallback", "somebody")


async def test_what_dies_again_is_not_put_back_again(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel, tmp_path: Path
) -> None:
    await bury(channel, [f"c{n}" for n in range(200)])
    with running(tmp_path, amqp_url, {"RINGBACK_CALLBACK_ALLOWED_NETWORKS": ""}) as service:
        await service.ready()

        # Its user part makes the target forbidden: each dies at once.
        output = await ringback(
            "dead", "redrive", "callbacks", "--yes", "--json", amqp_url=amqp_url
        )

        assert output.json_lines == [{"redriven": 200}]
        await until(lambda: len(service.logged("callback dead-lettered")) == 200 or None)


@pytest.mark.parametrize("chosen", [(), ("--reason", "410")])
async def test_kill_9_in_the_middle_of_a_redrive_loses_nothing(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel, chosen: tuple[str, ...]
) -> None:
    there = {f"c{n}" for n in range(3000)}
    await bury(channel, there)
    command = await start("dead", "redrive", "callbacks", "--yes", *chosen, amqp_url=amqp_url)

    await until(lambda: length(channel, "callbacks"))
    command.kill()
    await command.wait()
    await until(lambda: unlocked(channel, len(there)))

    assert await length(channel, "callbacks.dead") > 0, "it was over before the kill"
    back, left = await ids(channel, "callbacks"), set(await ids(channel, "callbacks.dead"))
    assert {*back, *left} == there
    assert len(back) == len(set(back))
    assert len(left & set(back)) <= 200  # those in flight are repeated

    await bury(channel, left)
    again = await ringback("dead", "redrive", "callbacks", "--yes", *chosen, amqp_url=amqp_url)
    assert again.code == 0
    assert set(await ids(channel, "callbacks")) == left
    assert await length(channel, "callbacks.dead") == 0


async def test_what_the_work_queue_refuses_stays_dead(own_broker: Broker) -> None:
    """A message leaves the dead queue only when the work queue has confirmed it."""
    there = {f"c{n}" for n in range(300)}
    await ringback("topology", "declare", amqp_url=own_broker.url)
    own_broker.ctl("set_policy", "short", "^callbacks$", '{"max-length": 50}')
    async with await aio_pika.connect(own_broker.url) as connection:
        channel = await connection.channel()
        await bury(channel, there)

        output = await ringback("dead", "redrive", "callbacks", "--yes", amqp_url=own_broker.url)

        assert output.code == 1
        assert "the others stay in callbacks.dead: the broker refused" in output.err
        back, left = await ids(channel, "callbacks"), await ids(channel, "callbacks.dead")
        assert 50 <= len(back) < 300
        assert {*back, *left} == there


async def unlocked(channel: aio_pika.abc.AbstractChannel, count: int) -> bool:
    """Whether the broker has taken back what the killed command held."""
    return await length(channel, "callbacks") + await length(channel, "callbacks.dead") >= count


async def test_ctrl_c_in_the_middle_settles_what_is_in_flight(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel
) -> None:
    there = sorted(f"c{n}" for n in range(3000))
    await bury(channel, there)
    command = await start("dead", "redrive", "callbacks", "--yes", amqp_url=amqp_url)

    await until(lambda: length(channel, "callbacks"))
    command.send_signal(2)
    _, said = await command.communicate()
    await until(lambda: unlocked(channel, len(there)))

    assert command.returncode == 1
    back, left = await ids(channel, "callbacks"), await ids(channel, "callbacks.dead")
    assert f"{len(back)} of 3000 messages put back" in said.decode()
    assert left, "it was over before Ctrl-C"
    assert {*back, *left} == set(there)
    assert len(back) == len(set(back))
    assert len(back + left) - len(there) <= 20, "acks were lost"
