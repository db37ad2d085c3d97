"""UserEvent: an event for one user of a subscriber. Exchange `user_events`."""

from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

from shared.contracts.callback import ClientId
from shared.contracts.context import check_context

USER_EVENT: Final = "UserEvent"


class UserEvent(BaseModel):
    """An event for the user `user_id`, delivered as `{"type": type, "event": event}`."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    user_id: ClientId
    type: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
    event: Annotated[dict[str, Any], AfterValidator(check_context)]
