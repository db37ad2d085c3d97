"""The operations on the statistics of mailings, with the models of their requests and responses."""

from datetime import date
from typing import Final
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NonNegativeInt

from shared.contracts.message_facts import ReasonCode
from shared.contracts.posting_requests import MessageState
from shared.contracts.requests import RpcOperation
from shared.contracts.schedules import ENVELOPE
from shared.topology import MAILINGS_REQUESTS

_RESPONSE: Final = ConfigDict(frozen=True, extra="forbid")


class GetStatistics(BaseModel):
    """Operation: count the messages of all mailings of the caller."""

    model_config = ENVELOPE


class GetMailingStatistics(BaseModel):
    """Operation: count the messages of a mailing by status, hour, operator code and reason."""

    model_config = ENVELOPE

    id: UUID


class GetReport(BaseModel):
    """Operation: return the report about the mailings of all callers on a day.

    The gateway offers no route for it.
    """

    model_config = ENVELOPE

    day: date | None = Field(default=None, description="Default: yesterday.")


class _Counts(BaseModel):
    """Messages, counted."""

    model_config = _RESPONSE

    total: NonNegativeInt
    by_status: dict[MessageState, NonNegativeInt]


class Statistics(_Counts):
    """The messages of all mailings of the caller."""

    mailings: NonNegativeInt


class HourStatistics(_Counts):
    """The messages that were created in an hour."""

    hour: AwareDatetime = Field(description="Beginning of the hour.")


class OperatorStatistics(_Counts):
    """The messages to clients of an operator code."""

    operator_code: str


class MailingStatistics(_Counts):
    """The messages of a mailing. They stay counted after the retention of messages."""

    mailing_id: UUID
    by_hour: list[HourStatistics] = Field(description="By the hour of their creation.")
    by_operator_code: list[OperatorStatistics]
    by_reason: dict[ReasonCode, NonNegativeInt] = Field(
        description="Why messages have their status: only those with a reason."
    )


class Report(_Counts):
    """The report about the messages that were created on a day, as counts and as text."""

    day: date
    timezone: str = Field(description="The time zone of the day.")
    mailings: NonNegativeInt = Field(description="Mailings with such messages.")
    by_hour: list[HourStatistics]
    by_reason: dict[str, NonNegativeInt]
    subject: str
    text: str


GET_STATISTICS: Final = RpcOperation(
    MAILINGS_REQUESTS, "GetStatistics", GetStatistics, (Statistics,)
)
GET_MAILING_STATISTICS: Final = RpcOperation(
    MAILINGS_REQUESTS, "GetMailingStatistics", GetMailingStatistics, (MailingStatistics,)
)
GET_REPORT: Final = RpcOperation(MAILINGS_REQUESTS, "GetReport", GetReport, (Report,))

STATISTICS_OPERATIONS: Final = (GET_STATISTICS, GET_MAILING_STATISTICS)
REPORT_OPERATIONS: Final = (GET_REPORT,)
