"""The operations on users of the messenger, with their requests and responses.

A request proves its user by the hash of a token. The gateway creates tokens and hashes them, so no
token is in the broker. Failures: `unauthorized` for a token that is not valid, and for a wrong name
or password; `not_found` for a user who does not exist; `conflict` for a taken name.
"""

from hashlib import sha256
from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from shared.contracts.requests import RpcOperation
from shared.contracts.schedules import ENVELOPE, STRICT
from shared.contracts.user_events import UserId
from shared.topology import SUBSCRIPTIONS_REQUESTS

MAX_NAME: Final = 15
MIN_PASSWORD: Final = 8
MAX_PASSWORD: Final = 1000
MAX_TEXT: Final = 10_000
# The type of the event that a message causes.
NEW_MESSAGE: Final = "new_message"

_RESPONSE: Final = ConfigDict(frozen=True, extra="forbid")

Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_NAME, pattern=r"^[^\x00-\x1f\x7f]*$"),
    Field(examples=["ann"]),
]
Password = Annotated[
    str,
    StringConstraints(min_length=MIN_PASSWORD, max_length=MAX_PASSWORD),
    Field(repr=False, examples=["a-long-password"]),
]
# The name and password of a sign-in: a name that is too long is a wrong name.
GivenName = Annotated[
    str,
    StringConstraints(max_length=MAX_PASSWORD, pattern=r"^[^\x00]*$"),
    Field(examples=["ann"]),
]
GivenPassword = Annotated[
    str,
    StringConstraints(max_length=MAX_PASSWORD),
    Field(repr=False, examples=["a-long-password"]),
]
# PostgreSQL cannot store NUL.
MessageText = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_TEXT, pattern=r"^[^\x00]*$")
]
TokenHash = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


def token_hash(token: str) -> str:
    """Return the hash under which a token is stored. Tokens are random, so it needs no salt."""
    return sha256(token.encode(errors="surrogatepass")).hexdigest()


class Credentials(BaseModel):
    """The name and password of a user."""

    model_config = STRICT

    name: Name
    password: Password


class RegisterUser(BaseModel):
    """Operation: register a user."""

    model_config = ENVELOPE

    user: Credentials


class SignIn(BaseModel):
    """Operation: make a new token valid for the user with this name and password."""

    model_config = ENVELOPE

    name: GivenName
    password: GivenPassword
    token_hash: TokenHash


class SignOut(BaseModel):
    """Operation: revoke a token."""

    model_config = ENVELOPE

    token_hash: TokenHash


class SendUserMessage(BaseModel):
    """Operation: send a message to a user, who gets it as a user event of type `new_message`."""

    model_config = ENVELOPE

    token_hash: TokenHash
    to_id: UserId
    text: MessageText


class UserRegistered(BaseModel):
    """The user exists."""

    model_config = _RESPONSE

    user_id: int


class SignedIn(BaseModel):
    """The token is valid."""

    model_config = _RESPONSE

    user_id: int
    expires_at: AwareDatetime


class SignedOut(BaseModel):
    """The token is no longer valid."""

    model_config = _RESPONSE

    user_id: int


class UserMessageSent(BaseModel):
    """The message and its event are stored."""

    model_config = _RESPONSE

    message_id: int
    from_id: int = Field(description="The user of the token.")


REGISTER_USER: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "RegisterUser", RegisterUser, (UserRegistered,)
)
SIGN_IN: Final = RpcOperation(SUBSCRIPTIONS_REQUESTS, "SignIn", SignIn, (SignedIn,))
SIGN_OUT: Final = RpcOperation(SUBSCRIPTIONS_REQUESTS, "SignOut", SignOut, (SignedOut,))
SEND_USER_MESSAGE: Final = RpcOperation(
    SUBSCRIPTIONS_REQUESTS, "SendUserMessage", SendUserMessage, (UserMessageSent,)
)

USER_OPERATIONS: Final = (REGISTER_USER, SIGN_IN, SIGN_OUT, SEND_USER_MESSAGE)
