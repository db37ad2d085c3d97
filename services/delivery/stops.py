"""Stops: no message of a stopped mailing is handed to a provider, in whichever process it waits.

A stop is a row in the database. A message is sent only if the row of its mailing was read less than
MAX_AGE seconds ago. So a stop holds in all processes MAX_AGE seconds after its commit, also in one
that was suspended in between. A message is sent without a read of its own, because its mailing is
read once for all messages in flight.
"""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

from services.delivery.domain import WithheldError
from services.delivery.store import Store
from shared.contracts.message_facts import ReasonCode
from shared.errors import InfrastructureError
from shared.resilience.batching import Batcher

# Seconds. The promise is two: the other one is for a busy machine.
MAX_AGE: Final = 1.0
# Readings that may be too old when they arrive. The first one may be, after a suspension.
MAX_READINGS: Final = 3
# Mailings in one statement.
BATCH_SIZE: Final = 500


class _Reading(NamedTuple):
    """When a stop was read, by the monotonic clock, and the seconds from then until it holds."""

    at: float
    remaining: float


class Stops:
    """The stops of the mailings whose messages this process sends."""

    def __init__(self, store: Store, monotonic: Callable[[], float]) -> None:
        self._store = store
        self._monotonic = monotonic
        self._readings: dict[str, _Reading] = {}
        self._reading: Batcher[str, None] = Batcher(self._read, max_size=BATCH_SIZE)

    async def run(self) -> None:
        """Read stops until cancelled."""
        await self._reading.run()

    async def check(self, mailing_id: str) -> None:
        """Check that a mailing is not stopped. The result holds while the caller does not wait.

        Raises:
            WithheldError: the mailing is stopped.
            InfrastructureError: the database is unavailable or slow.
        """
        attempts = 0
        while (reading := self._readings.get(mailing_id)) is None or self._age(reading) >= MAX_AGE:
            if attempts == MAX_READINGS:
                raise InfrastructureError("the database returns the stops of mailings too slowly")
            await self._reading.add(mailing_id)
            attempts += 1
        if self._age(reading) >= reading.remaining:
            raise WithheldError("the mailing is stopped", ReasonCode.STOPPED)

    def _age(self, reading: _Reading) -> float:
        return self._monotonic() - reading.at

    async def _read(self, mailings: list[str]) -> list[None]:
        at = self._monotonic()  # before the statement, so that the reading is never too young
        remaining = await self._store.stops(set(mailings))
        fresh = {
            mailing_id: reading
            for mailing_id, reading in self._readings.items()
            if self._age(reading) < MAX_AGE
        }
        read = {each: _Reading(at, remaining.get(each, math.inf)) for each in mailings}
        self._readings = fresh | read
        return [None] * len(mailings)
