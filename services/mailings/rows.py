"""Turns rows of the database into records, and changes of messages into columns. Pure functions."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from pydantic_core import from_json

from services.mailings import domain
from services.mailings.campaigns.windows import Hours
from services.mailings.records import Claim, Cohort, MessageChange
from shared.contracts.posting_requests import MessageState, PostingState
from shared.contracts.postings import Posting


def to_claim(row: Any) -> Claim:
    """Return the claim in a row."""
    return Claim(
        row["id"],
        row["at"],
        row["age"],
        row["lease"],
        row["unfinished"],
        to_posting(row["body"]) if row["mailing_id"] is None else to_cohort(row),
        row["traceparent"],
        row["expires_at"],
        row["priority"],
        None if row["fetched_data"] is None else from_json(row["fetched_data"]),
        row["is_list"],
        row["next_page"],
        row["pages"],
        row["receivers"],
        row["failures"],
    )


def to_posting(body: str) -> Posting:
    """Return a stored posting. A newer version may have stored it, with fields of its own."""
    return Posting.model_validate_json(body, extra="ignore")


def to_cohort(row: Any) -> Cohort:
    """Return the cohort of a mailing in the row of a claim."""
    hours = None if row["local_from"] is None else Hours(row["local_from"], row["local_to"])
    return Cohort(
        row["mailing_id"],
        row["client_id"],
        row["timezone"],
        row["operator_codes"],
        row["tags"],
        row["channel"],
        row["text"],
        row["template"],
        from_json(row["template_context"]),
        hours,
        row["rate_per_minute"],
    )


def to_progress(row: Any) -> dict[str, Any]:
    """Return the fields of the progress of a posting."""
    stored = to_posting(row["body"])
    return {
        "id": row["id"],
        "status": to_state(row),
        "reason": row["reason"],
        "from_event": stored.from_event,
        "template": stored.template,
        "delivery_type": list(stored.delivery_type),
        "accepted_at": row["accepted_at"],
        "expires_at": row["expires_at"],
        "pages": row["pages"],
        "receivers": row["receivers"],
        # Only messages of mailings can be cancelled.
        "messages": {
            MessageState(name): count
            for name, count in message_counts(row).items()
            if name != MessageState.CANCELLED
        },
    }


def to_state(row: Any) -> PostingState:
    """Return the state of a posting."""
    started = bool(row["pages"] or row["created"] or row["skipped"])
    return domain.posting_state(row["ended"], started=started, unsettled=row["created"])


def message_counts(row: Any) -> dict[str, int]:
    """Return the number of messages by status."""
    return {status.value: row[status.value] for status in MessageState}


_COUNTED: Final = (
    MessageState.CREATED,
    MessageState.SENT,
    MessageState.FAILED,
    MessageState.EXPIRED,
    MessageState.CANCELLED,
)


def differences(changes: Sequence[tuple[Any, MessageChange]]) -> list[list[Any]]:
    """Return the changes to the counters of each posting, as columns ordered by posting id."""
    counts: dict[UUID, dict[str, int]] = {}
    for row, change in changes:
        of_posting = counts.setdefault(change.posting_id, dict.fromkeys(_COUNTED, 0))
        of_posting[row["status"]] -= 1
        of_posting[change.status] += 1
    ids = sorted(counts)
    return [ids, *([counts[id_][status] for id_ in ids] for status in _COUNTED)]
