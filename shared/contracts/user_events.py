"""UserEvent: an event for one user of the messenger. Exchange `user_events`.

The routing key is the id of the user. After a commit of new events, the service subscriptions
publishes a UserEventsWake, so that polls and streams of these users continue.
"""

import re
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from shared.contracts.callback import IDENTIFIER_PATTERN, check_webhook_id
from shared.contracts.context import check_context

USER_EVENT: Final = "UserEvent"
USER_EVENTS_WAKE: Final = "UserEventsWake"
# Bytes of a user event as JSON. A page of events fits in one response.
MAX_EVENT_BYTES: Final = 262_144
# Users in one UserEventsWake: about 20 kB.
MAX_WAKE_USERS: Final = 1000

_DIGITS: Final = r"^[0-9]{1,19}$"


def _parse_digits(value: Any) -> Any:
    return int(value) if isinstance(value, str) and re.fullmatch(_DIGITS, value) else value


# A JSON integer, or a string of digits, as in forms and rules.
UserId = Annotated[
    int,
    Field(ge=1, lt=1 << 63),
    BeforeValidator(
        _parse_digits,
        json_schema_input_type=Annotated[int, Field(ge=1, lt=1 << 63)]
        | Annotated[str, StringConstraints(pattern=_DIGITS)],
    ),
]
# No longer than a webhook-id permits, with the id of a user in front of it.
EventId = Annotated[
    str,
    StringConstraints(pattern=IDENTIFIER_PATTERN, max_length=200),
    AfterValidator(check_webhook_id),
]
EventType = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]


class UserEvent(BaseModel):
    """An event for the user `user_id`, delivered as `{"type": type, "event": event}`."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    id: EventId | None = Field(
        default=None,
        description="A repeat with the same id and user has no effect. Default: the message_id.",
    )
    user_id: UserId
    type: EventType
    event: Annotated[dict[str, Any], AfterValidator(check_context)]


class UserEventsWake(BaseModel):
    """Users with new committed events. A hint: without it, their next polls return the events."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    user_ids: list[int]
