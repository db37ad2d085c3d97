"""Flow control of the publisher and the RPC client: whether they can send, and why not."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

from shared.amqp.frame_interceptor import FrameInterceptor
from shared.process.health import Health

NOT_CONNECTED: Final = "not connected to the broker"
BLOCKED: Final = "the broker blocks publishing: an alarm is on"

S = TypeVar("S")
R = TypeVar("R")


class FlowControl(Generic[S]):
    """The session of a client, while the broker accepts messages on it.

    session: None while the client cannot publish. fault: the reason, for errors and health.
    """

    def __init__(self, part: str, health: Health) -> None:
        self.session: S | None = None
        self.fault = NOT_CONNECTED
        self._part = part
        self._health = health
        self._ready = asyncio.Event()
        health.expect(part)

    async def ready(self) -> None:
        """Wait until the client can publish: it is connected, and no alarm is on."""
        await self._ready.wait()

    @contextmanager
    def use(self, session: S, interceptor: FrameInterceptor) -> Iterator[None]:
        """Publish on this session until the block ends, except while an alarm is on."""

        def set_blocked(blocked: bool) -> None:  # noqa: FBT001 - the interceptor's callback
            if blocked:
                self._close(BLOCKED)
                self._health.down(self._part, BLOCKED)
            else:
                self.session = session
                self._ready.set()
                self._health.up(self._part)

        interceptor.on_blocked = set_blocked
        set_blocked(False)
        try:
            yield
        finally:
            interceptor.on_blocked = lambda _: None  # an alarm may end while the connection closes
            self._close(NOT_CONNECTED)

    def _close(self, fault: str) -> None:
        self.session = None
        self.fault = fault
        self._ready.clear()


def fail(future: asyncio.Future[R], error: Exception) -> None:
    """End the future with an error, unless it has ended already."""
    if not future.done():
        future.set_exception(error)
        future.exception()  # marks it as retrieved, so asyncio does not log it
