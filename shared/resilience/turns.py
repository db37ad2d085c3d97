"""Limits slow requests: a few run at a time, a few others wait, and further ones fail at once.

A request that waits holds a prefetch slot of its service. Without a limit, such requests would
block all others.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.errors import InfrastructureError


class BusyError(InfrastructureError):
    """Too many requests are waiting already. Nothing was done."""


class Turns:
    """Lets at most `running` blocks run at a time, and at most `waiting` others wait."""

    def __init__(self, running: int, *, waiting: int) -> None:
        self._slots = asyncio.Semaphore(running)
        self._free = running + waiting

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Run the block when it is its turn.

        Raises:
            BusyError: too many requests are waiting already.
        """
        if not self._free:
            raise BusyError("too many such requests are waiting", effect_unknown=False)
        self._free -= 1
        try:
            async with self._slots:
                yield
        finally:
            self._free += 1
