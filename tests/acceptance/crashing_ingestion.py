"""Ingestion, made to die by kill -9 at one exact point.

`python -m tests.acceptance.crashing_ingestion POINT` runs the service as it is, with one
collaborator wrapped so that the process kills itself when it gets there for the second time;
POINT `never` never does. Leases are short, so that a test need not wait for them.
"""

import os
import signal
import sys
from collections.abc import Collection, Sequence
from typing import Any, Final
from uuid import UUID

from services.ingestion import app, outbox
from services.ingestion.store import Accepted, Store
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
_seen: list[str] = []


def at(point: str) -> None:
    if point == POINT:
        _seen.append(point)
        if len(_seen) > 1:
            os.kill(os.getpid(), signal.SIGKILL)


class DyingStore(Store):
    async def accept(self, events: Sequence[Accepted], *, lease: float) -> set[UUID]:
        at("before the commit")
        fresh = await super().accept(events, lease=lease)
        at("after the commit")
        return fresh

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
    setattr(app, "Store", DyingStore)  # noqa: B010 - no name of app's own
    setattr(app, "Publisher", DyingPublisher)  # noqa: B010
    sys.exit(serve("ingestion", app.start, load(Settings), Parts(metrics_port=0)))
