"""A task for each delivery, shared by the consumer and the RPC server."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from shared.amqp.connection import CONNECTION_ERRORS
from shared.amqp.frame_interceptor import Delivery
from shared.amqp.subscription import Subscription


class DeliveryTasks:
    """The deliveries in progress, one task each.

    Tasks outlive connections: one continues when the connection of its delivery is lost.
    """

    def __init__(self) -> None:
        self.draining = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None

    async def consume(
        self,
        subscription: Subscription,
        process: Callable[[Delivery], Coroutine[Any, Any, None]],
        *,
        started: Callable[[], None],
        ended: Callable[[int, BaseException | None], None],
        prefetch: int,
    ) -> None:
        """Process each delivery in a task, until the subscription is lost.

        After `stop` it returns at once: a draining consumer would requeue each message until the
        delivery limit dead-letters it.

        `started` is called once messages are consumed, and `ended` with the tag of each delivery
        and the error of its task. It is not called for a cancelled task: the delivery stays
        unacknowledged, so the broker delivers it again.

        Raises:
            one of CONNECTION_ERRORS: the subscription was lost.
        """
        if self.draining:
            return
        loop = asyncio.get_running_loop()

        def start(delivery: Delivery) -> None:
            task = loop.create_task(process(delivery))
            self._tasks.add(task)
            task.add_done_callback(partial(end, delivery.tag))

        def end(tag: int, task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled():
                ended(tag, task.exception())

        await subscription.start(start, prefetch=prefetch)
        self._subscription = subscription
        started()
        try:
            if self.draining:  # since `start` was called
                await subscription.stop()
            await subscription.run(idle=lambda: not (self._tasks or self.draining))
        finally:
            self._subscription = None

    async def stop(self) -> None:
        """Stop consuming, on this connection and on later ones."""
        self.draining = True
        if self._subscription is not None:
            with suppress(*CONNECTION_ERRORS):  # a lost connection receives nothing either
                await self._subscription.stop()

    async def finish(self, grace: float) -> None:
        """Wait up to `grace` seconds for the tasks in progress, then cancel the others."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=grace)
            for task in late:
                task.cancel()
