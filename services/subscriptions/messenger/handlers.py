"""Handles the messages of the queue `user_events`."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from pydantic import BaseModel

from services.subscriptions import metrics
from services.subscriptions.messenger.domain import AppendResult, NewEvent
from services.subscriptions.messenger.domain import Outcome as AppendOutcome
from shared.amqp.message import Dead, Message, Outcome
from shared.amqp.parsing import parse_message
from shared.contracts.context import json_text
from shared.contracts.user_events import USER_EVENT, UserEvent
from shared.errors import ContractViolationError, PermanentError

logger = logging.getLogger(__name__)

# Any service may publish here. The exchange has one type of message, so its type may be missing.
_MODELS: Final = {USER_EVENT: UserEvent, "": UserEvent}


class UnknownUserError(PermanentError):
    """The user does not exist."""


def parse_user_event(message: Message, *, max_bytes: int) -> UserEvent:
    """Return the user event in a message.

    Raises:
        ContractViolationError: it is not valid; names every wrong field, but no value.
    """
    return parse_message(message, _MODELS, max_bytes=max_bytes)


def identity(event: UserEvent) -> str | None:
    """Return the event's own id, if any."""
    return event.id


class Handler:
    """Appends user events to their users' streams."""

    def __init__(self, append: Callable[[NewEvent], Awaitable[AppendResult]]) -> None:
        self._append = append

    async def handle(self, message: Message, event: UserEvent) -> AppendResult:
        """Append an event. It is committed on return.

        Raises:
            UnknownUserError: the user does not exist.
            StoreConnectionLostError: it may not have been stored; repeat it later.
        """
        new = NewEvent(event.user_id, event.id or message.id, event.type, json_text(event.event))
        result = await self._append(new)
        if result.outcome is AppendOutcome.UNKNOWN_USER:
            raise UnknownUserError(f"user {event.user_id} does not exist")
        return result


def report(
    message: Message, event: UserEvent | None, outcome: Outcome[AppendResult]
) -> BaseModel | None:
    """Count and log the outcome of a user event."""
    match outcome:
        case Dead(reason, error):
            match error:
                case UnknownUserError():
                    metrics.UNKNOWN_USER.inc()
                case ContractViolationError():
                    metrics.INVALID.inc()
                case _:
                    metrics.FAILED.inc()
            user_id = None if event is None else event.user_id
            logger.error(
                "user event dead-lettered",
                extra={"message_id": message.id, "user_id": user_id, "reason": reason},
            )
        case _:
            pass
    return None
