"""The request handlers: health of targets."""

import asyncio
import base64
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from services.journal.scope import INVALID_CURSOR, for_operators, origin_of
from services.journal.targets.store import Figures, quantiles
from shared.amqp.rpc import RequestContext
from shared.amqp.rpc_binding import Handler, Response, bound
from shared.contracts.journal_figures import (
    LIST_TARGETS,
    READ_TARGET,
    ListTargets,
    ReadTarget,
    TargetDetail,
    TargetHealth,
    TargetPage,
)


class TargetRequests:
    """Handles requests about targets. Only operators may send them. `now` is in epoch seconds."""

    def __init__(
        self, figures: Figures, slots: asyncio.Semaphore, now: Callable[[], float]
    ) -> None:
        self._figures = figures
        self._slots = slots
        self._now = now

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handler of each operation, by its name."""
        return dict(
            (
                bound(LIST_TARGETS, for_operators(self._list)),
                bound(READ_TARGET, for_operators(self._read)),
            )
        )

    async def _list(self, _: RequestContext, request: ListTargets) -> Response:
        try:
            after = None if request.cursor is None else _decode(request.cursor)
        except ValueError:
            return INVALID_CURSOR
        async with self._slots:
            found = await self._figures.targets(
                since(self._now(), request.minutes),
                request.limit + 1,
                client_id=request.client_id,
                after=after,
            )
        items = found[: request.limit]
        more = len(found) > len(items)
        return TargetPage(items=items, next_cursor=_encode(items[-1]) if more else None)

    async def _read(self, _: RequestContext, request: ReadTarget) -> Response:
        until = request.until or datetime.fromtimestamp(self._now(), UTC)
        start = since(until.timestamp(), request.minutes)
        target, client_id = origin_of(request.target), request.client_id
        async with self._slots:
            minutes, buckets = await self._figures.minutes(
                start, until, target=target, client_id=client_id
            )
            # The flags are those of now, also if the span ends before.
            now = await self._figures.targets(
                since(self._now(), 1), 1, client_id=client_id, target=target
            )
            breakers = await self._figures.breakers(target=target, client_id=client_id)
            full = await self._figures.full_lanes(target, client_id=client_id)
        health = TargetHealth(
            target=target,
            delivered=sum(minute.delivered for minute in minutes),
            failed=sum(minute.failed for minute in minutes),
            **quantiles(buckets),
            paused=any(found.paused for found in now),
            breaker_open=bool(breakers),
            lane_full=bool(full),
        )
        return TargetDetail(health=health, minutes=minutes, breakers=breakers, full_lanes=full)


def since(now: float, minutes: int) -> datetime:
    """Return the beginning of a span of whole minutes that ends with the current one."""
    this_minute = datetime.fromtimestamp(now - now % 60, UTC)
    return this_minute - timedelta(minutes=minutes - 1)


def _encode(last: TargetHealth) -> str:
    return base64.urlsafe_b64encode(f"{last.failed}/{last.target}".encode()).decode()


def _decode(cursor: str) -> tuple[int, str]:
    """Return the errors and the target of a cursor.

    Raises:
        ValueError: the text is not a cursor of `_encode`.
    """
    failed, _, target = base64.urlsafe_b64decode(cursor.encode()).decode().partition("/")
    if not (failed.isascii() and failed.isdigit() and len(failed) < len(str(1 << 63))):
        raise ValueError("a cursor holds a count")
    if "\0" in target:
        raise ValueError("PostgreSQL cannot store NUL")
    return int(failed), target
