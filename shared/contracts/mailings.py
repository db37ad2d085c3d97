"""Mailings: a text to all clients of the directory that match a filter, in their own daytime.

The operations on mailings are in mailing_requests.py.
"""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from shared.contracts.clients import ClientPhone, OperatorCode, Tag
from shared.contracts.context import check_context, fields_error
from shared.contracts.postings import Template, Variable
from shared.contracts.schedules import STRICT, UtcTime

# Values in one list of a filter.
MAX_FILTER_VALUES: Final = 1000
MAX_TEXT: Final = 10_000


class MailingStatus(StrEnum):
    """The status of a mailing. The last two are final."""

    DRAFT = "draft"  # waits for its start by hand
    SCHEDULED = "scheduled"  # waits for its start time
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"  # all messages are settled, or the end time has passed
    CANCELLED = "cancelled"


def _digits(value: Any) -> Any:
    """Accept an operator code as a number, too."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


LocalTime = Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
MailingText = Annotated[
    str, StringConstraints(pattern=r"^[^\x00]*$", min_length=1, max_length=MAX_TEXT)
]
RatePerMinute = Annotated[int, Field(ge=1, le=1_000_000)]


class ClientFilter(BaseModel):
    """Select clients. An absent or empty list selects all."""

    model_config = STRICT

    operator_codes: Annotated[
        list[Annotated[OperatorCode, BeforeValidator(_digits)]], Field(max_length=MAX_FILTER_VALUES)
    ] = Field(default_factory=list, description="Only clients with one of these operator codes.")
    tags: Annotated[list[Tag], Field(max_length=MAX_FILTER_VALUES)] = Field(
        default_factory=list, description="Only clients with one of these tags."
    )


class LocalHours(BaseModel):
    """The time of day in which clients get messages, in their own time zone."""

    model_config = ConfigDict(**STRICT, serialize_by_alias=True)

    opens: LocalTime = Field(alias="from", description="First minute, such as `09:00`.")
    closes: LocalTime = Field(
        alias="to",
        description="First minute after it, such as `21:00`. If it is earlier than `from`, it is a"
        " time of the next day.",
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.opens == self.closes:
            raise fields_error([("to", "must differ from `from`")])
        return self


class MailingContent(BaseModel):
    """The fields of a mailing that a caller sets."""

    model_config = STRICT

    channel: Literal["sms"] = "sms"
    text: MailingText | None = Field(
        default=None,
        description="The text, in which `{{ user.tag }}` stands for a field of the client.",
    )
    template: Template | None = Field(
        default=None, description="Instead of `text`: the name of a template, as in a posting."
    )
    template_context: Annotated[dict[Variable, Any], AfterValidator(check_context)] = Field(
        default_factory=dict, description="Literal values for variables of the text."
    )
    start_at: UtcTime | None = Field(
        default=None, description="Start time. Default: as soon as possible."
    )
    end_at: UtcTime = Field(description="No message is sent at or after this time.")
    filter: ClientFilter = Field(default_factory=ClientFilter)
    local_hours: LocalHours | None = None
    rate_per_minute: RatePerMinute | None = Field(
        default=None, description="Maximum number of messages a minute."
    )

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        faults = []
        if (self.text is None) == (self.template is None):
            faults.append(("text", "set either text or template"))
        if self.start_at is not None and self.end_at <= self.start_at:
            faults.append(("end_at", "must be after start_at"))
        if faults:
            raise fields_error(faults)
        return self


class NewMailing(MailingContent):
    """Send a text to all clients that match a filter, from `start_at` until `end_at`."""

    draft: bool = Field(
        default=False, description="Wait for `POST /v1/mailings/{id}/start` instead of starting."
    )


class MailingChanges(BaseModel):
    """New values of a mailing's fields. Absent fields stay as they are."""

    model_config = STRICT

    channel: Literal["sms"] = "sms"
    text: MailingText | None = Field(default=None, description="Replaces a template, too.")
    template: Template | None = Field(default=None, description="Replaces a text, too.")
    template_context: Annotated[dict[Variable, Any], AfterValidator(check_context)] = Field(
        default_factory=dict
    )
    start_at: UtcTime | None = None
    end_at: UtcTime | None = None
    filter: ClientFilter = Field(default_factory=ClientFilter)
    local_hours: LocalHours | None = Field(
        default=None, description="`null` removes the restriction."
    )
    rate_per_minute: RatePerMinute | None = Field(
        default=None, description="`null` removes the limit."
    )

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if not self.model_fields_set:
            raise fields_error([("", "set at least one field")])
        required = {"text", "template", "start_at", "end_at"} & self.model_fields_set
        if nulls := sorted(name for name in required if getattr(self, name) is None):
            raise fields_error([(name, "must not be null") for name in nulls])
        return self


class AudienceFilter(BaseModel):
    """A filter whose clients are counted."""

    model_config = STRICT

    filter: ClientFilter = Field(default_factory=ClientFilter)


class TestPhone(BaseModel):
    """The phone that gets a test message."""

    __test__ = False  # pytest would collect a class of this name

    model_config = STRICT

    phone: ClientPhone
