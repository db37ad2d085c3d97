"""A journal that kills itself with SIGKILL in the middle of a replay of everything that matches.

`python -m tests.acceptance.crashing_journal_replays POINT` runs the service with one wrapped
collaborator. The process kills itself when it reaches POINT for the second time.
"""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

from services.journal import app
from services.journal.jobs.store import Jobs, StoredJob
from services.journal.replays.sending import Callback, Order, ReplaySender, Result
from shared.process.run import Parts, serve
from shared.settings import Settings, load

POINTS: Final = ("before the publish", "after the confirms", "in the transaction")
POINT: Final = sys.argv[1] if len(sys.argv) > 1 else "never"
_reached: list[str] = []


def at(point: str) -> None:
    if point == POINT:
        _reached.append(point)
        if len(_reached) > 1:
            os.kill(os.getpid(), signal.SIGKILL)


class DyingSender(ReplaySender):
    async def send_each(self, callbacks: Sequence[Callback], order: Order) -> list[Result]:
        at("before the publish")
        results = await super().send_each(callbacks, order)
        at("after the confirms")
        return results


class DyingJobs(Jobs):
    async def advance(self, connection: Any, job: StoredJob, **progress: Any) -> None:
        await super().advance(connection, job, **progress)
        at("in the transaction")


if __name__ == "__main__":
    setattr(app, "ReplaySender", DyingSender)  # noqa: B010 - app only imports it
    setattr(app, "Jobs", DyingJobs)  # noqa: B010
    sys.exit(serve("journal", app.start, load(Settings), Parts(metrics_port=0)))
