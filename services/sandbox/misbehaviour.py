"""HTTP responses that break the rules, as raw bytes. The sandbox offers them, and tests use them.

Each function reads a request from a connection and then misbehaves. Functions with arguments return
such a function. When it returns, the caller closes the connection.
"""

import asyncio
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from itertools import chain
from typing import Protocol

_CHUNK = bytes(64 * 1024)
_PADDING = ord("s")
_GZIP = 31  # zlib's window bits for the gzip format
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: closing sends RST, not FIN


class Connection(Protocol):
    """A client's connection."""

    async def request(self) -> object:
        """Read a request."""
        ...

    async def write(self, data: bytes) -> None:
        """Send raw bytes, and wait while the client's buffers are full."""
        ...

    async def wait_closed(self) -> None:
        """Wait until the client closes the connection."""
        ...

    def reset(self) -> None:
        """Close the connection with RST, as a crashed receiver does."""
        ...


Misbehaviour = Callable[[Connection], Awaitable[None]]


def response(
    status: int = 200, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> bytes:
    """Return a whole response as bytes, with its Content-Length unless `headers` has one."""
    lines = {"Content-Length": str(len(body))} | dict(headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    phrase = HTTPStatus(status).phrase
    return f"HTTP/1.1 {status} {phrase}\r\n{head}\r\n".encode("latin-1") + body


def reset_transport(transport: asyncio.BaseTransport) -> None:
    """Close a TCP connection with RST."""
    sock: socket.socket = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    if isinstance(transport, asyncio.Transport):
        transport.abort()


async def hang(connection: Connection) -> None:
    """Read the request and never respond."""
    await connection.request()
    await connection.wait_closed()


async def close(connection: Connection) -> None:
    """Read the request and close without a response."""
    await connection.request()


async def reset(connection: Connection) -> None:
    """Read the request and reset the connection."""
    await connection.request()
    connection.reset()


async def reset_in_headers(connection: Connection) -> None:
    """Send half of the headers, then reset."""
    await connection.request()
    await connection.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    connection.reset()


async def reset_in_body(connection: Connection) -> None:
    """Send the headers and half of the body, then reset."""
    await connection.request()
    await connection.write(response(200, {"Content-Length": "1000"}, b"b" * 500))
    connection.reset()


def drip_headers(interval: float = 0.4) -> Misbehaviour:
    """Send one byte of the headers every `interval` seconds (slow-loris)."""
    return _drip(b"", b"HTTP/1.1 200 OK\r\nX-Slow: ", 1_000_000, interval)


def drip_body(interval: float = 0.4, status: int = 200, size: int = 1_000_000) -> Misbehaviour:
    """Send the headers at once, then one byte of the body every `interval` seconds."""
    head = response(status, {"Content-Length": str(size), "Connection": "close"})
    return _drip(head, b"", size, interval)


def _drip(first: bytes, rest: bytes, padding: int, interval: float) -> Misbehaviour:
    """Send `first` at once, then `rest` and so many bytes of padding, one by one."""

    async def drip(connection: Connection) -> None:
        await connection.request()
        if first:
            await connection.write(first)
        for number, byte in enumerate(chain(rest, (_PADDING for _ in range(padding)))):
            if number:
                await asyncio.sleep(interval)
            await connection.write(bytes((byte,)))

    return drip


def huge_body(size: int = 10**12, *, gzip: bool = False) -> Misbehaviour:
    """Send `size` zero bytes without a Content-Length. With `gzip`, send them compressed."""
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"

    def chunks() -> Iterable[bytes]:
        compressor = zlib.compressobj(wbits=_GZIP) if gzip else None
        for start in range(0, size, len(_CHUNK)):
            chunk = _CHUNK[: size - start]
            yield compressor.compress(chunk) if compressor else chunk
        if compressor:
            yield compressor.flush()

    async def send(connection: Connection) -> None:
        await connection.request()
        await connection.write(head + (b"Content-Encoding: gzip\r\n\r\n" if gzip else b"\r\n"))
        for chunk in chunks():
            if chunk:
                await connection.write(chunk)
            # A write to a client that keeps up does not yield to other tasks.
            await asyncio.sleep(0)

    return send


def endless_headers(interval: float = 0) -> Misbehaviour:
    """Send a header every `interval` seconds and never a body; 0 sends them at full speed."""
    lines = b"".join(b"X-Endless-%d: %s\r\n" % (i, b"h" * 100) for i in range(500))
    if not interval:
        return _flood(b"HTTP/1.1 200 OK\r\n", lines)

    async def send(connection: Connection) -> None:
        await connection.request()
        await connection.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            for line in lines.splitlines(keepends=True):
                await connection.write(line)
                await asyncio.sleep(interval)

    return send


def _flood(first: bytes, repeated: bytes) -> Misbehaviour:
    async def flood(connection: Connection) -> None:
        await connection.request()
        await connection.write(first)
        while True:
            await connection.write(repeated)
            await asyncio.sleep(0)  # see huge_body

    return flood


def send_bytes(data: bytes = bytes(range(256))) -> Misbehaviour:
    """Respond with these bytes, then close."""

    async def send(connection: Connection) -> None:
        await connection.request()
        await connection.write(data)

    return send


async def _long_body(connection: Connection) -> None:
    await connection.request()
    extra = response(500, body=b"smuggled")
    await connection.write(response(200, {"Content-Length": "2"}, b"ok" + extra))
    await connection.wait_closed()


# Malformed responses, by their names in the sandbox's API.
MALFORMED: Mapping[str, Misbehaviour] = {
    # Bytes that are not HTTP.
    "garbage": send_bytes(),
    # A body shorter than its Content-Length, then a close.
    "short_body": send_bytes(response(200, {"Content-Length": "1000"}, b"short")),
    # A body longer than its Content-Length; the rest looks like the next response.
    "long_body": _long_body,
    # A reason phrase that never ends.
    "endless_status_line": _flood(b"HTTP/1.1 200 ", b"r" * 65_536),
    # One header that never ends.
    "endless_header": _flood(b"HTTP/1.1 200 OK\r\nX-Long: ", b"h" * 65_536),
    # `100 Continue` forever.
    "endless_continue": _flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000),
    # Chunks of one byte with long extensions: little body in many bytes.
    "endless_chunks": _flood(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1;%s\r\nc\r\n" % (b"e" * 1000) * 100,
    ),
}
