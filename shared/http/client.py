"""The guarded outgoing HTTP client: checked addresses, one deadline, bounded answers.

An address is checked twice: as a resolver's answer, and where each socket is made, which no
spelling of a URL and no second look-up gets around. On aiohttp, whose pool and parser it uses.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Self

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError, RawResponseMessage

from shared.errors import PermanentError, TransientError
from shared.http.guard import ForbiddenTargetError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from types import TracebackType

    from aiohttp import AddrInfoType
    from aiohttp.abc import ResolveResult
    from yarl import URL

    from shared.http.guard import Guard, Target

# Below the 5 s after which Node.js and uvicorn close an idle connection, so that a request seldom
# meets one that is just being closed.
_IDLE_SECONDS: Final = 4.0
# At 8 kB each, aiohttp's limit, an answer's headers stay under 1 MB.
_MAX_HEADERS: Final = 100
# What a receiver can push into this process between two looks at its answer; kernels double it.
_RECEIVE_BYTES: Final = 32_768
_DETAIL_CHARACTERS: Final = 200
# Answers that another follows; 101 is none, since nothing was asked to switch to.
_INTERIM: Final = frozenset(range(100, 200)) - {101}

# The addresses that the running `send` has opened sockets to: empty means it got a pooled
# connection. A list, since connecting may go on in a task with a copy of the context.
_dialled: ContextVar[list[str]] = ContextVar("_dialled")


class RequestFailedError(TransientError):
    """No answer came; a later try may succeed.

    `reason` is one word for metrics and facts: `timeout`, `dns`, `connect`, `tls`,
    `disconnected` (before an answer) or `protocol` (the answer is no HTTP, or its headers exceed
    the limits). `detail` is for people, and holds neither path nor query of the URL.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class ResponseTooLargeError(PermanentError):
    """The answer has more bytes than are wanted."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """What the receiver answered: the status, `Retry-After` as sent, the body or its beginning."""

    status: int
    retry_after: str | None
    body: bytes


@dataclass(frozen=True, slots=True)
class _Route:
    """What all requests of one method to one URL share: the pool's key, the first lines."""

    key: aiohttp.ClientRequest
    head: bytes


class Client:
    """Sends requests to hostile places; one for each process, used as a context manager.

    Limits on time and size are all on this side: it follows no redirect, keeps no cookie, heeds
    no proxy variable, decompresses nothing. How many requests go to one target at a time is the
    caller's business. `tls` and `resolver` replace the system's certificates and name look-up.
    `excerpt`: bytes of an answer's body that are given. `body_timeout`: seconds to wait for it once
    the status is known; where that decides, waiting only saves the connection.

    Connections, their pool, TLS, name cache and the answer's parser are aiohttp's; the request is
    written here. `ClientSession` would spend three times as much on what no callback has: cookies,
    redirects, proxies, middlewares, request bodies that stream.
    """

    _connector: aiohttp.TCPConnector

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
            ceil_threshold=float("inf"),  # else times above 5 s are rounded up to whole seconds
        )
        self._dns_ttl = dns_ttl
        self._max_body = max_body
        self._excerpt = excerpt
        self._body_timeout = body_timeout
        self._tls = tls
        self._resolver = resolver
        self._route = lru_cache(maxsize=1024)(self._new_route)

    async def __aenter__(self) -> Self:
        # c-ares, not getaddrinfo: names that hang cost a few kB each, not a thread each.
        self._resolver = self._resolver or aiohttp.AsyncResolver(timeout=2.0, tries=2)
        self._connector = aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=_IDLE_SECONDS,
            resolver=_CheckedResolver(self._guard, self._resolver),
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

    async def send(
        self,
        target: Target,
        method: str,
        headers: Mapping[str, str],
        body: bytes,
        timeout: float,  # noqa: ASYNC109 - the deadline is part of what a request is
    ) -> HttpResponse:
        """Send one request and give the answer's status and first bytes.

        `timeout`, in seconds, covers name look-up, connecting, TLS, writing, and reading the head.
        The status decides: a body that is late, broken or over the limit is left unread.
        A pooled connection that the receiver closed meanwhile is replaced and the request sent
        again, so a receiver may see it twice, as it may at any retry.

        Raises:
            ForbiddenTargetError: the target's address may not be called.
            RequestFailedError: no answer; worth another try.
            ValueError: a header holds a line break.
        """
        route = self._route(target.url, method)
        request = route.head + _header_lines(headers, len(body)) + body
        try:
            async with asyncio.timeout(timeout):
                connection, message, content = await self._answer(route, request)
        except (aiohttp.ClientError, HttpProcessingError, TimeoutError) as error:
            raise _failure(error, target, timeout) from error
        try:
            excerpt = await self._read_excerpt(content)
        finally:
            connection.release()  # which closes it where some of the answer is still to come
        return HttpResponse(message.code, message.headers.get("Retry-After"), excerpt)

    async def fetch(
        self,
        target: Target,
        headers: Mapping[str, str],
        *,
        most: int,
        timeout: float,  # noqa: ASYNC109 - as for `send`
    ) -> HttpResponse:
        """GET, for the sake of the body: `timeout` covers the whole of it, up to `most` bytes.

        Raises:
            ResponseTooLargeError: it is longer.
            as `send`; RequestFailedError also when the body is late or broken.
        """
        route = self._route(target.url, "GET")
        request = route.head + _header_lines(headers, 0)
        try:
            async with asyncio.timeout(timeout):
                connection, message, content = await self._answer(route, request)
                try:
                    body = await _whole(content, most, target)
                finally:
                    connection.release()
        except (aiohttp.ClientError, HttpProcessingError, TimeoutError) as error:
            raise _failure(error, target, timeout) from error
        return HttpResponse(message.code, message.headers.get("Retry-After"), body)

    async def _answer(
        self, route: _Route, request: bytes
    ) -> tuple[Connection, RawResponseMessage, aiohttp.StreamReader]:
        """`_ask`, again where a pooled connection was closed meanwhile."""
        dialled: list[str] = []
        _dialled.set(dialled)
        while True:
            try:
                return await self._ask(route.key, request)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if dialled or isinstance(error, aiohttp.ClientConnectorError):
                    raise

    async def _ask(
        self, key: aiohttp.ClientRequest, request: bytes
    ) -> tuple[Connection, RawResponseMessage, aiohttp.StreamReader]:
        """Send the request over a pooled or new connection and read the head of the answer."""
        try:
            connection = await self._connector.connect(key, traces=[], timeout=self._connecting)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError from error
        try:
            protocol, transport = connection.protocol, connection.transport
            if protocol is None or transport is None:
                raise aiohttp.ServerDisconnectedError  # noqa: TRY301 - as if it broke a bit later
            protocol.set_response_params(
                read_until_eof=True, auto_decompress=False, max_headers=_MAX_HEADERS
            )
            transport.write(request)
            message, content = await protocol.read()
            while message.code in _INTERIM:
                message, content = await protocol.read()
        except BaseException:
            connection.close()
            raise
        return connection, message, content

    def _new_route(self, url: URL, method: str) -> _Route:
        # Stands for the target in the pool; its own sending is not used.
        key = aiohttp.ClientRequest(method, url, loop=asyncio.get_running_loop())
        lines = (
            f"{method} {url.raw_path_qs} HTTP/1.1",
            f"Host: {key.headers['Host']}",
            f"User-Agent: {self._user_agent}",
            "Accept-Encoding: identity",  # an excerpt of what is compressed tells nobody anything
        )
        return _Route(key, "\r\n".join(lines).encode())

    async def _read_excerpt(self, content: aiohttp.StreamReader) -> bytes:
        """Read the body, so that the connection can be used again, as far as that is cheap."""
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
            raise ForbiddenTargetError(_refusal(host, host))
        _dialled.get().append(host)
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        return made


class _CheckedResolver(AbstractResolver):
    """Leaves out the answers that may not be called; refuses a name that has no other."""

    def __init__(self, guard: Guard, resolver: AbstractResolver) -> None:
        self._guard = guard
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        answers = await self._resolver.resolve(host, port, family)
        permitted = [answer for answer in answers if self._guard.permits(answer["host"])]
        if not permitted:
            raise ForbiddenTargetError(_refusal(host, answers[0]["host"]))
        return permitted

    async def close(self) -> None:
        await self._resolver.close()


async def _whole(content: aiohttp.StreamReader, most: int, target: Target) -> bytes:
    body = bytearray()
    while chunk := await content.readany():
        body += chunk
        if len(body) > most:
            raise ResponseTooLargeError(f"{target.origin}: the answer has more than {most} bytes")
    return bytes(body)


def _header_lines(headers: Mapping[str, str], length: int) -> bytes:
    """The rest of a request's head: these headers, the body's length, the empty line.

    Raises:
        ValueError: a name or value holds a line break, which would begin a header of its own.
    """
    lines = [f"\r\n{name}: {value}" for name, value in headers.items()]
    text = "".join(lines)
    if text.count("\r") != len(lines) or text.count("\n") != len(lines) or "\0" in text:
        raise ValueError("a header holds a line break or NUL")
    return f"{text}\r\nContent-Length: {length}\r\n\r\n".encode()


def _refusal(host: str, address: str) -> str:
    resolved = "" if host == address else f" resolves to {address}, which"
    return f"{host}{resolved} is not a public address and not in the allowed networks"


def _failure(error: Exception, target: Target, timeout: float) -> RequestFailedError:
    """Sort aiohttp's error; its own text may hold the whole URL, so only safe parts are used."""
    where = target.origin
    match error:
        case aiohttp.ConnectionTimeoutError():
            return RequestFailedError("connect", f"{where} did not accept a connection in time")
        case TimeoutError():
            return RequestFailedError("timeout", f"no answer from {where} within {timeout:g} s")
        case aiohttp.ClientConnectorDNSError():
            reason, cause = "dns", error.os_error.strerror
        case aiohttp.ClientConnectorCertificateError():
            reason, cause = "tls", str(error.certificate_error)
        case aiohttp.ClientSSLError():
            reason, cause = "tls", str(error.os_error)
        case aiohttp.ClientConnectorError():
            reason, cause = "connect", error.os_error.strerror or str(error.os_error)
        case aiohttp.ClientOSError():
            reason, cause = "disconnected", error.strerror
        case HttpProcessingError():
            # What follows the colon is the answer's own text, which may echo the request.
            reason, cause = "protocol", error.message.partition(":")[0]
        case aiohttp.ClientPayloadError():
            reason, cause = "protocol", str(error).partition(":")[0]
        case _:
            reason, cause = "disconnected", "closed without an answer"
    return RequestFailedError(reason, f"{where}: {cause}"[:_DETAIL_CHARACTERS])
