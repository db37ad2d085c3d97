"""Webhook receivers of the tests, on real loopback sockets.

`serve(behaviour)` starts one. A behaviour is called with each connection:

    async with serve(respond(204)) as receiver:
        ...  # send to receiver.url
    assert receiver.accepted == 1

Responses that violate HTTP are in `services.sandbox.misbehaviour`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.sandbox.misbehaviour import reset_transport, response

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True, slots=True)
class Request:
    """One request as received; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Receiver:
    """A running receiver and what it has received."""

    url: str
    accepted: int = 0
    requests: list[Request] = field(default_factory=list)
    closed_by_client: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class ClientConnection:
    """One accepted connection; the first has the number 1."""

    receiver: Receiver
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int

    async def request(self) -> Request:
        """Read one request; raise `IncompleteReadError` when the client has closed."""
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
        """Send raw bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def wait_closed(self) -> None:
        """Wait until the client closes the connection."""
        with suppress(ConnectionError):
            await self.reader.read()
        self.receiver.closed_by_client.set()

    def reset(self) -> None:
        """Close the connection with RST."""
        reset_transport(self.writer.transport)


Behaviour = Callable[[ClientConnection], Awaitable[None]]


@asynccontextmanager
async def serve(
    behaviour: Behaviour, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Receiver]:
    """Run a receiver for the length of the block; `url` is `http(s)://HOST:PORT/hook`."""
    connections: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        receiver.accepted += 1
        try:
            await behaviour(ClientConnection(receiver, reader, writer, receiver.accepted))
        except (ConnectionError, asyncio.IncompleteReadError):
            receiver.closed_by_client.set()
        except asyncio.CancelledError:
            pass  # the end of the block; asyncio would log a cancelled handler as an error
        finally:
            connections.discard(task)
            writer.transport.abort() if writer.transport.is_closing() else writer.close()

    server = await asyncio.start_server(accept, host, 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    url_host = f"[{host}]" if ":" in host else host
    receiver = Receiver(url=f"{'https' if tls else 'http'}://{url_host}:{port}/hook")
    try:
        yield receiver
    finally:
        server.close()
        running = list(connections)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def respond(
    status: int = 200, headers: dict[str, str] | None = None, body: bytes = b"ok"
) -> Behaviour:
    """Respond to every request on the connection at once: the well-behaved receiver."""
    data = response(status, headers, body)

    async def behave(connection: ClientConnection) -> None:
        while True:
            await connection.request()
            await connection.write(data)

    return behave


async def respond_then_close(connection: ClientConnection) -> None:
    """Respond to one request without announcing a close, then close, as an idle timeout does."""
    await connection.request()
    await connection.write(response(200, body=b"ok"))


async def hang_on_accept(connection: ClientConnection) -> None:
    """Accept the connection, read nothing and send nothing."""
    connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.Event().wait()
