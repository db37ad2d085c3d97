"""E6, M7: requests to the SMS gateway, and the meaning of its responses and timeouts."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from services.delivery import sms
from services.delivery.domain import ProviderError
from services.delivery.sms import SmsGateway, TokenSource
from shared.contracts.messages import SendSms
from shared.errors import ExpiredError, PermanentError, TransientError
from tests.fakes.delivering import SMS_KEY
from tests.fakes.receivers import respond, serve
from tests.fakes.sandbox import Sandbox, running_sandbox

NOW = 1_800_000_000.0
MESSAGE = SendSms(phone="79001234567", text="Ваш код 1234")


class MovableClock:
    """A clock that the test moves."""

    at = NOW

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


async def not_expired() -> None:
    """Allow sending."""


@asynccontextmanager
async def gateway(
    url: str, key: str = SMS_KEY, seconds: float = 0.5
) -> AsyncIterator[tuple[SmsGateway, MovableClock]]:
    clock = MovableClock()
    async with sms.gateway_client(timeout=seconds) as client:
        yield SmsGateway(url, client, TokenSource(key, clock), clock, timeout=seconds), clock


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with running_sandbox() as server:
        yield server


async def test_e6_the_request_has_the_documented_form() -> None:
    accepted = json.dumps({"code": 0, "message": "OK"}).encode()
    short_key = "k"  # some gateways use short keys
    async with serve(respond(200, body=accepted)) as receiver:
        base = receiver.url.removesuffix("/hook")
        async with gateway(f"{base}/sms", short_key) as (sender, clock):
            for _ in range(3):
                await sender.send("id/1", MESSAGE, not_expired)
            clock.at += sms.TOKEN_LIFETIME - sms.TOKEN_MARGIN
            await sender.send("id/1", MESSAGE, not_expired)
    first, second, _, last = receiver.requests
    assert (first.method, first.path) == ("POST", "/sms/v1/send/id%2F1")
    assert first.headers["content-type"] == "application/json"
    body = {"id": "id/1", "phone": "79001234567", "text": "Ваш код 1234"}
    assert json.loads(first.body) == body
    tokens = [each.headers["authorization"].removeprefix("Bearer ") for each in (first, last)]
    with pytest.warns(match="128 bits|112 bits|short|SHOULD|should"):  # about the short key
        key = OctKey.import_key(short_key)
    decoded = [jwt.decode(token, key, algorithms=["HS256"]) for token in tokens]
    assert decoded[0].header["alg"] == "HS256"
    for each, at in zip(decoded, (NOW, NOW + sms.TOKEN_LIFETIME - sms.TOKEN_MARGIN), strict=True):
        assert each.claims == {
            "iss": "ringback",
            "iat": int(at),
            "exp": int(at) + sms.TOKEN_LIFETIME,
        }
    assert second.headers["authorization"] == first.headers["authorization"], "the token is reused"


BROKEN = {
    "HTML": {"kind": "respond", "body": "<html>Bad gateway</html>", "content_type": "text/html"},
    "other JSON": {"kind": "respond", "body": '{"result": "fine"}'},
    "a list": {"kind": "respond", "body": "[0]"},
    "a code of another type": {"kind": "respond", "body": '{"code": false}'},
    "truncated JSON": {"kind": "respond", "body": '{"code": 0'},
    "nesting": {"kind": "respond", "body": "[" * 60_000},
    "nothing": {"kind": "respond", "body": ""},
    "500": {"kind": "fail", "status": 500},
    "401": {"kind": "fail", "status": 401},
    "403": {"kind": "fail", "status": 403},
    "hangs": {"kind": "hang"},
    "drips": {"kind": "drip", "interval": 0.1},
    "closes": {"kind": "close"},
    "resets": {"kind": "reset"},
    "huge": {"kind": "huge_body", "bytes": 10_000_000},
    "endless headers": {"kind": "endless_headers", "interval": 0.01},
}


@pytest.mark.parametrize("behaviour", BROKEN.values(), ids=BROKEN)
async def test_m7_invalid_responses_and_timeouts_are_provider_errors(
    sandbox: Sandbox, behaviour: dict[str, Any]
) -> None:
    await sandbox.configure("/api/sms/settings", behaviour=behaviour)
    async with gateway(str(sandbox.url / "sms")) as (sender, _):
        started = asyncio.get_running_loop().time()
        with pytest.raises(ProviderError) as caught:
            await sender.send("id-1", MESSAGE, not_expired)
        assert asyncio.get_running_loop().time() - started < 10
    assert MESSAGE.phone not in str(caught.value)
    assert MESSAGE.text not in str(caught.value)


@pytest.mark.parametrize(
    ("behaviour", "error", "retry_after"),
    [
        ({"kind": "fail", "status": 400}, PermanentError, None),
        ({"kind": "fail", "status": 422}, PermanentError, None),
        ({"kind": "fail", "status": 404}, TransientError, 0),
        ({"kind": "fail", "status": 201}, TransientError, 0),
        ({"kind": "redirect", "location": "http://127.0.0.1:1/"}, TransientError, 0),
        ({"kind": "respond", "body": '{"code": 7, "message": "no credit"}'}, TransientError, 0),
        ({"kind": "fail", "status": 429, "retry_after": 7}, ProviderError, 7),
        ({"kind": "fail", "status": 503, "retry_after": 999_999}, ProviderError, 3600),
        ({"kind": "fail", "status": 503, "retry_after": "soon"}, ProviderError, 0),
    ],
)
async def test_m7_a_refusal_is_temporary_or_permanent(
    sandbox: Sandbox, behaviour: dict[str, Any], error: type[Exception], retry_after: float | None
) -> None:
    await sandbox.configure("/api/sms/settings", behaviour=behaviour)
    async with gateway(str(sandbox.url / "sms")) as (sender, _):
        with pytest.raises(error) as caught:
            await sender.send("id-1", MESSAGE, not_expired)
    assert type(caught.value) is error
    assert getattr(caught.value, "retry_after", None) == retry_after


async def test_e6_a_slow_response_body_is_read() -> None:
    async def slow_body(connection: Any) -> None:
        await connection.request()
        await connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n")
        await asyncio.sleep(1.2)  # longer than the time limit for the body of a callback's response
        await connection.write(b'{"code": 0}')

    async with serve(slow_body) as receiver, gateway(receiver.url, seconds=5) as (sender, _):
        await sender.send("id-1", MESSAGE, not_expired)


async def test_e6_an_expired_sms_is_not_sent(sandbox: Sandbox) -> None:
    async def expired() -> None:
        raise ExpiredError("expired")

    async with gateway(str(sandbox.url / "sms")) as (sender, _):
        with pytest.raises(ExpiredError):
            await sender.send("id-1", MESSAGE, expired)
        assert (await sandbox.get("/api/sms"))["items"] == []
