"""Pure rules of endpoints and their messages."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from secrets import token_bytes
from typing import Any, Final
from uuid import UUID, uuid5

from shared.contracts.callback import STANDARD_PREFIX
from shared.contracts.endpoints import (
    Endpoint,
    EndpointChange,
    EndpointCreated,
    EndpointStatus,
    NewEndpoint,
)
from shared.ids import with_time_of

_NAMESPACE: Final = UUID("8b7f0a52-6a3c-4f0e-9d4a-0f7a1c5e2b91")
# Bytes. Standard Webhooks permits 24 to 64.
_SECRET_BYTES: Final = 32
DISABLED: Final = "endpoint.disabled"  # the event type, and the type of the fact
TEST: Final = "endpoint.test"


@dataclass(frozen=True, slots=True)
class Content:
    """The fields of an endpoint that a client sets."""

    url: str
    event_types: tuple[str, ...]
    description: str
    headers: Mapping[str, str]
    rate_limit: float | None
    ordered: bool
    fingerprint: str | None


@dataclass(frozen=True, slots=True)
class StoredEndpoint:
    """A customer's endpoint."""

    id: UUID
    content: Content
    secret: str
    status: EndpointStatus
    failing_since: datetime | None
    old_secret_until: datetime | None
    rotation: str | None
    version: int
    created_at: datetime
    updated_at: datetime

    @property
    def etag(self) -> str:
        """Return its entity tag."""
        return f'"{self.version}"'

    def matches(self, if_match: Sequence[str] | None) -> bool:
        """Return whether `If-Match` with these entity tags permits a change; None permits all."""
        return if_match is None or "*" in if_match or self.etag in if_match

    def response(self) -> Endpoint:
        """Return the endpoint as in responses."""
        return Endpoint(**self._fields())

    def created(self) -> EndpointCreated:
        """Return the endpoint with its secret."""
        return EndpointCreated(**self._fields(), secret=self.secret)

    def _fields(self) -> dict[str, Any]:
        content = self.content
        return {
            "id": self.id,
            "url": content.url,
            "event_types": list(content.event_types),
            "description": content.description,
            "headers": dict(content.headers),
            "rate_limit": content.rate_limit,
            "ordered": content.ordered,
            "fingerprint": content.fingerprint,
            "status": self.status,
            "failing_since": self.failing_since,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "etag": self.etag,
        }


def new_content(new: NewEndpoint) -> Content:
    """Return the content of a new endpoint."""
    return Content(
        new.url,
        _distinct(new.event_types),
        new.description,
        new.headers,
        new.rate_limit,
        new.ordered,
        new.fingerprint,
    )


def changed(content: Content, change: EndpointChange) -> Content:
    """Return the content after a change."""
    given = {name: value for name, value in change.fields.items() if name != "status"}
    if "event_types" in given:
        given["event_types"] = _distinct(given["event_types"])
    return replace(content, **given)


def filters_of(event_type: str) -> list[str]:
    """Return all filters that select an event type.

    `invoice.paid.late` is selected by itself, `invoice.paid.*`, `invoice.*` and `*`.
    """
    parts = event_type.split(".")
    prefixes = (".".join(parts[:count]) for count in range(1, len(parts)))
    return ["*", *(f"{prefix}.*" for prefix in prefixes), event_type]


def new_secret() -> str:
    """Return a new secret in the format of Standard Webhooks."""
    return STANDARD_PREFIX + b64encode(token_bytes(_SECRET_BYTES)).decode()


def endpoint_id(client_id: str, key: str | None, request_id: str) -> UUID:
    """Return the id of a new endpoint: the same for a repeat with the same idempotency key.

    Without a key, it is the same if the broker delivers the request again.
    """
    if key is None:
        return with_time_of(request_id, uuid5(_NAMESPACE, f"endpoint\0{client_id}\0{request_id}"))
    return uuid5(_NAMESPACE, f"endpoint-key\0{client_id}\0{key}")


def message_id(client_id: str, key: str | None, request_id: str) -> str:
    """Return the id of a message whose sender gave none, derived as in `endpoint_id`."""
    kind, name = ("message", request_id) if key is None else ("message-key", key)
    hashed = uuid5(_NAMESPACE, f"{kind}\0{client_id}\0{name}")
    return f"msg_{hashed.hex}"


def replay_id(client_id: str, request_id: str) -> UUID:
    """Return the id of a replay: the same if the broker delivers the request again."""
    return with_time_of(request_id, uuid5(_NAMESPACE, f"replay\0{client_id}\0{request_id}"))


def disabled_id(endpoint: UUID, failing_since: datetime) -> UUID:
    """Return the id of the fact and the message that report a disabled endpoint."""
    return uuid5(_NAMESPACE, f"disabled\0{endpoint}\0{failing_since.isoformat()}")


def _distinct(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
