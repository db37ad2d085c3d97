"""The receiver of the benchmark: many targets in one process, which costs little beside the sender.

Each target is a listening port of 127.0.0.1, so a different origin. A target behaves as its group
says. What came is counted in memory that the benchmark shares, so that reading it costs nothing.
"""

import asyncio
import multiprocessing
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from multiprocessing.connection import Connection
from typing import cast

import uvloop

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
FAILED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
GONE = b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"


class Group(IntEnum):
    """How a target answers."""

    HEALTHY = 0  # 200 at once
    HANGING = 1  # takes the request and never answers
    SLOW = 2  # 200 after `delay` seconds
    FLAKY = 3  # 500 to the first try of each message, then 200
    GONE = 4  # 410


class Seen:
    """What the sink has seen; times are CLOCK_MONOTONIC, which all processes share.

    first, last: when message `n` first and last came, 0 for never. count: requests of a group.
    answered: how many of them got their answer. last_answer: when the last 200 went out.
    """

    def __init__(self, messages: int) -> None:
        self.first = multiprocessing.RawArray("d", messages)
        self.last = multiprocessing.RawArray("d", messages)
        self.count = multiprocessing.RawArray("q", len(Group))
        self.answered = multiprocessing.RawArray("q", len(Group))
        self.last_answer = multiprocessing.RawValue("d", 0.0)
        self.delay = multiprocessing.RawValue("d", 0.0)


class Sink:
    """A running sink: its targets, and what it has seen."""

    def __init__(self, seen: Seen, urls: dict[Group, list[str]]) -> None:
        self.seen = seen
        self._urls = urls

    def alternating(self, groups: Sequence[Group]) -> list[str]:
        """The URLs of these groups, one of each in turn."""
        each = (self._urls[group] for group in groups)
        return [url for some in zip(*each, strict=True) for url in some]


@contextmanager
def sink(targets: dict[Group, int], *, messages: int) -> Iterator[Sink]:
    """A sink in a process of its own with so many targets in each group.

    It numbers messages from 0 to `messages` - 1 by the member `id` that ends their body.
    """
    spawn = multiprocessing.get_context("spawn")
    seen = Seen(messages)
    here, there = spawn.Pipe()
    process = spawn.Process(target=_run, args=(targets, seen, there), daemon=True)
    process.start()
    there.close()
    try:
        yield Sink(seen, here.recv())
    finally:
        process.terminate()
        process.join()


def _run(targets: dict[Group, int], seen: Seen, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the benchmark, which ends us
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(_listen(targets, seen, pipe))


async def _listen(targets: dict[Group, int], seen: Seen, pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    urls: dict[Group, list[str]] = {}
    for group, number in targets.items():
        servers = [
            await loop.create_server(_protocol(group, seen), "127.0.0.1", 0, backlog=4096)
            for _ in range(number)
        ]
        ports = [server.sockets[0].getsockname()[1] for server in servers]
        urls[group] = [f"http://127.0.0.1:{port}/hook" for port in ports]
    pipe.send(urls)
    ended = asyncio.Event()
    loop.add_reader(pipe.fileno(), ended.set)  # nothing is sent: readable means that its user ended
    await ended.wait()


def _protocol(group: Group, seen: Seen) -> Callable[[], asyncio.Protocol]:
    return lambda: _Requests(group, seen)


class _Requests(asyncio.Protocol):
    """Reads requests of one connection: the length and the number at the body's end, no more."""

    def __init__(self, group: Group, seen: Seen) -> None:
        self._group = group
        self._seen = seen
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

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
        seen, group = self._seen, self._group
        now = time.monotonic()
        repeated = seen.first[number] > 0
        if not repeated:
            seen.first[number] = now
        seen.last[number] = now
        seen.count[group] += 1
        match group:
            case Group.HEALTHY:
                self._answer(OK)
            case Group.SLOW if seen.delay.value > 0:
                asyncio.get_running_loop().call_later(seen.delay.value, self._answer, OK)
            case Group.SLOW:
                self._answer(OK)
            case Group.FLAKY:
                self._answer(OK if repeated else FAILED)
            case Group.GONE:
                self._answer(GONE)

    def _answer(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)
        self._seen.answered[self._group] += 1
        if answer is OK:
            self._seen.last_answer.value = time.monotonic()
