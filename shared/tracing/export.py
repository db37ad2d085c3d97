"""Exports spans to an OpenTelemetry collector, over OTLP/HTTP. It needs the extra `otel`.

The batches and the requests of a library run in a thread of its own. They never delay the work.
"""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from shared.tracing import active
from shared.tracing.spans import MAX_TEXT, Tracer
from shared.version import VERSION

logger = logging.getLogger(__name__)

# Spans that wait for the collector, about 3 kB each. More are dropped.
MAX_WAITING: Final = 4096
# Spans in one request.
BATCH_SIZE: Final = 512
# Seconds to wait for the collector at exit. They are part of the reserve of the shutdown timeout.
FLUSH_TIMEOUT: Final = 1.0

_OVERFLOW: Final = active.DROPPED.labels("overflow")
_FAILED: Final = active.DROPPED.labels("failed")


class CountingExporter(SpanExporter):
    """Counts the spans that another exporter has exported or failed to export.

    taken: spans that no longer wait.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._failing = False
        self.taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export a batch, and log when the collector fails or works again."""
        self.taken += len(spans)
        try:
            result = self._exporter.export(spans)
        except Exception:  # noqa: BLE001 - the library would drop the batch without a count
            result = SpanExportResult.FAILURE
        failing = result is not SpanExportResult.SUCCESS
        (_FAILED if failing else active.EXPORTED).inc(len(spans))
        if failing and not self._failing:
            logger.warning("spans dropped: the collector is unavailable or rejects them")
        elif self._failing and not failing:
            logger.info("spans exported again")
        self._failing = failing
        return result

    def shutdown(self) -> None:
        """Stop, and give up the request in progress."""
        self._exporter.shutdown()


class SpanQueue(SpanProcessor):
    """Batches ended spans, and drops and counts those that find a full queue.

    The library's own queue drops spans without a count, so it must never overflow. Spans end in one
    thread and are taken in another. Each has a counter of its own, so they need no lock.
    """

    def __init__(self, exporter: CountingExporter) -> None:
        self._exporter = exporter
        self._batches: SpanProcessor = BatchSpanProcessor(
            exporter, max_queue_size=MAX_WAITING, max_export_batch_size=BATCH_SIZE
        )
        self._added = 0

    @property
    def waiting(self) -> int:
        """Return the number of spans that wait for a request."""
        return self._added - self._exporter.taken

    def on_end(self, span: ReadableSpan) -> None:
        """Add an ended span."""
        if self.waiting >= MAX_WAITING:
            _OVERFLOW.inc()
            return
        self._added += 1
        self._batches.on_end(span)

    def shutdown(self) -> None:
        """Export the waiting spans, and stop."""
        self._batches.shutdown()


@contextmanager
def exporting(service: str, endpoint: str) -> Iterator[None]:
    """Trace this process while the context lasts, and send its spans to a collector.

    endpoint: the base URL of the collector. Its end waits up to a second for the last spans.
    """
    host = socket.gethostname()
    queue = SpanQueue(CountingExporter(OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")))
    provider = TracerProvider(
        resource=Resource.create(
            {
                "service.name": f"ringback-{service}",
                "service.version": VERSION,
                "service.instance.id": f"{host}/{os.getpid()}",
                "host.name": host,
            }
        ),
        shutdown_on_exit=False,
        # Some attributes are headers, which a sender can make as large as a frame.
        span_limits=SpanLimits(max_attribute_length=MAX_TEXT),
    )
    provider.add_span_processor(queue)
    # It logs each failed request. Ours are logged when the state changes, and counted.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    active.tracer = Tracer(provider)
    try:
        yield
    finally:
        active.tracer = None
        flush = Thread(target=provider.shutdown, daemon=True)
        flush.start()
        flush.join(FLUSH_TIMEOUT)
        if flush.is_alive():
            logger.warning("spans not exported at shutdown", extra={"spans": queue.waiting})
