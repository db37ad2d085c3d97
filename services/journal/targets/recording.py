"""Records open circuit breakers, in the transaction that stores the facts about them."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from pydantic import BaseModel

from shared.contracts.journal_facts import BreakerClosed, BreakerOpened
from shared.postgres.queries import queries

_SQL: Final = queries("services.journal", "breakers.sql")


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
