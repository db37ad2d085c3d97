"""The span of an attempt, with the attributes of the HTTP conventions."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from shared.http.client import HttpResponse, RequestFailedError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from shared.amqp.message import Message
    from shared.contracts.callback import SendCallback
    from shared.http.guard import Target
    from shared.tracing.spans import Span


def attempt(message: Message, command: SendCallback, target: Target) -> Span | None:
    """Start the span of an attempt below that of its delivery, if that is traced.

    It contains no more of the URL than scheme, host and port: the rest can contain a token.
    """
    if message.span is None:
        return None
    return message.span.child(
        command.target_method,
        "client",
        {
            "http.request.method": command.target_method,
            "http.request.resend_count": message.attempt - 1 or None,
            "url.full": target.origin,
            "server.address": target.host,
            "server.port": target.port,
            "ringback.id": message.id,
            "ringback.attempt": message.attempt,
            "ringback.client_id": command.client_id,
        },
    )


async def observed(span: Span, sending: Awaitable[HttpResponse]) -> HttpResponse:
    """Return the response, and end the span with its status or with the reason of a failure."""
    with span:
        try:
            response = await sending
        except RequestFailedError as error:
            span.fail(error.reason, str(error))
            raise
        span.set("http.response.status_code", response.status)
        if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
            span.fail(str(response.status))
        return response
