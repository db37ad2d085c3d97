"""SendEmail and SendSms: one rendered message to one recipient.

Published on the default exchange, to the queue of the channel (shared/registry.py).
"""

from typing import Annotated, Any, Final, Self

import idna
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from shared.contracts.callback import ClientId, Identifier
from shared.contracts.context import fields_error


def described(form: str) -> WrapValidator:
    """Replace the error of a pattern, which can have hundreds of characters."""

    def validate(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(f"is not {form}") from None

    return WrapValidator(validate)


# E-mails to this top-level domain go only to a mail server that offers the extension, the sandbox.
# The domain never exists anywhere else (RFC 2606), so a demonstration cannot reach a person.
SANDBOX_DOMAIN: Final = ".invalid"
SANDBOX_EXTENSION: Final = "X-RINGBACK-SANDBOX"

_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u00a1-\uffff-]+"
_LABEL: Final = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
# Addresses that every mail server accepts: RFC 5321 without quoted local parts. A local part that
# is not ASCII needs a server with SMTPUTF8 (RFC 6531); domains are in ASCII.
EmailAddress = Annotated[
    str,
    StringConstraints(
        pattern=rf"^{_ATOM}(\.{_ATOM})*@({_LABEL}\.)+{_LABEL}$",
        max_length=254,
    ),
    described("an e-mail address such as user@mail.com"),
]
# The country codes of E.164. Numbers in a national format, such as 8 916 123-45-67, have none.
_COUNTRY_CODES: Final = "|".join(
    (
        *("1", "7", "20", "21[12368]", "2[2346][0-9]", "25[0-8]", "27", "29[01789]"),
        *("3[0-469]", "35[0-9]", "37[0-8]", "38[01235679]", "4[013-9]", "42[013]"),
        *("5[09][0-9]", "5[1-8]", "6[0-6]", "67[02-9]", "68[0-35-9]", "69[0-2]"),
        *("8[1246]", "80[08]", "85[02356]", "87[08]", "88[0-368]"),
        *("9[0-58]", "96[0-8]", "97[0-79]", "99[2-68]"),
    )
)
# E.164 without the plus.
Phone = Annotated[
    str,
    StringConstraints(pattern=f"^({_COUNTRY_CODES})[0-9]+$", min_length=7, max_length=15),
    described("a phone number with a country code such as 79161234567"),
]
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


def ascii_domain(value: Any) -> Any:
    """Return a user's e-mail address with its domain in ASCII; any other value is unchanged."""
    if not isinstance(value, str) or value.isascii():
        return value
    local_part, at, domain = value.rpartition("@")
    try:
        return f"{local_part}{at}{idna.encode(domain, uts46=True).decode()}"
    except idna.IDNAError:
        return value


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
    mailing_id: Identifier | None = Field(
        default=None, description="Id of the mailing. The message is not sent once it is stopped."
    )
    recipient_id: ClientId | None = Field(
        default=None, description="Id of the recipient in the client directory of the mailing."
    )
    send_until: AwareDatetime | None = Field(
        default=None,
        description="The message is returned to its mailing, not sent, at or after this time.",
    )

    @model_validator(mode="after")
    def _check_mailing(self) -> Self:
        if self.send_until is not None and self.mailing_id is None:
            raise fields_error([("send_until", "is only allowed with mailing_id")])
        return self


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
        description="URL for one-click unsubscribe (RFC 8058), sent as `List-Unsubscribe` if it is"
        " an https one.",
    )


class SendSms(RenderedMessage):
    """Send an SMS."""

    phone: Phone
    text: Annotated[Text, Field(min_length=1, max_length=1600)]
