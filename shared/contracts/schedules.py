"""Schedules: the order to call back at a set moment, to move that and to cancel it.

`ScheduleCallback`, `CancelCallback` and `RescheduleCallback` are messages on the exchange
`schedules`, and operations; the other operations and all answers are in schedule_requests.py.
"""

from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, Self
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from shared.contracts.callback import Headers, Identifier, Secret, Secrets
from shared.contracts.context import checked_context, faulty, field_errors
from shared.http.guard import ForbiddenTargetError, parse_target

SCHEDULE_CALLBACK: Final = "ScheduleCallback"
CANCEL_CALLBACK: Final = "CancelCallback"
RESCHEDULE_CALLBACK: Final = "RescheduleCallback"

DAY: Final = 86_400.0
# Seconds. Ten years with their leap days: further ahead is a wrong unit, not a plan.
MAX_DELAY_AHEAD: Final = 3653 * DAY
# Seconds. What is due for so long fires at once (a producer or a queue was down); what is older is
# a mistake, such as a timestamp of 1970.
MAX_AGE: Final = 30 * DAY
# Sent by us on notifications, so not for the client to set.
TICKET_HEADER: Final = "X-Service-Ticket"
_NAMESPACE: Final = UUID("7b0c3f0e-5d0b-4a50-9f5c-3b1c3a7b6f10")

STRICT: Final = ConfigDict(
    frozen=True, strict=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
)


class Status(StrEnum):
    """Where an event is. The last three are ends."""

    SCHEDULED = "scheduled"  # waits for its moment
    DISPATCHED = "dispatched"  # given to the callback service, nothing heard yet
    RETRYING = "retrying"  # at least one try failed, more follow
    NOTIFIED = "notified"  # the receiver took it
    FAILED = "failed"  # no more tries
    CANCELLED = "cancelled"


def _url(url: str) -> str:
    try:
        parse_target(url)
    except ForbiddenTargetError as error:
        raise ValueError(str(error)) from None
    return url


def _no_ticket(headers: dict[str, str]) -> dict[str, str]:
    if any(name.lower() == TICKET_HEADER.lower() for name in headers):
        raise ValueError(f"{TICKET_HEADER} is for Ringback's own ticket")
    return headers


@lru_cache(maxsize=1024)
def time_zone(name: str) -> ZoneInfo:
    """The IANA time zone of that name.

    Raises:
        ValueError: there is none.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError("there is no such IANA time zone") from None


def _zone_name(name: str) -> str:
    time_zone(name)
    return name


def _cron(expression: str) -> str:
    try:
        next(CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC)))
    except (CronSimError, StopIteration) as error:
        raise ValueError(f"is no cron expression of five fields: {error}") from None
    return expression


def _utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("is out of range") from None


def _long_form(misfire: Any) -> Any:
    return {"policy": misfire} if isinstance(misfire, str) else misfire


Moment = Annotated[AwareDatetime, AfterValidator(_utc)]
# Goes into facts and logs: no control characters.
Key = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,255}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{0,255}$")]
Seconds = Annotated[float, Field(gt=0, le=MAX_DELAY_AHEAD, allow_inf_nan=False)]
Wait = Annotated[float, Field(ge=0, le=MAX_DELAY_AHEAD, allow_inf_nan=False)]


class RetryParams(BaseModel):
    """How failed tries are followed up: quick retries first, then main ones until it is stale."""

    model_config = STRICT

    stop_after_delay: Seconds = Field(
        default=5 * DAY,
        description="Seconds after the first dispatch from which on no try starts: the callback "
        "is then `failed`.",
    )
    quick_retries_count: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=5, description="Retries after 1 s, 5 s, 15 s, 1 min, … before each main retry."
    )
    strategy: Literal["constant", "exponential"] | None = Field(
        default=None, description="How main retries are spaced; left out: constant."
    )
    base_delay: Seconds | None = Field(
        default=None,
        description="Seconds before the first main retry. Needed with a strategy; without: 60.",
    )
    delay_growth_rate: Annotated[float, Field(ge=1, le=1000, allow_inf_nan=False)] | None = Field(
        default=None, description="What `exponential` multiplies the delay by each time."
    )

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        faults = []
        if self.strategy and self.base_delay is None:
            faults.append(("base_delay", f"is needed with the strategy {self.strategy}"))
        if self.strategy == "exponential" and self.delay_growth_rate is None:
            faults.append(("delay_growth_rate", "is needed with the strategy exponential"))
        if self.strategy != "exponential" and self.delay_growth_rate is not None:
            faults.append(("delay_growth_rate", "is for the strategy exponential only"))
        if faults:
            raise faulty(faults)
        return self


class NotifyScheme(BaseModel):
    """By which transport and in which form the notification goes out."""

    model_config = STRICT

    transport: Literal["http", "amqp"] = "http"
    format: Literal["event", "context", "form", "query"] = Field(
        default="event",
        description="event: an envelope with id, keys, run_at, attempt and context; context: the "
        "context alone; form and query: the envelope as an HTML form, or in the URL's query.",
    )
    method: Literal["POST", "PUT", "PATCH", "DELETE", "GET"] = "POST"
    headers: Annotated[Headers, AfterValidator(_no_ticket)] = Field(default_factory=dict)
    timeout: Annotated[float, Field(gt=0, le=300, allow_inf_nan=False)] | None = Field(
        default=None, description="Seconds for one try, connecting included."
    )
    exchange: Key | None = Field(
        default=None, description="amqp: where to; one that the operator has allowed."
    )
    routing_key: Name | None = Field(default=None, description="amqp: with which routing key.")

    @model_validator(mode="after")
    def _fit_the_transport(self) -> Self:
        faults: list[tuple[str, str]] = []
        if self.transport == "amqp":
            faults += [
                (name, "is for the transport http only")
                for name in ("method", "headers", "timeout")
                if name in self.model_fields_set
            ]
            faults += [
                (name, "is needed with the transport amqp")
                for name in ("exchange", "routing_key")
                if getattr(self, name) is None
            ]
            if self.format in ("form", "query"):
                faults.append(("format", "must be event or context with the transport amqp"))
        else:
            faults += [
                (name, "is for the transport amqp only")
                for name in ("exchange", "routing_key")
                if getattr(self, name) is not None
            ]
        if faults:
            raise faulty(faults)
        return self


class Misfire(BaseModel):
    """What becomes of a callback that fell due while nothing could fire it."""

    model_config = STRICT

    policy: Literal["fire", "skip"] = Field(
        description="fire: at once, however late; skip: not at all once `grace` is over."
    )
    grace: Wait = Field(default=60.0, description="Seconds late that are not yet a misfire.")


class Repeat(BaseModel):
    """A recurring callback: by an interval, or by a cron expression in a time zone."""

    model_config = STRICT

    every: Annotated[float, Field(ge=1, le=MAX_DELAY_AHEAD, allow_inf_nan=False)] | None = Field(
        default=None, description="Seconds from one due moment to the next."
    )
    cron: Annotated[str, StringConstraints(max_length=255), AfterValidator(_cron)] | None = Field(
        default=None, description="Five fields: minute, hour, day, month, weekday."
    )
    timezone: Annotated[
        str, StringConstraints(min_length=1, max_length=64), AfterValidator(_zone_name)
    ] = Field(default="UTC", description="The IANA time zone that `cron` is read in.")
    until: Moment | None = Field(default=None, description="None is due after this moment.")
    count: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = Field(
        default=None, description="How many there are at most."
    )

    @model_validator(mode="after")
    def _one_rhythm(self) -> Self:
        if (self.every is None) == (self.cron is None):
            raise faulty([("every", "give either every or cron")])
        if self.cron is None and "timezone" in self.model_fields_set:
            raise faulty([("timezone", "is for cron only")])
        return self


def _context(value: Any) -> Any:
    value = checked_context(value)
    if isinstance(value, dict) and "retry_params" in value:
        try:
            RetryParams.model_validate(value["retry_params"])
        except ValidationError as error:
            faults = field_errors(error)
            raise faulty(
                [(f"retry_params.{f.field}".rstrip("."), f.message) for f in faults]
            ) from None
    return value


RunAt = Annotated[
    Moment | None,
    Field(description="The due moment, with its zone; at most 30 days ago or ten years ahead."),
]
Delay = Annotated[Wait | None, Field(description="Instead of `run_at`: seconds from now.")]


def _one_moment(run_at: datetime | None, delay: float | None) -> None:
    if run_at is not None and delay is not None:
        raise faulty([("delay", "give either run_at or delay")])


class ScheduleCallback(BaseModel):
    """Call `url` back at `run_at`, or after `delay` seconds; with neither, now."""

    model_config = STRICT

    url: Annotated[str, StringConstraints(min_length=1), AfterValidator(_url)]
    run_at: RunAt = None
    delay: Delay = None
    group_key: Key | None = Field(
        default=None, description="Joins events: a user's id in the calling service, say."
    )
    event_key: Key | None = Field(
        default=None, description="Names one event; used once within its group and client."
    )
    context: Annotated[Any, AfterValidator(_context)] = Field(
        default=None,
        description="Any JSON, or a text that holds a JSON object or list; comes back in status "
        "answers and in the notification. `retry_params` may stand inside.",
    )
    notify_scheme: NotifyScheme = NotifyScheme()
    retry_params: RetryParams | None = None
    hmac_secret: Secret | Secrets | None = Field(
        default=None, repr=False, description="Signs the notification; several sign it each."
    )
    secret_ref: Identifier | None = Field(
        default=None, description="Instead of `hmac_secret`: a secret by name from configuration."
    )
    misfire: Annotated[
        Misfire,
        BeforeValidator(_long_form, json_schema_input_type=Literal["fire", "skip"] | Misfire),
    ] = Field(
        default=Misfire(policy="fire"),
        description="What becomes of it if it falls due while nothing runs.",
    )
    repeat: Repeat | None = Field(default=None, description="Again and again, from `run_at` on.")

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        _one_moment(self.run_at, self.delay)
        faults = []
        if self.hmac_secret is not None and self.secret_ref is not None:
            faults.append(("secret_ref", "give either hmac_secret or secret_ref"))
        if self.notify_scheme.transport == "amqp" and (self.hmac_secret or self.secret_ref):
            faults.append(("notify_scheme.transport", "amqp notifications are not signed"))
        if self.retry_params is not None and _retry_params_inside(self.context):
            faults.append(("retry_params", "give it either here or inside context"))
        if faults:
            raise faulty(faults)
        return self

    @property
    def retry(self) -> RetryParams:
        """How it is retried, wherever that was given."""
        if self.retry_params is not None:
            return self.retry_params
        if _retry_params_inside(self.context):
            return RetryParams.model_validate(self.context["retry_params"])
        return RetryParams()


def callback_id_of_message(client_id: str, message_id: str) -> UUID:
    """The id of the event that a ScheduleCallback message creates, however often it is given out.

    `client_id` is that of its ticket; '' without one.
    """
    return uuid5(_NAMESPACE, f"{client_id}\0{message_id}")


def _retry_params_inside(context: Any) -> bool:
    return isinstance(context, dict) and "retry_params" in context


Id = Annotated[UUID | None, Field(description="The event's id.")]
GroupKey = Annotated[Key | None, Field(description="With `event_key`: the event's keys.")]
EventKey = Annotated[Key | None, Field(description="An event's own key, within its group.")]


def check_selector(id_: UUID | None, group_key: str | None, event_key: str | None) -> None:
    """Check that a selector names one event.

    Raises:
        ValueError: it names none, or says it twice.
    """
    if (id_ is None) == (event_key is None):
        raise faulty([("id", "give either id, or event_key and, if it has one, group_key")])
    if id_ is not None and group_key is not None:
        raise faulty([("group_key", "goes with event_key, not with id")])


class CancelCallback(BaseModel):
    """Cancel one event, by id or by keys, or with `group_key` alone a whole group.

    Message `CancelCallback` and operation `CancelCallbacks`.
    """

    model_config = STRICT

    id: Id = None
    group_key: GroupKey = None
    event_key: EventKey = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.whole_group:
            check_selector(self.id, self.group_key, self.event_key)
        return self

    @property
    def whole_group(self) -> bool:
        """Whether all events of the group are meant."""
        return self.group_key is not None and self.event_key is None and self.id is None


class RescheduleCallback(BaseModel):
    """Move one event to another moment. Message and operation of this name."""

    model_config = STRICT

    id: Id = None
    group_key: GroupKey = None
    event_key: EventKey = None
    run_at: RunAt = None
    delay: Delay = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        check_selector(self.id, self.group_key, self.event_key)
        _one_moment(self.run_at, self.delay)
        if self.run_at is None and self.delay is None:
            raise faulty([("run_at", "give either run_at or delay")])
        return self
