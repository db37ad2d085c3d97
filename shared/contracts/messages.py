"""SendEmail and SendSms: one rendered message to one recipient.

Published on the default exchange, to the queue of the channel (shared/registry.py).
"""

from typing import Annotated, Any, Final

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from shared.contracts.callback import ClientId, Identifier


def _describe_address(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        raise ValueError("is not an e-mail address such as user@mail.com") from None


# Addresses that every mail server accepts: RFC 5321 without quoted local parts.
EmailAddress = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
        r"@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$",
        max_length=254,
    ),
    WrapValidator(_describe_address),  # the pattern has 170 characters
]
# E.164 without the plus.
Phone = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{6,14}$")]
# One line, because a line break would start another header.
Subject = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=998)]
# PostgreSQL and mail both reject NUL.
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=1_048_576)]
Url = Annotated[str, StringConstraints(pattern=r"^https?://[\x21-\x7e]{1,2000}$")]

_PHONE_MARKS: Final = str.maketrans("", "", "+-() \u00a0")
_MAX_PHONE: Final = 1 << 63


def phone_digits(value: Any) -> Any:
    """Return a user's phone as a `Phone`; a value that does not look like one is unchanged."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MAX_PHONE:
        return str(value)
    return value.translate(_PHONE_MARKS) if isinstance(value, str) else value


class RenderedMessage(BaseModel):
    """The fields that messages of all channels share."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    id: Identifier | None = Field(
        default=None,
        description="Id of the message, the same on every attempt. Default: the message_id.",
    )
    expires_at: AwareDatetime | None = Field(
        default=None, description="The message is not sent at or after this time."
    )
    posting_id: Identifier | None = Field(
        default=None, description="Id of the posting that the message belongs to."
    )
    user_id: ClientId | None = Field(
        default=None, description="Id of the recipient in the user list, for logs."
    )


class SendEmail(RenderedMessage):
    """Send an e-mail."""

    to: EmailAddress
    subject: Subject
    text: Text
    html: Text | None = Field(
        default=None, description="The same content as HTML, sent as multipart/alternative."
    )
    unsubscribe_url: Url | None = Field(
        default=None,
        description="URL for one-click unsubscribe (RFC 8058), sent as `List-Unsubscribe`.",
    )


class SendSms(RenderedMessage):
    """Send an SMS."""

    phone: Phone
    text: Annotated[Text, Field(min_length=1, max_length=1600)]
