"""The bodies of the messenger's routes."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from services.gateway.messenger.declaration import EXAMPLE_TOKEN
from shared.contracts.callback import Fingerprint
from shared.contracts.polls import MAX_CURSOR, MAX_EVENTS
from shared.contracts.schedules import STRICT, Url
from shared.contracts.user_events import UserId
from shared.contracts.users import GivenName, GivenPassword, MessageText, Name, Password

Token = Annotated[
    Annotated[str, StringConstraints(max_length=1000)] | None,
    Field(repr=False, description="The token of a sign-in. It can also be a bearer token."),
]
_RESPONSE = ConfigDict(frozen=True, extra="forbid")
Ok = Literal[10]


class NewUser(BaseModel):
    """A user to register."""

    model_config = STRICT

    name: Name
    password: Password


class SignInForm(BaseModel):
    """The name and password of a user who signs in."""

    model_config = STRICT

    name: GivenName
    password: GivenPassword


class TokenForm(BaseModel):
    """The token of a user."""

    model_config = STRICT

    token: Token = None


class NewMessage(BaseModel):
    """A message to a user."""

    model_config = STRICT

    token: Token = None
    to_id: UserId
    text: MessageText


class CallbackForm(BaseModel):
    """The server that receives the events of a user."""

    model_config = STRICT

    token: Token = None
    callback: Url
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


class Done(BaseModel):
    """The request was carried out."""

    model_config = _RESPONSE

    code: Ok


class Registered(BaseModel):
    """The user exists."""

    model_config = _RESPONSE

    code: Ok
    user_id: int


class TokenIssued(BaseModel):
    """The user is signed in. The token is returned only here."""

    model_config = _RESPONSE

    code: Ok
    token: str = Field(examples=[EXAMPLE_TOKEN])


class MessageSent(BaseModel):
    """The message and its event are stored."""

    model_config = _RESPONSE

    code: Ok
    message_id: int


class SecretIssued(BaseModel):
    """The callback is registered. The secret is returned only here."""

    model_config = _RESPONSE

    code: Ok
    secret: str


class CallbackTestSent(BaseModel):
    """The test event is on its way."""

    model_config = _RESPONSE

    code: Ok
    webhook_id: str


class PollForm(BaseModel):
    """A request for the next events of a user."""

    model_config = STRICT

    token: Token = None
    timeout: Annotated[float, Field(ge=0, le=60)] = Field(
        default=25.0, description="Seconds to wait for an event."
    )
    cursor: Annotated[str, StringConstraints(max_length=MAX_CURSOR)] | None = Field(
        default=None,
        description="`next_cursor` of an earlier response. Default: the position of the token.",
    )
    limit: Annotated[int, Field(ge=1, le=MAX_EVENTS)] | None = Field(
        default=None, description="Maximum number of events, returned as a list."
    )


class PolledEvent(BaseModel):
    """An event of a user."""

    model_config = _RESPONSE

    type: str
    event: dict[str, Any]


class PollResponse(BaseModel):
    """An event, or a list of events. An empty list means that nothing happened in time."""

    model_config = _RESPONSE

    type: str = ""
    event: dict[str, Any] = Field(default_factory=dict)
    events: list[PolledEvent] = Field(default_factory=list)
    next_cursor: str = ""
