"""Composes the messages of a posting."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from uuid import UUID

from pydantic import ValidationError

from services.mailings.domain import Recipient, Skip, address, message_id, storable
from services.mailings.records import MessageRow
from services.mailings.rendering.bound_template import BoundTemplate, RenderingError
from services.mailings.rendering.formats import FORMATS
from services.mailings.unsubscribe import Unsubscribe, subscription_id
from shared.amqp.codec import Properties
from shared.amqp.message import PERSISTENT
from shared.amqp.publisher import OutgoingMessage, new_id
from shared.contracts import headers
from shared.contracts.context import field_errors
from shared.contracts.message_facts import ReasonCode
from shared.registry import CHANNELS, Channel


class ReadyMessage(NamedTuple):
    """A message that is ready to be published."""

    id: UUID
    type: str
    queue: str
    body: bytes


class ChannelTemplate(NamedTuple):
    """The template of a posting on one channel."""

    bound: BoundTemplate
    kind: str
    is_required: bool


class Composer:
    """Composes the messages of one posting.

    scope: the id of the posting, or of its mailing. A recipient gets one message within it.
    templates: the template for each channel.
    queues: the queue of each channel.
    common: the fields of all messages.
    recipient_field: the field of a message that has the id of its recipient.
    """

    def __init__(  # noqa: PLR0913 - the worker names each
        self,
        scope: UUID,
        templates: Mapping[str, ChannelTemplate],
        queues: Mapping[str, str],
        unsubscribe: Unsubscribe,
        *,
        common: Mapping[str, Any],
        recipient_field: str,
    ) -> None:
        self._scope = scope
        self._templates = templates
        self._queues = queues
        self._unsubscribe = unsubscribe
        self._common = common
        self._recipient_field = recipient_field

    def compose(self, recipient: Recipient) -> Iterator[tuple[MessageRow, ReadyMessage | None]]:
        """Return a row for each channel, with the message unless it is skipped."""
        for name, template in self._templates.items():
            channel = CHANNELS[name]
            id_ = message_id(self._scope, name, recipient.id)
            body = self._body(id_, recipient, channel, template)
            row = (id_, recipient.id, name, recipient.operator_code)
            if isinstance(body, Skip):
                yield MessageRow(*row, body.code, storable(body.reason), None), None
            else:
                content, subscription = body
                message = ReadyMessage(id_, channel.type, self._queues[name], content)
                yield MessageRow(*row, None, None, subscription), message

    def _body(
        self, id_: UUID, recipient: Recipient, channel: Channel, template: ChannelTemplate
    ) -> tuple[bytes, bytes | None] | Skip:
        """Return the body of a message, and the subscription that it belongs to, if any."""
        if recipient.error:
            return Skip(ReasonCode.INVALID_RECIPIENT, recipient.error)
        kind = template.kind
        to = address(recipient.user, channel, kind, required=template.is_required)
        if isinstance(to, Skip):
            return to
        try:
            form = FORMATS[channel.name]
            can_unsubscribe = form.has_html and not template.is_required
            subscription = subscription_id(to, kind) if can_unsubscribe else None
            url = self._unsubscribe.link(subscription) if subscription else None
            content = form.fields(template.bound.render(recipient.user, unsubscribe_url=url), url)
            fields: dict[str, Any] = {
                "id": str(id_),
                self._recipient_field: recipient.id,
                channel.address: to,
            }
            model = channel.contract(**fields, **self._common, **content)
        except RenderingError as error:
            return Skip(ReasonCode.NOT_RENDERED, str(error))
        except ValidationError as error:
            invalid = field_errors(error)[0]
            return Skip(ReasonCode.INVALID, f"{invalid.field}: {invalid.message}")
        return model.__pydantic_serializer__.to_json(model, exclude_none=True), subscription


def outgoing(message: ReadyMessage, traceparent: str | None, now: float) -> OutgoingMessage:
    """Return the AMQP message, with a fresh message_id and the message's own logical id."""
    own_headers = {headers.ID: str(message.id)}
    if traceparent is not None:
        own_headers[headers.TRACEPARENT] = traceparent
    return OutgoingMessage(
        message.queue,
        Properties(
            content_type="application/json",
            headers=own_headers,
            delivery_mode=PERSISTENT,
            message_id=new_id(),
            timestamp=int(now),
            type=message.type,
            app_id=headers.APP_ID,
        ),
        message.body,
    )
