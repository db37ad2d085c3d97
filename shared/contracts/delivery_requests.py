"""The operations of delivery over AMQP, with the models of their requests and responses."""

from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from shared.contracts.callback import Identifier
from shared.contracts.requests import RpcOperation
from shared.contracts.schedules import ENVELOPE
from shared.topology import DELIVERY_REQUESTS


class StopMailing(BaseModel):
    """Send no message of a mailing from a time on. A later time lifts an earlier stop."""

    model_config = ENVELOPE

    mailing_id: Identifier
    version: Annotated[int, Field(ge=1, lt=1 << 63)] = Field(
        description="Version of the mailing. A request with an older or equal one has no effect."
    )
    at: AwareDatetime | None = Field(
        default=None,
        description="No message is handed to a provider at or after this time. Default: from now"
        " on.",
    )


class MailingStopped(BaseModel):
    """The stop is committed. No process sends a message of the mailing a second after it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mailing_id: Identifier


STOP_MAILING: Final = RpcOperation(DELIVERY_REQUESTS, "StopMailing", StopMailing, (MailingStopped,))

DELIVERY_OPERATIONS: Final = (STOP_MAILING,)
