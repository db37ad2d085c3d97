"""Mailings as it is, with short leases, so that a test need not wait for a dead one's."""

import sys

from services.mailings import app
from services.mailings.expansion import slice as turn
from services.mailings.expansion import worker as expansion
from shared.process.run import Parts, serve
from shared.settings import Settings, load

if __name__ == "__main__":
    for module in (expansion, turn):
        setattr(module, "LEASE", 2.0)  # noqa: B010 - a constant everywhere else
    sys.exit(serve("mailings", app.start, load(Settings), Parts(metrics_port=0)))
