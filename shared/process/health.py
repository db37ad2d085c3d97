"""Readiness of a process, by part."""

import logging
from collections.abc import Callable
from typing import Final

from prometheus_client import Gauge

logger = logging.getLogger(__name__)

STARTING: Final = "starting"
READY: Final = Gauge(
    "ringback_part_ready",
    "1 while a part of the process is ready, otherwise 0.",
    ["part"],
    multiprocess_mode="livemin",
)


class Health:
    """The state of each part that this process needs.

    Every change is logged once, so the log agrees with `/readyz`, and calls `on_change`. The metric
    `ringback_part_ready` has the state of each part for alerts.
    """

    def __init__(self) -> None:
        self._faults: dict[str, str | None] = {}
        self._draining = False
        self.on_change: Callable[[], None] = lambda: None

    def expect(self, part: str) -> None:
        """Add a part. The process is not ready until the part is up."""
        self._set(part, STARTING)

    def up(self, part: str) -> None:
        """Mark a part as ready."""
        if self._faults.get(part, "") is not None:
            logger.info("%s is ready", part, extra={"part": part})
        self._set(part, None)

    def down(self, part: str, reason: str) -> None:
        """Mark a part as not ready, with a reason that a person can act on."""
        if self._faults.get(part) != reason:
            logger.warning("%s is not ready: %s", part, reason, extra={"part": part})
        self._set(part, reason)

    def is_up(self, part: str) -> bool:
        """Return whether a part is ready."""
        return self._faults.get(part, STARTING) is None

    def drain(self) -> None:
        """Mark the process as stopping. It is never ready again."""
        self._draining = True
        self.on_change()

    def _set(self, part: str, fault: str | None) -> None:
        self._faults[part] = fault
        READY.labels(part).set(fault is None)
        self.on_change()

    @property
    def ready(self) -> bool:
        """Return whether every part is ready and the process is not stopping."""
        return self.fault is None

    @property
    def fault(self) -> str | None:
        """Return why the process is not ready, in one line, or None if it is."""
        if self._draining:
            return "draining"
        faults = {part: fault for part, fault in self._faults.items() if fault}
        known = [f"{part}: {fault}" for part, fault in faults.items() if fault != STARTING]
        return "; ".join(known) or (STARTING if faults else None)

    def report(self) -> dict[str, object]:
        """Return the body of `/readyz`."""
        return {
            "status": "draining" if self._draining else "ready" if self.ready else "not ready",
            "parts": {part: fault or "ok" for part, fault in self._faults.items()},
        }
