"""The span of an attempt to send a message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from shared.amqp.message import Message


async def observed(message: Message, channel: str, target: str, sending: Awaitable[int]) -> int:
    """Send a message in a span below that of its delivery, and return the status.

    target: the provider's origin. The span says nothing about the recipient or the content.
    """
    span = None
    if message.span is not None:
        provider = URL(target)
        span = message.span.child(
            f"send {channel}",
            "client",
            {
                "server.address": provider.host,
                "server.port": provider.port,
                "ringback.id": message.id,
                "ringback.channel": channel,
                "ringback.attempt": message.attempt,
            },
        )
    if span is None:
        return await sending
    with span:
        status = await sending
        span.set("ringback.status", status)
        return status
