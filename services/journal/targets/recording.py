"""Records open circuit breakers and full lanes, in the transaction that stores the facts."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from pydantic import BaseModel

from shared.contracts.journal_facts import BreakerClosed, BreakerOpened, LaneFull
from shared.postgres.queries import queries

_SQL: Final = queries("services.journal", "breakers.sql")
_LANES: Final = queries("services.journal", "lanes.sql")


async def record_breakers(connection: Any, facts: Sequence[BaseModel]) -> None:
    """Store the last state of each breaker that these facts are about."""
    last = {
        (fact.target, fact.client_id or "", fact.process): fact
        for fact in facts
        if isinstance(fact, BreakerOpened | BreakerClosed)
    }
    if not last:
        return
    opened = [
        (*key, fact.at, fact.at + timedelta(seconds=fact.open_seconds))
        for key, fact in last.items()
        if isinstance(fact, BreakerOpened)
    ]
    closed = [key for key, fact in last.items() if isinstance(fact, BreakerClosed)]
    if opened:
        await connection.execute(_SQL["opened"], *map(list, zip(*opened, strict=True)))
    if closed:
        await connection.execute(_SQL["closed"], *map(list, zip(*closed, strict=True)))
    await connection.execute(_SQL["forget"])


async def record_lanes(connection: Any, facts: Sequence[BaseModel]) -> None:
    """Store the last report about each lane that these facts are about."""
    last = {
        (fact.target, fact.client_id or "", fact.process): fact
        for fact in facts
        if isinstance(fact, LaneFull)
    }
    if not last:
        return
    rows = [(*key, each.reason, each.in_flight, each.limit, each.at) for key, each in last.items()]
    await connection.execute(_LANES["full"], *map(list, zip(*rows, strict=True)))
    await connection.execute(_LANES["forget"])
