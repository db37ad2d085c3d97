"""Who may read what, and the cursors of pages: what the request handlers share."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final, TypeVar
from uuid import UUID

from pydantic import BaseModel

from shared.amqp.rpc import RequestContext
from shared.contracts.requests import Failure, FailureCode, FieldError, invalid
from shared.http.guard import ForbiddenTargetError, parse_target
from shared.pagination import decode_cursor, encode_cursor

B = TypeVar("B", bound=BaseModel)
Response = BaseModel | Failure
Respond = Callable[[RequestContext, B], Awaitable[Response]]

OPERATORS_ONLY: Final = Failure(
    code=FailureCode.FORBIDDEN,
    detail="only operators may do this; RINGBACK_OPERATORS lists their client ids",
)
INVALID_CURSOR: Final = invalid([FieldError(field="cursor", message="is not a valid cursor")])


def visible(context: RequestContext) -> str | None:
    """Return the only client whose data a caller may see, '' for the anonymous one; None: all."""
    return None if context.operator else context.client_id or ""


def selected(context: RequestContext, client_id: str | None) -> str | Failure | None:
    """Return the client whose data a request is about, as `visible` does.

    client_id: the one that the request names. Only operators may name another one than their own.
    """
    own = visible(context)
    if client_id is None:
        return own
    return client_id if own in (None, client_id) else OPERATORS_ONLY


def for_operators(respond: Respond[B]) -> Respond[B]:
    """Return a handler that refuses everybody else."""

    async def execute(context: RequestContext, request: B) -> Response:
        return await respond(context, request) if context.operator else OPERATORS_ONLY

    return execute


def origin_of(target: str) -> str:
    """Return the scheme, host and port of a URL, as the journal stores them.

    Anything that is not a URL is returned as it is: the journal has no such target.
    """
    try:
        return parse_target(target).origin
    except ForbiddenTargetError:
        return target


def encode_place(place: tuple[datetime, int]) -> str:
    """Return the cursor of a position: a time and a number."""
    at, number = place
    return encode_cursor((at, UUID(int=number)))


def decode_place(cursor: str) -> tuple[datetime, int]:
    """Return the position of a cursor.

    Raises:
        ValueError: the text is not a cursor of `encode_place`.
    """
    at, id_ = decode_cursor(cursor)
    if id_.int >= 1 << 63:
        raise ValueError("a cursor holds a number that PostgreSQL can store")
    return at, id_.int
