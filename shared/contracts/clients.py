"""A client of a mailing: a person in the directory of a calling service."""

from functools import cache
from typing import Annotated, Final, Self
from uuid import UUID
from zoneinfo import available_timezones

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from shared.contracts.context import fields_error
from shared.contracts.messages import described
from shared.contracts.schedules import STRICT

PHONE_PATTERN: Final = "^7[0-9]{10}$"
PHONE_PREFIX_PATTERN: Final = "^7[0-9]{0,10}$"
OPERATOR_CODE_PATTERN: Final = "^[0-9]{3}$"
TAG_PATTERN: Final = r"^[^\x00-\x1f\x7f]{1,100}$"
TIMEZONE_PATTERN: Final = "^[A-Za-z0-9_+/-]{1,100}$"


def _known(zone: str) -> str:
    if zone not in time_zones():
        raise ValueError("is not a time zone such as Europe/Moscow")
    return zone


@cache
def time_zones() -> frozenset[str]:
    """Return the names of all IANA time zones."""
    return frozenset(available_timezones())


ClientPhone = Annotated[
    str,
    StringConstraints(pattern=PHONE_PATTERN),
    described("a phone number such as 79161234567"),
]
PhonePrefix = Annotated[
    str,
    StringConstraints(pattern=PHONE_PREFIX_PATTERN),
    described("the beginning of a phone number such as 7916"),
]
OperatorCode = Annotated[
    str,
    StringConstraints(pattern=OPERATOR_CODE_PATTERN),
    described("an operator code of three digits such as 916"),
]
Tag = Annotated[
    str,
    StringConstraints(pattern=TAG_PATTERN),
    described("a tag: 1 to 100 characters without control characters"),
]
TimeZone = Annotated[
    str,
    StringConstraints(pattern=TIMEZONE_PATTERN),
    described("a time zone such as Europe/Moscow"),
    AfterValidator(_known),
]

_PHONE: Final = "Phone number; unique among the clients of a calling service."
_OPERATOR_CODE: Final = "Code of the mobile operator. Default: digits 2 to 4 of the phone."
_TAG: Final = "Any label, for the filters of mailings."
_TIMEZONE: Final = "IANA time zone, for local hours."


class NewClient(BaseModel):
    """A client to create."""

    model_config = STRICT

    phone: ClientPhone = Field(description=_PHONE)
    operator_code: OperatorCode | None = Field(default=None, description=_OPERATOR_CODE)
    tag: Tag | None = Field(default=None, description=_TAG)
    timezone: TimeZone = Field(description=_TIMEZONE)


class ClientChange(BaseModel):
    """The changes of a client. Everything that is not given stays as it is."""

    model_config = ConfigDict(**STRICT, json_schema_extra={"minProperties": 1})

    phone: ClientPhone | None = Field(default=None, description="Another phone. Null: unchanged.")
    operator_code: OperatorCode | None = Field(
        default=None,
        description="Another operator code. Null, or a new phone without it: from the phone.",
    )
    tag: Tag | None = Field(default=None, description="Another tag. Null removes it.")
    timezone: TimeZone | None = Field(
        default=None, description="Another time zone. Null: unchanged."
    )

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if not self.fields:
            raise fields_error([("", "set phone, operator_code, tag or timezone")])
        return self

    @property
    def fields(self) -> dict[str, str | None]:
        """Return the fields to change. An operator code of None comes from the phone."""
        given = self.model_dump(exclude_unset=True)
        fields = {
            name: value
            for name, value in given.items()
            if value is not None or name in ("operator_code", "tag")
        }
        return {"operator_code": None, **fields} if "phone" in fields else fields


class Client(BaseModel):
    """A client in the directory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: UUID
    phone: str
    operator_code: str
    tag: str | None
    timezone: str
    created_at: AwareDatetime
    updated_at: AwareDatetime
    etag: str = Field(description="Changes with the client; for `If-Match`.")
