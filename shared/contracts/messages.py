"""SendEmail and SendSms: one rendered message to one person.

Published on the default exchange, to the queues `messages.email` and `messages.sms`.
"""

from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from shared.contracts.callback import ClientId, Identifier

SEND_EMAIL: Final = "SendEmail"
SEND_SMS: Final = "SendSms"

Channel = Literal["email", "sms"]

# What every mail server takes (RFC 5321, without quoted local parts); whether the mailbox is there,
# only its server knows.
EmailAddress = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
        r"@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$",
        max_length=254,
    ),
]
# E.164 without the plus.
Phone = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{6,14}$")]
# One line: what follows a line break would be a header of its own.
Subject = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=998)]
# PostgreSQL takes no NUL, and no mail may hold one.
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=1_048_576)]
Url = Annotated[str, StringConstraints(pattern=r"^https?://[\x21-\x7e]{1,2000}$")]


class _Message(BaseModel):
    """What every message tells besides its content."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    id: Identifier | None = Field(
        default=None, description="The message's id over all retries; left out: the message_id."
    )
    expires_at: AwareDatetime | None = Field(
        default=None, description="Not sent at or after this moment."
    )
    posting_id: Identifier | None = Field(
        default=None, description="The posting it is a part of; told in facts and logs."
    )
    user_id: ClientId | None = Field(default=None, description="Whom it is for; told in logs.")


class SendEmail(_Message):
    """Send an e-mail."""

    to: EmailAddress
    subject: Subject
    text: Text
    html: Text | None = Field(default=None, description="The same as HTML; sent as alternative.")
    unsubscribe_url: Url | None = Field(
        default=None,
        description="Where one click unsubscribes (RFC 8058): `List-Unsubscribe`.",
    )


class SendSms(_Message):
    """Send an SMS."""

    phone: Phone
    text: Annotated[Text, Field(min_length=1, max_length=1600)]
