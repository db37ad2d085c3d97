"""The load generator of `ringback bench`: a receiver, and publishers of numbered callbacks.

One process publishes and receives, so that all times are of one clock.
"""

from __future__ import annotations

import asyncio
import json
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Final, cast
from uuid import uuid4

import aiohttp
from yarl import URL

from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, Publisher
from shared.contracts.callback import SEND_CALLBACK
from shared.contracts.headers import APP_ID
from shared.errors import RingbackError
from shared.topology import CALLBACKS

# Bytes of the head of a request, and of its body: more than a callback of 100,000 bytes has. The
# receiver closes the connection above them, and if so much of the responses is not read.
MAX_HEAD: Final = 65_536
MAX_BODY: Final = 262_144
# Callbacks that have not arrived expire this many seconds after the end of the measurement.
MARGIN: Final = 60.0

_OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
_NOT_FOUND: Final = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_SECRET: Final = "ringback-bench"  # noqa: S105 - nobody verifies it


class NotAcceptedError(Exception):
    """A callback was not accepted. The text is the reason, without the number."""


@dataclass(slots=True)
class Run:
    """What was seen of one measurement: times of the loop's clock by number, 0 for not yet.

    token: identifies its callbacks. sent: the request or publish began. accepted: its response or
    confirm came. arrived: the first byte of its first request. errors: callbacks that were not
    accepted, by reason; some of these can arrive. missing: those accepted that have not arrived.
    complete: set when the last of these arrives.
    """

    count: int
    token: str = field(default_factory=lambda: uuid4().hex)
    repeats: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    sent: array[float] = field(init=False)
    accepted: array[float] = field(init=False)
    arrived: array[float] = field(init=False)

    def __post_init__(self) -> None:
        zeros = bytes(8 * self.count)
        self.sent, self.accepted, self.arrived = (array("d", zeros) for _ in range(3))

    def arrive(self, number: int, now: float) -> None:
        """Record a request."""
        if self.arrived[number]:
            self.repeats += 1
            return
        self.arrived[number] = now
        if self.accepted[number]:
            self.missing -= 1
            if not self.missing:
                self.complete.set()

    def accept(self, number: int, now: float) -> None:
        """Record a response or confirm. The callback can have arrived before."""
        self.accepted[number] = now
        self.missing += not self.arrived[number]

    @property
    def unpublished(self) -> int:
        """The number of callbacks that were not accepted, or not published at all."""
        return self.accepted.count(0.0)

    def figures(self) -> dict[str, Any]:
        """Return rates in callbacks a second, and delays in seconds."""
        pairs = list(zip(self.sent, self.accepted, self.arrived, strict=True))
        accepting = [accepted - sent for sent, accepted, _ in pairs if accepted]
        delays = [max(at - accepted, 0.0) for _, accepted, at in pairs if accepted and at]
        arrived = sum(bool(at) for at in self.arrived)
        begin = min((sent for sent in self.sent if sent), default=0.0)
        return {
            "callbacks": self.count,
            "accepted": len(accepting),
            "accepted_per_second": _rate(len(accepting), max(self.accepted) - begin),
            "accept_p50": _quantile(accepting, 0.5),
            "accept_p99": _quantile(accepting, 0.99),
            "received": arrived,
            "received_per_second": _rate(arrived, max(self.arrived) - begin),
            "delay_p50": _quantile(delays, 0.5),
            "delay_p90": _quantile(delays, 0.9),
            "delay_p99": _quantile(delays, 0.99),
            "repeated": self.repeats,
            "missing": self.missing,
            "errors": dict(self.errors),
        }


def _rate(number: int, seconds: float) -> float | None:
    return number / seconds if number and seconds > 0 else None


def _quantile(values: list[float], share: float) -> float | None:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None


class Receiver:
    """Records the callbacks of runs. Each has the path `…/TOKEN/NUMBER`."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self.on_arrival: Callable[[], object] = lambda: None

    def expect(self, run: Run) -> None:
        """Record the callbacks of a run from now on."""
        self._runs[run.token] = run

    def receive(self, path: str, now: float) -> bytes:
        """Record a request, and return the response."""
        head, _, number = path.rpartition("/")
        run = self._runs.get(head.rpartition("/")[2])
        if run is None or not number.isdecimal() or int(number) >= run.count:
            return _NOT_FOUND
        run.arrive(int(number), now)
        self.on_arrival()
        return _OK


class _Connection(asyncio.Protocol):
    """Reads only the path and the length of the body of each request."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._data = b""
        self._began = 0.0
        self._now = asyncio.get_running_loop().time

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._data:
            self._began = self._now()
        self._data += data
        while (head := self._data.find(b"\r\n\r\n")) >= 0:
            first, *headers = self._data[:head].split(b"\r\n")
            end = head + 4 + _length(headers)
            if end > head + MAX_BODY:
                self._transport.abort()
                return
            if len(self._data) < end:
                return
            path = first.split(b" ")[1].decode("latin-1") if first.count(b" ") > 1 else ""
            self._data = self._data[end:]
            self._transport.write(self._receiver.receive(path, self._began))
            self._began = self._now()
            if self._transport.get_write_buffer_size() > MAX_HEAD:
                self._transport.abort()
                return
        if len(self._data) > MAX_HEAD:
            self._transport.abort()


def _length(headers: list[bytes]) -> int:
    for header in headers:
        name, _, value = header.partition(b":")
        if name.lower() == b"content-length" and value.strip().isdigit():
            return int(value.strip()[:20])
    return 0


@asynccontextmanager
async def receiving(receiver: Receiver, host: str, port: int) -> AsyncIterator[int]:
    """Listen for callbacks, and yield the port.

    Raises:
        OSError: the address cannot be used.
    """
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(receiver), host, port, backlog=1024)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


Publish = Callable[[Run, int], Awaitable[None]]


async def measure(
    run: Run,
    publish: Publish,
    *,
    rate: float | None,
    in_flight: int,
    timeout: float,  # noqa: ASYNC109 - of the wait after the last publish
) -> None:
    """Publish all callbacks of a run, and wait at most `timeout` seconds until they have arrived.

    rate: callbacks a second, at most; None for as fast as they are accepted.
    in_flight: requests or publishes that wait for their response or confirm.
    """
    now = asyncio.get_running_loop().time
    begin = now()
    numbers = iter(range(run.count))

    async def work() -> None:
        for number in numbers:
            if rate is not None and (wait := begin + number / rate - now()) > 0:
                await asyncio.sleep(wait)
            run.sent[number] = now()
            try:
                await publish(run, number)
            except NotAcceptedError as error:
                run.errors[str(error)] += 1
            else:
                run.accept(number, now())

    async with asyncio.TaskGroup() as group:
        for _ in range(min(in_flight, run.count)):
            group.create_task(work())
    if run.missing:
        run.complete.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await run.complete.wait()


def http_publisher(
    session: aiohttp.ClientSession, base: str, target: str, *, size: int, timeout: float
) -> Publish:
    """Return the function that creates a callback by `POST /v1/callbacks`, due now."""
    url = URL(f"{base}/v1/callbacks", encoded=True)

    async def publish(run: Run, number: int) -> None:
        body = {
            "url": f"{target}/{run.token}/{number}",
            "group_key": group_key(run),
            "event_key": str(number),
            "hmac_secret": _SECRET,
            "context": {"data": "x" * size},
            "retry_params": {"stop_after_delay": timeout + MARGIN},
        }
        try:
            async with session.post(url, json=body, allow_redirects=False) as response:
                content = await response.read()
        except TimeoutError:
            raise NotAcceptedError("no response in time") from None
        except aiohttp.ClientError as error:
            raise NotAcceptedError(f"connection failed: {type(error).__name__}") from None
        if response.status >= HTTPStatus.MULTIPLE_CHOICES:
            raise NotAcceptedError(f"status {response.status}: {_detail(content)}")

    return publish


def group_key(run: Run) -> str:
    """Return the group of a run's callbacks in the scheduler."""
    return f"bench-{run.token}"


def _detail(content: bytes) -> str:
    try:
        problem: Mapping[str, Any] = json.loads(content)
        return str(problem.get("detail", "no detail"))
    except (ValueError, AttributeError):
        return "not from a gateway"


def amqp_publisher(publisher: Publisher, target: str, *, size: int, timeout: float) -> Publish:
    """Return the function that publishes SendCallback with a confirm."""
    lifetime = timedelta(seconds=timeout + MARGIN)

    async def publish(run: Run, number: int) -> None:
        body = {
            "target_url": f"{target}/{run.token}/{number}",
            "hmac_secret": _SECRET,
            "id": f"bench-{run.token}-{number}",
            "expires_at": (datetime.now(UTC) + lifetime).isoformat(),
            "payload": {"data": "x" * size},
        }
        properties = Properties(
            content_type="application/json",
            type=SEND_CALLBACK,
            message_id=f"{run.token}-{number}",
            delivery_mode=PERSISTENT,
            app_id=APP_ID,
        )
        message = OutgoingMessage(CALLBACKS, properties, json.dumps(body).encode())
        try:
            await publisher.publish(message)
        except RingbackError as error:
            raise NotAcceptedError(str(error)) from None

    return publish
