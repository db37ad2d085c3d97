"""U5: the limits, the failures and the secrets of the messenger's routes."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from services.gateway.messenger.codes import Code
from tests.fakes.broker_client import broker_client
from tests.fakes.gateway import Caller, Response, base_url, calling, gateway
from tests.fakes.system import StartSystem, System
from tests.fakes.waiting import until

PASSWORD = "password-canary"
TEXT = "text-canary"
FORM = "application/x-www-form-urlencoded"
SETTINGS = {
    "RINGBACK_LOG_LEVEL": "DEBUG",
    "RINGBACK_GATEWAY_ADDRESS_HEADER": "X-Forwarded-For",
    "RINGBACK_GATEWAY_REGISTRATIONS_PER_ADDRESS": "3",
    "RINGBACK_GATEWAY_SIGN_INS_PER_ADDRESS": "6",
    "RINGBACK_GATEWAY_SIGN_INS_PER_NAME": "4",
    "RINGBACK_GATEWAY_MESSAGES_PER_USER": "3",
}
REQUESTS: dict[str, dict[str, Any]] = {
    "/users": {"name": "ann", "password": PASSWORD},
    "/users/login": {"name": "ann", "password": PASSWORD},
    "/users/logout": {"token": "t"},
    "/messages": {"token": "t", "to_id": 1, "text": TEXT},
    "/events/callback/start": {"token": "t", "callback": "https://example.com/"},
    "/events/callback/stop": {"token": "t"},
    "/events/callback/test": {"token": "t"},
}


@pytest.fixture(scope="module")
def services(start_system: StartSystem) -> Iterator[System]:
    with start_system("subscriptions", **SETTINGS) as started:
        yield started


@pytest.fixture
async def call(services: System) -> AsyncIterator[Caller]:
    async with services.calling() as caller:
        yield caller


async def post(call: Caller, path: str, address: str, **fields: Any) -> Response:
    return await call("POST", path, fields, X_Forwarded_For=address)


async def token_of(call: Caller, name: str, address: str) -> str:
    """Register a user, and return a token."""
    credentials = {"name": name, "password": PASSWORD}
    assert (await post(call, "/users", address, **credentials)).status == 200
    token: str = (await post(call, "/users/login", address, **credentials)).json["token"]
    return token


def check_limited(response: Response) -> None:
    assert (response.status, response.json["code"]) == (429, -7), response.text
    assert 1 <= int(response.headers["Retry-After"]) <= 60


async def test_u5_registrations_are_limited_by_address(call: Caller) -> None:
    for number in range(3):
        address = f"198.51.100.9, 2001:db8:1:1::{number}"
        created = await post(call, "/users", address, name=f"reg{number}", password=PASSWORD)
        assert created.status == 200, created.text
    fields = {"name": "reg9", "password": PASSWORD}
    check_limited(await post(call, "/users", "2001:db8:1:1:ffff::1", **fields))
    # Only the last entry counts: a client can send the others.
    check_limited(await post(call, "/users", "2001:db8:2::1, 2001:db8:1:1::9", **fields))
    assert (await post(call, "/users", "2001:db8:1:2::1", **fields)).status == 200


async def test_u5_sign_ins_are_limited_by_address_and_by_name(call: Caller) -> None:
    for number in range(6):
        guess = {"name": f"guess{number}", "password": PASSWORD}
        assert (await post(call, "/users/login", "198.51.100.1", **guess)).status == 401
    check_limited(await post(call, "/users/login", "198.51.100.1", name="x", password=""))
    await token_of(call, "victim", "198.51.100.2")
    for number in range(3):
        wrong = {"name": "victim", "password": f"wrong-{number}"}
        assert (await post(call, "/users/login", f"198.51.101.{number}", **wrong)).status == 401
    right = {"name": "victim", "password": PASSWORD}
    check_limited(await post(call, "/users/login", "198.51.101.9", **right))


async def test_u5_messages_are_limited_by_user_not_by_token_and_not_by_address(
    call: Caller,
) -> None:
    token = await token_of(call, "sender", "198.51.100.3")
    fields = {"to_id": 1, "text": TEXT}
    credentials = {"name": "sender", "password": PASSWORD}
    for number in range(3):
        sent = await post(call, "/messages", f"198.51.102.{number}", token=token, **fields)
        assert sent.status == 200, sent.text
    check_limited(await post(call, "/messages", "198.51.102.9", token=token, **fields))
    login = await post(call, "/users/login", "198.51.100.3", **credentials)
    other = login.json["token"]
    check_limited(await post(call, "/messages", "198.51.102.9", token=other, **fields))
    stranger = await token_of(call, "stranger", "198.51.100.3")
    sent = await post(call, "/messages", "198.51.102.9", token=stranger, **fields)
    assert sent.status == 200, sent.text


@asynccontextmanager
async def alone(directory: Path, amqp_url: str, **settings: str) -> AsyncIterator[Caller]:
    """Yield a client of a gateway without services."""
    with gateway(directory, amqp_url, settings) as service:
        async with calling(await base_url(service)) as call:
            await until(lambda: service.logged("broker is ready"))
            yield call


async def test_u5_without_subscriptions_messages_are_not_sent_and_others_come_later(
    tmp_path: Path, amqp_url: str
) -> None:
    async with alone(tmp_path, amqp_url) as call:
        for path, body in REQUESTS.items():
            response = await call("POST", path, body)
            code = Code.MESSAGE_NOT_SENT if path == "/messages" else Code.TRY_AGAIN_LATER
            assert (response.status, response.json["code"]) == (503, code), path
            assert int(response.headers["Retry-After"]) > 0


@asynccontextmanager
async def silent_subscriptions(amqp_url: str) -> AsyncIterator[list[AbstractIncomingMessage]]:
    """Consume all requests without a response, and yield them."""
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(
            "subscriptions.requests", durable=True, arguments={"x-queue-type": "classic"}
        )
        messages: list[AbstractIncomingMessage] = []

        async def receive(message: AbstractIncomingMessage) -> None:
            messages.append(message)

        await queue.consume(receive, no_ack=True)
        yield messages


async def test_u5_a_request_without_a_response_says_that_its_effect_is_unknown(
    tmp_path: Path, amqp_url: str
) -> None:
    settings = {"RINGBACK_GATEWAY_REQUEST_TIMEOUT": "0.2"}
    async with alone(tmp_path, amqp_url, **settings) as call, silent_subscriptions(amqp_url):
        for path, body in REQUESTS.items():
            response = await call("POST", path, body)
            code = Code.MESSAGE_NOT_SENT if path == "/messages" else Code.TRY_AGAIN_LATER
            assert (response.status, response.json["code"]) == (504, code), path
            assert "unknown" in response.json["description"]


async def test_no_token_is_in_the_broker(tmp_path: Path, amqp_url: str) -> None:
    settings = {"RINGBACK_GATEWAY_REQUEST_TIMEOUT": "0.2"}
    token = "token-canary"
    async with alone(tmp_path, amqp_url, **settings) as call:
        async with silent_subscriptions(amqp_url) as messages:
            for path, body in REQUESTS.items():
                await call("POST", path, body | ({"token": token} if "token" in body else {}))
                bearer = {name: value for name, value in body.items() if name != "token"}
                await call("POST", path, bearer, Authorization=f"Bearer {token}")
        assert len(messages) == 2 * len(REQUESTS)
        for message in messages:
            assert token.encode() not in message.body
            assert token not in str(message.headers)
            assert json.loads(message.body).keys() & {"token_hash", "user"}


async def test_row_31_no_password_token_or_text_is_in_logs_metrics_facts_or_errors(
    services: System, call: Caller, shared_amqp_url: str
) -> None:
    async with broker_client(shared_amqp_url) as broker:
        address = "198.51.100.4"
        token = await token_of(call, "canary", address)
        secrets = [PASSWORD, TEXT, token]
        errors = []
        for path, body in REQUESTS.items():
            given = body | ({"token": token} if "token" in body else {})
            wrong = [{**given, name: [value]} for name, value in given.items()]
            wrong += [given | {"more": 1}, {**given, "text": TEXT + "\0"}]
            wrong += [{**given, "name": PASSWORD + "x"}, {**given, "callback": f"ftp://{TEXT}/"}]
            for each in wrong:
                errors.append(await post(call, path, address, **each))
                raw = json.dumps(each)
                errors.append(await call("POST", path, raw=raw[:-1]))
                errors.append(await call("POST", path, raw=raw, Content_Type=FORM))
                form = urlencode(each) + "&broken"
                errors.append(await call("POST", path, raw=form, Content_Type=FORM))
        errors.append(await call("GET", f"/events/stream?token={token}&token={token}"))
        errors.append(await call("GET", f"/messages?token={token}"))
        errors.append(await call("PUT", "/events/callback/start", {"token": token}))
        for response in errors:
            assert response.status >= 400, response.text
            shown = response.text + str(response.headers)
            assert [each for each in secrets if each in shown] == []
        start = {"token": token, "callback": "https://example.invalid/"}
        await post(call, "/events/callback/start", address, **start)
        sent = await post(call, "/messages", address, token=token, to_id=1, text=TEXT)
        assert sent.json["code"] == 10, sent.text
        await post(call, "/users/logout", address, token=token)
        for service in services.values():
            shown = service.output + (await service.get("/metrics"))[1]
            assert [secret for secret in secrets if secret in shown] == []
        assert services["subscriptions"].logged("user signed out")
        assert [each for each in secrets if each in str(broker.facts)] == []
