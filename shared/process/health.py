"""What a process knows of its own readiness, part by part."""

import logging
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

STARTING: Final = "starting"


class Health:
    """The state of each part this process needs. A part is not ready before it says so.

    Every change is one log line, so that the log tells the same story as `/readyz`, and one call of
    `on_change`.
    """

    def __init__(self) -> None:
        self._faults: dict[str, str | None] = {}
        self._draining = False
        self.on_change: Callable[[], None] = lambda: None

    def expect(self, part: str) -> None:
        """The process needs this part: it is not ready until the part is up."""
        self._faults[part] = STARTING
        self.on_change()

    def up(self, part: str) -> None:
        """The part works."""
        if self._faults.get(part, "") is not None:
            logger.info("%s is ready", part, extra={"part": part})
        self._faults[part] = None
        self.on_change()

    def down(self, part: str, why: str) -> None:
        """The part does not work, for a reason that a person can act on."""
        if self._faults.get(part) != why:
            logger.warning("%s is not ready: %s", part, why, extra={"part": part})
        self._faults[part] = why
        self.on_change()

    def drain(self) -> None:
        """The process is stopping: never ready again."""
        self._draining = True
        self.on_change()

    @property
    def ready(self) -> bool:
        """Whether every part works and the process is not stopping."""
        return self.fault is None

    @property
    def fault(self) -> str | None:
        """Why the process is not ready, in one line; None while it is."""
        if self._draining:
            return "draining"
        faults = {part: fault for part, fault in self._faults.items() if fault}
        told = [f"{part}: {fault}" for part, fault in faults.items() if fault != STARTING]
        return "; ".join(told) or (STARTING if faults else None)

    def report(self) -> dict[str, object]:
        """The body of `/readyz`."""
        return {
            "status": "draining" if self._draining else "ready" if self.ready else "not ready",
            "parts": {part: fault or "ok" for part, fault in self._faults.items()},
        }
