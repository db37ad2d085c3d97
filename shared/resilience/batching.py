"""Collects single items into batches, so that one statement does the work of many."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from shared.errors import InfrastructureError

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Calls `work` with all collected items, at most `max_size`, as soon as the last call ends.

    `interval`: seconds from the start of a call to the next one, so that more items collect.

    `work` returns a result for each item, in order. If it raises an InfrastructureError, all its
    items get the error. After any other error it is called again with each half, so that one
    invalid item does not fail the others. So `work` must be idempotent.
    """

    def __init__(
        self,
        work: Callable[[list[T]], Awaitable[list[R]]],
        *,
        max_size: int,
        interval: float = 0.0,
    ) -> None:
        self._work = work
        self._max_size = max_size
        self._interval = interval
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._pending = asyncio.Event()
        self._working: list[asyncio.Future[R]] = []

    async def add(self, item: T) -> R:
        """Return the result of an item, once a batch with it has ended.

        Raises:
            the error of `work`.
        """
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        self._pending.set()
        return await done

    async def finish_pending(self) -> None:
        """Wait until all items added before have a result or an error."""
        before = [done for _, done in self._waiting] + self._working
        if before:
            await asyncio.wait(before)

    async def run(self) -> None:
        """Work until cancelled."""
        loop = asyncio.get_running_loop()
        earliest = 0.0
        while True:
            await self._pending.wait()
            if (remaining := earliest - loop.time()) > 0:
                await asyncio.sleep(remaining)
            earliest = loop.time() + self._interval
            batch, self._waiting = self._waiting[: self._max_size], self._waiting[self._max_size :]
            if not self._waiting:
                self._pending.clear()
            batch = [(item, done) for item, done in batch if not done.done()]
            self._working = [done for _, done in batch]
            if batch:
                await self._process(batch)
            self._working = []

    async def _process(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            results = await self._work([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 - every caller of `add` gets it
            if len(batch) > 1 and not isinstance(error, InfrastructureError):
                middle = len(batch) // 2
                await self._process(batch[:middle])
                await self._process(batch[middle:])
                return
            for _, done in batch:
                if not done.done():
                    done.set_exception(error)
        else:
            for (_, done), result in zip(batch, results, strict=True):
                if not done.done():
                    done.set_result(result)
