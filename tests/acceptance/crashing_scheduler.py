"""The scheduler, killed with SIGKILL at one exact point.

`python -m tests.acceptance.crashing_scheduler POINT` runs the real scheduler with collaborators
that kill the process when it first reaches the point.
"""

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from services.scheduler import app
from services.scheduler.records import Claim, Inserted, NewCallback
from services.scheduler.store import BEGINNING, Decide, Outbox, Store
from shared.amqp.publisher import OutgoingMessage, Publisher
from shared.process.run import Parts, serve
from shared.settings import Settings, load
from shared.topology import CALLBACKS
from tests.acceptance.crashing import die

POINTS: Final = (
    "before the insert",
    "after the insert",
    "after the claim",
    "after the confirm",
    "before the settlement",
    "after the settlement",
)


def reach(point: str) -> None:
    """Die if the command line names this point."""
    if sys.argv[1:] == [point]:
        die()


class CrashingStore(Store):
    """The store, with points before and after its writes."""

    async def insert(self, new: Sequence[NewCallback], *, claim: bool = True) -> Inserted:
        reach("before the insert")
        inserted = await super().insert(new, claim=claim)
        reach("after the insert")
        return inserted

    async def claim(self, limit: int, *, after: datetime = BEGINNING) -> list[Claim]:
        claims = await super().claim(limit, after=after)
        if claims:
            reach("after the claim")
        return claims

    async def update(
        self, ids: Sequence[UUID], decide: Decide, outbox: Outbox = lambda _: None
    ) -> datetime:
        reach("before the settlement")
        now = await super().update(ids, decide, outbox)
        reach("after the settlement")
        return now


class CrashingPublisher(Publisher):
    """The publisher, with a point after the broker has confirmed a dispatch."""

    def publish(self, message: OutgoingMessage) -> Any:
        done = super().publish(message)
        if message.routing_key == CALLBACKS:
            done.add_done_callback(lambda _: reach("after the confirm"))
        return done


if __name__ == "__main__":
    setattr(app, "Store", CrashingStore)  # noqa: B010 - app only imports the name
    setattr(app, "Publisher", CrashingPublisher)  # noqa: B010 - as above
    sys.exit(serve("scheduler", app.start, load(Settings), Parts(metrics_port=0)))
