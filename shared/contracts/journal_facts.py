"""Facts for the journal alone, on the exchange `outcomes`, and the union of all that it records.

Like the facts about callbacks (facts.py), one AMQP message of type `Facts` carries a batch of one
type. Unknown fields and types are ignored: they are from a newer version.
"""

from typing import Annotated, Final, Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from shared.contracts.endpoint_facts import EndpointDisabled
from shared.contracts.facts import (
    CallbackAttemptFailed,
    CallbackDead,
    CallbackDelivered,
    CallbackDispatchFailed,
)
from shared.contracts.message_facts import (
    MessageAttemptFailed,
    MessageExpired,
    MessageFailed,
    MessageReturned,
    MessageSent,
)
from shared.contracts.schedule_facts import (
    ScheduleCreated,
    ScheduleDispatched,
    ScheduleFact,
    ScheduleRescheduled,
)


class _Fact(BaseModel):
    """The fields that all facts share."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    fact_id: str = Field(description="Unique id; a repeated fact has the same id.")
    at: AwareDatetime


class _OfLetter(_Fact):
    """The fields that all facts about a dead letter share."""

    queue: str = Field(description="The work queue that the message was in.")
    letter_id: str = Field(description="Id of the dead letter, a new one each time.")


class LetterDead(_OfLetter):
    """A message was moved to the dead-letter queue."""

    type: Literal["letter.dead"] = "letter.dead"
    logical_id: str = Field(description="The id that is the same on all retries.")
    reason: str
    target: str | None = Field(default=None, description="Scheme, host and port, if any.")
    client_id: str | None = None
    trace_id: str | None = None


class LetterRedriven(_OfLetter):
    """A dead letter was moved back to its work queue."""

    type: Literal["letter.redriven"] = "letter.redriven"
    logical_id: str | None = None
    actor: str | None = None
    job: str | None = Field(default=None, description="Id of the job that moved it.")


class LetterDiscarded(_OfLetter):
    """A dead letter was deleted."""

    type: Literal["letter.discarded"] = "letter.discarded"
    logical_id: str | None = None
    actor: str | None = None
    job: str | None = Field(default=None, description="Id of the job that deleted it.")


class CallbackReplayed(_Fact):
    """A kept request was published again."""

    type: Literal["callback.replayed"] = "callback.replayed"
    callback_id: str
    client_id: str | None
    target: str | None = Field(description="Scheme, host and port that it is sent to now.")
    actor: str | None = None
    replay: str = Field(description="Id of the job or request.")
    trace_id: str | None = None


class BreakerOpened(_Fact):
    """A circuit breaker opened: the target gets no requests for a while."""

    type: Literal["target.breaker_opened"] = "target.breaker_opened"
    target: str
    client_id: str | None = None
    process: str = Field(description="The process with this breaker.")
    open_seconds: float


class BreakerClosed(_Fact):
    """A circuit breaker closed: the target works again."""

    type: Literal["target.breaker_closed"] = "target.breaker_closed"
    target: str
    client_id: str | None = None
    process: str = Field(description="The process with this breaker.")


class LaneFull(_Fact):
    """A lane was full: callbacks to the target were deferred, although its breaker is closed.

    It is reported again after 30 seconds if it is still full.
    """

    type: Literal["target.lane_full"] = "target.lane_full"
    target: str
    client_id: str | None = None
    process: str = Field(description="The process with this lane.")
    reason: str = Field(description="Why callbacks were deferred.")
    in_flight: int = Field(description="Number of requests in flight.")
    limit: int = Field(description="Number of requests in flight that the lane allows at present.")


JournalOnlyFact = Annotated[
    LetterDead
    | LetterRedriven
    | LetterDiscarded
    | CallbackReplayed
    | BreakerOpened
    | BreakerClosed
    | LaneFull,
    Field(discriminator="type"),
]
JournalFact = Annotated[
    CallbackDelivered
    | CallbackAttemptFailed
    | CallbackDead
    | CallbackDispatchFailed
    | ScheduleFact
    | ScheduleCreated
    | ScheduleRescheduled
    | ScheduleDispatched
    | MessageSent
    | MessageAttemptFailed
    | MessageFailed
    | MessageExpired
    | MessageReturned
    | EndpointDisabled
    | LetterDead
    | LetterRedriven
    | LetterDiscarded
    | CallbackReplayed
    | BreakerOpened
    | BreakerClosed
    | LaneFull,
    Field(discriminator="type"),
]
JOURNAL_FACT_TYPES: Final = frozenset(
    kind
    for model in get_args(get_args(JournalFact)[0])
    for kind in get_args(model.model_fields["type"].annotation)
)


class JournalFacts(BaseModel):
    """The body of one AMQP message on `outcomes`, as the journal reads it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    facts: list[JournalFact]
