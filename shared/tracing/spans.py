"""Spans with the W3C trace context as text, as messages carry it. It needs the extra `otel`."""

from collections.abc import Mapping
from types import TracebackType
from typing import Final, Literal, Self

from opentelemetry import trace
from opentelemetry.context import Context

from shared.errors import RingbackError
from shared.version import VERSION

Kind = Literal["server", "client", "producer", "consumer"]
# An attribute that is None is omitted.
Attributes = Mapping[str, str | int | None]

# Characters of an attribute and of the description of a failure: as many as a reason has.
MAX_TEXT: Final = 1000

_KINDS: Final = {
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
    "producer": trace.SpanKind.PRODUCER,
    "consumer": trace.SpanKind.CONSUMER,
}


class Span:
    """A span that has started. As a context manager it ends, and records an error.

    traceparent: the trace context for everything that follows from the span.
    """

    __slots__ = ("_failed", "_span", "_tracer", "traceparent")

    def __init__(self, tracer: "Tracer", span: trace.Span) -> None:
        context = span.get_span_context()
        ids = f"{context.trace_id:032x}-{context.span_id:016x}"
        self.traceparent = f"00-{ids}-{int(context.trace_flags):02x}"
        self._tracer = tracer
        self._span = span
        self._failed = False

    def child(self, name: str, kind: Kind, attributes: Attributes) -> "Span | None":
        """Start a span below this one. Returns None if the trace is not sampled."""
        return self._tracer.start(name, kind, attributes, parent=self.traceparent)

    def set(self, name: str, value: str | int | None) -> None:
        """Set an attribute."""
        if value is not None:
            self._span.set_attribute(name, value)

    def fail(self, kind: str, description: str = "") -> None:
        """Mark the span as failed. The first failure counts, because it is the most exact one."""
        if not self._failed:
            self._failed = True
            # A lone surrogate would make the whole batch of spans unencodable.
            text = description[:MAX_TEXT].encode(errors="replace").decode()
            self._span.set_attribute("error.type", kind)
            self._span.set_status(trace.StatusCode.ERROR, text)

    def end(self) -> None:
        """End the span. Later changes have no effect."""
        self._span.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            # The text of any other error may contain a secret.
            self.fail(type(exc).__name__, str(exc) if isinstance(exc, RingbackError) else "")
        self.end()


class Tracer:
    """Starts spans."""

    def __init__(self, provider: trace.TracerProvider) -> None:
        self._tracer = provider.get_tracer("ringback", VERSION)

    def start(  # noqa: PLR0913 - callers name each
        self,
        name: str,
        kind: Kind,
        attributes: Attributes,
        *,
        parent: str | None,
        begin: bool = False,
        link: str | None = None,
    ) -> Span | None:
        """Start a span below the span of a valid traceparent.

        Returns None if the caller does not sample the trace, or if there is no parent. With
        `begin`, a span without a parent begins a trace. The sampler then decides, and the
        traceparent carries its decision.

        link: a valid traceparent of another trace, which the span refers to.
        """
        context = Context()
        if parent is not None:
            remote = _remote(parent)
            if not remote.trace_flags.sampled:
                return None
            context = trace.set_span_in_context(trace.NonRecordingSpan(remote), context)
        elif not begin:
            return None
        span = self._tracer.start_span(
            name,
            context,
            kind=_KINDS[kind],
            attributes={key: value for key, value in attributes.items() if value is not None},
            links=None if link is None else [trace.Link(_remote(link))],
        )
        # OTEL_SDK_DISABLED makes all spans invalid.
        return Span(self, span) if span.get_span_context().is_valid else None


def _remote(traceparent: str) -> trace.SpanContext:
    _, trace_id, span_id, flags = traceparent.split("-")
    return trace.SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(int(flags, 16)),
    )
