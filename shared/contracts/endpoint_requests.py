"""The operations on endpoints and their messages, with their requests and responses."""

from typing import Annotated, Final
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from shared.contracts.endpoints import (
    Delivery,
    DeliveryAttempt,
    DeliveryStatus,
    Endpoint,
    EndpointChange,
    EndpointCreated,
    EndpointMessage,
    EndpointStatus,
    MessageId,
    NewEndpoint,
    NewEndpointMessage,
    Replay,
    StoredReplay,
)
from shared.contracts.requests import RpcOperation
from shared.contracts.schedules import ENVELOPE, IfMatch, Key
from shared.topology import SUBSCRIPTIONS_REQUESTS

MAX_PAGE_SIZE: Final = 1000
DEFAULT_PAGE_SIZE: Final = 100

_RESPONSE: Final = ConfigDict(frozen=True, extra="forbid")
_Cursor = Annotated[str, Field(max_length=500)]
_Limit = Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE)]


class CreateEndpoint(BaseModel):
    """Operation: create an endpoint. A repeat with the same idempotency key changes nothing."""

    model_config = ENVELOPE

    endpoint: NewEndpoint
    idempotency_key: Key | None = None


class GetEndpoint(BaseModel):
    """Operation: return an endpoint."""

    model_config = ENVELOPE

    id: UUID


class ListEndpoints(BaseModel):
    """Operation: list the caller's endpoints, newest first."""

    model_config = ENVELOPE

    status: EndpointStatus | None = None
    cursor: _Cursor | None = None
    limit: _Limit = DEFAULT_PAGE_SIZE


class ChangeEndpoint(BaseModel):
    """Operation: change an endpoint."""

    model_config = ENVELOPE

    id: UUID
    change: EndpointChange
    if_match: IfMatch = None


class ControlEndpoint(BaseModel):
    """Operations: delete, pause, resume or test an endpoint."""

    model_config = ENVELOPE

    id: UUID
    if_match: IfMatch = None


class RotateSecret(BaseModel):
    """Operation: replace the secret. A repeat with the same idempotency key changes nothing."""

    model_config = ENVELOPE

    id: UUID
    if_match: IfMatch = None
    idempotency_key: Key | None = None


class ReplayEndpoint(BaseModel):
    """Operation: send messages to an endpoint again."""

    model_config = ENVELOPE

    id: UUID
    replay: Replay


class ListReplays(BaseModel):
    """Operation: list the replays of an endpoint, newest first."""

    model_config = ENVELOPE

    id: UUID
    cursor: _Cursor | None = None
    limit: _Limit = DEFAULT_PAGE_SIZE


class SendEndpointMessage(BaseModel):
    """Operation: send a message to all endpoints of the caller that select its event type."""

    model_config = ENVELOPE

    message: NewEndpointMessage
    idempotency_key: Key | None = None


class GetEndpointMessage(BaseModel):
    """Operation: return a message with its deliveries."""

    model_config = ENVELOPE

    id: MessageId


class ListMessageAttempts(BaseModel):
    """Operation: list the attempts of a message at all endpoints, oldest first."""

    model_config = ENVELOPE

    id: MessageId
    cursor: _Cursor | None = None
    limit: _Limit = DEFAULT_PAGE_SIZE


class ListEndpointMessages(BaseModel):
    """Operation: list the deliveries to an endpoint, newest first."""

    model_config = ENVELOPE

    id: UUID
    status: DeliveryStatus | None = None
    cursor: _Cursor | None = None
    limit: _Limit = DEFAULT_PAGE_SIZE


class ListFailedDeliveries(BaseModel):
    """Operation: list the failed deliveries to all endpoints of the caller, newest first."""

    model_config = ENVELOPE

    cursor: _Cursor | None = None
    limit: _Limit = DEFAULT_PAGE_SIZE


class EndpointPage(BaseModel):
    """A page of endpoints. `next_cursor` is null on the last page."""

    model_config = _RESPONSE

    items: list[Endpoint]
    next_cursor: str | None


class EndpointDeleted(BaseModel):
    """The endpoint no longer exists."""

    model_config = _RESPONSE

    id: UUID


class SecretRotated(BaseModel):
    """The new secret, which is returned only here. Both sign until `old_secret_until`."""

    model_config = _RESPONSE

    secret: str = Field(repr=False)
    old_secret_until: AwareDatetime


class EndpointTested(BaseModel):
    """A test message is on its way."""

    model_config = _RESPONSE

    message_id: str


class ReplayStarted(BaseModel):
    """The replay is stored, and continues after a crash."""

    model_config = _RESPONSE

    id: UUID


class ReplayPage(BaseModel):
    """A page of replays. `next_cursor` is null on the last page."""

    model_config = _RESPONSE

    items: list[StoredReplay]
    next_cursor: str | None


class EndpointMessageAccepted(BaseModel):
    """The message is stored with a delivery for each matching endpoint."""

    model_config = _RESPONSE

    id: str
    endpoints: int


class AttemptPage(BaseModel):
    """A page of attempts. `next_cursor` is null on the last page."""

    model_config = _RESPONSE

    items: list[DeliveryAttempt]
    next_cursor: str | None


class DeliveryPage(BaseModel):
    """A page of deliveries. `next_cursor` is null on the last page."""

    model_config = _RESPONSE

    items: list[Delivery]
    next_cursor: str | None


CREATE_ENDPOINT: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "CreateEndpoint", CreateEndpoint, (EndpointCreated,)
)
GET_ENDPOINT: Final = RpcOperation(SUBSCRIPTIONS_REQUESTS, "GetEndpoint", GetEndpoint, (Endpoint,))
LIST_ENDPOINTS: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "ListEndpoints", ListEndpoints, (EndpointPage,)
)
CHANGE_ENDPOINT: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "ChangeEndpoint", ChangeEndpoint, (Endpoint,)
)
DELETE_ENDPOINT: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "DeleteEndpoint", ControlEndpoint, (EndpointDeleted,)
)
PAUSE_ENDPOINT: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "PauseEndpoint", ControlEndpoint, (Endpoint,)
)
RESUME_ENDPOINT: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "ResumeEndpoint", ControlEndpoint, (Endpoint,)
)
ROTATE_SECRET: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "RotateSecret", RotateSecret, (SecretRotated,)
)
TEST_ENDPOINT: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "TestEndpoint", ControlEndpoint, (EndpointTested,)
)
REPLAY_ENDPOINT: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "ReplayEndpoint", ReplayEndpoint, (ReplayStarted,)
)
LIST_REPLAYS: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "ListReplays", ListReplays, (ReplayPage,)
)
SEND_ENDPOINT_MESSAGE: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS,
    "SendEndpointMessage",
    SendEndpointMessage,
    (EndpointMessageAccepted,),
)
GET_ENDPOINT_MESSAGE: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "GetEndpointMessage", GetEndpointMessage, (EndpointMessage,)
)
LIST_MESSAGE_ATTEMPTS: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "ListMessageAttempts", ListMessageAttempts, (AttemptPage,)
)
LIST_ENDPOINT_MESSAGES: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "ListEndpointMessages", ListEndpointMessages, (DeliveryPage,)
)
LIST_FAILED_DELIVERIES: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "ListFailedDeliveries", ListFailedDeliveries, (DeliveryPage,)
)

ENDPOINT_OPERATIONS: Final = (
    CREATE_ENDPOINT,
    GET_ENDPOINT,
    LIST_ENDPOINTS,
    CHANGE_ENDPOINT,
    DELETE_ENDPOINT,
    PAUSE_ENDPOINT,
    RESUME_ENDPOINT,
    ROTATE_SECRET,
    TEST_ENDPOINT,
    REPLAY_ENDPOINT,
    LIST_REPLAYS,
)
ENDPOINT_MESSAGE_OPERATIONS: Final = (
    SEND_ENDPOINT_MESSAGE,
    GET_ENDPOINT_MESSAGE,
    LIST_MESSAGE_ATTEMPTS,
    LIST_ENDPOINT_MESSAGES,
    LIST_FAILED_DELIVERIES,
)
