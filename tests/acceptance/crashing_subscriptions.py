"""Subscriptions that kill themselves with SIGKILL at one exact point.

`python -m tests.acceptance.crashing_subscriptions POINT` runs the service with one wrapped
collaborator. The process kills itself when it reaches POINT for the second time; with POINT `never`
it does not.
"""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

from services.subscriptions import app
from services.subscriptions.messenger.domain import AppendResult, NewEvent
from services.subscriptions.messenger.store import Messenger
from shared.amqp.publisher import OutgoingMessage, Publisher
from shared.process.run import Parts, serve
from shared.settings import Settings, load

POINTS: Final = ("in the transaction", "after the commit", "before the wake", "after the wake")
POINT: Final = sys.argv[1] if len(sys.argv) > 1 else "never"
_reached: list[str] = []


def at(point: str) -> None:
    if point == POINT:
        _reached.append(point)
        if len(_reached) > 1:
            os.kill(os.getpid(), signal.SIGKILL)


class DyingMessenger(Messenger):
    async def append(self, events: Sequence[NewEvent]) -> list[AppendResult]:
        outcomes = await super().append(events)
        at("after the commit")
        return outcomes

    async def _append_new(self, connection: Any, events: Sequence[NewEvent]) -> Any:
        appended = await super()._append_new(connection, events)
        at("in the transaction")
        return appended


class DyingPublisher(Publisher):
    def publish(self, message: OutgoingMessage) -> Any:
        if message.exchange != "user_events.wake":
            return super().publish(message)
        at("before the wake")
        done = super().publish(message)
        done.add_done_callback(lambda _: at("after the wake"))
        return done


if __name__ == "__main__":
    setattr(app, "Messenger", DyingMessenger)  # noqa: B010 - app only imports it
    setattr(app, "Publisher", DyingPublisher)  # noqa: B010
    sys.exit(serve("subscriptions", app.start, load(Settings), Parts(metrics_port=0)))
