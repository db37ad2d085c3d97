"""The messages on the exchange `schedules`: create, cancel and move events."""

import logging
from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel

from services.scheduler.intake import Intake, KeyUsed
from services.scheduler.operations import Operations
from shared.amqp import parsing as reading
from shared.amqp.message import Dead, Message, Outcome
from shared.contracts.requests import Failure
from shared.contracts.schedule_requests import CancelResult, RescheduleResult
from shared.contracts.schedules import (
    CANCEL_CALLBACK,
    RESCHEDULE_CALLBACK,
    SCHEDULE_CALLBACK,
    TICKET_HEADER,
    CancelCallback,
    RescheduleCallback,
    ScheduleCallback,
    callback_id_of_message,
)
from shared.errors import ContractViolationError, PermanentError
from shared.security.tickets import Tickets

logger = logging.getLogger(__name__)

Command = ScheduleCallback | CancelCallback | RescheduleCallback

ANONYMOUS: Final = ""
_MODELS: Final[Mapping[str, type[Command]]] = {
    SCHEDULE_CALLBACK: ScheduleCallback,
    CANCEL_CALLBACK: CancelCallback,
    RESCHEDULE_CALLBACK: RescheduleCallback,
}


def read(message: Message, *, max_bytes: int) -> Command:
    """The command in a message.

    Raises:
        ContractViolationError: it is none; every wrong field is named, no value is.
    """
    return reading.parse_message(message, _MODELS, max_bytes=max_bytes)


class Handler:
    """Carries out commands."""

    def __init__(
        self, intake: Intake, operations: Operations, tickets: Tickets, *, anonymous: bool
    ) -> None:
        self._intake = intake
        self._operations = operations
        self._tickets = tickets
        self._anonymous = anonymous

    async def handle(self, message: Message, command: Command) -> None:
        """Carry a command out; it is committed when this returns.

        Raises:
            BadTicket: the ticket proves nothing.
            ContractViolationError: the due moment is out of bounds.
            PermanentError: the keys are used, there is no such event, or a ticket is needed.
            StoreConnectionLostError: repeat it later.
        """
        client_id = self._client(message)
        match command:
            case ScheduleCallback() as order:
                await self._create(order, client_id, message)
            case CancelCallback() as wish:
                # What was ordered before it in the queue may still be on its way into a batch.
                await self._intake.settled()
                done = await self._operations.cancel(client_id, wish)
                if getattr(done, "result", None) is CancelResult.NOT_FOUND:
                    raise PermanentError("there is no such callback")
            case RescheduleCallback() as wish:
                await self._intake.settled()
                moved = await self._operations.reschedule(client_id, wish)
                if isinstance(moved, Failure):
                    raise ContractViolationError(moved.detail)
                if moved.result is not RescheduleResult.RESCHEDULED:
                    raise PermanentError(f"not rescheduled: {moved.result.value}")

    def _client(self, message: Message) -> str:
        given = {name.lower(): value for name, value in (message.properties.headers or {}).items()}
        ticket = given.get(TICKET_HEADER.lower())
        if ticket is not None:
            return self._tickets.verify(ticket if isinstance(ticket, str) else "")
        if not self._anonymous:
            raise PermanentError(f"a service ticket is needed, in the header {TICKET_HEADER}")
        return ANONYMOUS

    async def _create(self, order: ScheduleCallback, client_id: str, message: Message) -> None:
        taken = await self._intake.create(
            order,
            client_id,
            callback_id_of_message(client_id, message.id),
            traceparent=message.traceparent,
        )
        if isinstance(taken, Failure):
            raise ContractViolationError(taken.detail)
        if isinstance(taken, KeyUsed):
            raise PermanentError("event_key: there is an event with these keys already")


def report(message: Message, _: Command | None, outcome: Outcome[None]) -> BaseModel | None:
    """Log what could not be carried out."""
    if isinstance(outcome, Dead):
        kind = message.properties.type
        context = {"message_id": message.id, "reason": outcome.reason}
        logger.error("%s dead", kind if kind in _MODELS else "schedule", extra=context)
    return None
