"""`ringback send` validates all messages first and publishes them with confirmation."""

import asyncio
import json

import aio_pika
import pytest

from deploy.local.broker import Broker
from tests.fakes.broker_client import send_callback
from tests.fakes.command import ringback, start
from tests.fakes.declaring import declare_queues
from tests.fakes.waiting import until

CANARY = "secret-canary"


def lines(count: int) -> str:
    return "".join(
        json.dumps(send_callback("http://example.com/", id=f"c{n}")) + "\n" for n in range(count)
    )


async def consume_all(
    amqp_url: str, name: str = "callbacks"
) -> list[aio_pika.abc.AbstractIncomingMessage]:
    """Consume and return all messages of the queue."""
    messages: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, passive=True)
        await queue.consume(messages.put, no_ack=True)
        count = queue.declaration_result.message_count or 0
        return [await asyncio.wait_for(messages.get(), 20) for _ in range(count)]


async def test_a_document_is_published_byte_for_byte(amqp_url: str) -> None:
    text = json.dumps(send_callback("http://example.com/", id="mine"), indent=2)

    output = await ringback("send", "SendCallback", amqp_url=amqp_url, stdin=text)

    assert (output.code, output.out) == (0, "mine\n"), output.err
    [message] = await consume_all(amqp_url)
    assert message.body == text.encode()
    assert (message.type, message.content_type) == ("SendCallback", "application/json")
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert message.message_id
    assert message.timestamp


async def test_a_message_without_an_id_gets_its_message_id(amqp_url: str) -> None:
    body = send_callback("http://example.com/")
    del body["id"]

    output = await ringback(
        "send", "SendCallback", "--json", amqp_url=amqp_url, stdin=json.dumps(body)
    )

    [message] = await consume_all(amqp_url)
    assert output.json_lines == [{"id": message.message_id, "message_id": message.message_id}]


@pytest.mark.parametrize(
    ("type_", "queue", "body"),
    [
        ("SendEmail", "messages.email", {"to": "u@mail.com", "subject": "s", "text": "t"}),
        ("SendSms", "messages.sms", {"phone": "79161234567", "text": "1234"}),
    ],
)
async def test_e6_messages_are_published_to_the_queue_of_their_channel(
    amqp_url: str, type_: str, queue: str, body: dict[str, str]
) -> None:
    text = json.dumps(body) + "\n" + json.dumps(body | {"id": "m-7"})
    output = await ringback("send", type_, amqp_url=amqp_url, stdin=text)
    assert output.code == 0, output.err
    first, second = await consume_all(amqp_url, queue)
    assert [first.type, second.type] == [type_, type_]
    assert output.out.split() == [first.message_id, "m-7"]
    assert [json.loads(first.body), json.loads(second.body)] == [body, body | {"id": "m-7"}]


async def test_many_json_lines_are_all_confirmed(amqp_url: str) -> None:
    output = await ringback("send", "SendCallback", amqp_url=amqp_url, stdin=lines(2000))

    assert output.code == 0, output.err
    assert sorted(output.out.split()) == sorted(f"c{n}" for n in range(2000))
    assert len(await consume_all(amqp_url)) == 2000


async def test_one_wrong_line_prevents_publishing_and_every_fault_is_named(amqp_url: str) -> None:
    await declare_queues(amqp_url, "callbacks")
    wrong = {"target_url": 7, "hmac_secret": CANARY, "paload": {}}
    text = lines(2) + json.dumps(wrong) + "\n\n" + '{"half\n'

    output = await ringback("send", "SendCallback", amqp_url=amqp_url, stdin=text)

    assert (output.code, output.out) == (1, "")
    for fault in ("line 3: target_url:", "line 3: payload:", "line 3: paload:", "line 5: Invalid"):
        assert fault in output.err
    assert CANARY not in output.err
    assert await consume_all(amqp_url) == []


@pytest.mark.parametrize("arguments", [("SendNothing",), ("SendCallback", "no-such-file")])
async def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    output = await ringback("send", *arguments, amqp_url="amqp://127.0.0.1:1")

    assert output.code == 2


async def test_an_unavailable_broker_is_reported_with_a_remedy() -> None:
    output = await ringback(
        "send", "SendCallback", amqp_url="amqp://me:canary@127.0.0.1:1/", stdin=lines(1)
    )

    assert output.code == 1
    assert "127.0.0.1:1" in output.err
    assert "RINGBACK_AMQP_URL" in output.err
    assert "canary" not in output.err


@pytest.mark.slow
async def test_a_broker_killed_during_the_run_loses_no_message(own_broker: Broker) -> None:
    count = 20_000
    # A queue declared just before the kill would be empty after the restart (see Broker.sync).
    await declare_queues(own_broker.url, "callbacks")
    await asyncio.to_thread(own_broker.sync)
    command = await start("send", "SendCallback", amqp_url=own_broker.url)
    assert command.stdin
    assert command.stdout
    command.stdin.write(lines(count).encode())
    command.stdin.write_eof()
    printed = [await command.stdout.readline()]  # the first is confirmed

    await asyncio.to_thread(own_broker.kill)
    restarting = asyncio.create_task(asyncio.to_thread(own_broker.start))
    out, errors = await asyncio.wait_for(command.communicate(), 120)
    await restarting

    assert command.returncode == 0, errors.decode()
    assert {*b"".join(printed).split(), *out.split()} == {b"c%d" % n for n in range(count)}
    found = await until(lambda: consume_all(own_broker.url))
    assert {json.loads(message.body)["id"] for message in found} == {f"c{n}" for n in range(count)}
