"""Ingestion that kills itself with SIGKILL at one exact point.

`python -m tests.acceptance.crashing_ingestion POINT` runs the service with one wrapped
collaborator. The process kills itself when it reaches POINT for the second time; with POINT `never`
it does not. Leases are short, so that tests do not wait for them.
"""

import os
import signal
import sys
from collections.abc import Collection, Sequence
from typing import Any, Final
from uuid import UUID

from services.ingestion import app, outbox
from services.ingestion.store import AcceptedEvent, Store
from shared.amqp.publisher import OutgoingMessage, Publisher
from shared.process.run import Parts, serve
from shared.settings import Settings, load

POINTS: Final = (
    "before the commit",
    "after the commit",
    "before the publish",
    "after the confirm",
    "after the deletion",
)
POINT: Final = sys.argv[1] if len(sys.argv) > 1 else "never"
_reached: list[str] = []


def at(point: str) -> None:
    if point == POINT:
        _reached.append(point)
        if len(_reached) > 1:
            os.kill(os.getpid(), signal.SIGKILL)


class DyingStore(Store):
    async def accept(self, events: Sequence[AcceptedEvent], *, lease: float) -> set[UUID]:
        at("before the commit")
        new = await super().accept(events, lease=lease)
        at("after the commit")
        return new

    async def delete(self, ids: Collection[UUID]) -> None:
        await super().delete(ids)
        at("after the deletion")


class DyingPublisher(Publisher):
    def publish(self, message: OutgoingMessage) -> Any:
        if message.exchange != "postings":
            return super().publish(message)
        at("before the publish")
        done = super().publish(message)
        done.add_done_callback(lambda _: at("after the confirm"))
        return done


if __name__ == "__main__":
    setattr(outbox, "LEASE", 1.0)  # noqa: B010 - a constant everywhere else
    setattr(app, "Store", DyingStore)  # noqa: B010 - app only imports it
    setattr(app, "Publisher", DyingPublisher)  # noqa: B010
    sys.exit(serve("ingestion", app.start, load(Settings), Parts(metrics_port=0)))
