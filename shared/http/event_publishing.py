"""Publishes an event of a client for the gateway and the console."""

import asyncio
import time
from http import HTTPStatus
from typing import Final

from pydantic import ValidationError

from shared.amqp.codec import Properties
from shared.amqp.confirms import CONFIRM_TIMEOUT
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import (
    OutgoingMessage,
    Publisher,
    PublishRefusedError,
    PublishUnknownError,
    new_id,
)
from shared.amqp.rpc import RequestContext
from shared.contracts.context import field_errors
from shared.contracts.events import EVENT, Event
from shared.contracts.headers import APP_ID, TRACEPARENT
from shared.contracts.message_types import MESSAGE_TYPES
from shared.contracts.requests import FieldError
from shared.http.problem import ProblemError
from shared.http.service_client import unavailable, unknown

_EVENT: Final = MESSAGE_TYPES[EVENT]
_JSON: Final = "application/json"


def event_message(
    body: bytes, context: RequestContext, key: str | None
) -> tuple[str, OutgoingMessage]:
    """Return the id of an event, and its message, which has the body byte for byte.

    key: identifies the event if the body has no `event_id`.

    Raises:
        ProblemError: 422 if the body is not an event, 403 if it is of another client.
    """
    try:
        event = Event.model_validate_json(body)
    except ValidationError as error:
        errors = field_errors(error)
        count = "1 field is" if len(errors) == 1 else f"{len(errors)} fields are"
        raise ProblemError(
            HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", f"{count} invalid", errors=errors
        ) from None
    if context.client_id not in (None, event.from_service):
        raise ProblemError(
            HTTPStatus.FORBIDDEN,
            "forbidden",
            "The service ticket is not that of the service that the event names.",
            errors=[FieldError(field="from_service", message="must be the ticket's client id")],
        )
    message_id = key or new_id()
    properties = Properties(
        content_type=_JSON,
        type=EVENT,
        message_id=message_id,
        delivery_mode=PERSISTENT,
        timestamp=int(time.time()),
        app_id=APP_ID,
        headers={TRACEPARENT: context.traceparent} if context.traceparent else None,
    )
    message = OutgoingMessage(
        _EVENT.routing_key_of(event), properties, body, exchange=_EVENT.exchange
    )
    return _EVENT.logical_id(event, message_id), message


async def publish_event(publisher: Publisher, message: OutgoingMessage) -> None:
    """Publish an event, and wait for its confirmation.

    Raises:
        ProblemError: 503 if the broker refused it; 504 if the outcome is unknown.
    """
    try:
        # During an alarm the publisher itself would wait without a limit.
        async with asyncio.timeout(CONFIRM_TIMEOUT):
            await publisher.publish(message)
    except PublishRefusedError as error:
        raise unavailable(str(error)) from None
    except (PublishUnknownError, TimeoutError) as error:
        raise unknown(
            f"{error or 'The broker does not accept messages at present'}. It is unknown whether"
            " the event was accepted. Repeat it with the same event_id or Idempotency-Key;"
            " it takes effect once."
        ) from None
