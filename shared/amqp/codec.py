"""Decodes deliveries and encodes publishes and acks: the hot path of AMQP 0-9-1.

Pure functions over bytes. pamqp handles rare header values, and aiormq all other methods.
Decoding a delivery here costs a tenth of the CPU of aiormq (`make bench`). Frames and properties
follow the AMQP 0-9-1 specification, sections 2.3.5, 4.2.3 and 4.2.6.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from struct import error as StructError  # noqa: N812 - a class with a lower-case name
from typing import Any, Final

from pamqp import decode, encode
from pamqp.exceptions import PAMQPException

from shared.errors import ContractViolationError

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
FRAME_END: Final = b"\xce"
FRAME_HEAD: Final = Struct(">BHI")  # type, channel, size of the payload
FRAME_OVERHEAD: Final = FRAME_HEAD.size + len(FRAME_END)

# The class 60 (basic) in the upper two bytes, the method in the lower two.
PUBLISH: Final = 60 << 16 | 40
RETURN: Final = 60 << 16 | 50
DELIVER: Final = 60 << 16 | 60
ACK: Final = 60 << 16 | 80
REJECT: Final = 60 << 16 | 90
NACK: Final = 60 << 16 | 120

METHOD_ID: Final = Struct(">I")
TAG_AND_FLAG: Final = Struct(">QB")
CONTENT_HEADER: Final = Struct(">HHQH")  # class, weight, body size, property flags
_ACK_FRAME: Final = Struct(">BHIIQBB")  # a whole ack, reject or nack frame
_TIMESTAMP: Final = Struct(">Q")
_LONG: Final = Struct(">I")
_SIGNED: Final = Struct(">q")
_DOUBLE: Final = Struct(">d")
# Types of table values. All types that are not listed take at most _MAX_SCALAR bytes.
_TEXT, _LONG_INTEGER, _ARRAY, _TABLE, _BYTES = b"SlAFx"
_MAX_SCALAR: Final = 9
# The broker's record of dead-lettering: longer than all other headers, and no handler reads it.
_HISTORY: Final = "x-death"


@dataclass(slots=True)
class Properties:
    """The properties of a message, None if absent."""

    content_type: str | None = None
    content_encoding: str | None = None
    headers: Mapping[str, Any] | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: int | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None


def _short_string(data: bytes, at: int) -> tuple[int, str]:
    end = at + 1 + data[at]
    return end, data[at + 1 : end].decode()


def _table(data: bytes, at: int, *, history: bool = True) -> tuple[int, dict[str, Any]]:
    """Decode a table of headers: texts and numbers here, rarer values by `_value`."""
    table: dict[str, Any] = {}
    end = at + 4 + _LONG.unpack_from(data, at)[0]
    if end > len(data):
        raise ValueError("the headers are truncated")
    at += 4
    while at < end:
        at, name = _short_string(data, at)
        kind = data[at]
        if kind == _TEXT:
            stop = at + 5 + _LONG.unpack_from(data, at + 1)[0]
            try:
                table[name] = data[at + 5 : stop].decode()
            except UnicodeDecodeError:
                table[name] = data[at + 5 : stop]
            at = stop
        elif kind == _LONG_INTEGER:
            table[name] = _SIGNED.unpack_from(data, at + 1)[0]
            at += 9
        elif name == _HISTORY and not history and kind == _ARRAY:
            at += 5 + _LONG.unpack_from(data, at + 1)[0]
        else:
            at, table[name] = _value(data, at)
    if at != end:
        raise ValueError("a header exceeds its table")
    return end, table


def _value(data: bytes, at: int) -> tuple[int, Any]:
    """Decode a header value of any type.

    pamqp decodes only scalars: it copies the rest of the header for each item of an array or table,
    so a header of 128 kB would block the process for two seconds.
    """
    kind = data[at]
    if kind == _TABLE:
        return _table(data, at + 1)
    if kind not in (_TEXT, _ARRAY, _BYTES):
        used, scalar = decode.embedded_value(data[at : at + _MAX_SCALAR])
        return at + used, scalar
    end = at + 5 + _LONG.unpack_from(data, at + 1)[0]
    if end > len(data):
        raise ValueError("the headers are truncated")
    if kind != _ARRAY:
        return end, decode.embedded_value(data[at:end])[1]
    at += 5
    items = []
    while at < end:
        at, item = _value(data, at)
        items.append(item)
    if at != end:
        raise ValueError("an item exceeds its array")
    return end, items


def _encode_table(table: Mapping[str, Any]) -> bytes:
    parts: list[bytes] = []
    for name, value in table.items():
        raw = name.encode()
        parts += (bytes((len(raw),)), raw)
        if type(value) is str:
            text = value.encode()
            parts += (b"S", _LONG.pack(len(text)), text)
        elif type(value) is int:
            parts += (b"l", _SIGNED.pack(value))
        else:
            parts.append(_encode_value(value))
    content = b"".join(parts)
    return _LONG.pack(len(content)) + content


def _encode_value(value: Any) -> bytes:
    """Encode a header value of any type; pamqp would round doubles to 32 bits."""
    if isinstance(value, float):
        return b"d" + _DOUBLE.pack(value)
    if isinstance(value, Mapping):
        return b"F" + _encode_table(value)
    if isinstance(value, list):
        content = b"".join(map(_encode_value, value))
        return b"A" + _LONG.pack(len(content)) + content
    return encode.encode_table_value(value)


def _octet(data: bytes, at: int) -> tuple[int, int]:
    return at + 1, data[at]


def _timestamp(data: bytes, at: int) -> tuple[int, int]:
    return at + 8, _TIMESTAMP.unpack_from(data, at)[0]


# The errors of pamqp and of the decoders above. Deeply nested tables raise a RecursionError.
_MALFORMED: Final = (
    ValueError,
    IndexError,
    TypeError,
    OverflowError,
    RecursionError,
    StructError,
    PAMQPException,
)
_DECODERS: Final = (
    (1 << 15, "content_type", _short_string),
    (1 << 14, "content_encoding", _short_string),
    (1 << 13, "headers", _table),
    (1 << 12, "delivery_mode", _octet),
    (1 << 11, "priority", _octet),
    (1 << 10, "correlation_id", _short_string),
    (1 << 9, "reply_to", _short_string),
    (1 << 8, "expiration", _short_string),
    (1 << 7, "message_id", _short_string),
    (1 << 6, "timestamp", _timestamp),
    (1 << 5, "type", _short_string),
    (1 << 4, "user_id", _short_string),
    (1 << 3, "app_id", _short_string),
)


@lru_cache(maxsize=256)
def _present(flags: int) -> tuple[tuple[str, Any], ...]:
    return tuple((name, decoder) for bit, name, decoder in _DECODERS if flags & bit)


def decode_properties(header: bytes, *, history: bool = True) -> Properties:
    """Decode the payload of a content header frame. Without `history`, skip `x-death`.

    Raises:
        ContractViolationError: the properties are malformed.
    """
    flags = CONTENT_HEADER.unpack_from(header)[3]
    properties = Properties()
    at = CONTENT_HEADER.size
    try:
        for name, decoder in _present(flags):
            if decoder is _table:
                at, properties.headers = _table(header, at, history=history)
            else:
                at, value = decoder(header, at)
                setattr(properties, name, value)
        if at > len(header):
            raise ValueError("they are truncated")
    except _MALFORMED as error:
        raise ContractViolationError(f"malformed message properties: {error}") from error
    return properties


def encode_properties(properties: Properties, body_size: int) -> bytes:
    """Encode the payload of a content header frame for a body of `body_size` bytes.

    Raises:
        ValueError: a text property is longer than 255 bytes, or a header is not encodable.
    """
    flags = 0
    parts = [b""]
    for bit, name, decoder in _DECODERS:
        value = getattr(properties, name)
        if value is None:
            continue
        flags |= bit
        if decoder is _short_string:
            raw = value.encode()
            if len(raw) > 255:  # noqa: PLR2004 - a short string's length is one byte
                raise ValueError(f"the property {name} is longer than 255 bytes")
            parts.append(bytes((len(raw),)) + raw)
        elif decoder is _octet:
            parts.append(bytes((value,)))
        elif decoder is _timestamp:
            parts.append(_TIMESTAMP.pack(value))
        else:
            try:
                parts.append(_encode_table(value))
            except _MALFORMED as error:
                raise ValueError(f"the headers are not encodable: {error}") from error
    parts[0] = CONTENT_HEADER.pack(60, 0, body_size, flags)
    return b"".join(parts)


@lru_cache(maxsize=256)
def _publish_method(exchange: str, routing_key: str) -> bytes:
    """Return the payload of basic.publish, except its last byte, the flags."""
    names = b"".join(bytes((len(raw),)) + raw for raw in (exchange.encode(), routing_key.encode()))
    return METHOD_ID.pack(PUBLISH) + b"\0\0" + names


def encode_publish(  # noqa: PLR0913 - the parts of a publish
    channel: int,
    exchange: str,
    routing_key: str,
    properties: Properties,
    body: bytes,
    *,
    mandatory: bool,
    frame_max: int,
) -> bytes:
    """Encode all frames of one publish in one piece, so that no other frame gets between them."""
    method = _publish_method(exchange, routing_key) + (b"\x01" if mandatory else b"\x00")
    header = encode_properties(properties, len(body))
    if len(header) + FRAME_OVERHEAD > frame_max:
        raise ValueError(f"the headers are larger than a frame of {frame_max} bytes")
    head = FRAME_HEAD.pack
    parts = [
        head(METHOD, channel, len(method)),
        method,
        FRAME_END,
        head(HEADER, channel, len(header)),
        header,
        FRAME_END,
    ]
    step = frame_max - FRAME_OVERHEAD
    for start in range(0, len(body), step):
        piece = body[start : start + step]
        parts += (head(BODY, channel, len(piece)), piece, FRAME_END)
    return b"".join(parts)


def encode_ack(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Encode a basic.ack frame; `multiple` acknowledges everything up to `tag`."""
    return _ACK_FRAME.pack(METHOD, channel, 13, ACK, tag, multiple, 0xCE)


def encode_requeue(channel: int, tag: int) -> bytes:
    """Encode a basic.nack frame that returns the delivery to its queue."""
    return _ACK_FRAME.pack(METHOD, channel, 13, NACK, tag, 2, 0xCE)


def encode_reject(channel: int, tag: int) -> bytes:
    """Encode a basic.reject frame that returns the delivery to its queue.

    RabbitMQ 4.3 counts it towards the delivery limit of a quorum queue, but not a basic.nack.
    """
    return _ACK_FRAME.pack(METHOD, channel, 13, REJECT, tag, 1, 0xCE)
