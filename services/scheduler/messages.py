"""The bodies of notifications, joined from JSON texts.

The constant part is built once, when a callback is created. A dispatch joins texts that are already
JSON. Building models for each dispatch would take five times as much CPU.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from json import dumps, loads
from typing import Any, Final

from services.scheduler.domain import QUICK_DELAYS
from shared.contracts.context import json_text
from shared.contracts.schedule_changes import RescheduleCallback
from shared.contracts.schedules import MAX_OWN_TICKET_BYTES, ScheduleCallback

NOTIFICATION: Final = "Notification"
# Formats that SendCallback knows; it sends every other payload as JSON.
_HTTP_FORMATS: Final = frozenset({"form", "query"})
# Bytes of a notification without the texts of its client: names of fields, id, times and numbers
# (about 500), and a ticket.
_MAX_ENVELOPE: Final = 1024 + MAX_OWN_TICKET_BYTES
# The end of a request, after its last header.
_CLOSING: Final = b"}}"


@dataclass(frozen=True, slots=True)
class Content:
    """The constant part of a notification.

    message: encrypted, because URLs and headers can contain tokens: the beginning of a SendCallback
    as JSON, up to its last header. None for the transport amqp.
    """

    context: str
    message: bytes | None
    exchange: str | None
    routing_key: str | None
    format: str


def content(
    command: ScheduleCallback, client_id: str, encrypt: Callable[[bytes], bytes]
) -> Content:
    """Return the constant part of the notifications of a command."""
    scheme = command.notify_scheme
    context = json_text(command.context)
    if scheme.transport == "amqp":
        return Content(context, None, scheme.exchange, scheme.routing_key, scheme.format)
    message: dict[str, Any] = {
        "target_url": command.url,
        "target_method": scheme.method,
        "retry": {
            "quick_retries_count": command.retry.quick_retries_count,
            "delays": QUICK_DELAYS,
        },
    }
    if scheme.format in _HTTP_FORMATS:
        message["format"] = scheme.format
    if scheme.timeout is not None:
        message["timeout"] = scheme.timeout
    if client_id:
        message["client_id"] = client_id
    if command.secret_ref is not None:
        message["secret_ref"] = command.secret_ref
    elif command.hmac_secret is not None:
        message["hmac_secret"] = command.hmac_secret
    else:
        message["unsigned"] = True
    message["headers"] = scheme.headers
    return Content(context, encrypt(_opened(message)), None, None, scheme.format)


def changed(
    parts: Content,
    command: RescheduleCallback,
    *,
    decrypt: Callable[[bytes], bytes],
    encrypt: Callable[[bytes], bytes],
) -> Content:
    """Return the constant part with the URL, headers and context of a command, where it has them.

    Raises:
        ValueError: the notification goes over AMQP, which has no URL and no headers.
    """
    message = parts.message
    if command.url is not None or command.notify_scheme is not None:
        if message is None:
            raise ValueError("is only allowed with the transport http")
        request = loads(decrypt(message) + _CLOSING)
        if command.url is not None:
            request["target_url"] = command.url
        if command.notify_scheme is not None:
            request["headers"] = command.notify_scheme.headers
        message = encrypt(_opened(request))
    context = parts.context
    if "context" in command.model_fields_set:
        context = json_text(command.context)
    return replace(parts, context=context, message=message)


def _opened(request: Mapping[str, Any]) -> bytes:
    """Return a request up to its last header; `headers` is its last field."""
    return json_text(request).encode().removesuffix(_CLOSING)


@dataclass(frozen=True, slots=True)
class Dispatch:
    """The part of a notification that differs between dispatches.

    occurrence: None if the callback does not recur.
    """

    callback_id: str
    run_at: str
    attempt: int
    expires_at: str
    group_key: str | None
    event_key: str | None
    occurrence: int | None


def callback_id(scheduled_id: str, occurrence: int | None) -> str:
    """Return the id that the receiver sees, with the occurrence if the callback recurs."""
    return scheduled_id if occurrence is None else f"{scheduled_id}.{occurrence}"


def rfc_3339(at: datetime) -> str:
    """Return a UTC time as RFC 3339, to the microsecond."""
    return at.isoformat().replace("+00:00", "Z")


def fits(parts: Content, keys: Sequence[str], max_bytes: int) -> bool:
    """Return whether every notification of a callback with these keys has at most `max_bytes`."""
    room = max_bytes - _MAX_ENVELOPE - len(parts.message or b"")
    # A character has at most twelve bytes in JSON, so only long texts are encoded.
    if sum(map(len, (parts.context, *keys))) * 12 <= room:
        return True
    return len(parts.context.encode()) + sum(len(dumps(key)) for key in keys) <= room


def payload(parts: Content, dispatch: Dispatch) -> str:
    """Return the receiver's payload as JSON: the envelope, or the context alone."""
    if parts.format == "context":
        return parts.context
    pieces = [f'{{"id":"{dispatch.callback_id}"']
    for name, value in (("group_key", dispatch.group_key), ("event_key", dispatch.event_key)):
        # An HTML form cannot express null, so its null fields are omitted.
        if value is not None:
            pieces.append(f'"{name}":{dumps(value)}')
        elif parts.format == "event":
            pieces.append(f'"{name}":null')
    pieces.append(f'"run_at":"{dispatch.run_at}","attempt":{dispatch.attempt}')
    if dispatch.occurrence is not None:
        pieces.append(f'"occurrence":{dispatch.occurrence}')
    if parts.format == "event" or parts.context != "null":
        pieces.append(f'"context":{parts.context}')
    return ",".join(pieces) + "}"


def send_callback(
    message: str, parts: Content, dispatch: Dispatch, *, ticket: tuple[str, str] | None
) -> bytes:
    """Return the body of a SendCallback.

    message: the decrypted message of its parts.
    ticket: the name and the value of the header with Ringback's ticket.
    """
    header = ""
    if ticket is not None:
        separator = "" if message.endswith("{") else ","
        header = f'{separator}"{ticket[0]}":"{ticket[1]}"'
    return (
        f'{message}{header}}},"id":"{dispatch.callback_id}","expires_at":"{dispatch.expires_at}",'
        f'"payload":{payload(parts, dispatch)}}}'
    ).encode()
