"""The metrics of ingestion. docs/metrics.md explains them."""

from typing import Final

from prometheus_client import Counter

from services.ingestion.domain import Kind

EVENTS: Final = Counter("ringback_events", "Events by outcome.", ["outcome"])
ACCEPTED: Final = EVENTS.labels("accepted")
DUPLICATE: Final = EVENTS.labels("duplicate")
STALE: Final = EVENTS.labels("stale")
SKIPPED: Final = EVENTS.labels("skipped")
INVALID: Final = EVENTS.labels("invalid")
UNKNOWN: Final = EVENTS.labels("unknown")
FAILED: Final = EVENTS.labels("failed")

_COMMANDS: Final = Counter(
    "ringback_commands",
    "Publishes of commands, by result.",
    ["kind", "outcome"],
)
PUBLISHED: Final = {kind: _COMMANDS.labels(kind.value, "confirmed") for kind in Kind}
UNPUBLISHED: Final = {kind: _COMMANDS.labels(kind.value, "unpublished") for kind in Kind}
