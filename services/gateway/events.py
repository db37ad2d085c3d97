"""The handler of `/v1/events`: HTTP in, an Event on its exchange, confirmed, HTTP out."""

import asyncio
import time
from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web
from pydantic import ValidationError

from services.gateway.auth import Authenticator
from services.gateway.middleware import EVENT_ID, Handler
from services.gateway.parsing import JSON, idempotency_key, invalid, json_body
from services.gateway.responses import json_response
from services.gateway.rpc import unavailable, unknown
from services.gateway.settings import GatewaySettings
from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import (
    CONFIRM_TIMEOUT,
    OutgoingMessage,
    Publisher,
    PublishRefusedError,
    PublishUnknownError,
    new_id,
)
from shared.contracts.context import field_errors
from shared.contracts.events import EVENT, Event
from shared.contracts.headers import TRACEPARENT
from shared.topology import EVENTS


class Events:
    """What producers can say has happened."""

    def __init__(
        self, publisher: Publisher, callers: Authenticator, settings: GatewaySettings
    ) -> None:
        self._publisher = publisher
        self._callers = callers
        self._most = settings.max_body_bytes

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """By the ids of the operations."""
        return {"publish_event": self.publish}

    async def publish(self, request: web.Request) -> web.Response:
        """Pass one on as the bytes it came as; answered once the broker has confirmed it."""
        context = self._callers.context(request)
        key = idempotency_key(request)
        body, _ = await json_body(request, self._most)
        try:
            event = Event.model_validate_json(body)
        except ValidationError as error:
            raise invalid(field_errors(error)) from None
        message_id = key or new_id()
        identity = request[EVENT_ID] = event.event_id or message_id
        await self._confirmed(
            OutgoingMessage(
                event.routing_key,
                Properties(
                    content_type=JSON,
                    type=EVENT,
                    message_id=message_id,
                    delivery_mode=PERSISTENT,
                    timestamp=int(time.time()),
                    app_id="ringback",
                    headers={TRACEPARENT: context.traceparent} if context.traceparent else None,
                ),
                body,
                exchange=EVENTS,
            )
        )
        return json_response({"id": identity}, HTTPStatus.ACCEPTED)

    async def _confirmed(self, message: OutgoingMessage) -> None:
        """Publish it.

        Raises:
            Refused: 503, it was not taken; 504, whether it was is unknown.
        """
        try:
            # While an alarm is on, the publisher itself goes on waiting.
            async with asyncio.timeout(CONFIRM_TIMEOUT):
                await self._publisher.publish(message)
        except PublishRefusedError as error:
            raise unavailable(str(error)) from None
        except (PublishUnknownError, TimeoutError) as error:
            raise unknown(
                f"{error or 'the broker takes nothing at present'}; whether the event was taken is"
                " unknown: repeat it with the same event_id or Idempotency-Key, and it is acted on"
                " once"
            ) from None
