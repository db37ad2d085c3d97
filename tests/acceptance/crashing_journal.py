"""The journal, killed with SIGKILL at one exact point of a job that moves dead letters.

`python -m tests.acceptance.crashing_journal POINT` runs the service with a wrapped collaborator.
The process kills itself when it reaches POINT for the second time, so that one step is complete.
"""

import sys
from collections.abc import Sequence
from typing import Any, Final

from services.journal import app
from services.journal.dead import moving
from shared.amqp.queue_browser import QueueBrowser
from shared.process.run import Parts, serve
from shared.settings import Settings, load
from tests.acceptance.crashing import die

POINTS: Final = ("after the publish", "after the commit", "after the ack")
POINT: Final = sys.argv[1] if len(sys.argv) > 1 else "never"
_reached: list[str] = []


def reach(point: str) -> None:
    """Die if the command line names this point, and it is the second time."""
    if point == POINT:
        _reached.append(point)
        if len(_reached) > 1:
            die()


class CrashingMove(moving._Move):  # noqa: SLF001 - the points are between its methods
    """The work on a job, with a point after each of its effects."""

    async def _publish(self, batch: Sequence[Any]) -> Any:
        published = await super()._publish(batch)
        reach("after the publish")
        return published

    async def _report(self, gone: Sequence[Any]) -> None:
        reach("after the commit")
        await super()._report(gone)

    async def _move(self, browser: QueueBrowser, batch: Sequence[Any]) -> int:
        count = await super()._move(browser, batch)
        reach("after the ack")
        return count


if __name__ == "__main__":
    setattr(moving, "_Move", CrashingMove)  # noqa: B010 - only the name is used
    sys.exit(serve("journal", app.start, load(Settings), Parts(metrics_port=0)))
