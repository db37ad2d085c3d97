"""The content of a daily report: pure functions, no IO."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

from shared.contracts.mailings import MailingStatus
from shared.contracts.posting_requests import MessageState

_NAMESPACE: Final = UUID("0f0b5c9e-6c0e-4b43-8f57-9e1f0f4b2d61")

Counts = Mapping[MessageState, int]


@dataclass(frozen=True, slots=True)
class ReportedMailing:
    """A mailing in a report: the beginning of its text or its template, and its counts."""

    id: UUID
    title: str
    status: MailingStatus
    counts: Counts

    @property
    def total(self) -> int:
        """Return the number of its messages."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class DayReport:
    """The messages that were created on a day.

    mailing_count: number of all mailings with such messages.
    mailings: those with the most messages.
    by_hour: counts by the beginning of the hour.
    by_reason: why messages have their status.
    """

    day: date
    zone: ZoneInfo
    mailing_count: int
    mailings: Sequence[ReportedMailing]
    by_hour: Mapping[datetime, Counts]
    by_reason: Mapping[str, int]

    @property
    def by_status(self) -> dict[MessageState, int]:
        """Return the counts of the day."""
        return {
            state: sum(counts.get(state, 0) for counts in self.by_hour.values())
            for state in MessageState
        }

    @property
    def hours(self) -> list[tuple[str, Counts]]:
        """Return the counts of each hour from the first to the last one, with its local time."""
        if not self.by_hour:
            return []
        first, last = min(self.by_hour), max(self.by_hour)
        hours = [first + n * timedelta(hours=1) for n in range((last - first) // _HOUR + 1)]
        return [
            (f"{hour.astimezone(self.zone):%H:%M}", self.by_hour.get(hour, {})) for hour in hours
        ]


_HOUR: Final = timedelta(hours=1)


def bounds(day: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Return the beginning of a local day, and that of the next one, in UTC."""
    begin, end = (
        datetime.combine(each, time(), zone).astimezone(UTC)
        for each in (day, day + timedelta(days=1))
    )
    return begin, end


def day_before(at: datetime, zone: ZoneInfo) -> date:
    """Return the local day before a time."""
    return at.astimezone(zone).date() - timedelta(days=1)


def message_id(day: date, to: str) -> UUID:
    """Return the id of the e-mail with the report about a day, the same every time."""
    return uuid5(_NAMESPACE, f"{day} {to}")
