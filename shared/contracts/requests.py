"""Requests and their answers: what one service asks of another, over AMQP's direct reply-to.

A request is a message of type OPERATION to a request queue, answered with `{"ok": …}` or with
`{"error": …}`, a `Failure`. `expiration` holds the asker's patience in milliseconds: what it has
run out for is dropped, by the broker or by the service. The caller's client id, verified by whoever
asks, stands in the header `x-ringback-client-id`; without it the caller is anonymous.
"""

from collections.abc import Iterable
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class FailureCode(StrEnum):
    """Why a request was not fulfilled."""

    INVALID = "invalid"  # the request itself is wrong; `errors` names each field
    CONFLICT = "conflict"  # it contradicts what is there
    NOT_FOUND = "not_found"
    FORBIDDEN = "forbidden"
    UNAVAILABLE = "unavailable"  # not now: nothing was done, repeat it later
    INTERNAL = "internal"  # a bug of ours; what was done is unknown


class FieldError(BaseModel):
    """One wrong field, such as `retry_params.base_delay`; empty where the whole is wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    field: str = Field(examples=["retry_params.base_delay"])
    message: str = Field(examples=["Field required"])


class Failure(BaseModel):
    """A request that was not fulfilled. An expected result: handlers return it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: FailureCode
    detail: str
    errors: tuple[FieldError, ...] = ()


def invalid(errors: Iterable[FieldError]) -> Failure:
    """The failure that names these fields."""
    errors = tuple(errors)
    detail = "; ".join(f"{each.field}: {each.message}".removeprefix(": ") for each in errors)
    return Failure(code=FailureCode.INVALID, detail=detail, errors=errors)
