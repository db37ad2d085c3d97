"""The values that the store takes and returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from services.mailings.campaigns.windows import Hours
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
class Cohort:
    """The clients of a mailing in one time zone, or all, and what they get.

    owner: the calling service that owns the clients; '' is the anonymous one.
    text: an inline text; None for a template.
    hours: the local hours in which they get it.
    """

    mailing_id: UUID
    owner: str
    timezone: str | None
    operator_codes: Sequence[str]
    tags: Sequence[str]
    channel: str
    text: str | None
    template: str | None
    template_context: dict[str, Any]
    hours: Hours | None
    rate_per_minute: int | None

    @property
    def delivery_type(self) -> tuple[str, ...]:
        """Return its channels."""
        return (self.channel,)

    @property
    def from_event(self) -> None:
        """Return None: no event causes a mailing."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A claimed posting.

    at: the time of the claim, by the clock of the database.
    age: seconds since the posting was accepted.
    lease: the number of the claim.
    unfinished: whether the last slice may have published a part of a page.
    fetched_data: the data that the template fetches; None if it is not fetched yet.
    is_list: whether its users are known to be more than one small response.
    next_page: the page after the checkpoint; None before the first page.
    pages: the checkpoint.
    failures: failed slices since the checkpoint.
    """

    id: UUID
    at: datetime
    age: float
    lease: int
    unfinished: bool
    content: Posting | Cohort
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


class ReturnedMessage(NamedTuple):
    """A message that delivery has returned, to be published again."""

    id: UUID
    user_id: str
    at: datetime


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
    mailing_id: UUID | None
    from_event: str | None
    messages: dict[str, int]
