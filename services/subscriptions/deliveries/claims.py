"""Claims and settlements of deliveries in PostgreSQL; several processes may use them at once.

All methods raise StoreConnectionLostError when the database is unavailable, slow or full. The
effect is then unknown; a lease repeats the work.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from services.subscriptions.deliveries.domain import Attempt, Delivery
from services.subscriptions.deliveries.messages import Claim, event_payload
from services.subscriptions.deliveries.store import SQL
from shared.contracts.endpoints import DeliveryStatus
from shared.contracts.facts import CallbackAttemptFailed, CallbackDelivered, CallbackDispatchFailed
from shared.http.guard import ForbiddenTargetError, parse_target
from shared.postgres.pool import Database
from shared.security.encryption import DecryptionError, SecretCipher

# Seconds until claims of a crashed process are due again, unless they were published. The broker
# confirms within a few seconds.
CLAIM_LEASE: Final = 20.0
# Seconds that a dispatch may take: quick retries for a minute, and time in queues.
DISPATCH_LEASE: Final = 600.0


class Lease(NamedTuple):
    """A claim that was published."""

    id: int
    dispatch: int


class EndpointResult(NamedTuple):
    """What a batch of facts reports about an endpoint.

    accepted: whether it accepted a delivery. gone: the origins that responded with 410.
    """

    accepted: bool
    gone: frozenset[str | None]


class Settlement(NamedTuple):
    """The result of a batch of facts: changed deliveries, attempts, and results of endpoints."""

    changed: Sequence[Delivery]
    attempts: Sequence[Attempt]
    endpoints: dict[UUID, EndpointResult]


# Called in the transaction of a settlement with the endpoints that it has disabled.
Disabled = Callable[[Any, Sequence[UUID]], Awaitable[None]]


class Claims:
    """The deliveries that are due or dispatched.

    cipher: decrypts the URLs of endpoints.
    disable_after: seconds for which an endpoint must fail to be disabled.
    disabled: called with the endpoints that a settlement disables, in its transaction.
    """

    def __init__(
        self,
        database: Database,
        cipher: SecretCipher,
        *,
        disable_after: float,
        disabled: Disabled,
    ) -> None:
        self._database = database
        self._cipher = cipher
        self._disable_after = disable_after
        self._disabled = disabled

    async def claim(self, limit: int) -> list[Claim]:
        """Claim at most `limit` deliveries that are due, the oldest first."""
        return [_claim(row) for row in await self._database.fetch(SQL["claim"], limit, CLAIM_LEASE)]

    async def next_due(self) -> float | None:
        """Return the seconds until the next delivery is due, or None if there is none."""
        seconds: float | None = (await self._database.fetchrow(SQL["next_due"]))["seconds"]
        return seconds

    async def extend(self, leases: Sequence[Lease]) -> None:
        """Extend the claims of published deliveries, from now, unless they have a result."""
        await self._database.execute(SQL["extend"], *_columns(leases), DISPATCH_LEASE)

    async def release(self, leases: Sequence[Lease], delay: float, error: str | None) -> None:
        """Make claims that were not published due again, in `delay` seconds."""
        await self._database.execute(SQL["release"], *_columns(leases), delay, error)

    async def hold(self, leases: Sequence[Lease]) -> None:
        """Give claims the status that their endpoints require, which are not active."""
        ids, dispatches = _columns(leases)
        async with self._database.transaction() as connection:
            await connection.fetch(SQL["lock_endpoints_of"], ids)
            await connection.execute(SQL["hold"], ids, dispatches)

    async def settle(
        self,
        ids: Sequence[int],
        failed: Collection[int],
        decide: Callable[[Sequence[Delivery]], Settlement],
    ) -> datetime:
        """Lock deliveries, store what `decide` returns for them, and return the database's time.

        failed: the ids of deliveries with a failed attempt.
        """
        async with self._database.transaction() as connection:
            now: datetime = await connection.fetchval("SELECT now()")
            rows = await connection.fetch(SQL["lock_settled"], ids, list(failed))
            locked = {row["id"] for row in rows}
            rows = await connection.fetch(SQL["lock"], ids)
            changed, attempts, endpoints = decide([_delivery(row) for row in rows])
            if changed:
                await connection.execute(
                    SQL["save"], *map(list, zip(*map(_saved, changed), strict=True))
                )
            if attempts:
                await connection.execute(
                    SQL["add_attempts"], *map(list, zip(*map(_attempt, attempts), strict=True))
                )
            # Locks on other endpoints now could deadlock with another settlement.
            replaced = {row["endpoint_id"] for row in rows if not row["is_own"]}
            updated = [id_ for id_ in endpoints if id_ in locked and id_ not in replaced]
            if updated:
                await self._update_health(connection, {id_: endpoints[id_] for id_ in updated})
            if locked:
                await connection.execute(SQL["promote"], list(locked))
                await connection.execute(SQL["acknowledge"], list(locked))
        return now

    async def _update_health(self, connection: Any, endpoints: dict[UUID, EndpointResult]) -> None:
        gone = await self._gone(connection, endpoints)
        rows = await connection.fetch(
            SQL["update_health"],
            list(endpoints),
            [each.accepted for each in endpoints.values()],
            [id_ in gone for id_ in endpoints],
            self._disable_after,
        )
        if disabled := [row["id"] for row in rows if row["disabled"]]:
            await self._disabled(connection, disabled)

    async def _gone(self, connection: Any, endpoints: dict[UUID, EndpointResult]) -> set[UUID]:
        """Return the endpoints that are gone, without those whose URL was replaced meanwhile."""
        ids = [id_ for id_, result in endpoints.items() if result.gone]
        rows = await connection.fetch(SQL["urls"], ids) if ids else []
        return {row["id"] for row in rows if self._origin(row["url"]) in endpoints[row["id"]].gone}

    def _origin(self, url: bytes) -> str | None:
        try:
            return parse_target(self._cipher.decrypt(url).decode()).origin
        except (DecryptionError, ForbiddenTargetError):
            return None


def _columns(leases: Sequence[Lease]) -> tuple[list[int], list[int]]:
    return [lease.id for lease in leases], [lease.dispatch for lease in leases]


def _claim(row: Any) -> Claim:
    content = row["payload"]
    if content is None and row["type"] is not None:
        content = event_payload(row["type"], row["event"])
    return Claim(
        row["id"],
        row["dispatch"],
        row["status"],
        row["webhook_id"],
        row["client_id"],
        row["sequence"],
        content,
        row["destination"],
        row["url"],
        row["headers"],
        row["secret"],
        row["old_secret"],
        row["fingerprint"],
        row["now"],
    )


def _delivery(row: Any) -> Delivery:
    return Delivery(
        row["id"],
        row["endpoint_id"],
        DeliveryStatus(row["status"]),
        row["dispatch"],
        row["first_dispatch"],
        row["failures"],
        row["earlier_attempts"],
        row["attempts"],
        row["last_error"],
    )


def _saved(delivery: Delivery) -> tuple[Any, ...]:
    return (
        delivery.id,
        delivery.status,
        delivery.failures,
        delivery.attempts,
        delivery.last_error,
        delivery.delay,
        delivery.finished,
    )


def _attempt(attempt: Attempt) -> tuple[Any, ...]:
    fact = attempt.fact
    error: str | None
    match fact:
        case CallbackDelivered():
            error = None
        case CallbackAttemptFailed():
            error = fact.error
        case CallbackDispatchFailed():
            error = fact.reason
    return (attempt.delivery_id, attempt.attempt, fact.at, fact.status, fact.duration, error)
