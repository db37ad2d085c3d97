"""The leases of published callbacks, for services that own callbacks."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from shared.postgres.pool import StoreConnectionLostError

logger = logging.getLogger(__name__)

# Seconds between two extensions. Most callbacks have a result within a second, and then need none.
INTERVAL: Final = 1.0
# Leases in one statement: it takes some 100 ms, far less than a statement may take.
MAX_BATCH: Final = 5000


L = TypeVar("L")


class LeaseExtender(Generic[L]):
    """Extends claims to the time that their dispatch may take, once the broker has confirmed it.

    A claim is short, so callbacks that a crashed process did not publish are due again soon. The
    extension waits one to two seconds for a result, which makes it superfluous.
    """

    def __init__(self, extend: Callable[[Sequence[L]], Awaitable[None]]) -> None:
        self._extend = extend
        self._recent: list[L] = []
        self._due: list[L] = []
        self._extending = asyncio.Lock()  # a drain can begin during a round

    def add(self, confirmed: Sequence[L]) -> None:
        """Extend these leases soon, unless they have a result then."""
        self._recent += confirmed

    async def run(self, wait_for_backlog: Callable[[], Awaitable[None]]) -> None:
        """Extend leases until cancelled; due callbacks go first."""
        while True:
            await asyncio.sleep(INTERVAL)
            await wait_for_backlog()
            await self.run_once()

    async def run_once(self) -> None:
        """Extend the leases of the callbacks that were added before the last round."""
        async with self._extending:
            while self._due:
                batch = self._due[:MAX_BATCH]
                try:
                    await self._extend(batch)
                except StoreConnectionLostError as error:
                    logger.warning("Cannot extend leases: %s. Retrying in %.0f s.", error, INTERVAL)
                    return
                del self._due[: len(batch)]
            self._due, self._recent = self._recent, []

    async def drain(self, _: float) -> None:
        """Extend all leases."""
        await self.run_once()
        await self.run_once()
