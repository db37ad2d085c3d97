"""An endpoint: a customer's URL that receives the messages of a calling service."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from shared.contracts.callback import (
    MAX_HEADERS,
    Fingerprint,
    Headers,
    check_webhook_id,
    is_reserved,
)
from shared.contracts.context import check_context, fields_error, json_text
from shared.contracts.schedules import STRICT, Url, UtcTime

MAX_EVENT_TYPES: Final = 100

# Exact, such as `invoice.paid`, or a prefix that ends at a dot, such as `invoice.*`; `*` is all.
EVENT_TYPE_PATTERN: Final = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"
FILTER_PATTERN: Final = r"^(\*|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(\.\*)?)$"
MessageEventType = Annotated[
    str,
    StringConstraints(pattern=EVENT_TYPE_PATTERN, max_length=100),
    Field(examples=["invoice.paid"]),
]
EventFilter = Annotated[str, StringConstraints(pattern=FILTER_PATTERN, max_length=102)]
EventFilters = Annotated[
    list[EventFilter],
    Field(
        min_length=1,
        max_length=MAX_EVENT_TYPES,
        description="Event types, exact or with a wildcard at the end. `*` selects all.",
        examples=[["invoice.*"]],
    ),
]
Description = Annotated[
    str, StringConstraints(max_length=1000, pattern=r"^[^\x00]*$"), Field(examples=["Billing"])
]
# One message in 17 minutes. With 10,000,000 messages, the last due time is before the year 3000.
MIN_RATE_LIMIT: Final = 0.001
RateLimit = Annotated[
    float,
    Field(
        ge=MIN_RATE_LIMIT,
        le=10_000,
        allow_inf_nan=False,
        description="Maximum number of messages per second.",
    ),
]


# An id is a segment of the paths of its routes. Proxies may decode `%2F`, and clients remove `.`
# and `..`.
MESSAGE_ID_PATTERN: Final = r"^[\x21-\x2e\x30-\x7e]{1,255}$"


def _check_message_id(identifier: str) -> str:
    if identifier in {".", ".."}:
        raise ValueError("is not allowed, because HTTP clients remove it from paths")
    return check_webhook_id(identifier)


MessageId = Annotated[
    str, StringConstraints(pattern=MESSAGE_ID_PATTERN), AfterValidator(_check_message_id)
]

# Bytes of a payload as JSON in UTF-8. A SendCallback of 1 MiB also holds the URL, the headers and
# the secrets.
MAX_PAYLOAD_BYTES: Final = 1_000_000
# Sent with the events of users.
SEQUENCE_HEADER: Final = "x-ringback-sequence"


def _check_headers(headers: dict[str, str]) -> dict[str, str]:
    reserved = sorted(
        name for name in headers if is_reserved(name) or name.lower() == SEQUENCE_HEADER
    )
    if reserved:
        raise ValueError(f"{', '.join(reserved)[:200]}: Ringback sets these headers")
    if len({name.lower() for name in headers}) < len(headers):
        raise ValueError("a header is given more than once")
    return headers


def _check_payload(payload: Any) -> Any:
    # In a list, because `check_context` would parse a text.
    size = len(json_text(check_context([payload])).encode())
    if size > MAX_PAYLOAD_BYTES:
        raise ValueError(f"has {size} bytes, at most {MAX_PAYLOAD_BYTES} are allowed")
    return payload


EndpointHeaders = Annotated[
    Headers,
    AfterValidator(_check_headers),
    Field(
        description="Headers of each request. Headers that Ringback sets are not allowed.",
        max_length=MAX_HEADERS,
        examples=[{"X-Tenant": "7"}],
    ),
]


class EndpointStatus(StrEnum):
    """The status of an endpoint."""

    ACTIVE = "active"
    PAUSED = "paused"  # keeps its messages
    DISABLED = "disabled"  # failed for too long, or is gone; its messages fail, for a replay


class DeliveryStatus(StrEnum):
    """The status of one message to one endpoint. The last three are final."""

    PENDING = "pending"  # claimable at its due time
    WAITING = "waiting"  # its endpoint is paused, or an earlier delivery must end first
    DISPATCHED = "dispatched"
    DELIVERED = "delivered"
    FAILED = "failed"
    CANCELLED = "cancelled"


class NewEndpoint(BaseModel):
    """An endpoint to create."""

    model_config = STRICT

    url: Url = Field(examples=["https://customer.example.com/webhooks"])
    event_types: EventFilters
    description: Description = ""
    headers: EndpointHeaders = Field(default_factory=dict, repr=False)
    rate_limit: RateLimit | None = None
    ordered: bool = Field(
        default=False,
        description="Whether a message is sent only when the one before it was delivered or has"
        " failed for good.",
    )
    fingerprint: Fingerprint | None = None


class EndpointChange(BaseModel):
    """The changes of an endpoint. Other fields stay as they are."""

    model_config = STRICT | ConfigDict(json_schema_extra={"minProperties": 1})

    url: Url | None = None
    event_types: EventFilters | None = None
    description: Description | None = None
    headers: EndpointHeaders | None = Field(default=None, repr=False)
    rate_limit: RateLimit | None = None
    ordered: bool | None = None
    fingerprint: Fingerprint | None = None
    status: Literal["active", "paused"] | None = Field(
        default=None, description="`active` resumes the endpoint, and `paused` pauses it."
    )

    @property
    def fields(self) -> Mapping[str, Any]:
        """Return the values that are given."""
        return {name: getattr(self, name) for name in self.model_fields_set}

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if not self.model_fields_set:
            raise fields_error([("", "at least one field is required")])
        nullable = {"rate_limit", "fingerprint"}
        faults = [
            (name, "must not be null")
            for name, value in self.fields.items()
            if value is None and name not in nullable
        ]
        if faults:
            raise fields_error(faults)
        return self


class NewEndpointMessage(BaseModel):
    """A message to all endpoints of the caller that select its event type."""

    model_config = STRICT

    event_type: MessageEventType
    payload: Annotated[Any, AfterValidator(_check_payload)] = Field(
        description="Any JSON value; at most 1,000,000 bytes."
    )
    id: MessageId | None = Field(
        default=None,
        description="Sent as `webhook-id`. It must not contain `/`, or be `.` or `..`. A repeat"
        " with the same id has no effect. Default: an id from Ringback.",
    )


class Replay(BaseModel):
    """The messages that an endpoint receives again: one, or all that failed since a time."""

    model_config = STRICT

    message_id: MessageId | None = None
    since: UtcTime | None = None
    until: UtcTime | None = None

    @model_validator(mode="after")
    def _check_selection(self) -> Self:
        if (self.message_id is None) == (self.since is None):
            raise fields_error([("since", "set either since or message_id")])
        if self.until is not None and self.since is None:
            raise fields_error([("until", "is only allowed with since")])
        if self.until is not None and self.since is not None and self.until <= self.since:
            raise fields_error([("until", "must be after since")])
        return self


class StoredReplay(BaseModel):
    """A replay of the messages that failed at or after `since` and before `until`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: UUID
    since: AwareDatetime
    until: AwareDatetime
    replayed: int = Field(description="Number of messages that were sent again so far.")
    created_at: AwareDatetime
    finished_at: AwareDatetime | None


class Endpoint(BaseModel):
    """An endpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: UUID
    url: str
    event_types: list[str]
    description: str
    headers: dict[str, str] = Field(repr=False)
    rate_limit: float | None
    ordered: bool
    fingerprint: str | None
    status: EndpointStatus
    failing_since: AwareDatetime | None = Field(
        description="Time of the first failed attempt since the last success, otherwise null."
    )
    created_at: AwareDatetime
    updated_at: AwareDatetime
    etag: str = Field(description="Different after every change; for `If-Match`.")


class EndpointCreated(Endpoint):
    """An endpoint with its secret, which is returned only here and by a rotation."""

    secret: str = Field(repr=False, examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])


class Delivery(BaseModel):
    """One message to one endpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint_id: UUID
    message_id: str
    event_type: str
    status: DeliveryStatus
    attempts: int
    last_error: str | None
    next_at: AwareDatetime | None = Field(description="Time of the next dispatch, if pending.")
    created_at: AwareDatetime
    finished_at: AwareDatetime | None


class EndpointMessage(BaseModel):
    """A message with its deliveries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    event_type: str
    payload: Any
    created_at: AwareDatetime
    deliveries: list[Delivery] = Field(description="The first 1,000 deliveries.")


class DeliveryAttempt(BaseModel):
    """One attempt to deliver a message to an endpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint_id: UUID
    attempt: int
    at: AwareDatetime
    status_code: int | None
    duration: float | None = Field(description="Duration in seconds.")
    error: str | None
