"""The command to schedule a callback, and the fields that it shares with other commands.

`ScheduleCallback` is a message on the exchange `schedules`, and the body of an RPC operation. The
commands that change a callback are in schedule_changes.py, the other operations and all responses
in schedule_requests.py.
"""

from base64 import b64decode
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

from shared.contracts.callback import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    STANDARD_PREFIX,
    Headers,
    Identifier,
    Secret,
    Secrets,
)
from shared.contracts.context import check_context, field_errors, fields_error
from shared.http.guard import ForbiddenTargetError, parse_target
from shared.ids import with_time_of

SCHEDULE_CALLBACK: Final = "ScheduleCallback"

DAY: Final = 86_400.0
# Seconds in ten years, with leap days. A time further ahead is probably in a wrong unit.
MAX_DELAY_AHEAD: Final = 3653 * DAY
# Seconds that a due time may lie in the past, because a producer or a queue was down. An older time
# is probably a mistake, such as a timestamp of 1970.
MAX_AGE: Final = 30 * DAY
# Room for the header with Ringback's own ticket. The largest has 2,500 bytes: a name of 64, a kid
# of 128, a client id of 255 characters of four bytes, and a signature of 4,096 bits.
MAX_OWN_TICKET_BYTES: Final = 5120
_NAMESPACE: Final = UUID("7b0c3f0e-5d0b-4a50-9f5c-3b1c3a7b6f10")

STRICT: Final = ConfigDict(
    frozen=True, strict=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
)
# For requests with fields of the gateway: unknown ones are from a newer gateway. The client's part,
# such as the callback, is STRICT.
ENVELOPE: Final = ConfigDict(
    frozen=True, strict=True, extra="ignore", hide_input_in_errors=True, allow_inf_nan=False
)


class Status(StrEnum):
    """Status of a scheduled callback. The last three are final."""

    SCHEDULED = "scheduled"  # waits for its due time
    DISPATCHED = "dispatched"  # published to the callback service, no result yet
    RETRYING = "retrying"  # at least one attempt failed, more follow
    NOTIFIED = "notified"  # the receiver accepted it
    FAILED = "failed"  # no attempt follows
    CANCELLED = "cancelled"


def _check_url(url: str) -> str:
    try:
        parse_target(url)
    except ForbiddenTargetError as error:
        raise ValueError(str(error)) from None
    return url


def _leave_room_for_ticket(headers: dict[str, str]) -> dict[str, str]:
    if len(headers) >= MAX_HEADERS:
        raise ValueError(f"{len(headers)} headers, at most {MAX_HEADERS - 1} are allowed")
    limit = MAX_HEADER_BYTES - MAX_OWN_TICKET_BYTES
    size = sum(len(name) + len(value) for name, value in headers.items())
    if size > limit:
        raise ValueError(f"{size} bytes of headers, at most {limit} are allowed")
    return headers


def _check_secrets(secrets: str | list[str] | None) -> str | list[str] | None:
    for secret in [secrets] if isinstance(secrets, str) else secrets or ():
        if secret.startswith(STANDARD_PREFIX):
            try:
                key = b64decode(secret.removeprefix(STANDARD_PREFIX), validate=True)
            except ValueError:
                key = b""
            if not key:
                raise ValueError(f"must continue in base64 after {STANDARD_PREFIX}")
    return secrets


@lru_cache(maxsize=1024)
def time_zone(name: str) -> ZoneInfo:
    """Return the IANA time zone of this name.

    Raises:
        ValueError: the name is not an IANA time zone.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError("is not an IANA time zone") from None


def _check_zone(name: str) -> str:
    time_zone(name)
    return name


def _check_cron(expression: str) -> str:
    try:
        next(CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC)))
    except (CronSimError, StopIteration) as error:
        raise ValueError(f"is not a cron expression of five fields: {error}") from None
    return expression


def _to_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("is out of range") from None


def _expand_misfire(misfire: Any) -> Any:
    return {"policy": misfire} if isinstance(misfire, str) else misfire


UtcTime = Annotated[AwareDatetime, AfterValidator(_to_utc)]
# Keys appear in facts and logs, so control characters are not allowed.
KEY_PATTERN: Final = r"^[^\x00-\x1f\x7f]{1,255}$"
Key = Annotated[str, StringConstraints(pattern=KEY_PATTERN)]
RoutingKey = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{0,255}$")]
Seconds = Annotated[float, Field(gt=0, le=MAX_DELAY_AHEAD, allow_inf_nan=False)]
NonNegativeSeconds = Annotated[float, Field(ge=0, le=MAX_DELAY_AHEAD, allow_inf_nan=False)]


Url = Annotated[str, StringConstraints(min_length=1), AfterValidator(_check_url)]
CallbackHeaders = Annotated[Headers, AfterValidator(_leave_room_for_ticket)]


class RetryParams(BaseModel):
    """Retries after a failed attempt: quick retries, then a main retry with quick retries again."""

    model_config = STRICT

    stop_after_delay: Seconds = Field(
        default=5 * DAY,
        description="Seconds from the first dispatch until attempts stop. Then the "
        "callback is `failed`.",
    )
    quick_retries_count: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=5,
        description="Quick retries in each dispatch, after 1 s, 5 s, 15 s, 15 s, …",
    )
    strategy: Literal["constant", "exponential"] | None = Field(
        default=None, description="Strategy of the main retries. Default: `constant`."
    )
    base_delay: Seconds | None = Field(
        default=None,
        description="Seconds before the first main retry. Required with a strategy. Default: 60.",
    )
    delay_growth_rate: Annotated[float, Field(ge=1, le=1000, allow_inf_nan=False)] | None = Field(
        default=None, description="Factor between two delays of the strategy `exponential`."
    )

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        faults = []
        if self.strategy and self.base_delay is None:
            faults.append(("base_delay", f"is required with the strategy {self.strategy}"))
        if self.strategy == "exponential" and self.delay_growth_rate is None:
            faults.append(("delay_growth_rate", "is required with the strategy exponential"))
        if self.strategy != "exponential" and self.delay_growth_rate is not None:
            faults.append(("delay_growth_rate", "is only allowed with the strategy exponential"))
        if faults:
            raise fields_error(faults)
        return self


class NotifyScheme(BaseModel):
    """Transport and format of the notification."""

    model_config = STRICT

    transport: Literal["http", "amqp"] = "http"
    format: Literal["event", "context", "form", "query"] = Field(
        default="event",
        description="`event`: an envelope with id, keys, run_at, attempt and context. `context`: "
        "the context alone. `form`, `query`: the envelope as an HTML form, or in the URL's query.",
    )
    method: Literal["POST", "PUT", "PATCH", "DELETE", "GET"] = "POST"
    headers: CallbackHeaders = Field(default_factory=dict)
    timeout: Annotated[float, Field(gt=0, le=300, allow_inf_nan=False)] | None = Field(
        default=None, description="Seconds for one attempt, including the connection."
    )
    exchange: Key | None = Field(
        default=None, description="Transport `amqp`: an exchange that the operator has allowed."
    )
    routing_key: RoutingKey | None = Field(
        default=None, description="Transport `amqp`: the routing key."
    )

    @model_validator(mode="after")
    def _check_transport(self) -> Self:
        faults: list[tuple[str, str]] = []
        if self.transport == "amqp":
            faults += [
                (name, "is only allowed with the transport http")
                for name in ("method", "headers", "timeout")
                if name in self.model_fields_set
            ]
            faults += [
                (name, "is required with the transport amqp")
                for name in ("exchange", "routing_key")
                if getattr(self, name) is None
            ]
            if self.format in ("form", "query"):
                faults.append(("format", "must be event or context with the transport amqp"))
        else:
            faults += [
                (name, "is only allowed with the transport amqp")
                for name in ("exchange", "routing_key")
                if getattr(self, name) is not None
            ]
        if faults:
            raise fields_error(faults)
        return self


class Misfire(BaseModel):
    """Policy for a callback that falls due while no scheduler runs."""

    model_config = STRICT

    policy: Literal["fire", "skip"] = Field(
        description="`fire`: send it late. `skip`: fail it if it is more than `grace` late."
    )
    grace: NonNegativeSeconds = Field(
        default=60.0, description="Seconds of delay that do not count as a misfire."
    )


class Repeat(BaseModel):
    """Recurrence of a callback: an interval, or a cron expression in a time zone."""

    model_config = STRICT

    every: Annotated[float, Field(ge=1, le=MAX_DELAY_AHEAD, allow_inf_nan=False)] | None = Field(
        default=None, description="Seconds between two due times."
    )
    cron: Annotated[str, StringConstraints(max_length=255), AfterValidator(_check_cron)] | None = (
        Field(default=None, description="Five fields: minute, hour, day, month, weekday.")
    )
    timezone: Annotated[
        str, StringConstraints(min_length=1, max_length=64), AfterValidator(_check_zone)
    ] = Field(default="UTC", description="IANA time zone of `cron`.")
    until: UtcTime | None = Field(default=None, description="No occurrence is due after this time.")
    count: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = Field(
        default=None, description="Maximum number of occurrences."
    )

    @model_validator(mode="after")
    def _check_recurrence(self) -> Self:
        if (self.every is None) == (self.cron is None):
            raise fields_error([("every", "set either every or cron")])
        if self.cron is None and "timezone" in self.model_fields_set:
            raise fields_error([("timezone", "is only allowed with cron")])
        return self


def check_callback_context(value: Any) -> Any:
    """Return the context of a callback if it is valid.

    Raises:
        ValueError: it is too large or too deep, or its `retry_params` are invalid.
    """
    value = check_context(value)
    if isinstance(value, dict) and "retry_params" in value:
        try:
            RetryParams.model_validate(value["retry_params"])
        except ValidationError as error:
            faults = field_errors(error)
            raise fields_error(
                [(f"retry_params.{f.field}".rstrip("."), f.message) for f in faults]
            ) from None
    return value


RunAt = Annotated[
    UtcTime | None,
    Field(description="Due time with a time zone, at most 30 days in the past or ten years ahead."),
]
Delay = Annotated[
    NonNegativeSeconds | None, Field(description="Instead of `run_at`: seconds from now.")
]


def check_due_time(run_at: datetime | None, delay: float | None) -> None:
    """Check that a command has at most one kind of due time.

    Raises:
        ValueError: it has both.
    """
    if run_at is not None and delay is not None:
        raise fields_error([("delay", "set either run_at or delay")])


class ScheduleCallback(BaseModel):
    """Call `url` at `run_at` or after `delay` seconds. Without both, the callback is due now."""

    model_config = STRICT

    url: Url
    run_at: RunAt = None
    delay: Delay = None
    group_key: Key | None = Field(
        default=None, description="Groups callbacks, such as those of one user of the client."
    )
    event_key: Key | None = Field(
        default=None, description="Names one callback. Unique within the group and the client."
    )
    context: Annotated[Any, AfterValidator(check_callback_context)] = Field(
        default=None,
        description="Any JSON, or a string that contains a JSON object or list. It is returned "
        "with the status and sent with the notification. It may contain `retry_params`.",
    )
    notify_scheme: NotifyScheme = NotifyScheme()
    retry_params: RetryParams | None = None
    hmac_secret: Annotated[Secret | Secrets | None, AfterValidator(_check_secrets)] = Field(
        default=None,
        repr=False,
        description="Secret that signs the notification. With several, each adds a signature.",
    )
    secret_ref: Identifier | None = Field(
        default=None, description="Instead of `hmac_secret`: the name of a configured secret."
    )
    misfire: Annotated[
        Misfire,
        BeforeValidator(_expand_misfire, json_schema_input_type=Literal["fire", "skip"] | Misfire),
    ] = Field(
        default=Misfire(policy="fire"),
        description="Policy if it falls due while no scheduler runs.",
    )
    repeat: Repeat | None = Field(default=None, description="Recurrence, beginning at `run_at`.")

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        check_due_time(self.run_at, self.delay)
        faults = []
        if self.hmac_secret is not None and self.secret_ref is not None:
            faults.append(("secret_ref", "set either hmac_secret or secret_ref"))
        if self.notify_scheme.transport == "amqp" and (self.hmac_secret or self.secret_ref):
            faults.append(("notify_scheme.transport", "notifications by amqp cannot be signed"))
        if self.retry_params is not None and contains_retry_params(self.context):
            faults.append(("retry_params", "set it either here or inside context"))
        if faults:
            raise fields_error(faults)
        return self

    @property
    def retry(self) -> RetryParams:
        """The retry parameters, from `retry_params` or from the context."""
        if self.retry_params is not None:
            return self.retry_params
        if contains_retry_params(self.context):
            return RetryParams.model_validate(self.context["retry_params"])
        return RetryParams()


def callback_id_of_message(client_id: str, message_id: str, part: str = "") -> UUID:
    """Return the id of the callback that a ScheduleCallback message creates.

    A redelivered message leads to the same id. `client_id` is '' without a ticket. `part` tells the
    callbacks of one message apart. If the `message_id` is a UUIDv7, so is the id.
    """
    return with_time_of(message_id, uuid5(_NAMESPACE, f"{client_id}\0{part}{message_id}"))


def contains_retry_params(context: Any) -> bool:
    """Return whether a context contains `retry_params`."""
    return isinstance(context, dict) and "retry_params" in context


IfMatch = Annotated[
    list[str] | None,
    Field(max_length=16, description="Only if the callback's `etag` is one of these."),
]
Id = Annotated[UUID | None, Field(description="Id of the callback.")]
GroupKey = Annotated[Key | None, Field(description="Group of the callback.")]
EventKey = Annotated[Key | None, Field(description="Key of the callback within its group.")]
