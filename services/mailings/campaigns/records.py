"""The values that the store of campaigns takes and returns."""

from dataclasses import dataclass
from datetime import datetime, time
from typing import Any, Self
from uuid import UUID

from pydantic_core import from_json

from services.mailings.campaigns.domain import etag
from services.mailings.campaigns.windows import Hours
from shared.contracts.mailing_requests import Mailing
from shared.contracts.mailings import (
    ClientFilter,
    LocalHours,
    MailingContent,
    MailingStatus,
)


@dataclass(frozen=True, slots=True)
class NewRow:
    """A mailing to create."""

    id: UUID
    client_id: str
    fingerprint: bytes
    traceparent: str | None
    content: MailingContent


@dataclass(frozen=True, slots=True)
class StoredMailing:
    """A mailing as it is stored.

    fingerprint: of its creation.
    is_start_requested: whether the scheduler has confirmed its start time.
    stop_version: the version in which delivery's stop changed last; 0: it never had one.
    is_stop_confirmed: whether delivery has confirmed this version.
    closing: it has ended, and some messages may not be settled yet.
    reason: why one of its postings failed.
    """

    id: UUID
    client_id: str
    fingerprint: bytes
    traceparent: str | None
    content: MailingContent
    start_at: datetime
    status: MailingStatus
    version: int
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    is_start_requested: bool
    stop_version: int
    is_stop_confirmed: bool
    closing: bool
    reason: str | None

    @classmethod
    def of(cls, row: Any) -> Self:
        """Return the mailing in a row of the table."""
        hours = None
        if row["local_from"] is not None:
            interval = {"from": _minutes(row["local_from"]), "to": _minutes(row["local_to"])}
            hours = LocalHours.model_validate(interval)
        content = MailingContent(
            channel=row["channel"],
            text=row["text"],
            template=row["template"],
            template_context=from_json(row["template_context"]),
            start_at=row["start_at"],
            end_at=row["end_at"],
            filter=ClientFilter(operator_codes=row["operator_codes"], tags=row["tags"]),
            local_hours=hours,
            rate_per_minute=row["rate_per_minute"],
        )
        return cls(
            row["id"],
            row["client_id"],
            row["fingerprint"],
            row["traceparent"],
            content,
            row["start_at"],
            MailingStatus(row["status"]),
            row["version"],
            row["created_at"],
            row["started_at"],
            row["ended_at"],
            row["start_requested_at"] == row["start_at"],
            row["stop_version"],
            row["stop_confirmed"] >= row["stop_version"],
            row["closing"],
            row["reason"],
        )

    @property
    def etag(self) -> str:
        """Return the entity tag of this version."""
        return etag(self.version)

    def response(self) -> Mailing:
        """Return the mailing as callers see it."""
        fields = dict(self.content)
        return Mailing(
            **fields,
            id=self.id,
            status=self.status,
            created_at=self.created_at,
            started_at=self.started_at,
            ended_at=self.ended_at,
            reason=self.reason,
            etag=self.etag,
        )


def hours_of(content: MailingContent) -> Hours | None:
    """Return the local hours of a mailing as times of day."""
    hours = content.local_hours
    if hours is None:
        return None
    return Hours(time.fromisoformat(hours.opens), time.fromisoformat(hours.closes))


def _minutes(at: time) -> str:
    return at.strftime("%H:%M")
