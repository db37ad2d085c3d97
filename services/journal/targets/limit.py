"""Bounds the number of targets in the figures, because anybody can have any number of hosts."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from services.journal.domain import Minute, MinuteKey

# Targets of one client in an hour. Reading those of an hour takes 0.3 s then. The page of targets
# reads them within one second, so three such clients leave it readable.
MAX_TARGETS: Final = 2000
# The target that has the figures of all others.
OTHER: Final = "other"
# Targets in memory: 10 MB. Beyond that, all are forgotten, and each client may have new ones.
MAX_KNOWN: Final = 100_000


class TargetLimit:
    """Counts attempts at further targets as those of OTHER. Entries keep their targets."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, datetime], set[str]] = {}
        self._count = 0

    def limited(self, minutes: Mapping[MinuteKey, Minute]) -> dict[MinuteKey, Minute]:
        """Return the figures of the batch with at most MAX_TARGETS of each client and hour."""
        found: dict[MinuteKey, Minute] = {}
        for (target, client_id, minute), figures in minutes.items():
            key = self._name(target, client_id, minute), client_id, minute
            if key in found:
                found[key].add(figures)
            else:
                found[key] = figures
        return found

    def _name(self, target: str, client_id: str, minute: datetime) -> str:
        if self._count >= MAX_KNOWN:
            self._known.clear()
            self._count = 0
        known = self._known.setdefault((client_id, minute.replace(minute=0)), set())
        if target not in known:
            if len(known) >= MAX_TARGETS:
                return OTHER
            known.add(target)
            self._count += 1
        return target
