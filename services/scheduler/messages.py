"""What goes out when an event is due: the notification's bodies, put together from JSON texts.

The order's constant part is made once, when it is taken in. A dispatch joins texts that are JSON
already; building models instead would cost five times as much.
"""

from dataclasses import dataclass
from datetime import datetime
from json import dumps
from typing import Any, Final

from shared.contracts.context import json_text
from shared.contracts.schedules import TICKET_HEADER, ScheduleCallback

NOTIFICATION: Final = "Notification"
# What the callback service calls our formats.
_FORMATS: Final = {"form": "form", "query": "query"}


@dataclass(frozen=True, slots=True)
class Content:
    """The constant part of an order. `message` is a JSON object without its closing brace."""

    context: str
    message: str
    headers: str | None
    exchange: str | None
    routing_key: str | None
    format: str


def content(order: ScheduleCallback, client_id: str) -> Content:
    """What of an order goes out, as JSON."""
    scheme = order.notify_scheme
    context = json_text(order.context)
    if scheme.transport == "amqp":
        return Content(context, "", None, scheme.exchange, scheme.routing_key, scheme.format)
    message: dict[str, Any] = {
        "target_url": order.url,
        "target_method": scheme.method,
        "retry": {"quick_retries_count": order.retry.quick_retries_count},
    }
    if scheme.format in _FORMATS:
        message["format"] = _FORMATS[scheme.format]
    if scheme.timeout is not None:
        message["timeout"] = scheme.timeout
    if client_id:
        message["client_id"] = client_id
    if order.secret_ref is not None:
        message["secret_ref"] = order.secret_ref
    elif order.hmac_secret is None:
        message["unsigned"] = True
    headers = json_text(scheme.headers) if scheme.headers else None
    return Content(context, json_text(message)[:-1], headers, None, None, scheme.format)


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What of an event's present state its message tells. `occurrence` is None for a single one."""

    callback_id: str
    run_at: str
    attempt: int
    expires_at: str
    group_key: str | None
    event_key: str | None
    occurrence: int | None


def callback_id(event_id: str, occurrence: int | None) -> str:
    """The id under which the receiver sees it: the event's, with the occurrence if it recurs."""
    return event_id if occurrence is None else f"{event_id}.{occurrence}"


def moment(at: datetime) -> str:
    """A moment in UTC as RFC 3339, to the microsecond."""
    return at.isoformat().replace("+00:00", "Z")


def payload(parts: Content, event: Dispatch) -> str:
    """What the receiver gets: the envelope, or the context alone."""
    if parts.format == "context":
        return parts.context
    pieces = [f'{{"id":"{event.callback_id}"']
    for name, value in (("group_key", event.group_key), ("event_key", event.event_key)):
        # An HTML form has no word for nothing.
        if value is not None:
            pieces.append(f'"{name}":{dumps(value)}')
        elif parts.format == "event":
            pieces.append(f'"{name}":null')
    pieces.append(f'"run_at":"{event.run_at}","attempt":{event.attempt}')
    if event.occurrence is not None:
        pieces.append(f'"occurrence":{event.occurrence}')
    if parts.format == "event" or parts.context != "null":
        pieces.append(f'"context":{parts.context}')
    return ",".join(pieces) + "}"


def send_callback(
    parts: Content, event: Dispatch, *, secret: str | None, ticket: str | None
) -> bytes:
    """The body of a SendCallback. `secret` is JSON: a text, or a list of several."""
    pieces = [
        f'{parts.message},"id":"{event.callback_id}","expires_at":"{event.expires_at}"',
        f'"payload":{payload(parts, event)}',
    ]
    if secret is not None:
        pieces.append(f'"hmac_secret":{secret}')
    if ticket is not None:
        rest = "}" if parts.headers is None else f",{parts.headers[1:]}"
        pieces.append(f'"headers":{{"{TICKET_HEADER}":"{ticket}"{rest}')
    elif parts.headers is not None:
        pieces.append(f'"headers":{parts.headers}')
    return (",".join(pieces) + "}").encode()
