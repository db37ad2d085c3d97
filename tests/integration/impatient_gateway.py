"""A gateway whose streams send comments and verify their tokens without a test having to wait.

`python -m tests.integration.impatient_gateway` runs the real service with shorter intervals.
"""

import sys

from services.gateway import app
from services.gateway.routes import polls
from shared.process.run import Parts, serve
from shared.settings import Settings, load

if __name__ == "__main__":
    setattr(polls, "COMMENT_INTERVAL", 0.1)  # noqa: B010 - mypy rejects an assignment to a constant
    setattr(polls, "READ_INTERVAL", 1.0)  # noqa: B010
    sys.exit(serve("gateway", app.start, load(Settings), Parts(metrics_port=0)))
