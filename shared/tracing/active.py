"""The tracer of this process. This module imports nothing of OpenTelemetry.

Like logs and metrics, spans belong to the process, so no part passes a tracer on. Tracing is off
unless a collector is configured. The tracer is None then, and a hot path only checks that.
"""

from typing import TYPE_CHECKING, Final, Optional

from prometheus_client import Counter

if TYPE_CHECKING:
    from shared.tracing.spans import Tracer

EXPORTED: Final = Counter("ringback_spans_exported", "Spans that the collector has accepted.")
DROPPED: Final = Counter("ringback_spans_dropped", "Spans that were not exported.", ["reason"])

tracer: Optional["Tracer"] = None
