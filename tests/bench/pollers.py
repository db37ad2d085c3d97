"""Clients of long polls in a process of their own, with as little work as possible."""

import asyncio
import multiprocessing
import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Final, cast

import uvloop

# Connections opened at a time, below the backlog of a server.
AT_ONCE: Final = 50
_LENGTH: Final = re.compile(rb"(?i)content-length: (\d+)")
_AT: Final = re.compile(rb'"at":\s*([0-9.]+)')


def token(number: int) -> str:
    """Return the token of poller `number`, from 1."""
    return f"bench-{number}"


class _Poller(asyncio.Protocol):
    """One client, which polls again and again. Events carry the time of their publishing."""

    def __init__(self, number: int, latencies: list[float]) -> None:
        body = f'{{"token":"{token(number)}","timeout":60}}'
        self._request = (
            "POST /events/polling HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        self._latencies = latencies
        self._received = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not instances of it.
        self._transport = cast("asyncio.WriteTransport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or length is None or len(body) < int(length[1]):
            return
        self._received = b""
        if at := _AT.search(body):
            self._latencies.append(time.monotonic() - float(at[1]))
        assert self._transport is not None
        self._transport.write(self._request)


async def _poll(port: int, count: int, control: Connection) -> None:
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    for start in range(1, count + 1, AT_ONCE):
        await asyncio.gather(
            *(
                loop.create_connection(lambda n=n: _Poller(n, latencies), "127.0.0.1", port)  # type: ignore[misc]
                for n in range(start, min(start + AT_ONCE, count + 1))
            )
        )
    while True:
        await loop.run_in_executor(None, control.recv)
        control.send(latencies)


def _run(port: int, count: int, control: Connection) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(_poll(port, count, control))


@contextmanager
def pollers(port: int, count: int) -> Iterator[Connection]:
    """Run the clients. Anything sent on the connection returns all latencies so far, in seconds."""
    context = multiprocessing.get_context("spawn")
    control, theirs = context.Pipe()
    process = context.Process(target=_run, args=(port, count, theirs), daemon=True)
    process.start()
    try:
        yield control
    finally:
        process.kill()
        process.join()
