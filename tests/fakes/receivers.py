"""Webhook receivers for tests, well-behaved and hostile, on real loopback sockets.

`serve(behaviour)` starts one; a behaviour is what it does with each connection:

    async with serve(answer(204)) as receiver:
        ...  # send to receiver.url
    assert receiver.accepted == 1

Each behaviour is a coroutine function of a `Conversation`, so a test can also bring its own.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came over the wire; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Receiver:
    """A running receiver and what has reached it so far."""

    url: str
    accepted: int = 0
    requests: list[Request] = field(default_factory=list)
    closed_by_client: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Conversation:
    """One accepted connection."""

    receiver: Receiver
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int

    async def request(self) -> Request:
        """Read one request; `IncompleteReadError` when the client has closed."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        method, path, _ = first.split(" ", 2)
        pairs = (line.split(":", 1) for line in lines)
        headers = {name.lower(): value.strip() for name, value in pairs}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        request = Request(method, path, headers, body)
        self.receiver.requests.append(request)
        return request

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Break the connection with RST, as a crashed or filtered receiver does."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Behaviour = Callable[[Conversation], Awaitable[None]]


@asynccontextmanager
async def serve(
    behaviour: Behaviour, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Receiver]:
    """Run a receiver for the length of the block; `url` is `http(s)://HOST:PORT/hook`."""
    conversations: set[asyncio.Task[None]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        conversations.add(task)
        receiver.accepted += 1
        try:
            await behaviour(Conversation(receiver, reader, writer, receiver.accepted))
        except (ConnectionError, asyncio.IncompleteReadError):
            receiver.closed_by_client.set()
        except asyncio.CancelledError:
            pass  # the end of the block; a cancelled handler would be logged as an error
        finally:
            conversations.discard(task)
            writer.transport.abort() if writer.transport.is_closing() else writer.close()

    server = await asyncio.start_server(converse, host, 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    receiver = Receiver(url=f"{'https' if tls else 'http'}://{shown}:{port}/hook")
    try:
        yield receiver
    finally:
        server.close()
        running = list(conversations)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def response(status: int = 200, headers: dict[str, str] | None = None, body: bytes = b"") -> bytes:
    """Give a whole answer as bytes, with its Content-Length unless `headers` has one."""
    lines = {"Content-Length": str(len(body))} | (headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    phrase = HTTPStatus(status).phrase
    return f"HTTP/1.1 {status} {phrase}\r\n{head}\r\n".encode("latin-1") + body


def answer(
    status: int = 200, headers: dict[str, str] | None = None, body: bytes = b"ok"
) -> Behaviour:
    """Answer every request on the connection, at once: the well-behaved receiver."""
    data = response(status, headers, body)

    async def behave(talk: Conversation) -> None:
        while True:
            await talk.request()
            await talk.write(data)

    return behave


def answer_then_close(body: bytes = b"ok") -> Behaviour:
    """Answer one request without announcing a close, then close: what idle time-outs do."""

    async def behave(talk: Conversation) -> None:
        await talk.request()
        await talk.write(response(200, body=body))

    return behave


async def hang_on_accept(talk: Conversation) -> None:
    """Accept, read nothing, say nothing."""
    talk.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.Event().wait()


async def hang(talk: Conversation) -> None:
    """Read the request and never answer."""
    await talk.request()
    await _until_closed(talk)


async def close_at_once(talk: Conversation) -> None:
    """Read the request and close without an answer."""
    await talk.request()


async def reset_at_once(talk: Conversation) -> None:
    """Read the request and reset the connection."""
    await talk.request()
    talk.reset()


def drip_headers(interval: float = 0.4) -> Behaviour:
    """Send the answer's head one byte every `interval` seconds: slow-loris."""
    return _drip(b"", b"HTTP/1.1 200 OK\r\n" + b"X-Slow: " + b"s" * 1_000_000, interval)


def drip_body(interval: float = 0.4, status: int = 200) -> Behaviour:
    """Send a good head at once, then the body one byte every `interval` seconds."""
    head = response(status, {"Content-Length": "1000000"})
    return _drip(head, b"b" * 1_000_000, interval)


def _drip(first: bytes, rest: bytes, interval: float) -> Behaviour:
    async def behave(talk: Conversation) -> None:
        await talk.request()
        await talk.write(first)
        for byte in rest:
            await talk.write(bytes([byte]))
            await asyncio.sleep(interval)

    return behave


async def endless_headers(talk: Conversation) -> None:
    """Send header after header, as fast as they are taken."""
    await talk.request()
    await talk.write(b"HTTP/1.1 200 OK\r\n")
    await _flood(talk, b"".join(b"X-%d: %s\r\n" % (i, b"h" * 100) for i in range(500)))


async def endless_header_line(talk: Conversation) -> None:
    """Send one header that never ends."""
    await talk.request()
    await talk.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    await _flood(talk, b"h" * 65_536)


async def endless_status_line(talk: Conversation) -> None:
    """Send a reason phrase that never ends."""
    await talk.request()
    await talk.write(b"HTTP/1.1 200 ")
    await _flood(talk, b"r" * 65_536)


async def continue_flood(talk: Conversation) -> None:
    """Send `100 Continue` without end, as fast as they are taken."""
    await talk.request()
    await _flood(talk, b"HTTP/1.1 100 Continue\r\n\r\n" * 2000)


async def huge_body(talk: Conversation) -> None:
    """Send a body without end, as fast as it is taken."""
    await talk.request()
    await talk.write(response(200, {"Content-Length": str(10**12)}))
    await _flood(talk, b"b" * 65_536)


async def endless_chunks(talk: Conversation) -> None:
    """Send one-byte chunks with long extensions without end: little body, much framing."""
    await talk.request()
    await talk.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    await _flood(talk, b"1;%s\r\nc\r\n" % (b"e" * 1000) * 100)


def gzip_bomb(megabytes: int = 500) -> Behaviour:
    """Send a small body that unpacks to `megabytes`."""
    packer = zlib.compressobj(wbits=31)  # 31: with gzip's header
    body = b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()
    return answer(200, {"Content-Encoding": "gzip"}, body)


async def reset_mid_body(talk: Conversation) -> None:
    """Send a good head and half of the body, then reset."""
    await talk.request()
    await talk.write(response(200, {"Content-Length": "1000"}, b"b" * 500))
    talk.reset()


async def reset_mid_headers(talk: Conversation) -> None:
    """Send half a head, then reset."""
    await talk.request()
    await talk.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    talk.reset()


async def short_body(talk: Conversation) -> None:
    """Announce more than is sent, then close."""
    await talk.request()
    await talk.write(response(200, {"Content-Length": "1000"}, b"short"))


async def long_body(talk: Conversation) -> None:
    """Send more than is announced: the rest looks like the next answer on the connection."""
    await talk.request()
    await talk.write(
        response(200, {"Content-Length": "2"}, b"ok" + response(500, body=b"smuggled"))
    )
    await _until_closed(talk)


def garbage(data: bytes = bytes(range(256))) -> Behaviour:
    """Answer with what is no HTTP."""

    async def behave(talk: Conversation) -> None:
        await talk.request()
        await talk.write(data)

    return behave


async def _flood(talk: Conversation, data: bytes) -> None:
    while True:
        await talk.write(data)


async def _until_closed(talk: Conversation) -> None:
    with suppress(ConnectionError):
        await talk.reader.read()
    talk.receiver.closed_by_client.set()
