"""RPC between services over AMQP: operations, and the result of a failed request.

The AMQP `type` of a request names the operation. The response is `{"ok": …}`, or `{"error": …}`
with a `Failure`, and goes to AMQP's direct reply-to. The message's `expiration` holds the caller's
timeout in milliseconds; the broker or the service drops an expired request. The header
`x-ringback-client-id` holds the client id of a verified ticket; an anonymous request has none.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

M_co = TypeVar("M_co", bound=BaseModel, covariant=True)


@dataclass(frozen=True, slots=True)
class RpcOperation(Generic[M_co]):
    """An operation of a service: its request queue, its name, its request and response models.

    `name` is the AMQP type of the request.
    """

    queue: str
    name: str
    request: type[M_co]
    responses: tuple[type[BaseModel], ...]

    @property
    def service(self) -> str:
        """Return the name of the service that responds."""
        return self.queue.removesuffix(".requests")


class FailureCode(StrEnum):
    """The reason why a request failed."""

    INVALID = "invalid"  # the request itself is wrong; `errors` names each field
    CONFLICT = "conflict"  # the request contradicts the stored state
    NOT_KEPT = "not_kept"  # the journal has not kept what the request needs
    NOT_FOUND = "not_found"
    PRECONDITION_FAILED = "precondition_failed"  # the resource is not in the state that was read
    FORBIDDEN = "forbidden"
    UNAUTHORIZED = "unauthorized"  # the token, or the name or password, is not valid
    TOO_MANY_REQUESTS = "too_many_requests"  # nothing was done; `retry_after` says when to repeat
    UNAVAILABLE = "unavailable"  # nothing was done; the caller may retry later
    UNKNOWN = "unknown"  # a store was lost; it is unknown whether the request took effect
    INTERNAL = "internal"  # a bug in Ringback; the effect of the request is unknown


class FieldError(BaseModel):
    """A rejected field, such as `retry_params.base_delay`; empty for the whole body."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    field: str = Field(examples=["retry_params.base_delay"])
    message: str = Field(examples=["Field required"])

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class Failure(BaseModel):
    """A request that failed. This is an expected result: handlers return it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: FailureCode
    detail: str
    errors: tuple[FieldError, ...] = ()
    retry_after: int | None = Field(default=None, description="Seconds.")


def invalid(errors: Iterable[FieldError]) -> Failure:
    """Return the failure that names these fields."""
    errors = tuple(errors)
    detail = "; ".join(map(str, errors))
    return Failure(code=FailureCode.INVALID, detail=detail, errors=errors)
