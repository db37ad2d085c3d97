"""Mailings with short leases, so a test does not wait long after a process is killed.

`python -m tests.acceptance.short_lease_mailings PAGE` kills itself with SIGKILL when half of a page
is published. The first one is 1.
"""

import sys
from collections.abc import Sequence
from typing import Any

from services.mailings import app
from services.mailings.expansion import slice as slice_module
from services.mailings.expansion import worker
from services.mailings.expansion.publisher import ThrottledPublisher
from services.mailings.messages import ReadyMessage
from shared.process.run import Parts, serve
from shared.settings import Settings, load
from tests.acceptance.crashing import die


class DyingPublisher(ThrottledPublisher):
    """A publisher that dies in the middle of a page."""

    _left = int(sys.argv[1]) if sys.argv[1:] else 0

    async def publish(self, messages: Sequence[ReadyMessage], *args: Any, **kwargs: Any) -> None:
        self._left -= 1
        if self._left == 0:
            await super().publish(messages[: len(messages) // 2], *args, **kwargs)
            die()
        await super().publish(messages, *args, **kwargs)


if __name__ == "__main__":
    for module in (worker, slice_module):
        setattr(module, "LEASE", 2.0)  # noqa: B010 - mypy rejects the assignment to a constant
    setattr(app, "ThrottledPublisher", DyingPublisher)  # noqa: B010 - app only imports the name
    sys.exit(serve("mailings", app.start, load(Settings), Parts(metrics_port=0)))
