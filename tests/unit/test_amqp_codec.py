"""Content frames, compared with pamqp in both directions. Malformed ones are violations."""

import struct
import time
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pamqp import body, commands, frame, header

from shared.amqp import codec
from shared.amqp.codec import Properties
from shared.errors import ContractViolationError

FRAME_MIN = 4096  # the least that AMQP allows for frame_max

short = st.text('aé€\U0001f600 /"\\-_0', max_size=60)
names = st.text("abc-é", min_size=1, max_size=20)
numbers = st.integers(-(2**63), 2**63 - 1)
moments = st.integers(0, 2**32 - 1).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False, width=32) | short | moments,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
tables = st.dictionaries(names, values, max_size=4)
all_properties = st.builds(
    Properties,
    content_type=st.none() | short,
    content_encoding=st.none() | short,
    headers=st.none() | tables,
    delivery_mode=st.sampled_from([None, 1, 2]),
    priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | short,
    reply_to=st.none() | short,
    expiration=st.none() | short,
    message_id=st.none() | short,
    timestamp=st.none() | st.integers(0, 2**32 - 1),
    type=st.none() | short,
    user_id=st.none() | short,
    app_id=st.none() | short,
)


def for_pamqp(properties: Properties) -> commands.Basic.Properties:
    """Return the same properties for pamqp."""
    fields = asdict(properties)
    timestamp = fields.pop("timestamp")
    return commands.Basic.Properties(
        message_type=fields.pop("type"),
        timestamp=None if timestamp is None else datetime.fromtimestamp(timestamp, UTC),
        **fields,
    )


def content_header(table: bytes) -> bytes:
    """Return a content header with only this table of headers."""
    return codec.CONTENT_HEADER.pack(60, 0, 0, 1 << 13) + struct.pack(">I", len(table)) + table


def frames_of(data: bytes) -> list[tuple[int, Any]]:
    found = []
    while data:
        used, channel, each = frame.unmarshal(data)
        found.append((channel, each))
        data = data[used:]
    return found


@settings(max_examples=25)
@given(all_properties)
def test_properties_encoded_by_pamqp_are_decoded(properties: Properties) -> None:
    written = frame.marshal(header.ContentHeader(0, 5, for_pamqp(properties)), 1)
    decoded = codec.decode_properties(written[codec.FRAME_HEAD.size : -1])
    absent = {name: None for name, value in asdict(properties).items() if value == ""}
    assert decoded == replace(properties, **absent)  # pamqp leaves an empty text out


@given(st.floats(allow_nan=False))
@example(1e300)  # larger than the 32-bit floats to which pamqp rounds
def test_doubles_in_headers_keep_their_value(value: float) -> None:
    headers = {"a": value, "b": [value], "c": {"d": value}}
    encoded = codec.encode_properties(Properties(headers=headers), 0)
    assert codec.decode_properties(encoded).headers == headers


@settings(max_examples=25)
@given(
    properties=all_properties,
    content=st.binary(max_size=40),
    repeat=st.sampled_from([0, 1, 250]),
    exchange=short,
    key=short,
    mandatory=st.booleans(),
    channel=st.integers(1, 65535),
)
def test_pamqp_decodes_our_publishes(  # noqa: PLR0913 - the parts of a publish
    properties: Properties,
    content: bytes,
    repeat: int,
    exchange: str,
    key: str,
    *,
    mandatory: bool,
    channel: int,
) -> None:
    payload = content * repeat
    written = codec.encode_publish(
        channel, exchange, key, properties, payload, mandatory=mandatory, frame_max=FRAME_MIN
    )
    frames = frames_of(written)
    assert {number for number, _ in frames} == {channel}
    publish, head, *pieces = (each for _, each in frames)
    assert isinstance(publish, commands.Basic.Publish)
    assert (publish.exchange, publish.routing_key) == (exchange, key)
    assert (publish.mandatory, publish.immediate) == (mandatory, False)
    assert isinstance(head, header.ContentHeader)
    assert head.body_size == len(payload)
    assert dict(head.properties) == dict(for_pamqp(properties))
    assert b"".join(piece.value for piece in pieces) == payload


@pytest.mark.parametrize("size", [0, 1, 4087, 4088, 4089, 8176, 8177])
def test_a_body_is_split_so_that_no_frame_exceeds_the_limit(size: int) -> None:
    payload = bytes(n % 251 for n in range(size))
    written = codec.encode_publish(
        1, "", "callbacks", Properties(), payload, mandatory=True, frame_max=FRAME_MIN
    )
    pieces = [each.value for _, each in frames_of(written) if isinstance(each, body.ContentBody)]
    assert b"".join(pieces) == payload
    assert len(pieces) == -(-size // (FRAME_MIN - 8))
    assert all(0 < len(piece) <= FRAME_MIN - 8 for piece in pieces)


@pytest.mark.parametrize(("multiple", "tag"), [(True, 7), (False, 2**62)])
def test_pamqp_decodes_our_acks_and_requeues(tag: int, *, multiple: bool) -> None:
    [(channel, ack)] = frames_of(codec.encode_ack(3, tag, multiple=multiple))
    assert isinstance(ack, commands.Basic.Ack)
    assert (channel, ack.delivery_tag, ack.multiple) == (3, tag, multiple)
    [(channel, nack)] = frames_of(codec.encode_requeue(3, tag))
    assert isinstance(nack, commands.Basic.Nack)
    assert (channel, nack.delivery_tag, nack.multiple, nack.requeue) == (3, tag, False, True)


def test_a_text_property_holds_255_bytes() -> None:
    longest = "é" * 127 + "x"
    fits = codec.encode_properties(Properties(type=longest, app_id=longest), 0)
    assert codec.decode_properties(fits) == Properties(type=longest, app_id=longest)
    with pytest.raises(ValueError, match="the property message_id is longer than 255 bytes"):
        codec.encode_properties(Properties(message_id=f"é{longest}"), 0)


# Row 15: larger headers would close the connection.
def test_row_15_headers_larger_than_a_frame_are_rejected() -> None:
    def publish(size: int) -> bytes:
        properties = Properties(headers={"h": "x" * size})
        return codec.encode_publish(
            1, "", "q", properties, b"", mandatory=True, frame_max=FRAME_MIN
        )

    overhead = len(publish(0)) - len(frame.marshal(commands.Basic.Publish(routing_key="q"), 1))
    assert frames_of(publish(FRAME_MIN - overhead))
    with pytest.raises(ValueError, match="larger than a frame of 4096 bytes"):
        publish(FRAME_MIN - overhead + 1)


@settings(max_examples=25)
@given(all_properties, st.data())
def test_truncated_properties_are_a_violation(properties: Properties, data: st.DataObject) -> None:
    whole = codec.encode_properties(properties, 0)
    assume(len(whole) > codec.CONTENT_HEADER.size)
    length = data.draw(st.integers(codec.CONTENT_HEADER.size, len(whole) - 1))
    with pytest.raises(ContractViolationError, match="malformed message properties"):
        codec.decode_properties(whole[:length])


def test_properties_truncated_at_any_byte_are_a_violation() -> None:
    each = Properties(
        content_type="a", headers={"a": 1}, delivery_mode=2, timestamp=1, type="t", app_id="i"
    )
    for properties in (each, Properties(timestamp=1), Properties(delivery_mode=1)):
        whole = codec.encode_properties(properties, 0)
        for length in range(codec.CONTENT_HEADER.size, len(whole)):
            with pytest.raises(ContractViolationError, match="malformed message properties"):
                codec.decode_properties(whole[:length])


# The type of a table value in one byte, and any bytes after it.
@settings(max_examples=50)
@given(st.sampled_from(b"tbBsuIilLfdDSAFTVx?\0"), st.binary(max_size=24))
@example(ord("T"), b"\x7f" + b"\xff" * 7)  # the year 146,140,482
@example(ord("D"), b"\x00\xff\xff\xff\xff")  # can be read but not written
@example(ord("S"), b"\x00\x00\x00\x01\xff")  # bytes that are not text
@example(ord("S"), b"\xff\xff\xff\xff")
def test_any_header_bytes_are_decoded_or_a_violation(kind: int, value: bytes) -> None:
    try:
        properties = codec.decode_properties(content_header(b"\x01h" + bytes((kind,)) + value))
    except ContractViolationError:
        return
    try:
        decoded_again = codec.decode_properties(codec.encode_properties(properties, 0))
    except ValueError as error:
        assert "not encodable" in str(error)  # noqa: PT017 - both outcomes are allowed
    else:
        # Some values are rounded (pamqp: milliseconds), so only names are compared.
        assert (decoded_again.headers or {}).keys() == (properties.headers or {}).keys()


@pytest.mark.parametrize("depth", [10, 100, 300, 480, 490, 500, 1_000, 10_000])
def test_row_26_nested_tables_of_any_depth_are_decoded_or_a_violation(depth: int) -> None:
    table = b""
    for _ in range(depth):
        table = b"\x01aF" + struct.pack(">I", len(table)) + table
    try:
        properties = codec.decode_properties(content_header(table))
    except ContractViolationError:
        assert depth > 100
    else:
        assert codec.encode_properties(properties, 0) == content_header(table)


# One message must not block the process for seconds. pamqp copies the rest for each item.
@pytest.mark.parametrize("items", [b"V" * 130_000, b"t\x01" * 65_000, b"\0V" * 65_000])
@pytest.mark.parametrize("kind", [b"A", b"F"])
def test_row_15_a_header_of_a_whole_frame_is_decoded_within_half_a_second(
    kind: bytes, items: bytes
) -> None:
    header = content_header(b"\x01h" + kind + struct.pack(">I", len(items)) + items)
    started = time.process_time()
    with suppress(ContractViolationError):
        codec.decode_properties(header)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("value", [object(), 2**63, Decimal(3_000_000_000), {"a": {1, 2}}])
def test_headers_that_amqp_cannot_encode_are_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError, match="not encodable"):
        codec.encode_properties(Properties(headers={"h": value}), 0)
