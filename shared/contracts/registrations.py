"""The operations on the callback that a user of the messenger registers for their events."""

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from shared.contracts.callback import Fingerprint
from shared.contracts.requests import RpcOperation
from shared.contracts.schedules import ENVELOPE, STRICT, Url
from shared.contracts.users import TokenHash
from shared.topology import SUBSCRIPTIONS_REQUESTS

_RESPONSE: Final = ConfigDict(frozen=True, extra="forbid")


class Registration(BaseModel):
    """The server that receives the events of a user."""

    model_config = STRICT

    callback: Url = Field(examples=["https://203.0.113.7:8443/"])
    fingerprint: Fingerprint | None = None
    ordered: bool = Field(
        default=False,
        description="Whether an event is sent only when the one before it was delivered or has"
        " failed for good.",
    )
    ack: bool = Field(
        default=False,
        description="Whether the callback and polls with this token share one position.",
    )


class StartCallback(BaseModel):
    """Operation: register the callback of a user, or replace it."""

    model_config = ENVELOPE

    token_hash: TokenHash
    registration: Registration


class StopCallback(BaseModel):
    """Operation: remove the callback of a user."""

    model_config = ENVELOPE

    token_hash: TokenHash


class TestCallback(BaseModel):
    """Operation: send a test event to the callback of a user."""

    __test__ = False  # pytest would collect a class of this name

    model_config = ENVELOPE

    token_hash: TokenHash


class CallbackStarted(BaseModel):
    """The callback is registered. Its secret is returned only here."""

    model_config = _RESPONSE

    secret: str = Field(repr=False, examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])


class CallbackStopped(BaseModel):
    """The user no longer has a callback."""

    model_config = _RESPONSE

    user_id: int


class CallbackTested(BaseModel):
    """The test event is on its way."""

    model_config = _RESPONSE

    webhook_id: str


START_CALLBACK: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "StartCallback", StartCallback, (CallbackStarted,)
)
STOP_CALLBACK: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "StopCallback", StopCallback, (CallbackStopped,)
)
TEST_CALLBACK: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "TestCallback", TestCallback, (CallbackTested,)
)

REGISTRATION_OPERATIONS: Final = (START_CALLBACK, STOP_CALLBACK, TEST_CALLBACK)
