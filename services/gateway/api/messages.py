"""What goes over AMQP, as tables: who may publish what where, what is told, what can be asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from pydantic import BaseModel

from shared.contracts import posting_requests as postings
from shared.contracts import schedule_requests as schedules
from shared.contracts.callback import SEND_CALLBACK, SendCallback
from shared.contracts.events import EVENT, Event
from shared.contracts.facts import Fact
from shared.contracts.message_facts import MessageFact
from shared.contracts.postings import POSTING, Posting
from shared.contracts.schedule_facts import Kind, ScheduleFact
from shared.contracts.schedules import (
    CANCEL_CALLBACK,
    RESCHEDULE_CALLBACK,
    SCHEDULE_CALLBACK,
    CancelCallback,
    RescheduleCallback,
    ScheduleCallback,
)
from shared.contracts.user_events import USER_EVENT, UserEvent
from shared.registry import CHANNELS
from shared.topology import (
    CALLBACKS,
    CANCEL,
    EVENTS,
    MAILINGS_REQUESTS,
    POSTING_KEY,
    POSTINGS,
    RESCHEDULE,
    SCHEDULE,
    SCHEDULER_REQUESTS,
    SCHEDULES,
    USER_EVENT_KEY,
    USER_EVENTS,
)

_TICKET: Final = {
    "x-service-ticket": {
        "type": "string",
        "description": "A service ticket that says which client sends this; left out: anonymous.",
    }
}


@dataclass(frozen=True, slots=True)
class Direct:
    """A message to a work queue, over the default exchange; `name` is its type."""

    queue: str
    name: str
    model: type[BaseModel]
    text: str


@dataclass(frozen=True, slots=True)
class Routed:
    """A message to an exchange; `parameters` are the fields that its routing key is made of."""

    exchange: str
    routing_key: str
    name: str
    model: type[BaseModel]
    headers: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: its body, None for an empty one, and the values it may be answered with."""

    operation: str
    body: type[BaseModel] | None
    values: Sequence[type[BaseModel]]


DIRECT: Final = (
    Direct(CALLBACKS, SEND_CALLBACK, SendCallback, "Callbacks to deliver at once."),
    *(
        Direct(
            channel.queue,
            channel.type,
            channel.contract,
            f"Messages to send at once on the channel `{channel.name}`.",
        )
        for channel in CHANNELS.values()
    ),
)
ROUTED: Final = (
    Routed(SCHEDULES, SCHEDULE, SCHEDULE_CALLBACK, ScheduleCallback, headers=_TICKET),
    Routed(SCHEDULES, CANCEL, CANCEL_CALLBACK, CancelCallback, headers=_TICKET),
    Routed(SCHEDULES, RESCHEDULE, RESCHEDULE_CALLBACK, RescheduleCallback, headers=_TICKET),
    Routed(
        EVENTS,
        "{from_service}.{event}",
        EVENT,
        Event,
        parameters={
            "from_service": "`from_service` of the body.",
            "event": "`event` of the body, its dots included.",
        },
    ),
    Routed(POSTINGS, POSTING_KEY, POSTING, Posting),
    Routed(USER_EVENTS, USER_EVENT_KEY, USER_EVENT, UserEvent),
)


def _kinds(union: Any) -> dict[str, type[BaseModel]]:
    """The models of a discriminated union, by their types."""
    models = get_args(get_args(union)[0])
    return {model.model_fields["type"].default: model for model in models}


# What is told on the exchange `outcomes`, by type.
FACTS: Final[Mapping[str, type[BaseModel]]] = (
    _kinds(Fact) | dict.fromkeys(get_args(Kind), ScheduleFact) | _kinds(MessageFact)
)

# What can be asked of a service, by its queue.
REQUESTS: Final[Mapping[str, tuple[str, Sequence[Asked]]]] = {
    SCHEDULER_REQUESTS: (
        "the scheduler",
        (
            Asked(
                schedules.Operation.CREATE, schedules.CreateCallback, (schedules.CallbackCreated,)
            ),
            Asked(
                schedules.Operation.CREATE_BATCH,
                schedules.CreateCallbacks,
                (schedules.CallbacksCreated,),
            ),
            Asked(schedules.Operation.GET, schedules.GetCallback, (schedules.CallbackStatus,)),
            Asked(schedules.Operation.LIST, schedules.ListCallbacks, (schedules.CallbackPage,)),
            Asked(
                schedules.Operation.RESCHEDULE, RescheduleCallback, (schedules.RescheduleResponse,)
            ),
            Asked(
                schedules.Operation.CANCEL,
                CancelCallback,
                (schedules.CancelResponse, schedules.CancelGroupResponse),
            ),
            Asked(schedules.Operation.RETRY, schedules.RetryCallbacks, (schedules.RetryResponse,)),
            Asked(schedules.Operation.PING, None, (schedules.Pong,)),
        ),
    ),
    MAILINGS_REQUESTS: (
        "mailings",
        (
            Asked(postings.Operation.CREATE, postings.CreatePosting, (postings.PostingAccepted,)),
            Asked(postings.Operation.GET, postings.GetPosting, (postings.PostingStatus,)),
            Asked(postings.Operation.LIST, postings.ListPostings, (postings.Postings,)),
            Asked(
                postings.Operation.MESSAGES,
                postings.ListPostingMessages,
                (postings.PostingMessages,),
            ),
        ),
    ),
}
