"""A fast path for messages through an aiormq connection.

aiormq does the handshake, TLS, heartbeats, channels and all rare methods. In its generic frame loop
a delivery, a publish, a confirm and an ack would cost more CPU than signing and sending a callback.
So aiormq gets a transport (its `transport_factory`) that intercepts the content frames of our
channels. All other frames pass to aiormq unchanged.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from shared.amqp import codec

# Seconds. aiormq closes a connection after three heartbeats without a frame, and it does not see
# intercepted frames. So it gets a heartbeat frame instead, at most once per interval.
_HEARTBEAT_INTERVAL: Final = 1.0
_HEARTBEAT: Final = codec.FRAME_HEAD.pack(8, 0, 0) + codec.FRAME_END
_KINDS: Final = frozenset((codec.METHOD, codec.HEADER, codec.BODY, 8))
_CONNECTION_BLOCKED: Final = 10 << 16 | 60
_CONNECTION_UNBLOCKED: Final = 10 << 16 | 61


@dataclass(slots=True)
class Delivery:
    """A received message. `header` is the payload of its content header, still encoded."""

    tag: int
    redelivered: bool
    header: bytes
    body: bytes


def _ignore(*_: Any) -> None:
    pass


class InterceptedChannel:
    """The content frames of one channel. Set the callbacks before consuming."""

    def __init__(self, interceptor: "FrameInterceptor", number: int, frame_max: int) -> None:
        self.number = number
        self.frame_max = frame_max
        self.on_delivery: Callable[[Delivery], None] = _ignore
        self.on_confirm: Callable[[int, bool, bool], None] = _ignore  # tag, multiple, accepted
        self.on_return: Callable[[str, bytes], None] = _ignore  # the broker's text, header
        self._interceptor = interceptor
        self._returned: str | None = None
        self._delivery: tuple[int, int] = (0, 0)
        self._header = b""
        self._body: list[bytes] = []
        self._missing = 0

    def write(self, frames: bytes) -> None:
        """Send whole frames, in one system call with others of this event loop iteration."""
        self._interceptor.write(frames)

    def receive(self, kind: int, data: bytes, start: int, end: int) -> bool:
        """Process the frame with the payload `data[start:end]`, or return False to pass it on."""
        if kind == codec.BODY:
            piece = data[start:end]
            self._missing -= len(piece)
            if self._missing > 0:
                self._body.append(piece)
            elif self._body:
                self._body.append(piece)
                self._complete(b"".join(self._body))
            else:
                self._complete(piece)
            return True
        if kind == codec.HEADER:
            self._header = data[start:end]
            self._missing = codec.CONTENT_HEADER.unpack_from(data, start)[2]
            if self._missing == 0:
                self._complete(b"")
            return True
        return self._receive_method(data, start)

    def _receive_method(self, data: bytes, start: int) -> bool:
        method = codec.METHOD_ID.unpack_from(data, start)[0]
        if method == codec.DELIVER:
            self._delivery = codec.TAG_AND_FLAG.unpack_from(data, start + 5 + data[start + 4])
        elif method in (codec.ACK, codec.NACK):
            tag, flags = codec.TAG_AND_FLAG.unpack_from(data, start + 4)
            self.on_confirm(tag, bool(flags & 1), method == codec.ACK)
        elif method == codec.RETURN:
            self._returned = data[start + 7 : start + 7 + data[start + 6]].decode(errors="replace")
        else:
            return False
        return True

    def _complete(self, body: bytes) -> None:
        self._body = []
        if self._returned is not None:
            text, self._returned = self._returned, None
            self.on_return(text, self._header)
        else:
            tag, redelivered = self._delivery
            self.on_delivery(Delivery(tag, bool(redelivered), self._header, body))


class FrameInterceptor(asyncio.StreamReaderProtocol):
    """The protocol between the socket and aiormq's reader, with the channels it intercepts."""

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self.on_blocked: Callable[[bool], None] = _ignore
        self._pass_on = reader.feed_data
        self._loop = loop
        self._channels: dict[int, InterceptedChannel] = {}
        self._rest = b""
        self._out: list[bytes] = []
        self._last_heartbeat = 0.0
        self._transport: asyncio.WriteTransport | None = None

    def channel(self, number: int, frame_max: int) -> InterceptedChannel:
        """Intercept the content frames of this open channel from now on."""
        channel = self._channels[number] = InterceptedChannel(self, number, frame_max)
        return channel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for our own frames. asyncio calls this."""
        super().connection_made(transport)
        self._transport = cast("asyncio.WriteTransport", transport)

    def write(self, frames: bytes) -> None:
        """Send whole frames, in one system call with others of this event loop iteration."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(frames)

    def _flush(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def data_received(self, data: bytes) -> None:  # noqa: C901 - one loop for speed
        """Pass the frames of our channels to them, and the others to aiormq."""
        if self._rest:
            data = self._rest + data
        unpack = codec.FRAME_HEAD.unpack_from
        channels = self._channels
        size = len(data)
        at = passed = 0
        intercepted = False
        while size - at >= codec.FRAME_OVERHEAD:
            kind, number, length = unpack(data, at)
            if kind not in _KINDS:  # not AMQP: aiormq reports the error
                at = size
                break
            end = at + codec.FRAME_OVERHEAD + length
            if end > size:
                break
            channel = channels.get(number)
            if channel is not None:
                if channel.receive(kind, data, at + 7, end - 1):
                    intercepted = True
                    if passed < at:
                        self._pass_on(data[passed:at])
                    passed = end
            elif number == 0 and kind == codec.METHOD:
                self._watch_alarm(data, at + 7)
            at = end
        if passed < at:
            self._pass_on(data[passed:at])
        self._rest = data[at:]
        if intercepted and self._loop.time() - self._last_heartbeat > _HEARTBEAT_INTERVAL:
            self._last_heartbeat = self._loop.time()
            self._pass_on(_HEARTBEAT)

    def _watch_alarm(self, data: bytes, start: int) -> None:
        method = codec.METHOD_ID.unpack_from(data, start)[0]
        if method in (_CONNECTION_BLOCKED, _CONNECTION_UNBLOCKED):
            self.on_blocked(method == _CONNECTION_BLOCKED)


class InterceptedTransport(TransportFactory):
    """Creates the transport of a connection. `interceptor` is set once it is connected."""

    interceptor: FrameInterceptor

    async def create(
        self, url: URL, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect. aiormq calls this."""
        provider = kwargs.pop("ssl_context_provider")
        tls = await provider.get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        self.interceptor = FrameInterceptor(reader, loop)
        try:
            transport, protocol = await loop.create_connection(
                lambda: self.interceptor, str(url.host), url.port or 5672, ssl=tls
            )
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
