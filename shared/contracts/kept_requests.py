"""The content of a kept request, before encryption: the id and the SendCallback as published."""

from typing import Final

# Bytes of a SendCallback. A larger one is delivered, but not kept.
MAX_REQUEST_BYTES: Final = 256 << 10


def pack(identifier: str, body: bytes) -> bytes:
    """Return the content for a `webhook-id`, which has no line break, and the body of a message."""
    return identifier.encode() + b"\n" + body


def unpack(content: bytes) -> tuple[str, bytes]:
    """Return the `webhook-id` and the body of the message."""
    identifier, _, body = content.partition(b"\n")
    return identifier.decode(), body
