"""Handles the messages of the exchange `schedules`: create, cancel and reschedule."""

import logging
from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from pydantic import BaseModel

from services.scheduler.intake import IdempotencyConflict, Intake, KeyUsed
from services.scheduler.operations import CALLBACK_NOT_FOUND, Operations
from shared.amqp.message import Dead, Message, Outcome
from shared.amqp.parsing import parse_message
from shared.contracts.requests import Failure
from shared.contracts.schedule_changes import (
    CANCEL_CALLBACK,
    RESCHEDULE_CALLBACK,
    CancelCallback,
    RescheduleCallback,
)
from shared.contracts.schedule_requests import CancelResult, RescheduleResult
from shared.contracts.schedules import SCHEDULE_CALLBACK, ScheduleCallback, callback_id_of_message
from shared.errors import ContractViolationError, DeferredError, PermanentError
from shared.security.tickets import TicketVerifier

logger = logging.getLogger(__name__)

_CHANGED: Final = (RescheduleResult.RESCHEDULED, RescheduleResult.CHANGED)
Command = ScheduleCallback | CancelCallback | RescheduleCallback

ANONYMOUS: Final = ""
# A cancel or a reschedule can overtake its ScheduleCallback, which another scheduler has. That one
# inserts it within milliseconds, or within seconds after an outage of the database.
DEFERRAL: Final = 5.0
MAX_DEFERRALS: Final = 3
_MODELS: Final[Mapping[str, type[Command]]] = {
    SCHEDULE_CALLBACK: ScheduleCallback,
    CANCEL_CALLBACK: CancelCallback,
    RESCHEDULE_CALLBACK: RescheduleCallback,
}


def parse_command(message: Message, *, max_bytes: int) -> Command:
    """Return the command in a message.

    Raises:
        ContractViolationError: the message is not valid; the error names every wrong field.
    """
    return parse_message(message, _MODELS, max_bytes=max_bytes)


class Handler:
    """Executes commands."""

    def __init__(
        self,
        intake: Intake,
        operations: Operations,
        verifier: TicketVerifier,
        *,
        anonymous: bool,
        ticket_header: str,
    ) -> None:
        self._intake = intake
        self._operations = operations
        self._verifier = verifier
        self._anonymous = anonymous
        self._ticket_header = ticket_header

    async def handle(self, message: Message, command: Command) -> None:
        """Execute a command; the result is committed on return.

        Raises:
            InvalidTicketError: the ticket is not valid.
            ContractViolationError: the due time is out of bounds.
            PermanentError: the keys or the message_id are used, the callback does not exist, or a
                ticket is required.
            DeferredError: the callback does not exist yet.
            StoreConnectionLostError: repeat it later.
        """
        client_id = self._client_id(message)
        match command:
            case ScheduleCallback():
                await self._create(command, client_id, message)
            case CancelCallback():
                # Earlier messages of the queue may still wait for their batch.
                await self._intake.flush()
                if command.whole_group:
                    await self._cancel_group(client_id, command)
                    return
                cancelled = await self._operations.cancel(client_id, command)
                if cancelled.result is CancelResult.NOT_FOUND:
                    raise _not_found(message)
            case RescheduleCallback():
                await self._intake.flush()
                rescheduled = await self._operations.reschedule(client_id, command)
                if isinstance(rescheduled, Failure):
                    raise ContractViolationError(rescheduled.detail)
                if rescheduled.result is RescheduleResult.NOT_FOUND:
                    raise _not_found(message)
                if rescheduled.result not in _CHANGED:
                    raise PermanentError(f"not rescheduled: {rescheduled.result.value}")

    async def _cancel_group(self, client_id: str, command: CancelCallback) -> None:
        while True:
            response = await self._operations.cancel_group(client_id, command)
            if isinstance(response, Failure):
                raise ContractViolationError(response.detail)
            if response.next_cursor is None:
                return
            command = command.model_copy(update={"cursor": response.next_cursor})

    def _client_id(self, message: Message) -> str:
        headers = {
            name.lower(): value for name, value in (message.properties.headers or {}).items()
        }
        ticket = headers.get(self._ticket_header.lower())
        if ticket is not None:
            return self._verifier.verify(ticket if isinstance(ticket, str) else "")
        if not self._anonymous:
            raise PermanentError(
                f"a service ticket is required in the header {self._ticket_header}"
            )
        return ANONYMOUS

    async def _create(self, command: ScheduleCallback, client_id: str, message: Message) -> None:
        result = await self._intake.create(
            command,
            client_id,
            callback_id_of_message(client_id, message.id),
            fingerprint=sha256(message.body).digest(),
            traceparent=message.traceparent,
        )
        if isinstance(result, Failure):
            raise ContractViolationError(result.detail)
        if isinstance(result, KeyUsed):
            raise PermanentError("event_key: a callback with these keys already exists")
        if isinstance(result, IdempotencyConflict):
            raise PermanentError("this message_id was used before with a different callback")


def _not_found(message: Message) -> PermanentError | DeferredError:
    """Return the error for a callback that does not exist, or that another scheduler inserts."""
    if message.deferrals < MAX_DEFERRALS:
        return DeferredError(CALLBACK_NOT_FOUND.detail, delay=DEFERRAL)
    return PermanentError(CALLBACK_NOT_FOUND.detail)


def report(message: Message, _: Command | None, outcome: Outcome[None]) -> BaseModel | None:
    """Log dead-lettered commands."""
    if isinstance(outcome, Dead):
        kind = message.properties.type
        context = {"message_id": message.id, "reason": outcome.reason}
        name = kind if kind in _MODELS else "schedule message"
        logger.error("%s dead-lettered", name, extra=context)
    return None
