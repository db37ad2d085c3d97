"""The receiver of the benchmark: many targets in one process that uses little CPU.

Each target is a port of 127.0.0.1, hence a different origin, and behaves as its group defines.
Counters are in memory shared with the benchmark, so that reading them costs nothing.
"""

import asyncio
import multiprocessing
import resource
import signal
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, cast

import uvloop

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
FAILED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
GONE = b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"
LAST = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


class Group(IntEnum):
    """The response of a target."""

    HEALTHY = 0  # 200 at once
    HANGING = 1  # never responds
    SLOW = 2  # 200 after `delay` seconds
    FLAKY = 3  # 500 to the first attempt of each message, then 200
    GONE = 4  # 410
    TLS = 5  # 200 at once, over TLS
    TLS_CLOSING = 6  # 200 at once, over TLS; closes the connection after each response


ENCRYPTED: Final = frozenset({Group.TLS, Group.TLS_CLOSING})


class SinkCounters:
    """The counters of the sink. Times are CLOCK_MONOTONIC, which all processes share.

    first, last: the times of the first and last request of message `n`, 0 for none. count: the
    requests of a group. responses, connections: those of a group. last_response: the time of the
    last 200.
    """

    def __init__(self, messages: int) -> None:
        self.first = multiprocessing.RawArray("d", messages)
        self.last = multiprocessing.RawArray("d", messages)
        self.count = multiprocessing.RawArray("q", len(Group))
        self.responses = multiprocessing.RawArray("q", len(Group))
        self.connections = multiprocessing.RawArray("q", len(Group))
        self.last_response = multiprocessing.RawValue("d", 0.0)
        self.delay = multiprocessing.RawValue("d", 0.0)


class Sink:
    """A running sink with its targets and counters."""

    def __init__(self, counters: SinkCounters, urls: dict[Group, list[str]]) -> None:
        self.counters = counters
        self._urls = urls

    def alternating(self, groups: Sequence[Group]) -> list[str]:
        """Return the URLs of these groups, one of each in turn."""
        each = (self._urls[group] for group in groups)
        return [url for urls in zip(*each, strict=True) for url in urls]


@contextmanager
def sink(targets: dict[Group, int], *, messages: int, certificate: Path) -> Iterator[Sink]:
    """Run a sink in another process with so many targets in each group.

    certificate: the PEM file of the encrypted groups' key and certificate for 127.0.0.1.

    Messages have numbers from 0 to `messages` - 1 in the last member of their body, `id`.
    """
    spawn = multiprocessing.get_context("spawn")
    counters = SinkCounters(messages)
    parent_end, child_end = spawn.Pipe()
    process = spawn.Process(
        target=_run, args=(targets, counters, certificate, child_end), daemon=True
    )
    process.start()
    child_end.close()
    try:
        yield Sink(counters, parent_end.recv())
    finally:
        process.terminate()
        process.join()


def _run(
    targets: dict[Group, int], counters: SinkCounters, certificate: Path, pipe: Connection
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark handles Ctrl-C and stops us
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    uvloop.run(_listen(targets, counters, certificate, pipe))


async def _listen(
    targets: dict[Group, int], counters: SinkCounters, certificate: Path, pipe: Connection
) -> None:
    loop = asyncio.get_running_loop()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    urls: dict[Group, list[str]] = {}
    for group, number in targets.items():
        encrypted = group in ENCRYPTED
        servers = [
            await loop.create_server(
                _protocol(group, counters),
                "127.0.0.1",
                0,
                backlog=4096,
                ssl=tls if encrypted else None,
            )
            for _ in range(number)
        ]
        ports = [server.sockets[0].getsockname()[1] for server in servers]
        scheme = "https" if encrypted else "http"
        urls[group] = [f"{scheme}://127.0.0.1:{port}/hook" for port in ports]
    pipe.send(urls)
    ended = asyncio.Event()
    loop.add_reader(pipe.fileno(), ended.set)  # readable means that the benchmark has ended
    await ended.wait()


def _protocol(group: Group, counters: SinkCounters) -> Callable[[], asyncio.Protocol]:
    return lambda: _Requests(group, counters)


class _Requests(asyncio.Protocol):
    """Reads only the length and the number of each request of a connection."""

    def __init__(self, group: Group, counters: SinkCounters) -> None:
        self._group = group
        self._counters = counters
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._counters.connections[self._group] += 1

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (head := self._data.find(b"\r\n\r\n")) >= 0:
            headers = self._data[:head].lower()
            length = int(headers.split(b"\r\ncontent-length:", 1)[1].split(b"\r\n", 1)[0])
            end = head + 4 + length
            if len(self._data) < end:
                return
            number = int(self._data[self._data.rindex(b" ", 0, end) : end - 1])
            self._data = self._data[end:]
            self._received(number)

    def _received(self, number: int) -> None:
        counters, group = self._counters, self._group
        now = time.monotonic()
        repeated = counters.first[number] > 0
        if not repeated:
            counters.first[number] = now
        counters.last[number] = now
        counters.count[group] += 1
        match group:
            case Group.HEALTHY | Group.TLS:
                self._respond(OK)
            case Group.TLS_CLOSING:
                self._respond(LAST)
                self._transport.close()
            case Group.SLOW if counters.delay.value > 0:
                asyncio.get_running_loop().call_later(counters.delay.value, self._respond, OK)
            case Group.SLOW:
                self._respond(OK)
            case Group.FLAKY:
                self._respond(OK if repeated else FAILED)
            case Group.GONE:
                self._respond(GONE)

    def _respond(self, response: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(response)
        self._counters.responses[self._group] += 1
        if response in (OK, LAST):
            self._counters.last_response.value = time.monotonic()
