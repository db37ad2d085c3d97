"""E6, M7: what the SMS gateway is sent, and what its answers, slowness and nonsense mean."""

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
from tests.fakes.sandbox import Sandbox, sandbox

NOW = 1_800_000_000.0
MESSAGE = SendSms(phone="79001234567", text="Ваш код 1234")


class Moved:
    """A clock that the test moves."""

    at = NOW

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


def fine() -> None:
    """Nothing is in the way of the hand-over."""


@asynccontextmanager
async def gateway(
    url: str, key: str = SMS_KEY, seconds: float = 0.5
) -> AsyncIterator[tuple[SmsGateway, Moved]]:
    clock = Moved()
    async with sms.gateway_client(timeout=seconds) as client:
        yield SmsGateway(url, client, TokenSource(key, clock), clock, timeout=seconds), clock


@pytest.fixture
async def box() -> AsyncIterator[Sandbox]:
    async with sandbox() as it:
        yield it


async def test_e6_the_request_is_as_the_interface_says() -> None:
    ok = json.dumps({"code": 0, "message": "OK"}).encode()
    short = "k"  # some gateways have such keys
    async with serve(respond(200, body=ok)) as receiver:
        base = receiver.url.removesuffix("/hook")
        async with gateway(f"{base}/sms", short) as (it, clock):
            for _ in range(3):
                await it.send("id/1", MESSAGE, fine)
            clock.at += sms.TOKEN_LIFETIME - sms.TOKEN_MARGIN
            await it.send("id/1", MESSAGE, fine)
    first, second, _, last = receiver.requests
    assert (first.method, first.path) == ("POST", "/sms/v1/send/id%2F1")
    assert first.headers["content-type"] == "application/json"
    body = {"id": "id/1", "phone": "79001234567", "text": "Ваш код 1234"}
    assert json.loads(first.body) == body
    tokens = [each.headers["authorization"].removeprefix("Bearer ") for each in (first, last)]
    with pytest.warns(match="128 bits|112 bits|short|SHOULD|should"):  # of the key, on this side
        key = OctKey.import_key(short)
    decoded = [jwt.decode(token, key, algorithms=["HS256"]) for token in tokens]
    assert decoded[0].header["alg"] == "HS256"
    for each, at in zip(decoded, (NOW, NOW + sms.TOKEN_LIFETIME - sms.TOKEN_MARGIN), strict=True):
        assert each.claims == {
            "iss": "ringback",
            "iat": int(at),
            "exp": int(at) + sms.TOKEN_LIFETIME,
        }
    assert second.headers["authorization"] == first.headers["authorization"], "made once"


NONSENSE = {
    "HTML": {"kind": "respond", "body": "<html>Bad gateway</html>", "content_type": "text/html"},
    "other JSON": {"kind": "respond", "body": '{"result": "fine"}'},
    "a list": {"kind": "respond", "body": "[0]"},
    "a code that is none": {"kind": "respond", "body": '{"code": false}'},
    "JSON without end": {"kind": "respond", "body": '{"code": 0'},
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
    "headers without end": {"kind": "endless_headers", "interval": 0.01},
}


# E6, M7: nonsense, slow, hanging, closed
@pytest.mark.parametrize("behaviour", NONSENSE.values(), ids=NONSENSE)
async def test_m7_nonsense_and_silence_are_the_gateways_trouble_and_over_in_time(
    box: Sandbox, behaviour: dict[str, Any]
) -> None:
    await box.configure("/api/sms/settings", behaviour=behaviour)
    async with gateway(str(box.url / "sms")) as (it, _):
        started = asyncio.get_running_loop().time()
        with pytest.raises(ProviderError) as caught:
            await it.send("id-1", MESSAGE, fine)
        assert asyncio.get_running_loop().time() - started < 1.5
    assert MESSAGE.phone not in str(caught.value)
    assert MESSAGE.text not in str(caught.value)


@pytest.mark.parametrize(
    ("behaviour", "meaning", "wait"),
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
async def test_m7_a_refusal_is_for_now_or_for_good(
    box: Sandbox, behaviour: dict[str, Any], meaning: type[Exception], wait: float | None
) -> None:
    await box.configure("/api/sms/settings", behaviour=behaviour)
    async with gateway(str(box.url / "sms")) as (it, _):
        with pytest.raises(meaning) as caught:
            await it.send("id-1", MESSAGE, fine)
    assert type(caught.value) is meaning
    assert getattr(caught.value, "retry_after", None) == wait


async def test_e6_an_answer_whose_body_is_slow_is_waited_for() -> None:
    async def slow_body(connection: Any) -> None:
        await connection.request()
        await connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n")
        await asyncio.sleep(1.2)  # longer than a callback's body is waited for
        await connection.write(b'{"code": 0}')

    async with serve(slow_body) as receiver, gateway(receiver.url, seconds=5) as (it, _):
        await it.send("id-1", MESSAGE, fine)


async def test_e6_what_has_expired_is_not_sent(box: Sandbox) -> None:
    def too_late() -> None:
        raise ExpiredError("expired")

    async with gateway(str(box.url / "sms")) as (it, _):
        with pytest.raises(ExpiredError):
            await it.send("id-1", MESSAGE, too_late)
        assert (await box.get("/api/sms"))["items"] == []
