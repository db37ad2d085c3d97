"""Creates callbacks in batches: one statement inserts many, and each has its own result."""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from json import dumps
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from services.scheduler import domain, metrics
from services.scheduler.clock import DatabaseClock
from services.scheduler.domain import ScheduledCallback
from services.scheduler.facts import FactPublisher
from services.scheduler.messages import Content, changed, content, fits
from services.scheduler.records import Claim, ExistingCallback, NewCallback
from services.scheduler.recurrence import first_due
from services.scheduler.store import Store
from shared.amqp.backpressure import CallbackQueue
from shared.contracts.context import json_text
from shared.contracts.requests import Failure, FailureCode, FieldError, invalid
from shared.contracts.schedule_changes import RescheduleCallback
from shared.contracts.schedule_requests import CallbackCreated
from shared.contracts.schedules import (
    MAX_AGE,
    MAX_DELAY_AHEAD,
    ScheduleCallback,
    callback_id_of_message,
)
from shared.errors import InfrastructureError
from shared.http.guard import parse_target
from shared.resilience.batching import Batcher
from shared.security.encryption import DecryptionError, SecretCipher
from shared.security.tickets import is_reserved
from shared.topology import INTERNAL_EXCHANGES

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyUsed:
    """The client has another callback with this group_key and event_key."""


@dataclass(frozen=True, slots=True)
class IdempotencyConflict:
    """The idempotency key was used before with a different request."""


CreateResult = CallbackCreated | KeyUsed | IdempotencyConflict


def id_of_request(
    client_id: str, idempotency_key: str | None, message_id: str, index: int | None = None
) -> UUID:
    """Return the id of the callback that a request creates, or of one in its batch.

    It is the same for a repeat with the same idempotency key, and without a key for a request that
    the broker delivers again.
    """
    # Neither name contains NUL, so no other request has the ids of a batch.
    place = "" if index is None else f"{index}\0"
    if idempotency_key is None:
        return callback_id_of_message(client_id, message_id, f"{place}request:")
    return callback_id_of_message(client_id, idempotency_key, f"{place}key:")


def run_at_errors(run_at: datetime | None, now: datetime) -> tuple[FieldError, ...]:
    """Return an error if a due time is too far from now."""
    if run_at is not None:
        ahead = (run_at - now).total_seconds()
        if ahead > MAX_DELAY_AHEAD:
            return (FieldError(field="run_at", message="is more than ten years ahead"),)
        if ahead < -MAX_AGE:
            return (FieldError(field="run_at", message="is more than 30 days ago"),)
    return ()


class Intake:
    """Creates callbacks; concurrent requests share one statement.

    dispatch: publishes callbacks that were due when they were created.
    wake_at: called with the due time of the others.
    """

    def __init__(  # noqa: PLR0913 - the composition root names each
        self,
        store: Store,
        cipher: SecretCipher,
        clock: DatabaseClock,
        *,
        facts: FactPublisher,
        queue: CallbackQueue,
        dispatch: Callable[[Sequence[Claim]], None],
        wake_at: Callable[[datetime], None],
        batch: int,
        lease: float,
        amqp_exchanges: Collection[str],
        max_message_bytes: int,
        ticket_header: str,
    ) -> None:
        self._store = store
        self._cipher = cipher
        self._clock = clock
        self._facts = facts
        self._queue = queue
        self._dispatch = dispatch
        self._wake_at = wake_at
        self._lease = lease
        # Notifications to internal exchanges are only for services of Ringback.
        self._exchanges = frozenset(amqp_exchanges) - set(INTERNAL_EXCHANGES)
        self._max_message_bytes = max_message_bytes
        self._ticket_header = ticket_header
        self._batches: Batcher[NewCallback, CreateResult | InfrastructureError] = Batcher(
            self._insert, max_size=batch
        )

    def _exchanges_of(self, client_id: str) -> Collection[str]:
        return INTERNAL_EXCHANGES if is_reserved(client_id) else self._exchanges

    async def run(self) -> None:
        """Insert callbacks until cancelled."""
        await self._batches.run()

    async def flush(self) -> None:
        """Wait until every earlier request was inserted or failed."""
        await self._batches.finish_pending()

    def size_error(self, callback: Any, body: bytes) -> Failure | None:
        """Return why a callback is not worth parsing: without its context it is still too long."""
        if len(body) > self._max_message_bytes and isinstance(callback, dict):
            body = to_json({name: value for name, value in callback.items() if name != "context"})
        if len(body) <= self._max_message_bytes:
            return None
        message = f"has {len(body)} bytes, at most {self._max_message_bytes} are allowed"
        return invalid([FieldError(field="", message=message)])

    async def create(
        self,
        command: ScheduleCallback,
        client_id: str,
        callback_id: UUID,
        *,
        fingerprint: bytes | None = None,
        traceparent: str | None = None,
    ) -> CreateResult | Failure:
        """Create a callback with this id, or return the one that was created before.

        fingerprint: detects a different request with the same id.

        Raises:
            StoreConnectionLostError: repeat it with the same id.
        """
        new = await self.prepare(
            command, client_id, callback_id, fingerprint=fingerprint, traceparent=traceparent
        )
        if isinstance(new, Failure):
            return new
        result = await self._batches.add(new)
        if isinstance(result, InfrastructureError):
            raise result
        return result

    async def prepare(
        self,
        command: ScheduleCallback,
        client_id: str,
        callback_id: UUID,
        *,
        fingerprint: bytes | None = None,
        traceparent: str | None = None,
    ) -> NewCallback | Failure:
        """Return the callback to insert, or why this command cannot be carried out."""
        await self._clock.wait_synced()
        now = self._clock.now()
        errors = [*run_at_errors(command.run_at, now)]
        exchange = command.notify_scheme.exchange
        if exchange is not None and exchange not in self._exchanges_of(client_id):
            errors.append(
                FieldError(
                    field="notify_scheme.exchange",
                    message="is not one of the allowed exchanges (amqp_exchanges)",
                )
            )
        errors += self._header_errors(command.notify_scheme.headers)
        parts = content(command, client_id, self._cipher.encrypt)
        errors += self._content_errors(parts, command.group_key, command.event_key)
        stored = domain.stored_rules(command)
        rules = None if stored is None else json_text(stored)
        run_at = command.run_at
        if command.repeat is not None:
            earliest = run_at or now + timedelta(seconds=command.delay or 0.0)
            recurrence = domain.parse_rules(rules).recurrence
            run_at = None if recurrence is None else first_due(recurrence, earliest)
            if run_at is None:
                errors.append(
                    FieldError(field="repeat", message="ends before the first occurrence is due")
                )
        if errors:
            metrics.REQUESTED.labels("invalid").inc()
            return invalid(errors)
        return NewCallback(
            id=callback_id,
            client_id=client_id,
            group_key=command.group_key,
            event_key=command.event_key,
            fingerprint=fingerprint and self._cipher.encrypt(fingerprint),
            content=parts,
            lease=domain.lease(command.retry, command.notify_scheme.timeout, slack=self._lease),
            stop_after=command.retry.stop_after_delay,
            rules=rules,
            traceparent=traceparent,
            run_at=run_at,
            delay=command.delay or 0.0,
            target=None if exchange is not None else parse_target(command.url).origin,
        )

    def changed(
        self, callback: ScheduledCallback, parts: Content, command: RescheduleCallback
    ) -> Content | Failure:
        """Return the changed content of a callback, or why it cannot be changed like that."""
        cipher = self._cipher
        try:
            new = changed(parts, command, decrypt=cipher.decrypt, encrypt=cipher.encrypt)
        except ValueError as error:
            field = "url" if command.url is not None else "notify_scheme.headers"
            return invalid([FieldError(field=field, message=str(error))])
        except DecryptionError as error:
            return Failure(code=FailureCode.CONFLICT, detail=f"{error}; replace the callback")
        errors = self._content_errors(new, callback.group_key, callback.event_key)
        if command.notify_scheme is not None:
            errors += self._header_errors(command.notify_scheme.headers)
        return invalid(errors) if errors else new

    def _header_errors(self, names: Iterable[str]) -> list[FieldError]:
        if all(name.lower() != self._ticket_header.lower() for name in names):
            return []
        message = f"{self._ticket_header} is reserved for Ringback's own ticket"
        return [FieldError(field="notify_scheme.headers", message=message)]

    def _content_errors(self, parts: Content, *keys: str | None) -> list[FieldError]:
        if fits(parts, [key or "" for key in keys], self._max_message_bytes):
            return []
        message = f"the notification would exceed {self._max_message_bytes} bytes"
        return [FieldError(field="context", message=message)]

    async def _insert(self, new: list[NewCallback]) -> list[CreateResult | InfrastructureError]:
        """Insert a batch in several statements. If one fails, the others keep their results."""
        results: dict[int, CreateResult | InfrastructureError] = {}
        rest = list(enumerate(new))
        while rest:
            distinct, rest = _split_distinct(rest)
            indexes = [index for index, _ in distinct]
            try:
                created = await self._insert_distinct([callback for _, callback in distinct])
            except InfrastructureError as error:
                results.update(dict.fromkeys(indexes, error))
            else:
                results.update(zip(indexes, created, strict=True))
        return [results[index] for index in range(len(new))]

    async def _insert_distinct(
        self, new: list[NewCallback]
    ) -> list[CreateResult | InfrastructureError]:
        # While the queue is full, callbacks that are due now wait for their client's turn, too.
        inserted = await self._store.insert(new, claim=await self._queue.room() > 0)
        if inserted.due:
            self._dispatch(inserted.due)
        later = [
            callback.next_at for callback in inserted.callbacks.values() if not callback.in_flight
        ]
        if later:
            self._wake_at(min(later))
        if inserted.callbacks:
            self._facts.created(new, inserted.callbacks, self._clock.now())
        metrics.CREATED.inc(len(inserted.callbacks))
        others = [request for request in new if request.id not in inserted.callbacks]
        repeats = await self._results_of_repeats(others) if others else {}
        return [
            CallbackCreated(id=callback.id, status=callback.status, run_at=callback.run_at)
            if (callback := inserted.callbacks.get(request.id))
            else repeats[request.id]
            for request in new
        ]

    async def _results_of_repeats(
        self, requests: Sequence[NewCallback]
    ) -> dict[UUID, CreateResult | InfrastructureError]:
        """Return the results for callbacks that were not inserted."""
        try:
            existing = await self._store.existing([request.id for request in requests])
        except InfrastructureError as error:
            # An earlier delivery of the request may have created the callback.
            unknown = InfrastructureError(str(error))
            return dict.fromkeys((request.id for request in requests), unknown)
        return {
            request.id: self._result_of_repeat(request, existing.get(request.id))
            for request in requests
        }

    def _result_of_repeat(
        self, new: NewCallback, existing: ExistingCallback | None
    ) -> CreateResult:
        """Return the result for a callback that was not inserted."""
        if existing is None:
            metrics.REQUESTED.labels("key_used").inc()
            return KeyUsed()
        if not self._is_same(new.fingerprint, existing.fingerprint):
            metrics.REQUESTED.labels("idempotency_conflict").inc()
            return IdempotencyConflict()
        metrics.REQUESTED.labels("repeated").inc()
        return CallbackCreated(id=new.id, status=existing.status, run_at=existing.run_at)

    def _is_same(self, new: bytes | None, existing: bytes | None) -> bool:
        """Return whether two encrypted fingerprints are those of the same request."""
        if new is None or existing is None:
            return new is existing
        try:
            return self._cipher.decrypt(new) == self._cipher.decrypt(existing)
        except DecryptionError as error:
            logger.warning("repeated request not recognised: %s", error)
            return False


def _split_distinct(
    new: list[tuple[int, NewCallback]],
) -> tuple[list[tuple[int, NewCallback]], list[tuple[int, NewCallback]]]:
    """Return the callbacks that share neither id nor keys with an earlier one, and the rest."""
    seen: set[object] = set()
    distinct, rest = [], []
    for index, request in new:
        unique: list[object] = [request.id]
        if request.event_key is not None:
            unique.append((request.client_id, request.group_key, request.event_key))
        if seen.isdisjoint(unique):
            distinct.append((index, request))
        else:
            rest.append((index, request))
        seen.update(unique)
    return distinct, rest


def fingerprint(command: ScheduleCallback) -> bytes:
    """Return a hash that does not depend on how the JSON was written."""
    fields = command.model_dump(mode="json", exclude_unset=True)
    return sha256(dumps(fields, sort_keys=True).encode()).digest()
