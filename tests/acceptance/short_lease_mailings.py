"""Mailings with short leases, so a test does not wait long after a process is killed."""

import sys

from services.mailings import app
from services.mailings.expansion import slice as slice_module
from services.mailings.expansion import worker
from shared.process.run import Parts, serve
from shared.settings import Settings, load

if __name__ == "__main__":
    for module in (worker, slice_module):
        setattr(module, "LEASE", 2.0)  # noqa: B010 - mypy rejects the assignment to a constant
    sys.exit(serve("mailings", app.start, load(Settings), Parts(metrics_port=0)))
