"""Failures of the HTTP client and their reasons: connections, certificates and limits."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import socket
import ssl
from contextlib import AsyncExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
import trustme

from services.sandbox import misbehaviour
from shared.errors import DeferredError
from shared.http.client import Client, HttpResponse, OutOfSocketsError, RequestFailedError
from shared.http.guard import ForbiddenTargetError, Guard, parse_target
from tests.fakes.dns_server import serve_names
from tests.fakes.receivers import hang_on_accept, respond, serve
from tests.fakes.sending import client, client_of, failure, post

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fakes.receivers import Behaviour, ClientConnection


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
