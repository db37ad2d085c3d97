"""Invalid and forbidden messages are dead-lettered at once, unchanged. Rows 15 and 26."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import aio_pika
import aiormq
import pytest

from tests.fakes.broker_client import CALLBACKS, BrokerClient, reason, send_callback
from tests.fakes.sandbox import Sandbox
from tests.fakes.service import Service
from tests.fakes.waiting import until

URL = "http://127.0.0.1:9/"
CANARY = "canary-in-bad-input"


def body(**fields: Any) -> bytes:
    """Return a valid message except for these fields; None removes a field."""
    message = send_callback(URL, hmac_secret=CANARY) | fields
    return json.dumps(
        {name: value for name, value in message.items() if value is not None}
    ).encode()


def payload(text: str) -> bytes:
    """Return a message with this raw JSON as payload."""
    return body(payload="PAYLOAD").replace(b'"PAYLOAD"', text.encode("utf-8", "surrogatepass"))


# name: the body, and a text that the reason must contain
BAD_BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "JSON"),
    "not JSON": (b"\x00\xff\xfe", "JSON"),
    "cut off": (body()[:-1], "JSON"),
    "latin-1": (payload('"ö"').decode().encode("latin-1"), "JSON"),
    "a list": (b"[]", "object"),
    "a text": (b'"SendCallback"', "object"),
    "no target_url": (body(target_url=None), "target_url"),
    "no payload": (payload("0").replace(b'"payload": 0', b'"paylod": 0'), "payload"),
    "no secret": (body(hmac_secret=None), "hmac_secret or secret_ref"),
    "two secrets": (body(secret_ref="billing"), "hmac_secret or secret_ref"),
    "an empty secret": (body(hmac_secret=""), "hmac_secret"),
    "no list of secrets": (body(hmac_secret=[]), "hmac_secret"),
    "an unknown secret_ref": (body(hmac_secret=None, secret_ref="nobody"), "nobody"),
    "a whsec_ that is not base64": (body(hmac_secret="whsec_!!" + CANARY), "base64"),
    "an unknown field": (body(colour="red"), "colour"),
    "a method": (body(target_method="TRACE"), "target_method"),
    "a number as URL": (body(target_url=5), "target_url"),
    "a timeout of 0": (body(timeout=0), "timeout"),
    "a timeout as text": (body(timeout="5"), "timeout"),
    "retries below 0": (body(retry={"quick_retries_count": -1}), "retry.quick_retries_count"),
    "an endless delay": (body(retry={"delays": [1e9]}), "retry.delays"),
    "an empty retry": (body(retry={}), "retry"),
    "expires_at without zone": (body(expires_at="2030-01-01T00:00:00"), "expires_at"),
    "an id with a line break": (body(id="a\r\nb"), "id"),
    "a header with a line break": (body(headers={"X-A": "a\r\nX-B: b"}), "headers"),
    "a header name with a colon": (body(headers={"X:A": "a"}), "headers"),
    "too many headers": (body(headers={f"x-{i}": "" for i in range(65)}), "headers"),
    # row 26
    "NUL": (payload(r'"a\u0000b"'), "NUL"),
    "a lone surrogate, escaped": (payload(r'"\ud800"'), "JSON"),
    "a lone surrogate, raw": (payload('"\ud800"'), "JSON"),
    "NaN": (payload("NaN"), "payload"),
    "Infinity": (payload("[-Infinity]"), "payload"),
    "1e999999": (payload("1e999999"), "payload"),
    "a number of 5,000 digits": (payload("1" * 5000), "number"),
    "10,000 levels": (payload("[" * 10_000 + "]" * 10_000), "JSON"),
    "10,000 levels unclosed": (payload('{"a":' * 10_000), "JSON"),
    # forbidden targets; the tests of the guard contain every notation
    "a private target": (body(target_url="http://10.1.2.3/"), "10.1.2.3"),
    "link-local metadata": (body(target_url="http://169.254.169.254/latest/"), "169.254.169.254"),
    "mapped IPv6": (body(target_url="http://[::ffff:10.0.0.1]/"), "not a public address"),
    "an IPv6 loopback": (body(target_url="http://[::1]/"), "::1"),
    "ftp": (body(target_url="ftp://example.com/"), "http"),
    "a user in the URL": (body(target_url="http://u:canary-in-bad-input@127.0.0.1/"), ""),
    "no host": (body(target_url="http:///x"), ""),
    # larger than RINGBACK_CALLBACK_MAX_MESSAGE_BYTES
    "too large": (payload(json.dumps("x" * 1_100_000)), "bytes"),
    "15 MiB": (payload(json.dumps("x" * (15 << 20))), "bytes"),
    # the length of the reason is limited
    "a field name of 500 kB": (body(**{"x" * 500_000: 1}), "x" * 100),
    "a host of 8,000 characters": (body(target_url=f"http://{'a' * 8000}/"), ""),
}

BAD_PROPERTIES: dict[str, dict[str, Any]] = {
    "no type": {"type": None},
    "another type": {"type": "SendCallbacks"},
    "no content_type": {"content_type": None},
    "another content_type": {"content_type": "application/xml"},
    "compressed": {"content_encoding": "gzip"},
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_row_26_an_invalid_body_is_dead_lettered_at_once_and_other_messages_are_delivered(
    service: Service, publisher: BrokerClient, receiver: Sandbox, name: str
) -> None:
    raw, expected = BAD_BODIES[name]
    label = f"bad-{abs(hash(name))}"
    url = await receiver.mailbox()
    before = await publisher.send(send_callback(url))
    await publisher.send(
        raw,
        message_id=label,
        app_id="shop",
        timestamp=datetime(2026, 1, 2, tzinfo=UTC),
        headers={"tenant": "acme", "x-request-id": "r-1"},
    )
    after = await publisher.send(send_callback(url))

    dead_letter = await publisher.dead_letter(label)
    assert dead_letter.body == raw
    assert expected in reason(dead_letter)
    assert len(reason(dead_letter)) <= 1000
    assert (dead_letter.message_id, dead_letter.app_id, dead_letter.type) == (
        label,
        "shop",
        "SendCallback",
    )
    assert dead_letter.timestamp == datetime(2026, 1, 2, tzinfo=UTC)
    assert dead_letter.headers["tenant"] == "acme"

    webhooks = await receiver.webhooks(url, 2)
    assert {webhook["webhook_id"] for webhook in webhooks} == {before, after}

    callback_id = str(dead_letter.headers["x-ringback-id"])
    fact = await publisher.fact(callback_id, "callback.dead")
    assert fact["reason"] == reason(dead_letter)
    (line,) = service.logged("callback dead-lettered", callback_id=callback_id)
    assert line["reason"] == reason(dead_letter)
    assert CANARY not in json.dumps(line) + json.dumps(fact) + reason(dead_letter)


async def test_row_15_20_mib_are_refused_by_rabbitmq_4_and_dead_lettered_on_3(
    publisher: BrokerClient,
) -> None:
    raw = payload(json.dumps("x" * (20 << 20)))
    # RabbitMQ 4 accepts at most 16 MiB
    with suppress(aiormq.exceptions.ChannelPreconditionFailed):
        await publisher.send(raw, message_id="row-15")
        assert "bytes" in reason(await publisher.dead_letter("row-15"))


@pytest.mark.parametrize("name", BAD_PROPERTIES)
async def test_a_message_with_invalid_properties_is_dead_lettered_at_once(
    publisher: BrokerClient, name: str
) -> None:
    label = f"props-{abs(hash(name))}"
    await publisher.send(body(), message_id=label, **BAD_PROPERTIES[name])
    dead_letter = await publisher.dead_letter(label)
    (wrong,) = BAD_PROPERTIES[name]
    assert wrong in reason(dead_letter)
    assert dead_letter.body.startswith(b'{"id"')


async def test_each_dead_letter_is_one_log_line_and_one_count(
    service: Service, publisher: BrokerClient
) -> None:
    def dead() -> Any:
        return service.metric("ringback_consumed_total", queue=CALLBACKS, outcome="dead")

    before = await dead()
    labels = [f"counted-{number}" for number in range(20)]
    for label in labels:
        await publisher.send(b"not JSON", message_id=label)
    await asyncio.gather(*(publisher.fact(label, "callback.dead") for label in labels))
    assert await dead() == before + 20
    assert all(
        len(service.logged("callback dead-lettered", callback_id=label)) == 1 for label in labels
    )


async def test_an_invalid_message_without_an_id_is_dead_lettered_with_a_generated_one(
    publisher: BrokerClient,
) -> None:
    marker = b'"not a command"'
    await publisher.send_without_message_id("not a command")

    async def found() -> Any:
        return [each for each in await publisher.read_dead_letters() if each.body == marker]

    (dead_letter,) = await until(found)
    assert dead_letter.message_id is None
    assert str(dead_letter.headers["x-ringback-id"])


def large_headers(size: int) -> dict[str, Any]:
    """Return headers of this size on the wire, in bytes (1,000 for each full one)."""
    full, remainder = divmod(size, 1000)
    return {f"h{number:04}": "v" * 989 for number in range(full)} | {"rest": "v" * (remainder - 10)}


async def test_row_15_a_message_whose_headers_leave_no_room_is_dead_lettered_and_reported(
    service: Service, publisher: BrokerClient, receiver: Sandbox
) -> None:
    # frame_max is 131,072 bytes: the message just fits, a copy with our headers does not
    url = await receiver.mailbox(behaviour={"kind": "fail", "status": 500})
    callback = await publisher.send(send_callback(url), headers=large_headers(130_920))
    dead_letter = await publisher.dead_letter(callback)
    assert "headers" in reason(dead_letter)
    assert json.loads(dead_letter.body)["id"] == callback
    fact = await publisher.fact(callback, "callback.dead")
    assert reason(dead_letter).startswith(fact["reason"])
    assert len(service.logged("callback dead-lettered", callback_id=callback)) == 1
    assert len(publisher.facts_of(callback)) == 1, "no fact announces a retry"


async def test_row_15_the_broker_refuses_200_kb_of_headers(
    service: Service, shared_amqp_url: str, publisher: BrokerClient, receiver: Sandbox
) -> None:
    connection = await aio_pika.connect(shared_amqp_url)
    channel = await connection.channel()
    message = aio_pika.Message(body(), headers=large_headers(200_000))
    with pytest.raises(Exception):  # noqa: B017, PT011 - the broker closes the connection, or aiormq raises
        await channel.default_exchange.publish(message, routing_key=CALLBACKS, timeout=5)
    await connection.close()
    url = await receiver.mailbox()
    await publisher.send(send_callback(url))
    await receiver.webhooks(url)
    assert await service.is_ready()


def unusual_headers() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "bytes", {"b": bytearray(b"\xff\xfe")}
    yield "nested", {"t": {"l": [1, "two", None, {"deep": True}]}}
    yield "a time", {"t": datetime(2026, 1, 1, tzinfo=UTC)}
    yield "counts", {"x-ringback-attempt": 2**63 - 1, "x-ringback-deferrals": 2**62}
    yield "moments", {"x-ringback-not-before": 2**63 - 1, "x-ringback-first-at": 2**62}
    yield "types", {"x-ringback-id": 5, "x-ringback-attempt": True, "traceparent": 7}
    yield "an empty id", {"x-ringback-id": ""}
    yield "an id of 5 kB", {"x-ringback-id": "i" * 5000}
    yield "a broken trace", {"traceparent": "00-\r\nX-Evil: 1"}
    yield "a long trace", {"traceparent": "0" * 60_000}


@pytest.mark.parametrize(("name", "headers"), list(unusual_headers()))
async def test_unusual_headers_do_no_harm(
    service: Service, publisher: BrokerClient, receiver: Sandbox, name: str, headers: dict[str, Any]
) -> None:
    url = await receiver.mailbox(behaviour={"kind": "fail", "status": 500}, times=1)
    callback = await publisher.send(
        send_callback(url, retry={"delays": [1], "quick_retries_count": 1000}), headers=headers
    )
    webhooks = await receiver.webhooks(url, 2)
    assert [webhook["webhook_id"] for webhook in webhooks] == [callback] * 2, name
    assert "x-evil" not in webhooks[0]["headers"]
    await publisher.fact(callback, "callback.delivered")
    assert not service.logged("bug")


async def test_a_message_with_a_user_id_is_retried(
    publisher: BrokerClient, receiver: Sandbox
) -> None:
    # RabbitMQ closes a channel that publishes with the user_id of another user
    url = await receiver.mailbox(behaviour={"kind": "fail", "status": 500}, times=1)
    callback = await publisher.send(send_callback(url, retry={"delays": [1]}), user_id="guest")
    assert len(await receiver.webhooks(url, 2)) == 2
    await publisher.fact(callback, "callback.delivered")


async def test_an_expiration_is_not_copied_to_the_tiers(
    publisher: BrokerClient, receiver: Sandbox
) -> None:
    url = await receiver.mailbox(behaviour={"kind": "fail", "status": 500}, times=1)
    callback = await publisher.send(send_callback(url, retry={"delays": [1]}), expiration=30)
    await publisher.fact(callback, "callback.delivered")


async def test_finding_b14_a_message_id_that_makes_a_signature_ambiguous_is_dead_lettered(
    service: Service, publisher: BrokerClient
) -> None:
    assert await service.is_ready()
    identifier = f"{uuid4().hex}.1795219200"
    await publisher.send(body(id=None), message_id=identifier)
    assert "ambiguous" in reason(await publisher.dead_letter(identifier))
