"""Reads the content of daily reports from the statistics of mailings."""

from datetime import date, datetime
from typing import Final
from zoneinfo import ZoneInfo

from pydantic_core import from_json

from services.mailings.domain import storable
from services.mailings.reports.domain import DayReport, ReportedMailing, bounds
from shared.contracts.mailings import MailingStatus
from shared.contracts.posting_requests import MessageState
from shared.postgres.pool import Database
from shared.postgres.queries import queries

SQL: Final = queries("services.mailings", "statistics.sql")
# Mailings in a report: those with the most messages.
MAX_MAILINGS: Final = 50
# Characters of a text in a report.
MAX_TITLE: Final = 60


class Reports:
    """Reads reports. StoreConnectionLostError: the database is unavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_day(self, day: date, zone: ZoneInfo) -> DayReport:
        """Return the report about a local day, for the mailings of all callers."""
        begin, end = bounds(day, zone)
        counts = await self._database.fetch(SQL["day"], begin, end)
        mailings = await self._database.fetch(SQL["day_mailings"], begin, end, MAX_MAILINGS)
        by_hour: dict[datetime, dict[MessageState, int]] = {}
        for row in counts:
            if row["hour"] is not None:
                by_hour.setdefault(row["hour"], {})[MessageState(row["status"])] = row["count"]
        return DayReport(
            day,
            zone,
            mailings[0]["mailing_count"] if mailings else 0,
            [
                ReportedMailing(
                    row["id"],
                    _title(row["title"]),
                    MailingStatus(row["status"]),
                    {
                        MessageState(state): count
                        for state, count in from_json(row["counts"]).items()
                    },
                )
                for row in mailings
            ],
            by_hour,
            {row["reason_code"]: row["count"] for row in counts if row["reason_code"]},
        )


def _title(text: str) -> str:
    """Return the beginning of a text as one line."""
    line = storable(text).strip()
    return line if len(line) <= MAX_TITLE else f"{line[: MAX_TITLE - 1].rstrip()}…"
