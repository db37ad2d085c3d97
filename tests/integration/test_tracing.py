"""N14: the spans of all services form one tree, from the HTTP request to each attempt."""

import json
import signal
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("shared.tracing.export", reason="needs the extra otel")

from shared.tracing import active
from shared.tracing.export import exporting
from tests.fakes.broker_client import SECRET, broker_client, send_callback
from tests.fakes.callback_service import schedules_client
from tests.fakes.collector import CollectedSpan, Collector, collector
from tests.fakes.console import running_console
from tests.fakes.gateway import Caller
from tests.fakes.sandbox import Sandbox
from tests.fakes.service import running
from tests.fakes.system import StartSystem, System
from tests.fakes.waiting import until

CALLER = "b7ad6b7169203331"
CANARY = "c4n4ry"
# Milliseconds between two exports.
SOON = "100"


@pytest.fixture(scope="module")
def collected() -> Iterator[Collector]:
    with collector() as started:
        yield started


@pytest.fixture(scope="module")
def services(start_system: StartSystem, collected: Collector) -> Iterator[System]:
    tracing = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collected.url,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "OTEL_BSP_SCHEDULE_DELAY": SOON,
    }
    with start_system("scheduler", "callback", **tracing) as started:
        yield started


@pytest.fixture
async def call(services: System) -> AsyncIterator[Caller]:
    async with services.calling() as caller:
        yield caller


async def spans_of(collected: Collector, trace_id: str, count: int = 6) -> list[CollectedSpan]:
    """Wait for so many spans of a trace; a callback that a request creates has six."""
    await until(lambda: len(collected.spans(trace_id)) >= count)
    spans = collected.spans(trace_id)
    assert len(spans) == count
    return spans


def path_to(span: CollectedSpan, spans: list[CollectedSpan]) -> list[tuple[str, str]]:
    """Return service and name of each span from the first one of the trace."""
    by_id = {each.span_id: each for each in spans}
    path = [span]
    while path[0].parent in by_id:
        path.insert(0, by_id[path[0].parent])
    return [(each.service.removeprefix("ringback-"), each.name) for each in path]


async def test_n14_the_spans_of_all_services_form_one_tree_down_to_the_attempt(
    call: Caller, receiver: Sandbox, collected: Collector
) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    mailbox = await receiver.mailbox()
    command = {
        "url": f"{mailbox}?token={CANARY}",
        "delay": 1,
        "context": CANARY,
        "hmac_secret": SECRET,
        "notify_scheme": {"transport": "http", "headers": {"Authorization": CANARY}},
    }
    created = await call("POST", "/v1/callbacks", command, traceparent=f"00-{trace_id}-{CALLER}-01")
    assert created.status == 201, created.text
    [webhook] = await receiver.webhooks(mailbox)

    spans = await spans_of(collected, trace_id)

    [attempt] = [each for each in spans if each.name == "POST"]
    assert path_to(attempt, spans) == [
        ("gateway", "POST /v1/callbacks"),
        ("gateway", "CreateCallback"),
        ("scheduler", "CreateCallback"),
        ("scheduler", "publish callbacks"),
        ("callback", "process callbacks"),
        ("callback", "POST"),
    ]
    assert [each.parent for each in spans if each.name == "POST /v1/callbacks"] == [CALLER]
    assert dict(webhook["headers"])["traceparent"].startswith(attempt.traceparent)
    assert attempt.attributes["http.response.status_code"] == 200
    assert attempt.attributes["ringback.id"] == created.json["id"]
    exported = b"".join(collected.bodies)
    assert CANARY.encode() not in exported
    assert SECRET.encode() not in exported


@pytest.mark.usefixtures("services")
async def test_n14_a_callback_that_is_scheduled_over_amqp_has_one_trace_too(
    receiver: Sandbox, collected: Collector, shared_amqp_url: str
) -> None:
    trace_id = "5af7651916cd43dd8448eb211c80319c"
    mailbox = await receiver.mailbox()
    async with schedules_client(shared_amqp_url) as client:
        await client.send(
            {"url": mailbox, "hmac_secret": SECRET, "delay": 0},
            headers={"traceparent": f"00-{trace_id}-{CALLER}-01"},
        )
    await receiver.webhooks(mailbox)
    spans = await spans_of(collected, trace_id, 4)
    [attempt] = [each for each in spans if each.name == "POST"]
    assert path_to(attempt, spans) == [
        ("scheduler", "process schedules"),
        ("scheduler", "publish callbacks"),
        ("callback", "process callbacks"),
        ("callback", "POST"),
    ]


@pytest.mark.usefixtures("services")
async def test_n14_the_attempts_of_a_retried_callback_are_siblings(
    receiver: Sandbox, collected: Collector, shared_amqp_url: str
) -> None:
    trace_id = "1af7651916cd43dd8448eb211c80319c"
    mailbox = await receiver.mailbox(behaviour={"kind": "fail", "status": 500}, times=1)
    async with broker_client(shared_amqp_url) as publisher:
        id_ = await publisher.send(
            send_callback(mailbox, retry={"delays": [1]}),
            headers={"traceparent": f"00-{trace_id}-{CALLER}-01"},
        )
    await receiver.webhooks(mailbox, count=2, webhook_id=id_)
    spans = await spans_of(collected, trace_id, 4)

    deliveries = {s.attributes["ringback.attempt"]: s for s in spans if s.name[:7] == "process"}
    attempts = {s.attributes["ringback.attempt"]: s for s in spans if s.name == "POST"}
    assert {each.parent for each in deliveries.values()} == {CALLER}
    assert {n: each.attributes["ringback.outcome"] for n, each in deliveries.items()} == {
        1: "retried",
        2: "done",
    }
    assert {n: each.failed for n, each in attempts.items()} == {1: True, 2: False}
    assert attempts[1].attributes["error.type"] == "500"
    assert {n: each.parent for n, each in attempts.items()} == {
        n: each.span_id for n, each in deliveries.items()
    }


async def test_n14_a_request_without_a_trace_begins_one_that_the_logs_contain(
    call: Caller, receiver: Sandbox, collected: Collector, services: System
) -> None:
    mailbox = await receiver.mailbox()
    created = await call("POST", "/v1/callbacks", {"url": mailbox, "hmac_secret": SECRET})
    [webhook] = await receiver.webhooks(mailbox)
    trace_id = dict(webhook["headers"])["traceparent"][3:35]
    spans = await spans_of(collected, trace_id)
    assert [each.name for each in spans if not each.parent] == ["POST /v1/callbacks"]
    [line] = services["callback"].logged("delivered", callback_id=created.json["id"])
    assert line["trace_id"] == trace_id
    [line] = services["gateway"].logged("http request", schedule_id=created.json["id"])
    assert line["trace_id"] == trace_id


async def test_n14_a_trace_that_the_caller_does_not_sample_has_no_spans(
    call: Caller, receiver: Sandbox, collected: Collector
) -> None:
    unsampled = f"00-2af7651916cd43dd8448eb211c80319c-{CALLER}-00"
    mailbox = await receiver.mailbox()
    await call(
        "POST", "/v1/callbacks", {"url": mailbox, "hmac_secret": SECRET}, traceparent=unsampled
    )
    [webhook] = await receiver.webhooks(mailbox)
    assert dict(webhook["headers"])["traceparent"] == unsampled
    # Spans of each process are exported in order, and these end later.
    later = "3af7651916cd43dd8448eb211c80319c"
    sampled = f"00-{later}-{CALLER}-01"
    await call(
        "POST", "/v1/callbacks", {"url": mailbox, "hmac_secret": SECRET}, traceparent=sampled
    )
    await spans_of(collected, later)
    assert collected.spans(unsampled[3:35]) == []


async def test_n14_a_page_of_the_console_begins_a_trace_and_a_live_part_does_not(
    database_url: str,
) -> None:
    given = {"traceparent": f"00-6af7651916cd43dd8448eb211c80319c-{CALLER}-01"}
    with collector() as other, exporting("console", other.url):
        async with running_console(database_url) as console, console.browser() as browser:
            for path in ("/clients/1?client=shop", "/live/overview", "/static/none.css"):
                url = console.origin + path
                async with browser.http.get(url, headers=given, allow_redirects=False):
                    pass
    [span] = other.spans()
    assert span.name == "GET /clients/{id}"
    assert span.service == "ringback-console"
    assert span.attributes["http.response.status_code"] == 303
    # Browsers send none, and strangers do not decide which traces are recorded.
    assert span.parent == ""
    assert span.trace_id not in given["traceparent"]


def test_n14_the_last_spans_are_exported_at_exit() -> None:
    with collector() as other:
        with exporting("test", other.url):
            assert active.tracer is not None
            span = active.tracer.start("last", "server", {}, parent=None, begin=True)
            assert span is not None
            span.end()
        assert [each.name for each in other.spans()] == ["last"]
        assert active.tracer is None


async def test_n14_without_a_collector_callbacks_are_delivered_and_processes_stop(
    shared_amqp_url: str, receiver: Sandbox, tmp_path: Path
) -> None:
    with collector() as gone:
        pass
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": gone.url,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "OTEL_BSP_SCHEDULE_DELAY": SOON,
    }
    with running(tmp_path, shared_amqp_url, settings) as service:
        await service.ready()
        mailbox = await receiver.mailbox()
        async with broker_client(shared_amqp_url) as publisher:
            for _ in range(20):
                await publisher.send(send_callback(mailbox))
        await receiver.webhooks(mailbox, count=20)
        failed = partial(service.metric, "ringback_spans_dropped_total", reason="failed")
        await until(failed)
        assert len(service.logged("spans dropped")) == 1
        service.signal(signal.SIGTERM)
        assert await service.exit_code() == 0
    assert json.dumps(service.lines).count(gone.url) == 0
