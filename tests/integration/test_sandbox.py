"""The sandbox's webhook receiver and its API over a real socket."""

import asyncio
import gzip
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, get_args

import aiohttp
import pytest
from standardwebhooks import Webhook
from yarl import URL

from services.sandbox.app import serving
from services.sandbox.behaviours import Malformed
from services.sandbox.domain import DEFAULT_SECRET
from services.sandbox.misbehaviour import MALFORMED
from services.sandbox.settings import SandboxSettings

BODY = b'{"hello": "world"}'
TIMEOUT = 5


@pytest.fixture
async def url() -> AsyncIterator[URL]:
    async with serving(SandboxSettings(port=0, smtp_port=0, max_body=100_000)) as urls:
        yield urls.http


@pytest.fixture
async def client(url: URL) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    async with aiohttp.ClientSession(url, timeout=timeout) as session:
        yield session


def signed(
    body: bytes = BODY, secret: str = DEFAULT_SECRET, webhook_id: str = "msg_1"
) -> dict[str, str]:
    now = datetime.now(UTC)
    return {
        "X-Signature": hmac.new(secret.encode(), body, "sha256").hexdigest(),
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret.encode()).sign(webhook_id, now, body.decode()),
    }


async def configure(client: aiohttp.ClientSession, mailbox: str, **fields: Any) -> None:
    async with client.put(f"/api/mailboxes/{mailbox}", json=fields) as response:
        assert response.status == 200, await response.text()


async def post(
    client: aiohttp.ClientSession,
    mailbox: str = "demo",
    data: bytes = BODY,
    headers: dict[str, str] | None = None,
) -> int:
    headers = signed() if headers is None else headers
    async with client.post(f"/hooks/{mailbox}", data=data, headers=headers) as response:
        await response.read()
        return response.status


async def get(client: aiohttp.ClientSession, path: str, **query: Any) -> Any:
    async with client.get(path, params=query) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def connect(url: URL, mailbox: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"POST /hooks/{mailbox} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    return reader, writer


async def test_a_signed_webhook_is_verified_and_shown(client: aiohttp.ClientSession) -> None:
    async with client.put(
        "/hooks/demo/deep/path?x=1", data=BODY, headers=signed() | {"X-Extra": "kept"}
    ) as response:
        assert response.status == 200
        assert await response.json() == {"received": True, "verified": True, "id": "msg_1"}
    (shown,) = (await get(client, "/api/deliveries"))["items"]
    assert shown["matched"] == ["x-signature", "webhook-signature"]
    assert (shown["mailbox"], shown["method"]) == ("demo", "PUT")
    assert shown["path"] == "/hooks/demo/deep/path?x=1"
    assert shown["headers"]["x-extra"] == "kept"
    assert shown["body"].encode() == BODY
    async with client.get("/") as response:
        html = await response.text()
    assert "msg_1" in html
    assert "verified" in html


async def test_the_signature_of_a_compressed_body_covers_the_compressed_bytes(
    client: aiohttp.ClientSession,
) -> None:
    body = gzip.compress(BODY)
    headers = {
        "X-Signature": hmac.new(DEFAULT_SECRET.encode(), body, "sha256").hexdigest(),
        "Content-Encoding": "gzip",
    }
    assert await post(client, data=body, headers=headers) == 200


async def test_a_wrong_or_missing_signature_gets_401_unless_verification_is_off(
    client: aiohttp.ClientSession,
) -> None:
    assert await post(client, headers=signed(secret="another")) == 401
    async with client.post("/hooks/demo", data=BODY) as response:
        assert response.status == 401
        result = await response.json()
    assert result["verified"] is False
    assert result["faults"][0].startswith("no signature")

    await configure(client, "demo", verify=False)
    assert await post(client, headers={}) == 200
    assert not (await get(client, "/api/deliveries", limit=1))["items"][0]["verified"]


async def test_each_mailbox_has_its_own_secrets_and_never_shows_them(
    client: aiohttp.ClientSession,
) -> None:
    await configure(client, "demo", secrets=["old-canary", "new-canary"])
    assert await post(client, headers=signed(secret="old-canary")) == 200
    assert await post(client, headers=signed(secret="new-canary")) == 200
    assert await post(client, headers=signed()) == 401
    assert await post(client, "other", headers=signed()) == 200
    for path in ("/", "/api/mailboxes", "/api/mailboxes/demo", "/api/deliveries"):
        async with client.get(path) as response:
            assert "canary" not in await response.text()


async def test_a_failure_with_a_limit_is_followed_by_success(client: aiohttp.ClientSession) -> None:
    behaviour = {"kind": "fail", "status": 503, "retry_after": 7}
    await configure(client, "demo", behaviour=behaviour, times=2)
    async with client.post("/hooks/demo", data=BODY, headers=signed()) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "7")
    assert [await post(client), await post(client)] == [503, 200]
    shown = (await get(client, "/api/deliveries", webhook_id="msg_1"))["items"]
    found = [(each["attempt"], each["status"], each["behaviour"]) for each in shown]
    assert found == [(3, 200, None), (2, 503, "fail"), (1, 503, "fail")]


async def test_a_redirect_has_its_status_and_location(client: aiohttp.ClientSession) -> None:
    await configure(
        client, "demo", behaviour={"kind": "redirect", "location": "http://127.0.0.1/x"}
    )
    async with client.post("/hooks/demo", allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (307, "http://127.0.0.1/x")


async def test_a_delay_delays_the_usual_response(client: aiohttp.ClientSession) -> None:
    await configure(client, "demo", behaviour={"kind": "delay", "seconds": 0.2})
    started = asyncio.get_running_loop().time()
    assert [await post(client), await post(client, headers={})] == [200, 401]
    assert asyncio.get_running_loop().time() - started >= 0.4


async def test_a_drip_sends_the_body_byte_by_byte(client: aiohttp.ClientSession) -> None:
    await configure(client, "demo", behaviour={"kind": "drip", "interval": 0.05, "bytes": 4})
    started = asyncio.get_running_loop().time()
    async with client.post("/hooks/demo") as response:
        assert response.status == 200
        assert [len(chunk) async for chunk in response.content.iter_any()] == [1] * 4
    assert asyncio.get_running_loop().time() - started >= 0.15


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_huge_body_has_no_length(
    client: aiohttp.ClientSession, *, compressed: bool
) -> None:
    size = 10_000_001
    behaviour = {"kind": "huge_body", "bytes": size, "gzip": compressed}
    await configure(client, "demo", behaviour=behaviour)
    async with client.post("/hooks/demo") as response:
        assert "Content-Length" not in response.headers
        assert response.headers.get("Content-Encoding") == ("gzip" if compressed else None)
        assert len(await response.read()) == size


async def test_a_reset_comes_in_the_middle_of_the_body(
    url: URL, client: aiohttp.ClientSession
) -> None:
    await configure(client, "demo", behaviour={"kind": "reset"})
    reader, writer = await connect(url, "demo")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    with pytest.raises(aiohttp.ClientError):
        await post(client)


async def test_endless_headers_never_end(url: URL, client: aiohttp.ClientSession) -> None:
    await configure(client, "demo", behaviour={"kind": "endless_headers"})
    reader, writer = await connect(url, "demo")
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    async with asyncio.timeout(TIMEOUT):
        for _ in range(500):
            assert (await reader.readline()).startswith(b"X-Endless-")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("behaviour", "first_line"),
    [
        ({"kind": "drip", "at": "headers", "interval": 0.01}, b"HTTP/1.1 200 OK\r\n"),
        ({"kind": "drip", "interval": 0.01, "bytes": 10**15}, b"HTTP/1.1 200 OK\r\n"),
        ({"kind": "reset", "at": "start"}, b""),
        ({"kind": "reset", "at": "headers"}, b"HTTP/1.1 200 OK\r\n"),
        ({"kind": "malformed", "response": "endless_continue"}, b"HTTP/1.1 100 Continue\r\n"),
        *(
            ({"kind": "malformed", "response": name}, b"HTTP/1.1 200 OK\r\n")
            for name in ("short_body", "long_body", "endless_header", "endless_chunks")
        ),
    ],
    ids=lambda value: str(list(value.values())) if isinstance(value, dict) else "",
)
async def test_a_broken_response_begins_as_described(
    url: URL, client: aiohttp.ClientSession, behaviour: dict[str, Any], first_line: bytes
) -> None:
    await configure(client, "demo", behaviour=behaviour)
    reader, writer = await connect(url, "demo")
    line = b""
    async with asyncio.timeout(TIMEOUT):
        with suppress(ConnectionResetError):
            line = await reader.readline()
    assert line == first_line
    writer.close()


def test_every_malformed_response_can_be_selected() -> None:
    assert set(get_args(Malformed.model_fields["response"].annotation)) == set(MALFORMED)


@pytest.mark.parametrize("kind", ["hang", "endless_headers"])
async def test_a_behaviour_ends_when_the_client_closes(
    url: URL, client: aiohttp.ClientSession, kind: str
) -> None:
    await configure(client, "demo", behaviour={"kind": kind})
    before = asyncio.all_tasks()
    _, writer = await connect(url, "demo")
    await get(client, "/api/deliveries/wait", mailbox="demo")
    handlers = asyncio.all_tasks() - before
    assert handlers
    writer.close()
    await writer.wait_closed()
    _, pending = await asyncio.wait(handlers, timeout=TIMEOUT)
    assert not pending


@pytest.mark.parametrize(
    "behaviour",
    [
        {"kind": "hang"},
        {"kind": "drip"},
        {"kind": "delay", "seconds": 100},
        {"kind": "endless_headers"},
        {"kind": "huge_body", "bytes": 10**12},
    ],
    ids=lambda behaviour: str(behaviour["kind"]),
)
async def test_the_sandbox_stops_without_waiting_for_slow_behaviours(
    behaviour: dict[str, Any],
) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(TIMEOUT):
        async with serving(SandboxSettings(port=0, smtp_port=0)) as urls:
            url = urls.http
            await (
                await session.put(url / "api/mailboxes/demo", json={"behaviour": behaviour})
            ).read()
            _, writer = await connect(url, "demo")
            arrived = (url / "api/deliveries/wait").with_query(mailbox="demo")
            async with session.get(arrived) as response:
                assert (await response.json())["complete"]
        writer.close()


async def test_a_wait_ends_with_the_requested_number_of_deliveries(
    client: aiohttp.ClientSession,
) -> None:
    query = {"mailbox": "demo", "webhook_id": "msg_2", "count": 2, "timeout": 60}
    waiting = asyncio.create_task(get(client, "/api/deliveries/wait", **query))
    await post(client, headers=signed(webhook_id="msg_2"))
    await post(client, headers=signed(webhook_id="msg_1"))
    await post(client, "other", headers=signed(webhook_id="msg_2"))
    assert not waiting.done()
    await post(client, headers=signed(webhook_id="msg_2"))
    result = await waiting
    assert result["complete"]
    assert [each["attempt"] for each in result["items"]] == [2, 1]


async def test_a_wait_ends_at_its_timeout(client: aiohttp.ClientSession) -> None:
    await post(client)
    result = await get(client, "/api/deliveries/wait", mailbox="demo", count=2, timeout=0.1)
    assert (result["complete"], result["count"], len(result["items"])) == (False, 1, 1)


async def test_a_too_large_body_gets_413_and_is_shown(client: aiohttp.ClientSession) -> None:
    assert await post(client, data=b"x" * 100_001) == 413
    (shown,) = (await get(client, "/api/deliveries"))["items"]
    assert (shown["status"], shown["verified"]) == (413, False)
    assert "100000" in shown["faults"][0]


async def test_a_large_body_is_verified_whole_and_stored_in_part(
    client: aiohttp.ClientSession,
) -> None:
    body = b"x" * 100_000
    assert await post(client, data=body, headers=signed(body)) == 200
    (shown,) = (await get(client, "/api/deliveries"))["items"]
    assert (len(shown["body"]), shown["body_size"]) == (16_384, 100_000)


async def test_wrong_settings_name_every_field_and_change_nothing(
    client: aiohttp.ClientSession,
) -> None:
    await configure(client, "demo", behaviour={"kind": "fail", "status": 418})
    wrong = {
        "behaviour": {"kind": "fail", "status": "high", "extra": 1},
        "times": -1,
        "secrets": ["whsec_canary!"],
    }
    async with client.put("/api/mailboxes/demo", json=wrong) as response:
        assert response.status == 422
        assert response.content_type == "application/problem+json"
        text = await response.text()
    assert {error["field"] for error in json.loads(text)["errors"]} == {
        "behaviour.status",
        "behaviour.extra",
        "times",
        "secrets.0",
    }
    assert "canary" not in text
    assert await post(client) == 418


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/api/deliveries?limit=0", "limit"),
        ("/api/deliveries?mailboxx=demo", "mailboxx"),
        ("/api/deliveries/wait", "mailbox"),
        ("/api/deliveries/wait?mailbox=demo&timeout=1e9", "timeout"),
    ],
)
async def test_a_wrong_query_parameter_is_named(
    client: aiohttp.ClientSession, path: str, field: str
) -> None:
    async with client.get(path) as response:
        assert response.status == 422
        assert [error["field"] for error in (await response.json(content_type=None))["errors"]] == [
            field
        ]


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"[]", b'{"times": 1e999999}'])
async def test_settings_that_are_not_a_json_object_get_422(
    client: aiohttp.ClientSession, body: bytes
) -> None:
    async with client.put("/api/mailboxes/demo", data=body) as response:
        assert response.status == 422


async def test_clearing_deliveries_keeps_settings_and_removing_a_mailbox_does_not(
    client: aiohttp.ClientSession,
) -> None:
    await configure(client, "demo", behaviour={"kind": "fail", "status": 410})
    await post(client)
    await post(client, "other")
    await (await client.delete("/api/deliveries", params={"mailbox": "demo"})).read()
    shown = (await get(client, "/api/deliveries"))["items"]
    assert [each["mailbox"] for each in shown] == ["other"]
    assert (await get(client, "/api/mailboxes/demo"))["received"] == 0
    assert await post(client) == 410

    await (await client.delete("/api/mailboxes/demo")).read()
    assert await post(client) == 200
    assert (await get(client, "/api/mailboxes/demo"))["received"] == 1


async def test_health_check_responds(client: aiohttp.ClientSession) -> None:
    assert await get(client, "/healthz") == {"status": "ok"}
