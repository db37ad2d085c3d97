"""The operation that reads user events, for polls and streams, with its request and response.

A cursor names the last event that a client has received: `USER.SEQUENCE` in URL-safe base64. It is
not a secret, because a token authorises each read.
"""

import base64
import re
from typing import Annotated, Final, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from shared.contracts.requests import RpcOperation
from shared.contracts.schedules import ENVELOPE
from shared.contracts.users import TokenHash
from shared.topology import SUBSCRIPTIONS_REQUESTS

MAX_EVENTS: Final = 1000
MAX_CURSOR: Final = 100
MAX_ID: Final = (1 << 63) - 1  # of a bigint

_RESPONSE: Final = ConfigDict(frozen=True, extra="forbid")
_CURSOR: Final = re.compile(r"([1-9][0-9]{0,18})\.(0|[1-9][0-9]{0,18})")


class UserCursor(NamedTuple):
    """The last event of a user that a client has received; 0 before the first."""

    user_id: int
    sequence: int


def encode_user_cursor(cursor: UserCursor) -> str:
    """Return the text of a cursor."""
    text = f"{cursor.user_id}.{cursor.sequence}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_user_cursor(text: str) -> UserCursor:
    """Return the cursor in a text.

    Raises:
        ValueError: the text is not a result of `encode_user_cursor`.
    """
    padding = "=" * (-len(text) % 4)
    decoded = base64.b64decode((text + padding).encode(), b"-_", validate=True).decode()
    match = _CURSOR.fullmatch(decoded)
    if match is None:
        raise ValueError("is not a cursor")
    cursor = UserCursor(int(match[1]), int(match[2]))
    if max(cursor) > MAX_ID or encode_user_cursor(cursor) != text:
        raise ValueError("is not a cursor")
    return cursor


class ReadEvents(BaseModel):
    """Operation: return the user events after a position.

    With a cursor, it is that of the cursor. Without one, it is the position of the token, which
    moves to the last event returned. The failure `invalid` means that the cursor is malformed, of
    another user, or in the future.
    """

    model_config = ENVELOPE

    token_hash: TokenHash
    cursor: Annotated[str, StringConstraints(max_length=MAX_CURSOR)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_EVENTS)] = 1


class EventRead(BaseModel):
    """One user event, and the cursor after it."""

    model_config = _RESPONSE

    cursor: str
    type: str
    event: str = Field(description="A JSON object.")


class EventsRead(BaseModel):
    """User events in the order of their sequence. Fewer than `limit` if they are large."""

    model_config = _RESPONSE

    user_id: int
    events: list[EventRead]
    next_cursor: str = Field(
        description="The cursor after the last event. Without events: of the position read from."
    )
    expires_at: AwareDatetime = Field(description="Time at which the token expires.")


READ_EVENTS: Final = RpcOperation(SUBSCRIPTIONS_REQUESTS, "ReadEvents", ReadEvents, (EventsRead,))

POLL_OPERATIONS: Final = (READ_EVENTS,)
