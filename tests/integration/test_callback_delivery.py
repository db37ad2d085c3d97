"""H1, H2, S6: a message becomes a signed request, and its outcome a fact."""

import hmac
import json
import time
from typing import Any

import pytest
from standardwebhooks import Webhook

from services.sandbox.misbehaviour import hang
from tests.fakes.broker_client import CALLBACKS, SECRET, BrokerClient, reason, send_callback
from tests.fakes.receivers import respond, serve
from tests.fakes.sandbox import Sandbox
from tests.fakes.service import Service
from tests.fakes.waiting import until


async def test_h1_the_documented_message_arrives_as_one_signed_request(
    publisher: BrokerClient, receiver: Sandbox
) -> None:
    url = await receiver.mailbox()
    await publisher.send(
        {
            "target_url": url,
            "target_method": "POST",
            "hmac_secret": "your-secret-key",
            "payload": {"any": "json"},
        },
        message_id="from-the-outside",
    )
    (webhook,) = await receiver.webhooks(url)
    assert (webhook["method"], webhook["webhook_id"]) == ("POST", "from-the-outside")
    assert webhook["body"] == '{"any": "json"}'
    assert webhook["headers"]["content-type"] == "application/json"
    assert webhook["headers"]["user-agent"].startswith("Ringback/")
    fact = await publisher.fact("from-the-outside", "callback.delivered")
    assert (fact["attempt"], fact["status"]) == (1, 200)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_h1_other_methods_are_sent(
    publisher: BrokerClient, receiver: Sandbox, method: str
) -> None:
    url = await receiver.mailbox()
    await publisher.send(send_callback(url, target_method=method))
    (webhook,) = await receiver.webhooks(url)
    assert (webhook["method"], webhook["verified"]) == (method, True)


@pytest.mark.parametrize(
    "payload",
    [
        {"b": 1, "a": {"ö": "€ 𝄞", "d": [1.5, 1e22, -0.0, None, True]}},
        "just a text",
        [],
        None,
        {"": {"nested": {"10": 1, "9": 2, "é": 3}}},
        12345678901234567890123,
    ],
)
async def test_h1_the_body_is_the_output_of_json_dumps(
    publisher: BrokerClient, receiver: Sandbox, payload: Any
) -> None:
    url = await receiver.mailbox()
    await publisher.send(send_callback(url, payload=payload))
    (webhook,) = await receiver.webhooks(url)
    assert webhook["body"] == json.dumps(payload, sort_keys=True)
    assert webhook["verified"]


async def test_h2_both_signatures_are_verified_independently(
    publisher: BrokerClient, receiver: Sandbox
) -> None:
    url = await receiver.mailbox()
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    await receiver.configure_mailbox(url, secrets=[secret])
    await publisher.send(send_callback(url, hmac_secret=secret))
    (webhook,) = await receiver.webhooks(url)
    assert webhook["matched"] == ["x-signature", "webhook-signature"]
    assert webhook["faults"] == []
    body, headers = webhook["body"].encode(), webhook["headers"]
    assert headers["x-signature"] == hmac.new(secret.encode(), body, "sha256").hexdigest()
    Webhook(secret).verify(body, headers)


async def test_h2_each_secret_of_a_list_signs(publisher: BrokerClient) -> None:
    secrets = ["old-secret", "new-secret"]
    async with serve(respond()) as target:
        await publisher.send(send_callback(target.url, hmac_secret=secrets))
        await until(lambda: target.requests)
    request = target.requests[0]
    # A receiver that knows only one of the secrets can verify the request.
    for secret in secrets:
        Webhook(secret.encode()).verify(request.body, request.headers)
    assert len(request.headers["webhook-signature"].split(" ")) == 2


@pytest.mark.parametrize("secret", ["old-secret-canary", "new-canary"])
async def test_h2_secret_ref_names_a_configured_secret(
    publisher: BrokerClient, secret: str
) -> None:
    async with serve(respond()) as target:
        body = send_callback(target.url, secret_ref="rotating")
        del body["hmac_secret"]
        await publisher.send(body)
        await until(lambda: target.requests)
    Webhook(secret.encode()).verify(target.requests[0].body, target.requests[0].headers)


async def test_h2_reserved_headers_cannot_be_overridden_and_others_are_sent(
    publisher: BrokerClient, receiver: Sandbox
) -> None:
    url = await receiver.mailbox()
    forged = {
        "x-signature": "forged",
        "Webhook-Id": "forged",
        "WEBHOOK-SIGNATURE": "forged",
        "webhook-timestamp": "1",
        "Content-Type": "text/plain",
        "User-Agent": "forged",
        "Host": "forged.example",
        "Content-Length": "1",
        "Transfer-Encoding": "chunked",
        "X-Order": "kept",
        "Authorization": "Bearer kept",
    }
    callback = await publisher.send(send_callback(url, headers=forged))
    (webhook,) = await receiver.webhooks(url)
    assert webhook["verified"]
    assert webhook["webhook_id"] == callback
    assert "forged" not in str(webhook["headers"])
    assert webhook["headers"]["x-order"] == "kept"
    assert webhook["headers"]["authorization"] == "Bearer kept"


async def test_the_timeout_of_a_message_ends_the_attempt(publisher: BrokerClient) -> None:
    async with serve(hang) as target:
        started = time.monotonic()
        callback = await publisher.send(
            send_callback(target.url, timeout=0.3, retry={"quick_retries_count": 0})
        )
        dead_letter = await publisher.dead_letter(callback)
        assert time.monotonic() - started < 9, "not the default of ten seconds"
    assert "no response" in reason(dead_letter)


async def test_facts_are_published_in_batches_in_their_documented_form(
    publisher: BrokerClient, receiver: Sandbox
) -> None:
    url = await receiver.mailbox()
    ids = set(await publisher.send_all(send_callback(url) for _ in range(200)))
    await until(lambda: ids <= {fact["callback_id"] for fact in publisher.facts})
    # The service is shared, so ignore late facts of earlier tests.
    facts = [fact for fact in publisher.facts if fact["callback_id"] in ids]
    messages = [m for m in publisher.fact_messages if m.routing_key == "callback.delivered"]
    assert {fact["type"] for fact in facts} == {"callback.delivered"}
    assert {message.type for message in messages} == {"Facts"}
    assert {message.content_type for message in messages} == {"application/json"}
    assert len({message.message_id for message in messages}) == len(messages) < len(ids)
    assert len({fact["fact_id"] for fact in facts}) == len(ids)


async def test_all_messages_are_acknowledged(
    service: Service, publisher: BrokerClient, receiver: Sandbox
) -> None:
    url = await receiver.mailbox()
    await publisher.send_all(send_callback(url) for _ in range(50))
    await receiver.webhooks(url, 50)

    async def consumed() -> bool:
        return await publisher.length(CALLBACKS) == 0

    await until(consumed)
    assert not service.exited()
    assert not service.logged("bug")
    assert SECRET not in service.output


async def test_s6_forms_and_queries_are_url_encoded(
    publisher: BrokerClient, receiver: Sandbox
) -> None:
    url = await receiver.mailbox()
    payload = {"name": "Zoë", "count": 3}
    await publisher.send(send_callback(url, payload=payload, format="form"))
    (form,) = await receiver.webhooks(url)
    assert form["headers"]["content-type"] == "application/x-www-form-urlencoded"
    assert (form["body"], form["verified"]) == ("count=3&name=Zo%C3%AB", True)
    await publisher.send(send_callback(url, payload=payload, format="query", target_method="GET"))
    query = (await receiver.webhooks(url, count=2))[-1]
    assert (query["method"], query["body"]) == ("GET", "")
    assert query["path"].endswith("?count=3&name=Zo%C3%AB")


async def test_finding_b10_the_query_is_signed(publisher: BrokerClient, receiver: Sandbox) -> None:
    url = await receiver.mailbox()
    payload = {"name": "Zoë", "count": 3}
    body = send_callback(f"{url}?tenant=7", payload=payload, format="query", target_method="GET")
    await publisher.send(body)
    (webhook,) = await receiver.webhooks(url)
    assert webhook["path"].endswith("?tenant=7&count=3&name=Zo%C3%AB")
    signed = b"tenant=7&count=3&name=Zo%C3%AB"
    signature = hmac.new(SECRET.encode(), signed, "sha256").hexdigest()
    assert webhook["headers"]["x-signature"] == signature
    assert webhook["verified"]


async def test_an_unsigned_callback_has_no_signature(
    publisher: BrokerClient, receiver: Sandbox
) -> None:
    url = await receiver.mailbox()
    unsigned = send_callback(url, unsigned=True)
    del unsigned["hmac_secret"]
    await publisher.send(unsigned)
    (webhook,) = await receiver.webhooks(url)
    assert not {"x-signature", "webhook-signature"} & webhook["headers"].keys()
    assert webhook["webhook_id"] == unsigned["id"]
