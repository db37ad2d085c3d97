"""Subscriptions, killed with SIGKILL at one exact point of a dispatch or a settlement.

`python -m tests.acceptance.crashing_deliveries POINT` runs the real service with collaborators that
kill the process when it first reaches the point.
"""

import sys
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, Final

from services.subscriptions import app
from services.subscriptions.deliveries.claims import Claims, Settlement
from services.subscriptions.deliveries.domain import Delivery
from services.subscriptions.deliveries.messages import Claim
from shared.amqp.publisher import OutgoingMessage, Publisher
from shared.process.run import Parts, serve
from shared.settings import Settings, load
from shared.topology import CALLBACKS
from tests.acceptance.crashing import die

POINTS: Final = (
    "after the claim",
    "after the confirm",
    "before the settlement",
    "after the settlement",
)


def reach(point: str) -> None:
    """Die if the command line names this point."""
    if sys.argv[1:] == [point]:
        die()


class CrashingClaims(Claims):
    """The claims, with points before and after their writes."""

    async def claim(self, limit: int) -> list[Claim]:
        claims = await super().claim(limit)
        if claims:
            reach("after the claim")
        return claims

    async def settle(
        self,
        ids: Sequence[int],
        failed: Collection[int],
        decide: Callable[[Sequence[Delivery]], Settlement],
    ) -> datetime:
        reach("before the settlement")
        now = await super().settle(ids, failed, decide)
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
    setattr(app, "Claims", CrashingClaims)  # noqa: B010 - app only imports the name
    setattr(app, "Publisher", CrashingPublisher)  # noqa: B010 - as above
    sys.exit(serve("subscriptions", app.start, load(Settings), Parts(metrics_port=0)))
