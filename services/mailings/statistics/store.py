"""The statistics of mailings in PostgreSQL.

All methods raise StoreConnectionLostError when the database is unavailable.
"""

from collections.abc import Iterable, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

from shared.contracts.mailing_statistics import (
    HourStatistics,
    MailingStatistics,
    OperatorStatistics,
    Statistics,
)
from shared.contracts.message_facts import ReasonCode
from shared.contracts.posting_requests import MessageState
from shared.postgres.pool import Database
from shared.postgres.queries import queries

SQL: Final = queries("services.mailings", "statistics.sql")


class StatisticsStore:
    """Reads the counts of messages."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def overall(self, owner: str) -> Statistics:
        """Return the counts of all mailings of an owner."""
        row = await self._database.fetchrow(SQL["overall"], owner)
        return Statistics(mailings=row["mailings"], **_counts(row))

    async def of_mailing(self, owner: str, mailing_id: UUID) -> MailingStatistics | None:
        """Return the counts of a mailing; None if the owner has no such mailing."""
        rows = await self._database.fetch(SQL["of_mailing"], owner, mailing_id)
        if not rows and not await self._database.fetch(SQL["exists"], owner, mailing_id):
            return None
        return MailingStatistics(
            mailing_id=mailing_id,
            **_counts(_by_status(row for row in rows if _groups_by(row) == "status")),
            by_hour=[
                HourStatistics(hour=hour, **counts) for hour, counts in _grouped(rows, "hour")
            ],
            by_operator_code=[
                OperatorStatistics(operator_code=code, **counts)
                for code, counts in _grouped(rows, "operator_code")
            ],
            by_reason={
                ReasonCode(row["reason_code"]): row["count"]
                for row in rows
                if _groups_by(row) == "reason_code" and row["reason_code"]
            },
        )


def _groups_by(row: Any) -> str:
    """Return the column that a row groups by."""
    columns = ("hour", "operator_code", "reason_code")
    return next((column for column in columns if row[column] is not None), "status")


def _grouped(rows: Iterable[Any], column: str) -> list[tuple[Any, dict[str, Any]]]:
    """Return the counts for each value of a column."""
    own = [row for row in rows if _groups_by(row) == column]
    return [
        (value, _counts(_by_status(group))) for value, group in groupby(own, itemgetter(column))
    ]


def _by_status(rows: Iterable[Any]) -> dict[str, int]:
    return {row["status"]: row["count"] for row in rows}


def _counts(of: Mapping[str, int]) -> dict[str, Any]:
    """Return the fields that all statistics share."""
    by_status = {state: int(of.get(state, 0)) for state in MessageState}
    return {"total": sum(by_status.values()), "by_status": by_status}
