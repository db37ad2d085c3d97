"""The frame interceptor: reads the content of our channels and passes all other frames on."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import SupportsIndex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import body, commands, frame, header, heartbeat
from pamqp.base import Frame

from shared.amqp import codec
from shared.amqp.frame_interceptor import Delivery, FrameInterceptor

OURS, OTHER = 2, 3  # channels
HEARTBEAT = frame.marshal(heartbeat.Heartbeat(), 0)


class Reader(asyncio.StreamReader):
    """aiormq's reader, which records its input."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.fed = b""

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        self.fed += bytes(data)


class Transport(asyncio.WriteTransport):
    """A transport that records its writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return False


@dataclass
class Seen:
    """The callbacks of our channel, in order."""

    events: list[object] = field(default_factory=list)
    alarms: list[bool] = field(default_factory=list)


def intercepted(loop: asyncio.AbstractEventLoop) -> tuple[FrameInterceptor, Reader, Seen]:
    reader, seen = Reader(loop), Seen()
    interceptor = FrameInterceptor(reader, loop)
    channel = interceptor.channel(OURS, 4096)
    channel.on_delivery = seen.events.append
    channel.on_confirm = lambda *confirm: seen.events.append(confirm)
    channel.on_return = lambda *returned: seen.events.append(returned)
    interceptor.on_blocked = seen.alarms.append
    return interceptor, reader, seen


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@dataclass(frozen=True)
class Sent:
    """Frames from the broker, and the event expected of them."""

    frames: bytes
    event: object = None  # None: passed on to aiormq


def content(channel: int, method: Frame, pieces: Sequence[bytes]) -> bytes:
    whole = b"".join(pieces)
    properties = commands.Basic.Properties(message_id="m-1", headers={"n": len(whole)})
    parts = [
        frame.marshal(method, channel),
        frame.marshal(header.ContentHeader(0, len(whole), properties), channel),
        *(frame.marshal(body.ContentBody(piece), channel) for piece in pieces),
    ]
    return b"".join(parts)


def header_in(frames: bytes) -> bytes:
    """Return the payload of the content header among these frames."""
    at = frame.unmarshal(frames)[0]
    used = frame.unmarshal(frames[at:])[0]
    return frames[at + 7 : at + used - 1]


def deliver(channel: int, tag: int, redelivered: bool, pieces: list[bytes]) -> Sent:  # noqa: FBT001 - drawn
    method = commands.Basic.Deliver("consumer-1", tag, redelivered, "exchange", "callbacks")
    frames = content(channel, method, pieces)
    event = Delivery(tag, redelivered, header_in(frames), b"".join(pieces))
    return Sent(frames, event if channel == OURS else None)


def returned(channel: int, text: str, pieces: list[bytes]) -> Sent:
    frames = content(channel, commands.Basic.Return(312, text, "exchange", "key"), pieces)
    return Sent(frames, (text, header_in(frames)) if channel == OURS else None)


def confirm(channel: int, tag: int, multiple: bool, accepted: bool) -> Sent:  # noqa: FBT001 - drawn
    method = commands.Basic.Ack(tag, multiple) if accepted else commands.Basic.Nack(tag, multiple)
    event = (tag, multiple, accepted) if channel == OURS else None
    return Sent(frame.marshal(method, channel), event)


channels = st.sampled_from([OURS, OURS, OTHER])
tags = st.integers(1, 2**62)
bodies = st.lists(st.binary(min_size=1, max_size=30), max_size=3)
# Frames for aiormq: methods of any channel, its own channels, and the connection.
rest = st.sampled_from(
    [
        frame.marshal(commands.Basic.QosOk(), OURS),
        frame.marshal(commands.Basic.ConsumeOk("consumer-1"), OURS),
        frame.marshal(commands.Basic.Cancel("consumer-1", nowait=True), OURS),
        frame.marshal(commands.Channel.Close(406, "no", 60, 80), OURS),
        frame.marshal(commands.Basic.ConsumeOk("consumer-2"), OTHER),
        frame.marshal(commands.Connection.Close(320, "closed", 0, 0), 0),
        HEARTBEAT,
    ]
).map(Sent)
traffic = st.lists(
    st.builds(deliver, channels, tags, st.booleans(), bodies)
    | st.builds(returned, channels, st.sampled_from(["NO_ROUTE", "é"]), bodies)
    | st.builds(confirm, channels, tags, st.booleans(), st.booleans())
    | rest,
    max_size=8,
)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


def without_heartbeats(data: bytes) -> bytes:
    kept = b""
    while data:
        used, _, each = frame.unmarshal(data)
        kept += b"" if isinstance(each, heartbeat.Heartbeat) else data[:used]
        data = data[used:]
    return kept


@settings(max_examples=50)
@given(sent=traffic, cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_frames_in_any_chunks_are_intercepted_or_passed_on(
    loop: asyncio.AbstractEventLoop, sent: list[Sent], cuts: list[int]
) -> None:
    interceptor, reader, seen = intercepted(loop)
    for chunk in split(b"".join(each.frames for each in sent), cuts):
        interceptor.data_received(chunk)
    assert seen.events == [each.event for each in sent if each.event is not None]
    # The interceptor can add heartbeats between frames, but removes none.
    others = b"".join(each.frames for each in sent if each.event is None)
    assert without_heartbeats(reader.fed) == without_heartbeats(others)
    assert reader.fed.count(HEARTBEAT) >= others.count(HEARTBEAT)


def test_a_delivery_can_arrive_byte_by_byte(loop: asyncio.AbstractEventLoop) -> None:
    interceptor, _, seen = intercepted(loop)
    sent = deliver(OURS, 7, False, [b"abc", b"", b"de"])  # noqa: FBT003
    for byte in sent.frames:
        interceptor.data_received(bytes((byte,)))
    assert seen.events == [sent.event]


def test_frames_of_two_channels_can_be_interleaved(
    loop: asyncio.AbstractEventLoop,
) -> None:
    interceptor, reader, seen = intercepted(loop)
    second: list[object] = []
    interceptor.channel(OTHER, 4096).on_delivery = second.append
    one, two = deliver(OURS, 1, False, [b"one"]), deliver(OURS, 2, True, [b"2", b"two"])  # noqa: FBT003
    moved = two.frames.replace(b"\x00\x02\x00\x00", b"\x00\x03\x00\x00")
    parts = [[], []]  # type: list[list[bytes]]
    for kept, data in zip(parts, (one.frames, moved), strict=True):
        remaining = data
        while remaining:
            used = frame.unmarshal(remaining)[0]
            kept.append(remaining[:used])
            remaining = remaining[used:]
    for number in range(4):
        for kept in parts:
            interceptor.data_received(b"".join(kept[number : number + 1]))
    assert seen.events == [one.event]
    assert second == [two.event]
    assert without_heartbeats(reader.fed) == b""


def test_aiormq_gets_one_heartbeat_for_many_intercepted_frames(
    loop: asyncio.AbstractEventLoop,
) -> None:
    interceptor, reader, _ = intercepted(loop)
    for tag in range(1, 50):
        interceptor.data_received(confirm(OURS, tag, False, True).frames)  # noqa: FBT003
    assert reader.fed == HEARTBEAT


def test_bytes_that_are_not_amqp_are_passed_on(loop: asyncio.AbstractEventLoop) -> None:
    interceptor, reader, seen = intercepted(loop)
    interceptor.data_received(b"AMQP\x00\x00\x09\x01 and HTTP/1.1 400 Bad Request\r\n")
    assert reader.fed == b"AMQP\x00\x00\x09\x01 and HTTP/1.1 400 Bad Request\r\n"
    assert seen.events == []


def test_an_alarm_of_the_broker_is_reported_and_passed_on(loop: asyncio.AbstractEventLoop) -> None:
    interceptor, reader, seen = intercepted(loop)
    blocked = frame.marshal(commands.Connection.Blocked("low on memory"), 0)
    unblocked = frame.marshal(commands.Connection.Unblocked(), 0)
    interceptor.data_received(blocked + unblocked[:3])
    assert seen.alarms == [True]
    interceptor.data_received(unblocked[3:])
    assert seen.alarms == [True, False]
    assert reader.fed == blocked + unblocked


async def test_frames_of_one_loop_iteration_are_written_together() -> None:
    loop = asyncio.get_running_loop()
    interceptor = FrameInterceptor(Reader(loop), loop)
    transport = Transport()
    interceptor.connection_made(transport)
    channel = interceptor.channel(OURS, 4096)
    frames = [codec.encode_ack(OURS, tag, multiple=False) for tag in (1, 2, 3)]
    channel.write(frames[0])
    channel.write(frames[1])
    assert transport.writes == []
    await asyncio.sleep(0)
    channel.write(frames[2])
    await asyncio.sleep(0)
    assert transport.writes == [frames[0] + frames[1], frames[2]]
