"""The operations that replay callbacks and pause targets, with their requests and responses."""

from typing import Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, Field

from shared.contracts.journal import (
    DEFAULT_RATE,
    RESPONSE,
    Filter,
    JobStarted,
    Matching,
    Origin,
    Rate,
)
from shared.contracts.journal_reads import CallbackRef, SelectedClient
from shared.contracts.requests import RpcOperation
from shared.contracts.schedules import ENVELOPE, Url
from shared.topology import JOURNAL_REQUESTS


class ReadRequest(BaseModel):
    """Read the kept request of a callback. Only for operators."""

    model_config = ENVELOPE

    id: CallbackRef
    client_id: SelectedClient = None


class KeptRequest(BaseModel):
    """A kept request. Its secrets and tickets are replaced by `******`."""

    model_config = RESPONSE

    callback_id: str
    at: AwareDatetime
    request: dict[str, Any] = Field(description="The SendCallback as it was published.")


class ReplayCallback(BaseModel):
    """Send a kept request again, under the same `webhook-id`."""

    model_config = ENVELOPE

    id: CallbackRef
    client_id: SelectedClient = None
    url: Url | None = Field(default=None, description="Send it to this URL instead.")


class Replayed(BaseModel):
    """The request was published again."""

    model_config = RESPONSE

    id: str = Field(description="The `webhook-id`.")


class StartReplay(BaseModel):
    """Replay every callback that matches, once. With `dry_run`, only count them."""

    model_config = ENVELOPE

    filter: Filter = Filter()
    status: Literal["failed", "delivered"] = Field(
        default="failed", description="Outcome of the callback's last attempt."
    )
    dry_run: bool = False
    rate: Rate = Field(default=DEFAULT_RATE, description="Callbacks per second.")
    url: Url | None = Field(default=None, description="Send them to this URL instead.")


class ControlTarget(BaseModel):
    """Pause or resume a target. Only for operators."""

    model_config = ENVELOPE

    target: Origin = Field(description="Scheme, host and port.")


class TargetControlled(BaseModel):
    """The target is paused or not."""

    model_config = RESPONSE

    target: str
    paused: bool


READ_REQUEST: Final = RpcOperation(JOURNAL_REQUESTS, "ReadRequest", ReadRequest, (KeptRequest,))
REPLAY_CALLBACK: Final = RpcOperation(
    JOURNAL_REQUESTS, "ReplayCallback", ReplayCallback, (Replayed,)
)
START_REPLAY: Final = RpcOperation(
    JOURNAL_REQUESTS, "StartReplay", StartReplay, (Matching, JobStarted)
)
PAUSE_TARGET: Final = RpcOperation(
    JOURNAL_REQUESTS, "PauseTarget", ControlTarget, (TargetControlled,)
)
RESUME_TARGET: Final = RpcOperation(
    JOURNAL_REQUESTS, "ResumeTarget", ControlTarget, (TargetControlled,)
)

REPLAY_OPERATIONS: Final = (READ_REQUEST, REPLAY_CALLBACK)
BULK_REPLAY_OPERATIONS: Final = (START_REPLAY,)
PAUSE_OPERATIONS: Final = (PAUSE_TARGET, RESUME_TARGET)
