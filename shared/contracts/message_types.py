"""The message types that programs may publish: one table for `ringback send` and AsyncAPI."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel

from shared.contracts.callback import SEND_CALLBACK, SendCallback
from shared.contracts.events import EVENT, Event
from shared.contracts.messages import RenderedMessage
from shared.contracts.postings import POSTING, Posting
from shared.contracts.schedule_changes import (
    CANCEL_CALLBACK,
    RESCHEDULE_CALLBACK,
    CancelCallback,
    RescheduleCallback,
)
from shared.contracts.schedules import SCHEDULE_CALLBACK, ScheduleCallback, callback_id_of_message
from shared.contracts.user_events import USER_EVENT, UserEvent
from shared.registry import BULK, CHANNELS
from shared.topology import (
    CALLBACKS,
    CANCEL,
    EVENTS,
    POSTING_KEY,
    POSTINGS,
    RESCHEDULE,
    SCHEDULE,
    SCHEDULES,
    USER_EVENTS,
)


def _message_id(_: Any, message_id: str) -> str:
    return message_id


def _own_id(message: SendCallback | RenderedMessage, message_id: str) -> str:
    return message.id or message_id


def _event_id(event: Event, message_id: str) -> str:
    return event.event_id or message_id


def _user_event_id(event: UserEvent, message_id: str) -> str:
    return event.id or message_id


def _callback_id(_: ScheduleCallback, message_id: str) -> str:
    return str(callback_id_of_message("", message_id))


@dataclass(frozen=True, slots=True)
class MessageType:
    """A message type: its AMQP `type`, its model and where it is published.

    Without an `exchange`, the message goes to the default exchange and `routing_key` is a queue.
    A `{field}` in the routing key stands for a field of the model; `routing_fields` describes it.
    `logical_id` returns the logical id from the model and the `message_id`. `ticket` is whether
    a header with a service ticket may name the client.
    """

    name: str
    model: type[BaseModel]
    routing_key: str
    exchange: str = ""
    logical_id: Callable[[Any, str], str] = _message_id
    routing_fields: Mapping[str, str] = field(default_factory=dict)
    ticket: bool = False

    def routing_key_of(self, message: BaseModel) -> str:
        """Return the routing key to publish this message with."""
        return self.routing_key.format_map(dict(message))


MESSAGE_TYPES: Final[Mapping[str, MessageType]] = {
    message_type.name: message_type
    for message_type in (
        MessageType(SEND_CALLBACK, SendCallback, CALLBACKS, logical_id=_own_id),
        MessageType(
            SCHEDULE_CALLBACK,
            ScheduleCallback,
            SCHEDULE,
            SCHEDULES,
            logical_id=_callback_id,
            ticket=True,
        ),
        MessageType(CANCEL_CALLBACK, CancelCallback, CANCEL, SCHEDULES, ticket=True),
        MessageType(RESCHEDULE_CALLBACK, RescheduleCallback, RESCHEDULE, SCHEDULES, ticket=True),
        MessageType(
            EVENT,
            Event,
            "{from_service}.{event}",
            EVENTS,
            logical_id=_event_id,
            routing_fields={
                "from_service": "`from_service` of the body.",
                "event": "`event` of the body, including its dots.",
            },
        ),
        MessageType(POSTING, Posting, POSTING_KEY, POSTINGS),
        MessageType(
            USER_EVENT,
            UserEvent,
            "{user_id}",
            USER_EVENTS,
            logical_id=_user_event_id,
            routing_fields={"user_id": "`user_id` of the body."},
        ),
        *(
            MessageType(channel.type, channel.contract, channel.queues[BULK], logical_id=_own_id)
            for channel in CHANNELS.values()
        ),
    )
}
