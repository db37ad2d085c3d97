"""Subscriptions that kill themselves with SIGKILL in the middle of a replay.

`python -m tests.acceptance.crashing_replays POINT` runs the service with one wrapped collaborator.
The process kills itself when it reaches POINT for the second time.
"""

import os
import signal
import sys
from typing import Any, Final
from uuid import UUID

from services.subscriptions import app
from services.subscriptions.endpoints.replaying import Replays
from shared.process.run import Parts, serve
from shared.settings import Settings, load

POINTS: Final = ("in the transaction", "after the commit")
POINT: Final = sys.argv[1] if len(sys.argv) > 1 else "never"
_reached: list[str] = []


def at(point: str) -> None:
    if point == POINT:
        _reached.append(point)
        if len(_reached) > 1:
            os.kill(os.getpid(), signal.SIGKILL)


class DyingReplays(Replays):
    async def _replay_batch(self, connection: Any, id_: UUID, replay: Any) -> int:
        count = await super()._replay_batch(connection, id_, replay)
        at("in the transaction")
        return count

    async def _continue(self, id_: UUID) -> int:
        count = await super()._continue(id_)
        at("after the commit")
        return count


if __name__ == "__main__":
    setattr(app, "Replays", DyingReplays)  # noqa: B010 - app only imports it
    sys.exit(serve("subscriptions", app.start, load(Settings), Parts(metrics_port=0)))
