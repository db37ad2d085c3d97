"""The guarded HTTP client: checked addresses, one timeout per request, bounded responses.

Each address is checked twice: in the resolver's result, and when the socket is created. The second
check covers address literals and repeated look-ups. The connection pool and the response parser are
aiohttp's.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import time
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Self

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError, RawResponseMessage
from multidict import istr

from shared.errors import DeferredError, InfrastructureError, PermanentError, TransientError
from shared.http.guard import ForbiddenTargetError, forbidden
from shared.http.resolver import CheckedResolver, socket_error

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

    from aiohttp import AddrInfoType
    from aiohttp.abc import AbstractResolver
    from yarl import URL

    from shared.http.guard import Guard, Target

# Seconds. Node.js and uvicorn close idle connections after 5 s. A shorter limit here avoids most
# requests on a connection that is about to close.
_KEEPALIVE_TIMEOUT: Final = 4.0
# Seconds. A connection that the receiver has closed breaks within a round trip. One that breaks
# later was closed because of the request, which the receiver may have processed.
_REPEAT_WITHIN: Final = 1.0
# With aiohttp's limit of 8 kB per header, the headers of a response stay under 1 MB.
_MAX_HEADERS: Final = 100
# The socket's receive buffer in bytes: how much unread data a receiver can send. Kernels double it.
_RECEIVE_BUFFER: Final = 32_768
_MAX_DETAIL_LENGTH: Final = 200
# Errors of this machine: no file descriptor, no buffer or no memory for another socket.
_OUT_OF_SOCKETS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# Seconds until a local address and port may be free again.
_NO_ADDRESS_DELAY: Final = 5.0
_RETRY_AFTER: Final = istr("Retry-After")
_CONTENT_TYPE: Final = istr("Content-Type")
# Interim responses, which precede the final one. 101 is final: no request offers an upgrade.
_INTERIM: Final = frozenset(range(100, 200)) - {101}

# The file numbers of the sockets that the running request has opened. An empty list means that it
# uses a pooled connection. A list, because aiohttp may connect in a task with a copied context.
_dialled: ContextVar[list[int]] = ContextVar("_dialled")


class RequestFailedError(TransientError):
    """The request got no response; a later attempt may succeed.

    `reason` is one word for metrics and facts: `timeout`, `dns`, `connect`, `tls`,
    `disconnected` (before a response) or `protocol` (the response is not valid HTTP, or its headers
    exceed the limits). `detail` is a text without the path and query of the URL.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class OutOfSocketsError(InfrastructureError):
    """This machine cannot open another socket. The target is not the cause."""


class ResponseTooLargeError(PermanentError):
    """The response is longer than permitted."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response: its status, two headers as sent, and the body or its beginning."""

    status: int
    retry_after: str | None
    body: bytes
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class _PreparedRequest:
    """The parts that all requests with one method to one URL share: pool key and first lines."""

    key: aiohttp.ClientRequest
    head: bytes


class Client:
    """An HTTP client for untrusted targets: one for each process, used as a context manager.

    It bounds the time and size of every response. It follows no redirects, stores no cookies,
    ignores proxy variables and decompresses nothing. Callers limit the number of requests to a
    target. `tls` and `resolver` replace the system's certificates and name look-up.

    `excerpt` is the number of bytes of a body that `send` returns. `send` reads the body only so
    that the connection can be reused, for at most `body_timeout` seconds and `max_body` bytes.

    Connections, pool, TLS, name cache and response parser are aiohttp's. The request is written
    here, because `ClientSession` takes three times the CPU time (docs/decisions.md, 12).
    """

    _connector: aiohttp.TCPConnector
    _max_pooled: int  # the highest file number of a pooled connection

    def __init__(  # noqa: PLR0913 - the limits, each with its default
        self,
        guard: Guard,
        *,
        user_agent: str,
        connect_timeout: float = 10.0,
        dns_ttl: int = 30,
        max_body: int = 65_536,
        excerpt: int = 1024,
        body_timeout: float = 1.0,
        tls: ssl.SSLContext | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._guard = guard
        self._user_agent = user_agent
        self._connecting = aiohttp.ClientTimeout(
            sock_connect=connect_timeout,
            ceil_threshold=float("inf"),  # otherwise timeouts above 5 s are rounded up to seconds
        )
        self._dns_ttl = dns_ttl
        self._max_body = max_body
        self._excerpt = excerpt
        self._body_timeout = body_timeout
        self._tls = tls
        self._resolver = resolver
        self._prepared = lru_cache(maxsize=1024)(self._prepare)
        self._key = lru_cache(maxsize=1024)(_pool_key)

    async def __aenter__(self) -> Self:
        # c-ares, not getaddrinfo: a look-up that hangs costs a few kB, not a thread.
        self._resolver = self._resolver or aiohttp.AsyncResolver(timeout=2.0, tries=2)
        # Idle connections must leave file descriptors for requests to other targets.
        self._max_pooled = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        self._connector = aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=_KEEPALIVE_TIMEOUT,
            resolver=CheckedResolver(self._guard, self._resolver),
            ttl_dns_cache=self._dns_ttl,
            socket_factory=self._open_socket,
            ssl=self._tls or True,
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._connector.close()
        if self._resolver is not None:
            await self._resolver.close()

    async def send(  # noqa: PLR0913, PLR0917 - the parts of a request
        self,
        target: Target,
        method: str,
        headers: Mapping[str, str],
        body: bytes,
        timeout: float,  # noqa: ASYNC109 - the errors name the timeout
        check: Callable[[], Awaitable[None]] | None = None,
        fingerprint: str | None = None,
    ) -> HttpResponse:
        """Send a request and return the status and the beginning of the body.

        `timeout`, in seconds, covers name look-up, connecting, TLS, writing, and reading the head.
        A body that is late, broken or too long is not an error. If the receiver has closed the
        pooled connection, the request is sent again on another one, within a second. The receiver
        may then get it twice, as with any retry.

        `fingerprint` is the SHA-256 of the only certificate that is accepted, in hex. It replaces
        the checks of the issuer, the name and the dates. Connections with different ones are never
        shared.

        `check` is awaited on the open connection, right before the request is written to it. Its
        errors prevent that.

        Raises:
            ForbiddenTargetError: the address of the target is not permitted.
            RequestFailedError: no response arrived; a later attempt may succeed.
            OutOfSocketsError, DeferredError: this machine has no socket, port or name server for
                the request.
            ValueError: a header contains a line break.
        """
        prepared = self._prepared(target.url, method, fingerprint)
        request = prepared.head + _header_lines(headers, len(body)) + body
        try:
            async with asyncio.timeout(timeout):
                connection, message, content = await self._exchange(prepared.key, request, check)
        except (aiohttp.ClientError, HttpProcessingError, TimeoutError) as error:
            raise _failure(error, target, timeout) from error
        try:
            excerpt = await self._read_excerpt(content)
        finally:
            self._release(connection)
        return _response(message, excerpt)

    async def fetch(
        self,
        target: Target,
        headers: Mapping[str, str],
        *,
        max_bytes: int,
        timeout: float,  # noqa: ASYNC109 - as for `send`
    ) -> HttpResponse:
        """Send a GET request and return the whole body; `timeout` includes reading it.

        Raises:
            ResponseTooLargeError: the body has more than `max_bytes` bytes.
            ForbiddenTargetError, OutOfSocketsError, DeferredError, ValueError: as in `send`.
            RequestFailedError: as in `send`, or the body is late or broken.
        """
        prepared = self._prepared(target.url, "GET", None)
        request = prepared.head + _header_lines(headers, 0)
        try:
            async with asyncio.timeout(timeout):
                connection, message, content = await self._exchange(prepared.key, request)
                try:
                    body = await _read_body(content, max_bytes, target)
                finally:
                    self._release(connection)
        except (aiohttp.ClientError, HttpProcessingError, TimeoutError) as error:
            raise _failure(error, target, timeout) from error
        return _response(message, body)

    async def _exchange(
        self,
        key: aiohttp.ClientRequest,
        request: bytes,
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> tuple[Connection, RawResponseMessage, aiohttp.StreamReader]:
        """Send the request and read the head; repeat if a pooled connection was closed."""
        dialled: list[int] = []
        _dialled.set(dialled)
        started = time.monotonic()
        while True:
            try:
                return await self._exchange_once(key, request, check)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                late = time.monotonic() - started > _REPEAT_WITHIN
                if late or dialled or isinstance(error, aiohttp.ClientConnectorError):
                    raise

    async def _exchange_once(
        self,
        key: aiohttp.ClientRequest,
        request: bytes,
        check: Callable[[], Awaitable[None]] | None,
    ) -> tuple[Connection, RawResponseMessage, aiohttp.StreamReader]:
        """Send the request on a pooled or new connection and read the head of the response."""
        try:
            connection = await self._connector.connect(key, traces=[], timeout=self._connecting)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError from error
        try:
            protocol, transport = connection.protocol, connection.transport
            if protocol is None or transport is None:
                raise aiohttp.ServerDisconnectedError  # noqa: TRY301 - as for a connection lost later
            protocol.set_response_params(
                read_until_eof=True, auto_decompress=False, max_headers=_MAX_HEADERS
            )
            if check is not None:
                await check()
            transport.write(request)
            message, content = await protocol.read()
            while message.code in _INTERIM:
                message, content = await protocol.read()
        except BaseException:
            connection.close()
            raise
        return connection, message, content

    def _release(self, connection: Connection) -> None:
        """Return a connection to the pool, unless too many files are open."""
        # The kernel assigns the lowest free number. A pooled connection was checked before.
        if max(_dialled.get(), default=0) > self._max_pooled:
            connection.close()
        else:
            connection.release()  # closes it if a part of the response is still missing

    def _prepare(self, url: URL, method: str, fingerprint: str | None) -> _PreparedRequest:
        key = self._key(url.origin(), fingerprint)
        lines = (
            f"{method} {url.raw_path_qs} HTTP/1.1",
            f"Host: {key.headers['Host']}",
            f"User-Agent: {self._user_agent}",
            "Accept-Encoding: identity",  # the excerpt of a compressed body would be unreadable
        )
        return _PreparedRequest(key, "\r\n".join(lines).encode())

    async def _read_excerpt(self, content: aiohttp.StreamReader) -> bytes:
        """Return the beginning of the body; read a short rest, to reuse the connection."""
        if content.is_eof():
            return content.read_nowait(self._excerpt)
        excerpt = bytearray()
        with suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(self._body_timeout):
                while content.total_bytes <= self._max_body:
                    chunk = await content.readany()
                    if not chunk:
                        break
                    excerpt += chunk[: self._excerpt - len(excerpt)]
        return bytes(excerpt)

    def _open_socket(self, info: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = info
        host = str(address[0])
        if not self._guard.permits(host):
            raise ForbiddenTargetError(forbidden(host, host))
        if not self._guard.permits_port(int(address[1])):
            raise ForbiddenTargetError(f"port {address[1]} is not one of the allowed ports")
        opened = socket.socket(family, kind, protocol)
        _dialled.get().append(opened.fileno())
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        return opened


def _response(message: RawResponseMessage, body: bytes) -> HttpResponse:
    headers = message.headers
    return HttpResponse(message.code, headers.get(_RETRY_AFTER), body, headers.get(_CONTENT_TYPE))


def _pool_key(origin: URL, fingerprint: str | None) -> aiohttp.ClientRequest:
    """Return the key of a target in the pool. It does not send a request."""
    pin = True if fingerprint is None else aiohttp.Fingerprint(bytes.fromhex(fingerprint))
    return aiohttp.ClientRequest("GET", origin, loop=asyncio.get_running_loop(), ssl=pin)


async def _read_body(content: aiohttp.StreamReader, max_bytes: int, target: Target) -> bytes:
    body = bytearray()
    while chunk := await content.readany():
        body += chunk
        if len(body) > max_bytes:
            raise ResponseTooLargeError(
                f"{target.origin}: the response has more than {max_bytes} bytes"
            )
    return bytes(body)


def _header_lines(headers: Mapping[str, str], length: int) -> bytes:
    """Return the rest of the request head: these headers, the content length, the empty line.

    Raises:
        ValueError: a name or value contains a line break, which would start another header.
    """
    lines = [f"\r\n{name}: {value}" for name, value in headers.items()]
    text = "".join(lines)
    if text.count("\r") != len(lines) or text.count("\n") != len(lines) or "\0" in text:
        raise ValueError("a header contains a line break or NUL")
    return f"{text}\r\nContent-Length: {length}\r\n\r\n".encode()


def _failure(
    error: Exception, target: Target, timeout: float
) -> RequestFailedError | OutOfSocketsError | DeferredError:
    """Classify an error of aiohttp: of this machine, or of the target."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        number = socket_error()  # c-ares does not report why it could not send its query
    if number in _OUT_OF_SOCKETS:
        return OutOfSocketsError(f"Cannot open a connection: {os.strerror(number)}.")
    if number == errno.EADDRNOTAVAIL:
        return DeferredError(f"no local address for {target.origin}", delay=_NO_ADDRESS_DELAY)
    return _target_failure(error, target.origin, timeout)


def _target_failure(error: Exception, where: str, timeout: float) -> RequestFailedError:
    """Classify an error of the target. Its text may contain the URL, so only parts are used."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return RequestFailedError("connect", f"{where} did not accept a connection in time")
        case TimeoutError():
            return RequestFailedError("timeout", f"no response from {where} within {timeout:g} s")
        case aiohttp.ClientConnectorDNSError():
            reason, cause = "dns", error.os_error.strerror
        case aiohttp.ClientSSLError() | aiohttp.ServerFingerprintMismatch():
            reason, cause = "tls", _tls_cause(error)
        case aiohttp.ClientConnectorError():
            reason, cause = "connect", error.os_error.strerror or str(error.os_error)
        case aiohttp.ClientOSError():
            reason, cause = "disconnected", error.strerror
        case HttpProcessingError():
            # The text after the colon comes from the response, which may echo the request.
            reason, cause = "protocol", error.message.partition(":")[0]
        case aiohttp.ClientPayloadError():
            reason, cause = "protocol", str(error).partition(":")[0]
        case _:
            reason, cause = "disconnected", "closed without a response"
    return RequestFailedError(reason, f"{where}: {cause}"[:_MAX_DETAIL_LENGTH])


def _tls_cause(error: aiohttp.ClientSSLError | aiohttp.ServerFingerprintMismatch) -> str:
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return str(error.certificate_error)
        case aiohttp.ServerFingerprintMismatch():
            return f"the certificate has another fingerprint: {error.got.hex()}"
        case _:
            return str(error.os_error)
