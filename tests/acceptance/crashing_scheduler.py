"""The scheduler, made to die by kill -9 at one exact point.

`python -m tests.acceptance.crashing_scheduler POINT` runs it as it is, with one collaborator
wrapped so that the process kills itself the first time it gets to that point.
"""

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from services.scheduler import app
from services.scheduler.store import BEGINNING, Claim, Decide, Inserted, Order, Store
from shared.amqp.publisher import Outgoing, Publisher
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


def arm(point: str) -> None:
    """Wrap the collaborator that gets to this point."""
    when, _, what = point.partition(" the ")

    class DyingStore(Store):
        async def create(self, orders: Sequence[Order]) -> Inserted:
            if point == "before the insert":
                die()
            inserted = await super().create(orders)
            if what == "insert":
                die()
            return inserted

        async def claim(self, limit: int, *, after: datetime = BEGINNING) -> list[Claim]:
            claims = await super().claim(limit, after=after)
            if claims and what == "claim":
                die()
            return claims

        async def change(self, ids: Sequence[UUID], decide: Decide) -> datetime:
            if point == "before the settlement":
                die()
            now = await super().change(ids, decide)
            if what == "settlement":
                die()
            return now

    class DyingPublisher(Publisher):
        def publish(self, message: Outgoing) -> Any:
            done = super().publish(message)
            if what == "confirm" and message.routing_key == CALLBACKS:
                done.add_done_callback(lambda _: die())
            return done

    setattr(app, "Store", DyingStore)  # noqa: B010 - no name of app's own
    setattr(app, "Publisher", DyingPublisher)  # noqa: B010


if __name__ == "__main__":
    arm(sys.argv[1])
    sys.exit(serve("scheduler", app.start, load(Settings), Parts(metrics_port=0)))
