"""The callback service on a machine whose clock is an hour ahead.

`python -m tests.acceptance.callback_ahead` runs the real service with another clock.
"""

import sys

from services.callback import app
from shared.clock import SystemClock
from shared.process.run import Parts, serve
from shared.settings import Settings, load


class ClockAhead(SystemClock):
    """The machine's clock, an hour ahead."""

    def now(self) -> float:
        return super().now() + 3600


if __name__ == "__main__":
    setattr(app, "SystemClock", ClockAhead)  # noqa: B010 - app only imports the name
    sys.exit(serve("callback", app.start, load(Settings), Parts(metrics_port=0)))
