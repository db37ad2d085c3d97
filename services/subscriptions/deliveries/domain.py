"""The states of a delivery, and what a fact about it changes. Pure."""

from hashlib import sha256
from typing import Final

from shared.contracts.callback import check_webhook_id

_MAX_WEBHOOK_ID: Final = 255


def user_event_webhook_id(user_id: int, event_id: str) -> str:
    """Return the `webhook-id` of a user event: the same for each attempt and each repeat."""
    webhook_id = f"{user_id}-{event_id}"
    try:
        if len(webhook_id) <= _MAX_WEBHOOK_ID:
            return check_webhook_id(webhook_id)
    except ValueError:
        pass
    return f"{user_id}-{sha256(event_id.encode()).hexdigest()}"
