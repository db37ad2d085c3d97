"""The values that the store takes and returns."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from shared.contracts.message_facts import ReasonCode
from shared.contracts.posting_requests import MessageState
from shared.contracts.postings import Posting
from shared.registry import Priority


class LeaseLostError(Exception):
    """Another slice has claimed the posting, so this one must not write any more."""


@dataclass(frozen=True, slots=True)
class NewPosting:
    """A posting to accept."""

    id: UUID
    posting: Posting
    fingerprint: bytes
    expires_at: datetime | None
    priority: Priority
    client_id: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A claimed posting.

    lease: the number of the claim.
    unfinished: whether the last slice may have published a part of a page.
    fetched_data: the data that the template fetches; None if it is not fetched yet.
    is_list: whether its users are known to be more than one small response.
    next_page: of the page after the checkpoint; None before the first page.
    pages: the checkpoint.
    failures: failed slices since the checkpoint.
    """

    id: UUID
    lease: int
    unfinished: bool
    posting: Posting
    traceparent: str | None
    expires_at: datetime | None
    priority: Priority
    fetched_data: dict[str, Any] | None
    is_list: bool
    next_page: str | None
    pages: int
    receivers: int
    failures: int


class MessageRow(NamedTuple):
    """A new message; with a reason, it is skipped.

    operator_code: of the recipient of a mailing.
    subscription: the message is also skipped if its recipient has ended this one.
    """

    id: UUID
    user_id: str
    channel: str
    operator_code: str | None
    reason_code: ReasonCode | None
    reason: str | None
    subscription: bytes | None


class MessageChange(NamedTuple):
    """The new status of a message."""

    posting_id: UUID
    id: UUID
    status: MessageState
    reason_code: ReasonCode | None
    reason: str | None


class DonePosting(NamedTuple):
    """A posting whose last message is settled, and its messages by status."""

    id: UUID
    from_event: str | None
    messages: dict[str, int]
