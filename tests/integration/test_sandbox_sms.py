"""The sandbox's SMS gateway."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from tests.fakes.sandbox import Sandbox, running_sandbox

KEY = "a-test-key-of-at-least-32-characters"


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with running_sandbox(sms_key=KEY) as server:
        yield server


def token(key: str = KEY, alg: str = "HS256", **claims: Any) -> str:
    claims = {"iss": "ringback", "exp": int(time.time()) + 60} | claims
    return jwt.encode({"alg": alg}, claims, OctKey.import_key(key), algorithms=[alg])


async def post(
    sandbox: Sandbox, message_id: str = "m-1", authorization: str | None = None, **body: Any
) -> tuple[int, Any]:
    body = {"id": message_id, "phone": "79001234567", "text": "Your code is 1234"} | body
    headers = {"Authorization": authorization or f"Bearer {token()}"}
    async with sandbox.session.post(
        f"/sms/v1/send/{message_id}", json=body, headers=headers
    ) as response:
        return response.status, await response.json(content_type=None)


async def test_m8_a_message_is_accepted_and_shown(sandbox: Sandbox) -> None:
    waiting = asyncio.create_task(sandbox.received("/api/sms", to="79001234567"))
    assert await post(sandbox) == (200, {"code": 0, "message": "OK"})
    [shown] = await waiting
    assert (shown["id"], shown["phone"], shown["text"], shown["from"], shown["attempt"]) == (
        "m-1",
        "79001234567",
        "Your code is 1234",
        "ringback",
        1,
    )
    async with sandbox.session.get("/sms") as response:
        assert "Your code is 1234" in await response.text()


async def test_id_and_phone_can_be_json_numbers(sandbox: Sandbox) -> None:
    assert (await post(sandbox, "17", id=17, phone=79001234567))[0] == 200


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer",
        "Bearer nonsense",
        "Basic dXNlcjpwdw==",
        f"Bearer {token('another-key-of-at-least-32-characters')}",
        f"Bearer {token(exp=int(time.time()) - 3600)}",
        f"Bearer {token(KEY * 2, 'HS512')}",
        "Bearer eyJhbGciOiJub25lIn0.e30.",
    ],
    ids=["empty", "nonsense", "basic", "other key", "expired", "other algorithm", "none"],
)
async def test_m8_a_bad_jwt_gets_401(sandbox: Sandbox, authorization: str) -> None:
    status, result = await post(sandbox, authorization=authorization)
    assert (status, result["code"]) == (401, 401)
    [refused] = (await sandbox.get("/api/sms"))["items"]
    assert (refused["accepted"], refused["status"]) == (False, 401)
    assert (await sandbox.get("/api/sms/settings"))["accepted"] == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"phone": "89001234567"}, "phone"),
        ({"phone": "+79001234567"}, "phone"),
        ({"phone": "79001234567\n"}, "phone"),
        ({"text": ""}, "text"),
        ({"text": None}, "text"),
        ({"id": "another"}, "id"),
        ({"extra": 1}, "extra"),
    ],
)
async def test_m8_a_wrong_message_gets_400_and_names_the_field(
    sandbox: Sandbox, body: dict[str, Any], field: str
) -> None:
    status, result = await post(sandbox, **body)
    assert (status, [each["field"] for each in result["errors"]]) == (400, [field])


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 50_000])
async def test_a_body_that_is_not_a_json_object_gets_400(sandbox: Sandbox, body: bytes) -> None:
    headers = {"Authorization": f"Bearer {token()}"}
    async with sandbox.session.post("/sms/v1/send/m-1", data=body, headers=headers) as response:
        assert response.status == 400
    async with sandbox.session.get("/sms") as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("behaviour", "status", "body"),
    [
        ({"kind": "respond", "body": "<html>oops"}, 200, "<html>oops"),
        ({"kind": "respond", "body": '{"code": 1, "message": "no"}'}, 200, '{"code": 1,'),
        ({"kind": "respond", "body": "[]", "status": 202}, 202, "[]"),
        ({"kind": "fail", "status": 500}, 500, ""),
    ],
    ids=["not JSON", "wrong code", "other JSON", "5xx"],
)
async def test_m7_an_invalid_response_lasts_for_its_number_of_requests(
    sandbox: Sandbox, behaviour: dict[str, Any], status: int, body: str
) -> None:
    await sandbox.configure("/api/sms/settings", behaviour=behaviour, times=1)
    headers = {"Authorization": f"Bearer {token()}"}
    message = {"id": "m-1", "phone": "79001234567", "text": "x"}
    async with sandbox.session.post("/sms/v1/send/m-1", json=message, headers=headers) as response:
        assert response.status == status
        assert (await response.text()).startswith(body)
    assert (await sandbox.get("/api/sms/settings"))["accepted"] == 0
    assert (await post(sandbox))[0] == 200
    [shown] = await sandbox.received("/api/sms", id="m-1")
    assert shown["attempt"] == 2


async def test_m7_a_refusal_can_have_a_retry_after(sandbox: Sandbox) -> None:
    behaviour = {"kind": "fail", "status": 429, "retry_after": 3}
    await sandbox.configure(
        "/api/sms/settings", behaviour=behaviour, to=["7900*"], times=1, per="to"
    )
    headers = {"Authorization": f"Bearer {token()}"}
    async with sandbox.session.post(
        "/sms/v1/send/m-1",
        json={"id": "m-1", "phone": "79001234567", "text": "x"},
        headers=headers,
    ) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "3")
    assert (await post(sandbox, "m-2", phone="79011234567"))[0] == 200
    assert (await post(sandbox, "m-1"))[0] == 200


async def test_m8_buttons_of_the_page_switch_the_behaviour(sandbox: Sandbox) -> None:
    headers = {"Authorization": f"Bearer {token()}"}
    for name, shown in {"nonsense": "Behaviour: respond", "refuse": "Behaviour: fail"}.items():
        async with sandbox.session.post(f"/sms/behaviour/{name}") as page:
            assert (page.status, page.url.path) == (200, "/sms")
            assert shown in await page.text()
        message = {"id": "m-1", "phone": "79001234567", "text": "x"}
        async with sandbox.session.post(
            "/sms/v1/send/m-1", json=message, headers=headers
        ) as response:
            assert "OK" not in await response.text()
    async with sandbox.session.post("/sms/behaviour/work") as page:
        assert "Behaviour:" not in await page.text()
    assert await post(sandbox) == (200, {"code": 0, "message": "OK"})
    async with sandbox.session.post("/sms/behaviour/other") as page:
        assert page.status == 404


@pytest.mark.parametrize("kind", ["close", "reset"])
async def test_m7_the_gateway_can_break_the_connection(sandbox: Sandbox, kind: str) -> None:
    # Twice, because aiohttp repeats a request when its idle connection was closed.
    await sandbox.configure("/api/sms/settings", behaviour={"kind": kind}, times=2)
    async with aiohttp.ClientSession(sandbox.url) as fresh:
        with pytest.raises(aiohttp.ClientError):
            async with fresh.post("/sms/v1/send/m-1", json={}) as response:
                await response.read()


async def test_m7_a_hang_lasts_until_the_client_closes(sandbox: Sandbox) -> None:
    await sandbox.configure("/api/sms/settings", behaviour={"kind": "hang"}, times=1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await post(sandbox)
    assert (await post(sandbox))[0] == 200


async def test_m7_the_gateway_can_be_slow(sandbox: Sandbox) -> None:
    await sandbox.configure(
        "/api/sms/settings", behaviour={"kind": "delay", "seconds": 0.2}, times=1
    )
    started = asyncio.get_running_loop().time()
    assert (await post(sandbox))[0] == 200
    assert asyncio.get_running_loop().time() - started >= 0.2
