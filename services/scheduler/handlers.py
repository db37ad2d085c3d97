"""The messages on the exchange `schedules`: create, cancel and move events."""

import logging
from typing import Final

from pydantic import BaseModel, ValidationError

from services.scheduler.intake import Intake, KeyUsed
from services.scheduler.operations import Operations
from shared.amqp.message import Dead, Message, Outcome
from shared.contracts.context import field_errors
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
    event_of_message,
)
from shared.errors import ContractViolation, PermanentError
from shared.tickets import Tickets

logger = logging.getLogger(__name__)

Command = ScheduleCallback | CancelCallback | RescheduleCallback

JSON: Final = "application/json"
FAULTS_NAMED: Final = 10
ANONYMOUS: Final = ""
_MODELS: Final[dict[str | None, type[Command]]] = {
    SCHEDULE_CALLBACK: ScheduleCallback,
    CANCEL_CALLBACK: CancelCallback,
    RESCHEDULE_CALLBACK: RescheduleCallback,
}


def read(message: Message[Command], *, max_bytes: int) -> Command:
    """The command in a message.

    Raises:
        ContractViolation: it is none; every wrong field is named, no value is.
    """
    properties = message.properties
    if len(message.body) > max_bytes:
        raise ContractViolation(f"{len(message.body)} bytes, at most {max_bytes} are taken")
    model = _MODELS.get(properties.type)
    if model is None:
        known = ", ".join(str(name) for name in _MODELS)
        raise ContractViolation(f"type is {properties.type!r}, not one of {known}")
    if (properties.content_type or "").split(";")[0].strip().lower() != JSON:
        raise ContractViolation(f"content_type is {properties.content_type!r}, not {JSON!r}")
    if properties.content_encoding not in (None, "", "identity", "utf-8", "UTF-8"):
        raise ContractViolation(f"content_encoding {properties.content_encoding!r} is not taken")
    try:
        return model.model_validate_json(message.body)
    except ValidationError as error:
        faults = field_errors(error)
        named = [f"{each.field}: {each.message}".removeprefix(": ") for each in faults]
        more = f" and {len(named) - FAULTS_NAMED} more" if len(named) > FAULTS_NAMED else ""
        raise ContractViolation("; ".join(named[:FAULTS_NAMED]) + more) from None


class Handler:
    """Carries out commands."""

    def __init__(
        self, intake: Intake, operations: Operations, tickets: Tickets, *, anonymous: bool
    ) -> None:
        self._intake = intake
        self._operations = operations
        self._tickets = tickets
        self._anonymous = anonymous

    async def handle(self, message: Message[Command]) -> None:
        """Carry a command out; it is committed when this returns.

        Raises:
            BadTicket: the ticket proves nothing.
            ContractViolation: the due moment is out of bounds.
            PermanentError: the keys are used, there is no such event, or a ticket is needed.
            StoreLost: repeat it later.
        """
        client_id = self._client(message)
        match message.model:
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
                    raise ContractViolation(moved.detail)
                if moved.result is not RescheduleResult.RESCHEDULED:
                    raise PermanentError(f"not rescheduled: {moved.result.value}")

    def _client(self, message: Message[Command]) -> str:
        given = {name.lower(): value for name, value in (message.properties.headers or {}).items()}
        ticket = given.get(TICKET_HEADER.lower())
        if ticket is not None:
            return self._tickets.verify(ticket if isinstance(ticket, str) else "")
        if not self._anonymous:
            raise PermanentError(f"a service ticket is needed, in the header {TICKET_HEADER}")
        return ANONYMOUS

    async def _create(
        self, order: ScheduleCallback, client_id: str, message: Message[Command]
    ) -> None:
        taken = await self._intake.create(
            order,
            client_id,
            event_of_message(client_id, message.id),
            traceparent=message.traceparent,
        )
        if isinstance(taken, Failure):
            raise ContractViolation(taken.detail)
        if isinstance(taken, KeyUsed):
            raise PermanentError("event_key: there is an event with these keys already")


def report(message: Message[Command], outcome: Outcome[None]) -> BaseModel | None:
    """Log what could not be carried out."""
    if isinstance(outcome, Dead):
        kind = message.properties.type
        context = {"message_id": message.id, "reason": outcome.reason}
        logger.error("%s dead", kind if kind in _MODELS else "schedule", extra=context)
    return None
