"""Gathers what comes one by one into batches, so that one statement does the work of many."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Calls `work` with what has gathered, as soon as it is free; never with more than `most`.

    `work` returns a result for each item, in order. Its error is everybody's.
    """

    def __init__(self, work: Callable[[list[T]], Awaitable[list[R]]], *, most: int) -> None:
        self._work = work
        self._most = most
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._some = asyncio.Event()
        self._working: list[asyncio.Future[R]] = []

    async def add(self, item: T) -> R:
        """Have it worked on; its result.

        Raises:
            whatever `work` raises.
        """
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        self._some.set()
        return await done

    async def settled(self) -> None:
        """Wait until all that was added before is done, well or not."""
        before = [done for _, done in self._waiting] + self._working
        if before:
            await asyncio.wait(before)

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._some.wait()
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            if not self._waiting:
                self._some.clear()
            batch = [(item, done) for item, done in batch if not done.done()]
            self._working = [done for _, done in batch]
            if not batch:
                continue
            try:
                results = await self._work([item for item, _ in batch])
            except Exception as error:  # noqa: BLE001 - whoever waits deals with it
                for done in self._working:
                    if not done.done():
                        done.set_exception(error)
            else:
                for done, result in zip(self._working, results, strict=True):
                    if not done.done():
                        done.set_result(result)
            self._working = []
