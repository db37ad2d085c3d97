"""Takes orders in, in batches: one statement for many, and each is answered by itself."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from json import dumps
from uuid import UUID

from services.scheduler import domain, metrics
from services.scheduler.clock import DatabaseClock
from services.scheduler.messages import content
from services.scheduler.recurrence import first
from services.scheduler.store import Claim, Known, Order, Store
from shared.contracts.context import json_text
from shared.contracts.requests import Failure, FieldError, invalid
from shared.contracts.schedule_requests import CallbackCreated
from shared.contracts.schedules import (
    MAX_AGE,
    MAX_DELAY_AHEAD,
    ScheduleCallback,
    callback_id_of_message,
)
from shared.resilience.batching import Batcher
from shared.security.encryption import SecretCipher


@dataclass(frozen=True, slots=True)
class KeyUsed:
    """The client has another event with this group_key and event_key."""


@dataclass(frozen=True, slots=True)
class OtherOrder:
    """Another order was made under this idempotency key."""


Taken = CallbackCreated | KeyUsed | OtherOrder


def event_of_key(client_id: str, idempotency_key: str) -> UUID:
    """The event that a request with an idempotency key creates."""
    return callback_id_of_message(client_id, f"key:{idempotency_key}")


def moment_faults(run_at: datetime | None, now: datetime) -> tuple[FieldError, ...]:
    """What is wrong with a due moment."""
    if run_at is not None:
        ahead = (run_at - now).total_seconds()
        if ahead > MAX_DELAY_AHEAD:
            return (FieldError(field="run_at", message="is more than ten years ahead"),)
        if ahead < -MAX_AGE:
            return (FieldError(field="run_at", message="is more than 30 days ago"),)
    return ()


class Intake:
    """Creates events; several orders make one statement.

    fire: publishes what was due already. wake: hears when something falls due.
    """

    def __init__(  # noqa: PLR0913 - the composition root names each
        self,
        store: Store,
        seal: SecretCipher,
        clock: DatabaseClock,
        *,
        fire: Callable[[Sequence[Claim]], None],
        wake: Callable[[datetime], None],
        batch: int,
        lease: float,
        amqp_exchanges: Collection[str],
    ) -> None:
        self._store = store
        self._seal = seal
        self._clock = clock
        self._fire = fire
        self._wake = wake
        self._lease = lease
        self._exchanges = amqp_exchanges
        self._batches: Batcher[Order, Taken] = Batcher(self._insert, most=batch)

    async def run(self) -> None:
        """Insert what comes until cancelled."""
        await self._batches.run()

    async def settled(self) -> None:
        """Wait until every order that came before is in the database, or refused."""
        await self._batches.settled()

    async def create(
        self,
        order: ScheduleCallback,
        client_id: str,
        event_id: UUID,
        *,
        fingerprinted: bool = False,
        traceparent: str | None = None,
    ) -> Taken | Failure:
        """Create the event of that id, or find that it was created before.

        Raises:
            StoreConnectionLostError: repeat it with the same id.
        """
        await self._clock.known()
        now = self._clock.now()
        faults = [*moment_faults(order.run_at, now)]
        exchange = order.notify_scheme.exchange
        if exchange is not None and exchange not in self._exchanges:
            faults.append(
                FieldError(
                    field="notify_scheme.exchange",
                    message="is not among those the operator allows (amqp_exchanges)",
                )
            )
        stored = domain.rules_of(order)
        text = None if stored is None else json_text(stored)
        run_at = order.run_at
        if order.repeat is not None:
            earliest = run_at or now + timedelta(seconds=order.delay or 0.0)
            rhythm = domain.rules(text).rhythm
            run_at = None if rhythm is None else first(rhythm, earliest)
            if run_at is None:
                faults.append(FieldError(field="repeat", message="is over before it begins"))
        if faults:
            metrics.CREATED.labels("invalid").inc()
            return invalid(faults)
        return await self._batches.add(
            Order(
                id=event_id,
                client_id=client_id,
                group_key=order.group_key,
                event_key=order.event_key,
                fingerprint=_fingerprint(order) if fingerprinted else None,
                content=content(order, client_id),
                secret=self._sealed(order),
                lease=domain.lease(order.retry, order.notify_scheme.timeout, slack=self._lease),
                stop_after=order.retry.stop_after_delay,
                rules=text,
                traceparent=traceparent,
                run_at=run_at,
                delay=order.delay or 0.0,
            )
        )

    def _sealed(self, order: ScheduleCallback) -> bytes | None:
        return None if order.hmac_secret is None else self._seal.seal(dumps(order.hmac_secret))

    async def _insert(self, orders: list[Order]) -> list[Taken]:
        taken: dict[int, Taken] = {}
        waiting = list(enumerate(orders))
        while waiting:
            round_, waiting = _distinct(waiting)
            taken.update(
                zip(
                    (index for index, _ in round_),
                    await self._insert_distinct([order for _, order in round_]),
                    strict=True,
                )
            )
        return [taken[index] for index in range(len(orders))]

    async def _insert_distinct(self, orders: list[Order]) -> list[Taken]:
        inserted = await self._store.create(orders)
        if inserted.due:
            self._fire(inserted.due)
        later = [event.next_at for event in inserted.made.values() if not event.in_flight]
        if later:
            self._wake(min(later))
        metrics.MADE.inc(len(inserted.made))
        others = [order.id for order in orders if order.id not in inserted.made]
        known = await self._store.known(others) if others else {}
        return [
            CallbackCreated(id=event.id, status=event.status, run_at=event.run_at)
            if (event := inserted.made.get(order.id))
            else _before(order, known.get(order.id))
            for order in orders
        ]


def _distinct(
    orders: list[tuple[int, Order]],
) -> tuple[list[tuple[int, Order]], list[tuple[int, Order]]]:
    """Those orders that share neither id nor keys with an earlier one, and the rest."""
    seen: set[object] = set()
    now, later = [], []
    for index, order in orders:
        marks: list[object] = [order.id]
        if order.event_key is not None:
            marks.append((order.client_id, order.group_key, order.event_key))
        if seen.isdisjoint(marks):
            now.append((index, order))
        else:
            later.append((index, order))
        seen.update(marks)
    return now, later


def _before(order: Order, known: Known | None) -> Taken:
    """The answer to an order that was not inserted."""
    if known is None:
        metrics.CREATED.labels("key_used").inc()
        return KeyUsed()
    if known.fingerprint != order.fingerprint:
        metrics.CREATED.labels("other_order").inc()
        return OtherOrder()
    metrics.CREATED.labels("repeated").inc()
    return CallbackCreated(id=order.id, status=known.status, run_at=known.run_at)


def _fingerprint(order: ScheduleCallback) -> bytes:
    """The same for the same order, however its JSON was written."""
    fields = order.model_dump(mode="json", exclude_unset=True)
    return sha256(dumps(fields, sort_keys=True).encode()).digest()
