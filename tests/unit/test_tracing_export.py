"""N14: spans leave for the collector without stopping the work, and only if tracing is on."""

import subprocess
import sys
from collections.abc import Iterator
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from shared.process import run
from shared.registry import SERVICES
from shared.tracing import active

export = pytest.importorskip("shared.tracing.export", reason="needs the extra otel")
from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: E402

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class StuckExporter:
    """An exporter whose collector does not respond until the test ends."""

    def __init__(self) -> None:
        self.asked = Event()
        self.release = Event()

    def export(self, _: object) -> SpanExportResult:
        self.asked.set()
        self.release.wait()
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        pass


@pytest.fixture
def stuck() -> Iterator[StuckExporter]:
    exporter = StuckExporter()
    yield exporter
    exporter.release.set()


def dropped(reason: str) -> float:
    return REGISTRY.get_sample_value("ringback_spans_dropped_total", {"reason": reason}) or 0.0


def test_n14_while_the_collector_is_stuck_spans_are_dropped_and_counted(
    stuck: StuckExporter,
) -> None:
    overflow, failed = dropped("overflow"), dropped("failed")
    queue = export.SpanQueue(export.CountingExporter(stuck))
    flags = SimpleNamespace(trace_flags=SimpleNamespace(sampled=True))
    span = SimpleNamespace(context=flags)
    for _ in range(export.BATCH_SIZE):
        queue.on_end(span)
    assert stuck.asked.wait(60)  # the first batch is with the collector
    for _ in range(export.MAX_WAITING + 7):
        queue.on_end(span)
    assert queue.waiting == export.MAX_WAITING
    assert dropped("overflow") - overflow == 7
    stuck.release.set()
    queue.shutdown()
    assert queue.waiting == 0
    assert dropped("failed") - failed == export.BATCH_SIZE + export.MAX_WAITING


def test_n14_a_batch_that_cannot_be_encoded_is_counted() -> None:
    class Failing(StuckExporter):
        def export(self, _: object) -> SpanExportResult:
            raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")

    failed = dropped("failed")
    exporter = export.CountingExporter(Failing())
    assert exporter.export([SimpleNamespace()] * 3) is SpanExportResult.FAILURE
    assert dropped("failed") - failed == 3


def test_n14_an_attribute_is_short_whatever_a_sender_has_put_into_a_header() -> None:
    with export.exporting("callback", "http://127.0.0.1:1"):
        assert active.tracer is not None
        long = {"ringback.dispatch": "x" * 100_000}
        span: Any = active.tracer.start("publish", "producer", long, parent=SAMPLED)
    assert len(span._span.attributes["ringback.dispatch"]) == 1000  # noqa: SLF001 - not exported


def test_n14_while_tracing_is_off_no_service_imports_the_library() -> None:
    modules = ", ".join(f"{service.module}.app" for service in SERVICES.values())
    found = "[name for name in sys.modules if name.startswith(('opentelemetry', 'google.'))]"
    subprocess.run(
        (sys.executable, "-c", f"import sys, {modules}; sys.exit({found} or 0)"),
        check=True,
    )


def test_n14_a_missing_library_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "shared.tracing.export")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with (
        pytest.raises(run.TracingUnavailableError, match=r"Install ringback\[otel\]") as caught,
        run._tracing("callback", "http://127.0.0.1:4318"),  # noqa: SLF001 - without a process
    ):
        pass
    assert caught.value.exit_code == 2
