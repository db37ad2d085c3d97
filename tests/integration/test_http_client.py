"""The HTTP client with real receivers, well-behaved and hostile (rows 28 and 30)."""

from __future__ import annotations

import asyncio
import errno
import gc
import gzip
import os
import resource
import socket
import ssl
import time
from contextlib import AsyncExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

import aiohttp
import pytest
import trustme

from services.sandbox import misbehaviour
from shared.errors import DeferredError
from shared.http.client import Client, HttpResponse, OutOfSocketsError, RequestFailedError
from shared.http.guard import ForbiddenTargetError, Guard, parse_target
from tests.fakes.dns_server import serve_names
from tests.fakes.receivers import hang_on_accept, respond, respond_then_close, serve
from tests.fakes.sending import BODY, TIMEOUT, client, client_of, failure, post
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

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


# Reasons of failures


async def test_a_refused_connection_fails_with_the_reason_connect() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with client() as sender:
        failed = await failure(sender, f"http://127.0.0.1:{port}/path?token=1")
    assert (failed.reason, failed.retry_after) == ("connect", 0)
    assert "refused" in failed.detail.lower() or "connect" in failed.detail.lower()
    assert "token" not in str(failed)


async def test_a_full_backlog_fails_after_the_connect_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address), suppress(TimeoutError):
            # One connection waits to be accepted; the next ones get no response to their SYN.
            fillers = [socket.socket() for _ in range(3)]
            for filler in fillers:
                filler.setblocking(False)  # noqa: FBT003 - the socket API
                filler.connect_ex(address)
            async with client(connect_timeout=0.3) as sender:
                failed = await failure(sender, f"http://127.0.0.1:{address[1]}/", seconds=5)
            assert failed.reason == "connect"
            for filler in fillers:
                filler.close()


async def test_a_name_without_addresses_fails_with_the_reason_dns() -> None:
    async with serve_names({"empty.test": []}) as server, client_of(server.address) as sender:
        assert (await failure(sender, "http://empty.test/")).reason == "dns"


# Pooled connections that the receiver has closed


async def test_a_closed_pooled_connection_is_replaced_and_the_request_sent_again() -> None:
    async def no_second_response(connection: ClientConnection) -> None:
        await connection.request()
        await connection.write(misbehaviour.response(200))
        await connection.request()  # as if the connection were closing when the request came

    async with client() as sender, serve(no_second_response) as receiver:
        # Put three connections into the pool; each breaks on its next request.
        await asyncio.gather(*(post(sender, receiver.url) for _ in range(3)))
        assert receiver.accepted == 3
        assert (await post(sender, receiver.url)).status == 200
    assert receiver.accepted == 4


async def test_m7_a_request_is_not_repeated_when_a_pooled_connection_breaks_late() -> None:
    async def late_close(connection: ClientConnection) -> None:
        await connection.request()
        await connection.write(misbehaviour.response(200))
        await connection.request()
        await asyncio.sleep(1.1)  # more than a round trip: the receiver may have processed it

    async with client() as sender, serve(late_close) as receiver:
        await post(sender, receiver.url)
        assert (await failure(sender, receiver.url, 30)).reason == "disconnected"
    assert (receiver.accepted, len(receiver.requests)) == (1, 2)


@pytest.mark.parametrize("behaviour", [misbehaviour.close, misbehaviour.reset])
async def test_a_new_connection_that_breaks_is_not_retried(behaviour: Behaviour) -> None:
    async with client() as sender, serve(behaviour) as receiver:
        assert (await failure(sender, receiver.url)).reason == "disconnected"
    assert (receiver.accepted, len(receiver.requests)) == (1, 1)


# TLS (row 30)

CA = trustme.CA()


def server_side(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    return context


def client_side() -> ssl.SSLContext:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    return context


async def test_a_valid_certificate_is_accepted() -> None:
    tls = server_side(CA.issue_cert("127.0.0.1"))
    async with client(tls=client_side()) as sender, serve(respond(), tls=tls) as receiver:
        assert (await post(sender, receiver.url, seconds=5)).status == 200
        assert (await post(sender, receiver.url, seconds=5)).status == 200
    assert receiver.accepted == 1


INVALID_CERTIFICATES = {
    "expired": CA.issue_cert("127.0.0.1", not_after=datetime.now(UTC) - timedelta(days=1)),
    "self-signed or unknown": trustme.CA().issue_cert("127.0.0.1"),
    "another host's": CA.issue_cert("example.com"),
}


@pytest.mark.parametrize(
    "certificate", INVALID_CERTIFICATES.values(), ids=INVALID_CERTIFICATES.keys()
)
async def test_an_invalid_certificate_is_a_transient_failure(certificate: trustme.LeafCert) -> None:
    tls = server_side(certificate)
    async with client(tls=client_side()) as sender, serve(respond(), tls=tls) as receiver:
        failed = await failure(sender, receiver.url, seconds=5)
    assert failed.reason == "tls"
    assert "certificate" in failed.detail
    assert receiver.requests == []


async def test_tls_to_a_plain_http_receiver_is_a_transient_failure() -> None:
    async def plain(connection: ClientConnection) -> None:
        await connection.reader.read(100)
        await connection.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with client() as sender, serve(plain) as receiver:
        failed = await failure(sender, receiver.url.replace("http:", "https:"), seconds=5)
    assert failed.reason == "tls"


async def test_a_tls_handshake_that_hangs_times_out() -> None:
    async with client() as sender, serve(hang_on_accept) as receiver:
        failed = await failure(sender, receiver.url.replace("http:", "https:"), seconds=0.5)
    assert failed.reason == "timeout"


# Pinned certificates (U1)


def fingerprint(certificate: trustme.LeafCert) -> str:
    der = ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode())
    return sha256(der).hexdigest()


async def pinned(sender: Client, url: str, pin: str | None) -> HttpResponse:
    return await sender.send(parse_target(url), "POST", {}, b"", 5, fingerprint=pin)


@pytest.mark.parametrize(
    "certificate", INVALID_CERTIFICATES.values(), ids=INVALID_CERTIFICATES.keys()
)
async def test_u1_a_pinned_certificate_is_accepted_whoever_issued_it(
    certificate: trustme.LeafCert,
) -> None:
    async with client() as sender, serve(respond(), tls=server_side(certificate)) as receiver:
        assert (await pinned(sender, receiver.url, fingerprint(certificate))).status == 200


async def test_u1_another_certificate_than_the_pinned_one_is_refused_with_a_reason() -> None:
    certificate = CA.issue_cert("127.0.0.1")
    tls = server_side(certificate)
    async with client(tls=client_side()) as sender, serve(respond(), tls=tls) as receiver:
        with pytest.raises(RequestFailedError) as caught:
            await pinned(sender, receiver.url, "ab" * 32)
    assert caught.value.reason == "tls"
    assert fingerprint(certificate) in caught.value.detail
    assert receiver.requests == []


async def test_u1_requests_with_different_pins_never_share_a_connection() -> None:
    certificate = trustme.CA().issue_cert("127.0.0.1")
    tls, pin = server_side(certificate), fingerprint(certificate)
    async with client() as sender, serve(respond(), tls=tls) as receiver:
        for _ in range(2):
            assert (await pinned(sender, receiver.url, pin)).status == 200
        assert receiver.accepted == 1
        for other in (None, "ab" * 32):
            with pytest.raises(RequestFailedError) as caught:
                await pinned(sender, receiver.url, other)
            assert caught.value.reason == "tls"
    assert len(receiver.requests) == 2


async def test_u1_a_pin_opens_no_forbidden_address() -> None:
    async with (
        Client(Guard(()), user_agent="Ringback/test") as sender,
        serve(respond(), tls=server_side(CA.issue_cert("127.0.0.1"))) as receiver,
    ):
        with pytest.raises(ForbiddenTargetError):
            await pinned(sender, receiver.url, "ab" * 32)
    assert receiver.accepted == 0


# The limits of this machine


@contextmanager
def file_limit(more: int) -> Iterator[None]:
    """Allow only so many more open files; 0: none, even if another one is closed meanwhile."""
    gc.collect()  # a file that is closed later would allow one more
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    limit = lowest_free + more if more else 0
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_finding_b4_the_file_limit_of_the_process_is_not_a_failure_of_the_target() -> None:
    async with client() as sender, serve(respond()) as receiver:
        with file_limit(0), pytest.raises(OutOfSocketsError):
            await post(sender, receiver.url)
        assert (await post(sender, receiver.url)).status == 200


async def test_finding_b4_the_file_limit_fails_no_target_by_its_name() -> None:
    """The look-up of a name needs a socket, too."""
    async with serve_names({"empty.test": []}) as server, client_of(server.address) as sender:
        with file_limit(0), pytest.raises(OutOfSocketsError):
            await post(sender, "http://empty.test/")


async def test_finding_b4_a_missing_local_port_is_not_a_failure_of_the_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_port(*_: object) -> None:
        raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    async with client() as sender, serve(respond()) as receiver:
        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", no_port)
        with pytest.raises(DeferredError):
            await post(sender, receiver.url)


async def test_finding_b4_idle_connections_use_at_most_half_of_the_files() -> None:
    async with AsyncExitStack() as stack:
        with file_limit(100):
            allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
            sender = await stack.enter_async_context(client())
        receiver = await stack.enter_async_context(serve(respond()))
        await asyncio.gather(*(post(sender, receiver.url) for _ in range(allowed)))
        before = receiver.accepted
        await asyncio.gather(*(post(sender, receiver.url) for _ in range(allowed)))
        assert receiver.accepted > before, "some were not kept"
        before = receiver.accepted
        await post(sender, receiver.url)
        assert receiver.accepted == before, "others were"
