"""The HTTP client with real receivers, well-behaved and hostile (row 28)."""

from __future__ import annotations

import asyncio
import gzip
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import aiohttp
import pytest

from services.sandbox import misbehaviour
from shared.http.client import HttpResponse, RequestFailedError
from shared.http.guard import parse_target
from tests.fakes.dns_server import serve_names
from tests.fakes.receivers import hang_on_accept, respond, respond_then_close, serve
from tests.fakes.sending import BODY, TIMEOUT, client, client_of, failure, post
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from tests.fakes.receivers import Behaviour, ClientConnection


# Requests


async def test_a_request_is_sent_unchanged_and_nothing_is_added() -> None:
    async with client() as sender, serve(respond(201, {"Retry-After": "7"}, b"done")) as receiver:
        response = await post(sender, receiver.url + "/a%2Fb?x=%20&y=1#frag")
    assert response == HttpResponse(201, "7", b"done")
    (request,) = receiver.requests
    assert (request.method, request.path) == ("POST", "/hook/a%2Fb?x=%20&y=1")
    assert request.body == BODY
    assert request.headers == {
        "host": receiver.url.split("/")[2],
        "user-agent": "Ringback/test",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "x-signature": "abc",
        "content-length": str(len(BODY)),
    }


async def test_m2_the_check_of_a_request_can_still_prevent_it_on_the_open_connection() -> None:
    checks: list[None] = []

    async def check() -> None:
        checks.append(None)
        if len(checks) == 2:
            raise ValueError("stopped")

    async with client() as sender, serve(respond(200)) as receiver:
        for stopped in (False, True, False):
            sent = sender.send(parse_target(receiver.url), "POST", {}, BODY, TIMEOUT, check)
            if stopped:
                with pytest.raises(ValueError, match="stopped"):
                    await sent
            else:
                await sent
    assert (len(checks), len(receiver.requests), receiver.accepted) == (3, 2, 2)


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
async def test_other_methods_send_the_body_too(method: str) -> None:
    async with client() as sender, serve(respond(204, body=b"")) as receiver:
        response = await sender.send(parse_target(receiver.url), method, {}, BODY, TIMEOUT)
    assert response == HttpResponse(204, None, b"")
    assert [(r.method, r.body) for r in receiver.requests] == [(method, BODY)]


async def test_a_connection_is_reused() -> None:
    async with client() as sender, serve(respond()) as receiver:
        for _ in range(3):
            await post(sender, receiver.url)
    assert (receiver.accepted, len(receiver.requests)) == (1, 3)


async def test_cookies_are_not_stored() -> None:
    async with client() as sender, serve(respond(200, {"Set-Cookie": "a=b; Path=/"})) as receiver:
        url = receiver.url.replace("127.0.0.1", "localhost")  # cookie jars ignore IP addresses
        await post(sender, url)
        await post(sender, url)
    assert [r.headers.get("cookie") for r in receiver.requests] == [None, None]


async def test_proxy_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(respond(502)) as proxy, serve(respond(200)) as receiver:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("NO_PROXY", "")
        async with client() as sender:
            assert (await post(sender, receiver.url)).status == 200
    assert proxy.accepted == 0


# Row 28: hostile receivers


def memory() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm") as file:  # noqa: PTH123 - faster than Path, read often
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


async def peak_growth(done: asyncio.Event) -> int:
    start = peak = memory()
    while not done.is_set():
        peak = max(peak, memory())
        with suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await done.wait()
    return peak - start


FLOOD = misbehaviour.MALFORMED["endless_continue"]
HOSTILE: dict[str, tuple[Behaviour, int | str]] = {
    "hang on accept": (hang_on_accept, "timeout"),
    "hang": (misbehaviour.hang, "timeout"),
    "slow-loris": (misbehaviour.drip_headers(0.05), "timeout"),
    "a byte every 0.4 s": (misbehaviour.drip_headers(0.4), "timeout"),
    "slow body": (misbehaviour.drip_body(0.4), 200),
    "slow body of an error": (misbehaviour.drip_body(0.4, 503), 503),
    "endless headers": (misbehaviour.endless_headers(), "protocol"),
    "endless header line": (misbehaviour.MALFORMED["endless_header"], "protocol"),
    "endless status line": (misbehaviour.MALFORMED["endless_status_line"], "protocol"),
    "flood of 100 Continue": (FLOOD, "timeout"),
    "huge body": (misbehaviour.huge_body(), 200),
    "endless chunks": (misbehaviour.MALFORMED["endless_chunks"], 200),
    "gzip bomb": (misbehaviour.huge_body(200 << 20, gzip=True), 200),
    "close": (misbehaviour.close, "disconnected"),
    "reset": (misbehaviour.reset, "disconnected"),
    "reset mid-headers": (misbehaviour.reset_in_headers, "disconnected"),
    "reset mid-body": (misbehaviour.reset_in_body, 200),
    "short body": (misbehaviour.MALFORMED["short_body"], 200),
    "long body": (misbehaviour.MALFORMED["long_body"], 200),
    "binary garbage": (misbehaviour.send_bytes(), "protocol"),
    "HTTP/0.9": (misbehaviour.send_bytes(b"<html>hello</html>\n"), "protocol"),
    "another protocol": (misbehaviour.send_bytes(b"SSH-2.0-OpenSSH_9.2\r\n"), "protocol"),
    "bad status": (misbehaviour.send_bytes(b"HTTP/1.1 abc OK\r\n\r\n"), "protocol"),
    "negative length": (
        misbehaviour.send_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"),
        "protocol",
    ),
    "two lengths": (
        misbehaviour.send_bytes(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"
        ),
        "protocol",
    ),
    "switching protocols": (
        misbehaviour.send_bytes(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"
        ),
        101,
    ),
}


@pytest.mark.parametrize(("behaviour", "expected"), HOSTILE.values(), ids=HOSTILE.keys())
async def test_row_28_a_hostile_receiver_takes_limited_time_and_memory(
    behaviour: Behaviour, expected: int | str
) -> None:
    async with client() as sender, serve(behaviour) as receiver:
        done = asyncio.Event()
        growth = asyncio.create_task(peak_growth(done))
        # A flood uses a whole core until the timeout, so another load would change its time.
        clock = time.process_time if behaviour is FLOOD else time.monotonic
        start = clock()
        async with asyncio.timeout(60):
            outcomes = await asyncio.gather(
                *(post(sender, receiver.url) for _ in range(4)), return_exceptions=True
            )
        duration = clock() - start
        done.set()
        # Client and receiver run in this process, so buffers of the receiver count too.
        assert await growth <= 10_000_000
        assert duration < TIMEOUT + 1
    for outcome in outcomes:
        if isinstance(outcome, HttpResponse):
            assert outcome.status == expected
            assert len(outcome.body) <= 1024
        else:
            assert isinstance(outcome, RequestFailedError)
            assert outcome.reason == expected
            assert len(str(outcome)) < 300


async def test_the_excerpt_is_the_beginning_of_the_body() -> None:
    body = bytes(range(256)) * 100
    async with client() as sender, serve(respond(500, body=body)) as receiver:
        assert (await post(sender, receiver.url)).body == body[:1024]
        # The body is below max_body, so the connection is reused.
        assert (await post(sender, receiver.url)).body == body[:1024]
    assert receiver.accepted == 1


async def test_a_compressed_body_is_not_decompressed() -> None:
    headers = {"Content-Encoding": "gzip"}
    compressed = gzip.compress(b"hello")
    async with client() as sender, serve(respond(200, headers, compressed)) as receiver:
        assert (await post(sender, receiver.url)).body == compressed


async def test_a_body_over_the_limit_closes_the_connection() -> None:
    async def exceed_limit(connection: ClientConnection) -> None:
        await connection.request()
        await connection.write(
            misbehaviour.response(200, {"Content-Length": "20000"}, b"b" * 10_001)
        )
        await misbehaviour.hang(connection)

    async with (
        client(max_body=10_000, body_timeout=60.0) as sender,
        serve(exceed_limit) as receiver,
    ):
        async with asyncio.timeout(30):
            assert (await post(sender, receiver.url, seconds=60)).status == 200
            # The client closes the connection.
            await receiver.closed_by_client.wait()


async def test_a_body_that_arrives_after_the_head_is_read() -> None:
    async def two_parts(connection: ClientConnection) -> None:
        while True:
            await connection.request()
            await connection.write(misbehaviour.response(200, {"Content-Length": "4"}))
            await asyncio.sleep(0.05)
            await connection.write(b"late")

    async with client() as sender, serve(two_parts) as receiver:
        assert (await post(sender, receiver.url)).body == b"late"
        assert (await post(sender, receiver.url)).body == b"late"
    assert receiver.accepted == 1


async def test_data_after_a_response_is_not_read_as_the_next_response() -> None:
    async with client() as sender, serve(misbehaviour.MALFORMED["long_body"]) as receiver:
        assert [(await post(sender, receiver.url)).status for _ in range(2)] == [200, 200]
    assert receiver.accepted == 2


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_a_large_body_to_a_receiver_that_reads_nothing_times_out() -> None:
    async with client() as sender, serve(hang_on_accept) as receiver:
        with pytest.raises(RequestFailedError, match="timeout"):
            await post(sender, receiver.url, body=b"x" * 32_000_000, seconds=0.5)


async def test_long_timeouts_are_exact() -> None:
    # By default aiohttp rounds timeouts above 5 s up to a whole second of the loop's clock.
    async with client() as sender, serve(misbehaviour.hang) as receiver:
        loop = asyncio.get_running_loop()
        start = loop.time()
        total = 5 + (0.2 - start) % 1
        await failure(sender, receiver.url, seconds=total)
        assert loop.time() - start == pytest.approx(total, abs=0.4)


async def test_send_waits_only_briefly_for_a_slow_body() -> None:
    async with client() as sender, serve(misbehaviour.drip_body()) as receiver:
        async with asyncio.timeout(30):
            assert (await post(sender, receiver.url, seconds=60)).status == 200


async def test_row_28_receivers_that_hang_do_not_affect_others() -> None:
    async with client() as sender, serve(misbehaviour.hang) as dead, serve(respond()) as alive:
        hanging = [asyncio.create_task(post(sender, dead.url, seconds=60)) for _ in range(200)]
        async with asyncio.timeout(30):
            await until(lambda: len(dead.requests) == 200)
            for _ in range(100):
                assert (await post(sender, alive.url)).status == 200
        assert not any(task.done() for task in hanging)
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        # A cancelled request closes its connection.
        async with asyncio.timeout(30):
            await dead.closed_by_client.wait()


async def test_name_lookups_that_hang_do_not_affect_others() -> None:
    async with (
        serve(respond(), host="127.0.0.2") as alive,
        serve_names({"alive.test": ["127.0.0.2"]}) as server,
        client_of(server.address) as sender,
    ):
        port = alive.url.split(":")[2]
        urls = [f"http://dead{number}.test:{port}" for number in range(100)]
        # Longer than the other requests take on a busy machine.
        hanging = [asyncio.create_task(failure(sender, url, 4)) for url in urls]
        async with asyncio.timeout(30):
            await until(lambda: len(set(server.queries)) == 100)
            assert (await post(sender, f"http://alive.test:{port}")).status == 200
        assert not any(task.done() for task in hanging)
        assert {failed.reason for failed in await asyncio.gather(*hanging)} == {"timeout"}


async def test_a_name_is_looked_up_once_within_its_time_to_live() -> None:
    async with serve(respond_then_close, host="127.0.0.2") as receiver:
        port = receiver.url.split(":")[2]
        async with serve_names({"once.test": ["127.0.0.2"]}) as server:
            resolver = aiohttp.AsyncResolver(nameservers=[server.address], timeout=2.0, tries=1)
            async with client(resolver=resolver, dns_ttl=60) as sender:
                await asyncio.gather(*(post(sender, f"http://once.test:{port}") for _ in range(20)))
            assert 1 <= len(server.queries) <= 2  # A and AAAA
    assert receiver.accepted == 20
